"""Reader of A-OKVQA: ``aokvqa_v1p0_train.json`` and its like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from embervlm.data.files import Pictures
from embervlm.data.formats.record import (
    MAX_TEXT_CHARACTERS,
    TEXT_TOO_LONG,
    Format,
    Ids,
    Ledger,
    Row,
    clean_line,
    coco_number,
    majority,
    split_of,
)
from embervlm.data.json_files import LINES, Head
from embervlm.data.json_stream import read_records

DATASET = "a_okvqa"

_NO_ANSWER = "no answer (a test record)"
_BAD_CHOICE = "correct_choice_idx names no choice"


class _Record(msgspec.Struct):
    split: Any = None
    image_id: Any = None
    question_id: Any = None
    question: Any = None
    choices: Any = None
    correct_choice_idx: Any = None
    direct_answers: Any = None


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row a question that has an answer.

    The answer is the choice that the publisher calls right, else the one most given in ``direct_answers``. A raw
    record, and the sample made of it::

        {"split": "train", "image_id": 299207, "question_id": "22MexNkBPpdZGX6sxbxVBH",
         "question": "What is the man by the bags awaiting?",
         "choices": ["skateboarder", "train", "delivery", "cab"], "correct_choice_idx": 3,
         "direct_answers": ["ride", "ride", "bus", ...], "rationales": [...], "difficult_direct_answer": false}

        Sample(id="a_okvqa/22MexNkBPpdZGX6sxbxVBH", dataset="a_okvqa", style="short_answer",
               image=Path(".../train2017/000000299207.jpg"),
               turns=(Turn("What is the man by the bags awaiting?", "cab"),), split="train")

    The record's own ``split`` decides between training and validation, else the file's name. Test records have neither
    answers nor a right choice.

    Raises:
        DataError: a file is damaged, or two of its records share an id.
    """
    for file in files:
        yield from _read(file, pictures, ledger)


def _read(file: Path, pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    tally = ledger[DATASET]
    tally.files.append(file)
    of_file, near = split_of(file.stem), file.parent
    ids = Ids(file, "records", "question_id")
    for block in read_records(file, _Record):
        for number, record in enumerate(block.records, block.start):
            tally.records += 1
            if not ids.add(record.question_id, number):
                tally.rejected["no question_id"] += 1
                continue
            question = clean_line(record.question)
            if question is None:
                tally.rejected["empty question"] += 1
                continue
            answer = _answer(record)
            if answer is None:
                tally.rejected[_NO_ANSWER if record.correct_choice_idx is None else _BAD_CHOICE] += 1
                continue
            if max(len(question), len(answer)) > MAX_TEXT_CHARACTERS:
                tally.rejected[TEXT_TOO_LONG] += 1
                continue
            tally.with_answer += 1
            image = coco_number(record.image_id)
            if image is None:
                tally.rejected["image_id is no number"] += 1
                continue
            split = split_of(record.split) if isinstance(record.split, str) else of_file
            name, place = f"{image:012d}.jpg", f"{file}: records[{number}]"
            hint = "train2017" if split == "train" else "val2017"
            picture = tally.picture(pictures, name, place, split_folder=hint, near=near)
            if picture is not None:
                yield Row(DATASET, record.question_id, "short_answer", split, picture, ((question, answer),))
    ids.check()


def _answer(record: _Record) -> str | None:
    place, choices = record.correct_choice_idx, record.choices
    if place is None:
        return majority(record.direct_answers)
    if type(place) is not int or not isinstance(choices, list) or not 0 <= place < len(choices):
        return None
    return clean_line(choices[place])


def _recognise(head: Head) -> bool:
    answers = {"direct_answers", "choices"} & head.first.keys()
    return head.key in ("", LINES) and {"image_id", "question_id", "question"} <= head.first.keys() and bool(answers)


FORMAT = Format(
    "A-OKVQA",
    (DATASET,),
    1,
    "a list of objects with 'image_id', 'question' and 'choices' or 'direct_answers'",
    _recognise,
    read,
)
