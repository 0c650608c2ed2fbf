"""Reader of VQA v2 and of OK-VQA, which has the same shape: a file of questions joined with a file of answers."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embervlm.data.files import ImageFolder
from embervlm.data.formats.record import (
    MAX_TEXT_CHARACTERS,
    TEXT_TOO_LONG,
    Format,
    Ledger,
    clean_line,
    split_folder_of,
    split_of,
)
from embervlm.data.json_files import Head, peek_json, read_json
from embervlm.data.sample import DataError, Sample, Turn

VQA = "vqa_v2"
OK_VQA = "ok_vqa"


class _Question(NamedTuple):
    id: Any
    image_id: Any
    text: Any


class _Annotation(NamedTuple):
    id: Any
    image_id: Any
    answer: str | None
    has_raw_answers: bool


class _Answer(NamedTuple):
    text: Any
    is_raw: bool


class _Answers(NamedTuple):
    """One annotation file: by question id what the answer is and, where the file says so, about which picture."""

    file: Path
    dataset: str
    by_question: dict[Any, tuple[str | None, Any]]


class _Questions(NamedTuple):
    file: Path
    subtype: str | None
    records: list[Any]


def read(files: Sequence[Path], images: ImageFolder, ledger: Ledger) -> Iterator[Sample]:
    """Yield one sample a question that has an answer.

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
    question_files: list[Path] = []
    annotation_files: list[Path] = []
    for file in files:
        head = peek_json(file)
        (annotation_files if head is not None and head.key == "annotations" else question_files).append(file)
    answers = [_read_answers(file) for file in annotation_files]
    questions = [_read_questions(file) for file in question_files]
    pairs = _pairs(questions, answers)
    for candidate in answers:
        if not any(join is candidate for _, join in pairs):
            ledger[VQA].notes.append(f"{candidate.file}: annotations passed over, no question file belongs to them")
    for group, join in pairs:
        if join is None:
            ledger[VQA].notes.append(
                f"{group.file}: {len(group.records):,} questions passed over, no annotation file answers them"
            )
            continue
        yield from _joined(group, join, images, ledger)
        group.records.clear()


def _joined(questions: _Questions, answers: _Answers, images: ImageFolder, ledger: Ledger) -> Iterator[Sample]:
    dataset = answers.dataset
    tally = ledger[dataset]
    tally.files += [questions.file, answers.file]
    subtype = questions.subtype or split_folder_of(questions.file.stem)
    split = split_of(f"{questions.file.stem} {subtype or ''}")
    prefix = f"COCO_{subtype}_" if subtype else ""
    near = questions.file.parent
    seen: set[int | str] = set()
    for number, question in enumerate(questions.records):
        place = f"{questions.file}: questions[{number}]"
        tally.records += 1
        if not isinstance(question, _Question) or not isinstance(question.id, (int, str)):
            tally.rejected["no question or question_id"] += 1
            continue
        if question.id in seen:
            raise DataError(f"{place}: question_id {question.id!r} occurs twice")
        seen.add(question.id)
        text = clean_line(question.text)
        if text is None:
            tally.rejected["empty question"] += 1
            continue
        if question.id not in answers.by_question:
            tally.rejected["question without annotation"] += 1
            continue
        answer, answered_image = answers.by_question[question.id]
        if answer is None:
            tally.rejected["annotation without answer"] += 1
            continue
        if max(len(text), len(answer)) > MAX_TEXT_CHARACTERS:
            tally.rejected[TEXT_TOO_LONG] += 1
            continue
        tally.with_answer += 1
        image_id = question.image_id
        if answered_image is not None and answered_image != image_id:
            tally.rejected["question and annotation name different pictures"] += 1
            continue
        if isinstance(image_id, str) and re.fullmatch("[0-9]{1,12}", image_id):
            image_id = int(image_id)
        if not isinstance(image_id, int) or image_id < 0:
            tally.rejected["image_id is no number"] += 1
            continue
        name = f"{prefix}{image_id:012d}.jpg"
        image = tally.picture(images, name, place, split_folder=subtype, near=near)
        if image is not None:
            yield Sample(f"{dataset}/{question.id}", dataset, "short_answer", image, (Turn(text, answer),), split)


def _pairs(questions: list[_Questions], answers: list[_Answers]) -> list[tuple[_Questions, _Answers | None]]:
    """Join each question file with at most one annotation file, the best agreement first.

    Names are no guide (VQA v1, v2 and OK-VQA share them, and folders may be called anything), question ids are. Where
    several agree equally the same folder decides.
    """
    agreements: list[tuple[float, bool, int, int]] = []
    for q, group in enumerate(questions):
        usable = (record for record in group.records if isinstance(record, _Question))
        ids = {record.id for record in usable if isinstance(record.id, (int, str))}
        for a, candidate in enumerate(answers):
            shared = len(ids & candidate.by_question.keys())
            if shared:
                agreement = shared / len(ids) + shared / len(candidate.by_question)
                agreements.append((-agreement, group.file.parent != candidate.file.parent, q, a))
    chosen: dict[int, int] = {}
    for _, _, q, a in sorted(agreements):
        if q not in chosen and a not in chosen.values():
            chosen[q] = a
    return [(group, answers[chosen[q]] if q in chosen else None) for q, group in enumerate(questions)]


def _read_questions(file: Path) -> _Questions:
    document = read_json(file, shrink=_shrink_questions)
    if not isinstance(document, dict) or not isinstance(document.get("questions"), list):
        raise DataError(f"{file}: expected an object with the list 'questions'")
    subtype = document.get("data_subtype")
    # It becomes part of a file name, so nothing but a split's name is taken.
    usable = isinstance(subtype, str) and re.fullmatch(r"(?:train|val|test)[0-9]{4}", subtype)
    return _Questions(file, subtype if usable else None, document["questions"])


def _read_answers(file: Path) -> _Answers:
    document = read_json(file, shrink=_shrink_annotations)
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise DataError(f"{file}: expected an object with the list 'annotations'")
    by_question: dict[Any, tuple[str | None, Any]] = {}
    dataset = VQA
    for number, record in enumerate(document["annotations"]):
        if not isinstance(record, _Annotation) or not isinstance(record.id, (int, str)):
            raise DataError(f"{file}: annotations[{number}]: expected 'question_id', found {record!r:.80}")
        if record.id in by_question:
            raise DataError(f"{file}: annotations[{number}]: question_id {record.id!r} occurs twice")
        by_question[record.id] = (record.answer, record.image_id)
        if record.has_raw_answers:
            dataset = OK_VQA
    return _Answers(file, dataset, by_question)


def _recognise(head: Head) -> bool:
    if "question_id" not in head.first:
        return False
    if head.key == "questions":
        return "question" in head.first
    return head.key == "annotations" and ("answers" in head.first or "multiple_choice_answer" in head.first)


def _shrink_questions(found: dict[str, Any]) -> Any:
    if "question_id" in found:
        return _Question(found["question_id"], found.get("image_id"), found.get("question"))
    return found


def _shrink_annotations(found: dict[str, Any]) -> Any:
    if "question_id" in found:
        answers = found.get("answers")
        answers = answers if isinstance(answers, list) else []
        answer = clean_line(found.get("multiple_choice_answer")) or _majority(answers)
        raw = any(isinstance(given, _Answer) and given.is_raw for given in answers)
        return _Annotation(found["question_id"], found.get("image_id"), answer and sys.intern(answer), raw)
    if "answer" in found:
        return _Answer(found["answer"], "raw_answer" in found)
    return found


def _majority(answers: list[Any]) -> str | None:
    """The answer most given; among equals the first (a Counter keeps the order in which it saw them)."""
    texts = (clean_line(given.text if isinstance(given, _Answer) else given) for given in answers)
    most = Counter(text for text in texts if text is not None).most_common(1)
    return most[0][0] if most else None


FORMAT = Format("VQA v2 or OK-VQA", 1, "'questions' and 'annotations' that share 'question_id'", _recognise, read)
