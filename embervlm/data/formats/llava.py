"""Reader of LLaVA-Instruct and mixes in its format: conversations of several turns about a picture, or about none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embervlm.data.files import ImageFolder
from embervlm.data.formats.record import MAX_TEXT_CHARACTERS, TEXT_TOO_LONG, Format, Ledger, clean_text, split_of
from embervlm.data.json_files import Head, read_json
from embervlm.data.sample import DataError, Sample, Turn

DATASET = "llava"
MAX_TURNS = 200

_ASKS = ("human", "user")
_ANSWERS = ("gpt", "assistant")
_PLACEHOLDER = "<image>"


def read(files: Sequence[Path], images: ImageFolder, ledger: Ledger) -> Iterator[Sample]:
    r"""Yield one sample a conversation, with all its turns.

    A raw record, and the sample made of it when it stands first in its file::

        {"id": "000000033471", "image": "000000033471.jpg", "conversations": [
          {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
          {"from": "gpt", "value": "The bus in the image is white and red."}, ...]}

        Sample(id="llava/llava_instruct_150k.json[0]", dataset="llava", style="chat",
               image=Path(".../train2017/000000033471.jpg"),
               turns=(Turn("What are the colors of the bus in the image?",
                           "The bus in the image is white and red."), ...), split="train")

    The record's own id is no key (one picture has several records), so the place in the file is used. A record without
    ``image`` is a conversation about text.

    Raises:
        DataError: a file is damaged, or a picture's name leaves the data folder.
    """
    tally = ledger[DATASET]
    for file in files:
        document = read_json(file)
        if not isinstance(document, list):
            raise DataError(f"{file}: expected a list of conversations")
        tally.files.append(file)
        split, near = split_of(file.stem), file.parent
        for number, record in enumerate(document):
            place = f"{file}: record {number}"
            tally.records += 1
            turns = _turns(record)
            if isinstance(turns, str):
                tally.rejected[turns] += 1
                continue
            tally.with_answer += 1
            image = None
            if record.get("image") is not None:
                name = record["image"]
                if isinstance(name, list):
                    tally.rejected["more than one picture"] += 1
                    continue
                image = tally.picture(images, name, place, split_folder=None, near=near)
                if image is None:
                    continue
            yield Sample(f"{DATASET}/{file.name}[{number}]", DATASET, "chat", image, turns, split)


def _turns(record: Any) -> tuple[Turn, ...] | str:
    """The record's turns, or the reason why it has to be left out."""
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        return "no list of conversations"
    messages = record["conversations"]
    if not messages or len(messages) > 2 * MAX_TURNS:
        return f"no turns, or more than {MAX_TURNS}"
    if len(messages) % 2:
        return "the last question has no answer"
    texts: list[str] = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            return "a turn is no object"
        if message.get("from") not in (_ANSWERS if number % 2 else _ASKS):
            return "roles do not alternate between human and gpt"
        text = clean_text(message.get("value"))
        if text is not None and number == 0 and _PLACEHOLDER in text:
            if record.get("image") is None:
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
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))


def _recognise(head: Head) -> bool:
    messages = head.first.get("conversations")
    if head.key or not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return False
    # Other sets keep their pictures under another key; read as LLaVA's they would all be conversations about nothing.
    other_picture_key = any("image" in key and key != "image" for key in head.first)
    return {"from", "value"} <= messages[0].keys() and ("image" in head.first or not other_picture_key)


FORMAT = Format("LLaVA-Instruct", 2, "a list of objects with 'conversations' of 'from' and 'value'", _recognise, read)
