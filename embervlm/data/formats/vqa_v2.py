"""Reader of VQA v2 and of OK-VQA, which has the same shape: a file of questions joined with a file of answers."""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

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
    split_folder_of,
    split_of,
)
from embervlm.data.json_files import Head, peek_json
from embervlm.data.json_stream import plain, read_lists
from embervlm.data.sample import DataError

VQA = "vqa_v2"
OK_VQA = "ok_vqa"

_NO_NUMBER = -1


class _Question(msgspec.Struct, gc=False):
    question_id: Any = None
    image_id: Any = None
    question: Any = None


class _Annotation(msgspec.Struct, gc=False):
    question_id: Any = None
    image_id: Any = None
    multiple_choice_answer: Any = None
    answers: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(slots=True)
class _Answers:
    """One annotation file: by question id what the answer is and about which picture, -1 where it does not say."""

    file: Path
    dataset: str
    ids: pa.Array
    images: array[int]
    answers: array[int]  # places in texts
    texts: list[str | None]


@dataclass(slots=True)
class _Questions:
    """One question file. A question that cannot be used has None for its text, with the reason in ``reasons``."""

    file: Path
    subtype: str | None
    ids: pa.Array
    images: array[int]
    texts: pa.ChunkedArray
    reasons: dict[int, str]


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row a question that has an answer.

    The answer is ``multiple_choice_answer``, else the one most given in ``answers``, the first given among equals. Each
    question file is joined with the annotation file that answers most of its questions. A raw question, its annotation
    and the sample made of them::

        {"data_subtype": "train2014",
         "questions": [{"question_id": 984000, "image_id": 984, "question": "What is the boy reaching for?"}]}
        {"annotations": [{"question_id": 984000, "image_id": 984, "multiple_choice_answer": "banana",
                          "answers": [{"answer": "bananas", "answer_confidence": "yes", "answer_id": 1}, ...]}]}

        Sample(id="vqa_v2/984000", dataset="vqa_v2", style="short_answer",
               image=Path(".../train2014/COCO_train2014_000000000984.jpg"),
               turns=(Turn("What is the boy reaching for?", "banana"),), split="train")

    Annotations whose answers hold ``raw_answer`` are OK-VQA's, and the data set's name is then ``ok_vqa``. Question
    files without annotations (test files) are passed over with a note.

    Raises:
        DataError: a file is damaged, or two of its records share an id.
    """
    questions: list[_Questions] = []
    answers: list[_Answers] = []
    for file in files:
        head = peek_json(file)
        if head is not None and head.key == "annotations":
            answers.append(_read_answers(file, head))
        else:
            questions.append(_read_questions(file))
    pairs = _pairs(questions, answers)
    questions.clear()
    for candidate in answers:
        if not any(join is candidate for _, join in pairs):
            ledger[VQA].notes.append(f"{candidate.file}: annotations passed over, no question file belongs to them")
    answers.clear()
    while pairs:  # each pair's memory is given back before the next
        group, join = pairs.pop(0)
        if join is None:
            ledger[VQA].notes.append(
                f"{group.file}: {len(group.ids):,} questions passed over, no annotation file answers them"
            )
            continue
        yield from _joined(group, join, pictures, ledger)


def _joined(questions: _Questions, answers: _Answers, pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    dataset = answers.dataset
    tally = ledger[dataset]
    tally.files += [questions.file, answers.file]
    subtype = questions.subtype or split_folder_of(questions.file.stem)
    split = split_of(f"{questions.file.stem} {subtype or ''}")
    prefix = f"COCO_{subtype}_" if subtype else ""
    near = questions.file.parent
    found: dict[int, int | None] = {}  # by image_id
    matches = array("q", pc.index_in(questions.ids, value_set=answers.ids).fill_null(-1).cast(pa.int64()).to_pylist())
    number = -1
    for chunk in questions.texts.iterchunks():
        for text, id in zip(
            chunk.to_pylist(), questions.ids[number + 1 : number + 1 + len(chunk)].to_pylist(), strict=True
        ):
            number += 1
            tally.records += 1
            if text is None:
                tally.rejected[questions.reasons[number]] += 1
                continue
            match = matches[number]
            if match < 0:
                tally.rejected["question without annotation"] += 1
                continue
            answer = answers.texts[answers.answers[match]]
            if answer is None:
                tally.rejected["annotation without answer"] += 1
                continue
            if max(len(text), len(answer)) > MAX_TEXT_CHARACTERS:
                tally.rejected[TEXT_TOO_LONG] += 1
                continue
            tally.with_answer += 1
            image, answered_image = questions.images[number], answers.images[match]
            if answered_image not in (_NO_NUMBER, image):
                tally.rejected["question and annotation name different pictures"] += 1
                continue
            if image == _NO_NUMBER:
                tally.rejected["image_id is no number"] += 1
                continue
            if image not in found:
                place = f"{questions.file}: questions[{number}]"
                name = f"{prefix}{image:012d}.jpg"
                found[image] = pictures.find(name, place, split_folder=subtype, near=near, again=False)
            picture = found[image]
            if picture is None:
                tally.count_picture(None, f"{prefix}{image:012d}.jpg")
            else:
                tally.with_image += 1
                yield Row(dataset, id, "short_answer", split, picture, ((text, answer),))


def _pairs(questions: list[_Questions], answers: list[_Answers]) -> list[tuple[_Questions, _Answers | None]]:
    """Join each question file with at most one annotation file, the best agreement first.

    Names are no guide (VQA v1, v2 and OK-VQA share them, and folders may be called anything), question ids are. Where
    several agree equally the same folder decides.
    """
    agreements: list[tuple[float, bool, int, int]] = []
    for q, group in enumerate(questions):
        for a, candidate in enumerate(answers):
            shared = pc.sum(pc.is_in(group.ids, value_set=candidate.ids)).as_py() or 0
            if shared:
                agreement = shared / len(group.ids) + shared / len(candidate.ids)
                agreements.append((-agreement, group.file.parent != candidate.file.parent, q, a))
    chosen: dict[int, int] = {}
    for _, _, q, a in sorted(agreements):
        if q not in chosen and a not in chosen.values():
            chosen[q] = a
    return [(group, answers[chosen[q]] if q in chosen else None) for q, group in enumerate(questions)]


def _read_questions(file: Path) -> _Questions:
    check = Ids(file, "questions", "question_id")
    ids, images, texts = [], array("q"), []
    reasons: dict[int, str] = {}
    values: dict[str, Any] = {}
    for block in read_lists(file, {"questions": _Question}, values):
        cleaned: list[str | None] = []
        for number, record in enumerate(block.records, block.start):
            text = clean_line(record.question)
            if not check.add(record.question_id, number):
                text, reasons[number] = None, "no question or question_id"
            elif text is None:
                reasons[number] = "empty question"
            cleaned.append(text)
            images.append(_image_number(record.image_id))
        texts.append(pa.array(cleaned, pa.string()))
        ids.append(_id_array([record.question_id for record in block.records]))
    check.check()
    subtype = values.get("data_subtype")
    # It becomes part of a file name, so nothing but a split's name is taken.
    usable = isinstance(subtype, str) and re.fullmatch(r"(?:train|val|test)[0-9]{4}", subtype)
    joined = pa.chunked_array(texts, pa.string())
    return _Questions(
        file, subtype if usable else None, pa.concat_arrays(ids or [_id_array([])]), images, joined, reasons
    )


def _read_answers(file: Path, head: Head) -> _Answers:
    check = Ids(file, "annotations", "question_id")
    ids, images, answers = [], array("q"), array("q")
    places: dict[str | None, int] = {}
    given = head.first.get("answers")
    is_ok_vqa = isinstance(given, list) and any(isinstance(each, dict) and "raw_answer" in each for each in given)
    for block in read_lists(file, {"annotations": _Annotation}):
        for number, record in enumerate(block.records, block.start):
            if not check.add(record.question_id, number):
                raise DataError(
                    f"{file}: annotations[{number}]: expected 'question_id', found {record.question_id!r:.80}"
                )
            answer = clean_line(record.multiple_choice_answer) or majority(plain(record.answers))
            answers.append(places.setdefault(answer if answer is None else sys.intern(answer), len(places)))
            images.append(_NO_NUMBER if record.image_id is None else _image_number(record.image_id))
        ids.append(_id_array([record.question_id for record in block.records]))
    check.check()
    dataset = OK_VQA if is_ok_vqa else VQA
    return _Answers(file, dataset, pa.concat_arrays(ids or [_id_array([])]), images, answers, list(places))


def _id_array(ids: list[Any]) -> pa.Array:
    """Ids as text, since a file may have numbers and texts; what is no id is null."""
    return pa.array([str(id) if isinstance(id, (int, str)) else None for id in ids], pa.string())


def _image_number(image_id: Any) -> int:
    number = coco_number(image_id)
    return _NO_NUMBER if number is None else number


def _recognise(head: Head) -> bool:
    if "question_id" not in head.first:
        return False
    if head.key == "questions":
        return "question" in head.first
    return head.key == "annotations" and ("answers" in head.first or "multiple_choice_answer" in head.first)


FORMAT = Format(
    "VQA v2 or OK-VQA",
    (VQA, OK_VQA),
    1,
    "'questions' and 'annotations' that share 'question_id'",
    _recognise,
    read,
)
