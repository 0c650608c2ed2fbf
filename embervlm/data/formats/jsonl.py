"""Reader of one's own data: plain JSON objects, one a line, of captions and questions or of conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from embervlm.data.files import Pictures
from embervlm.data.formats.names import distinct_names
from embervlm.data.formats.record import (
    MAX_TEXT_CHARACTERS,
    NO_PICTURE,
    TEXT_TOO_LONG,
    Format,
    Ids,
    Ledger,
    Row,
    clean_line,
    clean_text,
    split_of,
)
from embervlm.data.json_files import LINES, Head, StrictDecoder, numbered_lines, peek_json, read_json
from embervlm.data.sample import DataError, Split, Style

DATASET, CHAT_DATASET = "own", "own_chat"
MAX_TURNS = 200
MAX_LINE_BYTES = 4 * 1024**2
MAX_LIST_BYTES = 256 * 1024**2

_KEYS = ("image", "caption", "question", "answer", "turns", "id", "split")
_TURN_KEYS = ("question", "answer")
_SPLITS: tuple[Split, ...] = ("train", "validation")

_OTHERS = frozenset(
    {"question_id", "image_id", "conversations", "instruction", "bbox", "solution", "image_name", "task"}
)

Turns = tuple[tuple[str, str], ...]


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row a caption or question.

    Two raw lines, and the samples made of them when they stand first in ``mine.jsonl``::

        {"image": "a.jpg", "caption": "A pump room under water."}
        {"image": "b.jpg", "question": "Is the door open?", "answer": "no", "id": "b-1", "split": "validation"}

        Sample(id="own/mine.jsonl[0]", dataset="own", style="caption", image=Path(".../a.jpg"),
               turns=(Turn("", "A pump room under water."),), split="train")
        Sample(id="own/mine.jsonl/b-1", dataset="own", style="short_answer", image=Path(".../b.jpg"),
               turns=(Turn("Is the door open?", "no"),), split="validation")

    ``image`` is a name below the data folder. ``id`` and ``split`` may be left out: the place in the file and the
    file's name then decide. The same objects in a list make a ``.json`` file.

    Raises:
        DataError: a file is damaged, a key is not one of these (a misspelt one would go unnoticed), ``split`` is
            neither train nor validation, two records share an id, or a picture's name leaves the data folder.
    """
    for file, name in distinct_names(files).items():
        for number, place, record in _records(file, ledger, DATASET):
            tally = ledger[DATASET]
            made = _caption_or_question(record)
            if isinstance(made, str):
                tally.rejected[made] += 1
                continue
            tally.with_answer += 1
            if record.get("image") is None:
                tally.rejected["no image"] += 1
                continue
            picture = tally.picture(pictures, record["image"], place, split_folder=None, near=file.parent)
            if picture is not None:
                style: Style = "short_answer" if made[0] else "caption"
                yield Row(DATASET, _id(record, name, number), style, _split(record, file, place), picture, (made,))


def read_chats(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row a conversation.

    A raw line, and the sample made of it when it stands first in ``talks.jsonl``::

        {"image": "a.jpg", "turns": [{"question": "What is this?", "answer": "A pump."},
                                     {"question": "Does it run?", "answer": "It stands still."}]}

        Sample(id="own_chat/talks.jsonl[0]", dataset="own_chat", style="chat", image=Path(".../a.jpg"),
               turns=(Turn("What is this?", "A pump."), Turn("Does it run?", "It stands still.")), split="train")

    ``image`` may be left out: the conversation is then about text. For ``id``, ``split`` and lists see :func:`read`.

    Raises:
        DataError: as :func:`read`.
    """
    for file, name in distinct_names(files).items():
        for number, place, record in _records(file, ledger, CHAT_DATASET):
            tally = ledger[CHAT_DATASET]
            turns = _turns(record, place)
            if isinstance(turns, str):
                tally.rejected[turns] += 1
                continue
            tally.with_answer += 1
            picture: int | None = NO_PICTURE
            if record.get("image") is not None:
                picture = tally.picture(pictures, record["image"], place, split_folder=None, near=file.parent)
            if picture is not None:
                yield Row(CHAT_DATASET, _id(record, name, number), "chat", _split(record, file, place), picture, turns)


def _records(file: Path, ledger: Ledger, dataset: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, place and object of each record, its keys checked and counted; those that are no objects are rejected."""
    tally = ledger[dataset]
    tally.files.append(file)
    ids = Ids(file, "records", "id")
    head = peek_json(file)
    in_lines = file.suffix.lower() == ".jsonl" if head is None else head.key == LINES
    for number, (place, record) in enumerate(_lines(file) if in_lines else _elements(file)):
        tally.records += 1
        if not isinstance(record, dict):
            tally.rejected["the record is no object"] += 1
            continue
        _check_keys(record, _KEYS, place)
        if record.get("id") is not None and not ids.add(record["id"], number):
            raise DataError(f"{place}: expected text or a whole number for 'id', found {record['id']!r:.60}")
        _split(record, file, place)
        yield number, place, record
    ids.check()


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    strict = StrictDecoder(file)
    for number, line in numbered_lines(file, MAX_LINE_BYTES):
        if line.strip():
            yield f"{file}: line {number}", strict.line(line, number)


def _elements(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: cannot read the file ({error.strerror or error})") from None
    if size > MAX_LIST_BYTES:
        raise DataError(f"{file}: a list of {size:,} bytes. Cure: write one object a line, which may be of any size")
    found = read_json(file, max_bytes=MAX_LIST_BYTES)
    if not isinstance(found, list):
        raise DataError(f"{file}: expected a list of objects")
    for number, record in enumerate(found):
        yield f"{file}: record {number}", record


def _check_keys(record: dict[str, Any], known: Sequence[str], place: str) -> None:
    for key in record:
        if key not in known:
            near = get_close_matches(key, known, 1, 0.5)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"{place}: unknown key {key!r:.60}; {meant}Known keys: {', '.join(known)}")


def _split(record: dict[str, Any], file: Path, place: str) -> Split:
    given = record.get("split")
    if given is None:
        return split_of(file.stem)
    for split in _SPLITS:
        if given == split:
            return split
    raise DataError(f"{place}: expected train or validation for 'split', found {given!r:.60}")


def _id(record: dict[str, Any], name: str, number: int) -> str:
    return f"{name}[{number}]" if record.get("id") is None else f"{name}/{record['id']}"


def _caption_or_question(record: dict[str, Any]) -> tuple[str, str] | str:
    """Question and answer of a record, the question empty for a caption, or the reason why there are none."""
    caption, question, answer = (record.get(key) for key in ("caption", "question", "answer"))
    if record.get("turns") is not None:
        return "turns in a file of captions and questions; put them into a file of their own"
    if caption is not None and (question is not None or answer is not None):
        return "a caption and a question in one record"
    if caption is None and question is None and answer is None:
        return "neither caption nor question"
    if caption is None and (question is None or answer is None):
        return "an answer without question" if question is None else "a question without answer"
    texts = clean_line(caption if question is None else question), clean_line(caption if answer is None else answer)
    if texts[0] is None or texts[1] is None:
        return "empty text"
    if max(len(texts[0]), len(texts[1])) > MAX_TEXT_CHARACTERS:
        return TEXT_TOO_LONG
    return ("" if question is None else texts[0]), texts[1]


def _turns(record: dict[str, Any], place: str) -> Turns | str:
    """A conversation's turns, or the reason why there are none."""
    given = record.get("turns")
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_TURNS:
        return f"no turns, or more than {MAX_TURNS}"
    if any(record.get(key) is not None for key in ("caption", "question", "answer")):
        return "a caption or question beside turns"
    turns = []
    for number, turn in enumerate(given):
        if not isinstance(turn, dict):
            return "a turn is no object"
        _check_keys(turn, _TURN_KEYS, f"{place}: turns[{number}]")
        question, answer = clean_text(turn.get("question")), clean_text(turn.get("answer"))
        if question is None or answer is None:
            return "a turn lacks its question or answer"
        if max(len(question), len(answer)) > MAX_TEXT_CHARACTERS:
            return TEXT_TOO_LONG
        turns.append((question, answer))
    return tuple(turns)


def _is_own(head: Head) -> bool:
    # A record with a key more may still be meant; the reader then says which key it does not know. Other publishers'
    # records are told by theirs.
    return head.key in ("", LINES) and not _OTHERS & head.first.keys()


def _recognise(head: Head) -> bool:
    told = {"caption", "question", "answer"} & head.first.keys()
    return _is_own(head) and "turns" not in head.first and "image" in head.first and bool(told)


def _recognise_chats(head: Head) -> bool:
    return _is_own(head) and isinstance(head.first.get("turns"), list)


FORMAT = Format(
    "own data",
    (DATASET,),
    1,
    "lines of objects with 'image' and 'caption', or 'image', 'question' and 'answer'",
    _recognise,
    read,
)
CHAT_FORMAT = Format(
    "own conversations",
    (CHAT_DATASET,),
    2,
    "lines of objects with 'turns' of 'question' and 'answer', and perhaps 'image'",
    _recognise_chats,
    read_chats,
)
