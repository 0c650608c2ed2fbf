"""Reader of LLaVA-Instruct and mixes in its format: conversations of several turns about a picture, or about none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from embervlm.data.files import Pictures
from embervlm.data.formats.record import (
    MAX_TEXT_CHARACTERS,
    NO_PICTURE,
    TEXT_TOO_LONG,
    Format,
    Ledger,
    Row,
    clean_text,
    split_of,
)
from embervlm.data.json_files import LINES, Head
from embervlm.data.json_stream import read_records

DATASET = "llava"
MAX_TURNS = 200

_ASKS = ("human", "user")
_ANSWERS = ("gpt", "assistant")
_PLACEHOLDER = "<image>"


class _Turn(msgspec.Struct, gc=False):
    source: Any = msgspec.field(default=None, name="from")
    value: Any = None


class _Record(msgspec.Struct, gc=False):
    image: Any = None
    input_image: Any = None
    conversations: list[_Turn] | None = None


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    r"""Yield one row a conversation, with all its turns.

    A raw record, and the sample made of it when it stands first in its file::

        {"id": "000000033471", "image": "000000033471.jpg", "conversations": [
          {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
          {"from": "gpt", "value": "The bus in the image is white and red."}, ...]}

        Sample(id="llava/llava_instruct_150k.json[0]", dataset="llava", style="chat",
               image=Path(".../train2017/000000033471.jpg"),
               turns=(Turn("What are the colors of the bus in the image?",
                           "The bus in the image is white and red."), ...), split="train")

    The record's own id is no key (one picture has several records), so the place in the file is used. A record without
    ``image`` is a conversation about text. NExT-GPT's files call the picture ``input_image``.

    Raises:
        DataError: a file is damaged, or a picture's name leaves the data folder.
    """
    tally = ledger[DATASET]
    for file in files:
        tally.files.append(file)
        split, near = split_of(file.stem), file.parent
        for block in read_records(file, _Record, nested=(("from", "value"), _turn_count)):
            for number, record in enumerate(block.records, block.start):
                tally.records += 1
                name = record.image if record.image is not None else record.input_image
                turns = _turns(record.conversations, has_image=name is not None)
                if isinstance(turns, str):
                    tally.rejected[turns] += 1
                    continue
                tally.with_answer += 1
                picture: int | None = NO_PICTURE
                if name is not None:
                    if isinstance(name, list):
                        tally.rejected["more than one picture"] += 1
                        continue
                    picture = tally.picture(pictures, name, f"{file}: record {number}", split_folder=None, near=near)
                if picture is not None:
                    yield Row(DATASET, f"{file.name}[{number}]", "chat", split, picture, turns)


def _turn_count(record: _Record) -> int:
    return len(record.conversations) if isinstance(record.conversations, list) else 0


def _turns(messages: Any, *, has_image: bool) -> list[tuple[str, str]] | str:
    """The record's turns, or the reason why it has to be left out."""
    if not isinstance(messages, list):
        return "no list of conversations"
    if not messages or len(messages) > 2 * MAX_TURNS:
        return f"no turns, or more than {MAX_TURNS}"
    if len(messages) % 2:
        return "the last question has no answer"
    texts: list[str] = []
    for number, message in enumerate(messages):
        if isinstance(message, dict):  # of a block that had to be read record by record
            message = _Turn(message.get("from"), message.get("value"))
        if not isinstance(message, _Turn):
            return "a turn is no object"
        if message.source not in (_ANSWERS if number % 2 else _ASKS):
            return "roles do not alternate between human and gpt"
        text = clean_text(message.value)
        if text is not None and number == 0 and _PLACEHOLDER in text:
            if not has_image:
                return f"{_PLACEHOLDER} in the text, but no picture is named"
            first = text.startswith(_PLACEHOLDER)
            text = clean_text(text.removeprefix(_PLACEHOLDER) if first else text.removesuffix(_PLACEHOLDER))
        if text is None:
            return "empty text"
        if _PLACEHOLDER in text:
            return f"{_PLACEHOLDER} elsewhere than first or last in the first question"
        if len(text) > MAX_TEXT_CHARACTERS:
            return TEXT_TOO_LONG
        texts.append(text)
    return list(zip(texts[::2], texts[1::2], strict=True))


def _recognise(head: Head) -> bool:
    messages = head.first.get("conversations")
    if (
        head.key not in ("", LINES)
        or not isinstance(messages, list)
        or not messages
        or not isinstance(messages[0], dict)
    ):
        return False
    # Other sets keep their pictures under another key; read as LLaVA's they would all be conversations about nothing.
    known = {"image", "input_image"} & head.first.keys()
    return {"from", "value"} <= messages[0].keys() and (bool(known) or not any("image" in key for key in head.first))


FORMAT = Format(
    "LLaVA-Instruct",
    (DATASET,),
    2,
    "a list of objects with 'conversations' of 'from' and 'value'",
    _recognise,
    read,
)
