"""GQA's reader on real questions: exact numbers and texts, what it leaves out and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.files import Pictures
from embervlm.data.formats import gqa
from embervlm.data.formats.record import Ledger, Row, Tally
from embervlm.data.json_files import peek_json
from embervlm.data.sample import DataError


def _read(root: Path, *files: Path) -> tuple[list[Row], Tally, Pictures]:
    ledger, pictures = Ledger(), Pictures.of(root)
    return list(gqa.read(files, pictures, ledger)), ledger["gqa"], pictures


def _write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("name", "records", "with_image", "split", "first_missing"),
    [
        ("val_balanced_questions.json", 400, 2, "validation", "2356112.jpg"),
        ("testdev_balanced_questions.json", 400, 13, "validation", "n54424.jpg"),
        ("allennlp_gqa_questions.json", 2, 2, "train", None),
    ],
)
def test_the_fixture(
    shared: Path, name: str, records: int, with_image: int, split: str, first_missing: str | None
) -> None:
    folder = shared / "fixtures/gqa"
    rows, tally, _ = _read(folder, folder / name)
    assert (tally.records, tally.with_answer, tally.with_image) == (records, records, with_image)
    assert (tally.missing_images, dict(tally.rejected)) == (records - with_image, {})
    assert (len(rows), {row.split for row in rows}, tally.first_missing) == (with_image, {split}, first_missing)


def test_text_and_picture_of_the_fixture(shared: Path) -> None:
    folder = shared / "fixtures/gqa"
    rows, _, pictures = _read(folder, folder / "val_balanced_questions.json")
    assert rows[0]._replace(picture=0) == (
        "gqa",
        "05515822",
        "short_answer",
        "validation",
        0,
        (("What is the color of the fence on the left of the picture?", "silver"),),
    )
    assert pictures[rows[0].picture] == (folder / "images/2405722.jpg").resolve()
    rows, _, pictures = _read(folder, folder / "allennlp_gqa_questions.json")
    assert [(row.id, row.turns[0][1], Path(str(pictures[row.picture])).name) for row in rows] == [
        ("202218649", "picture", "n578564.jpg"),
        ("20240871", "yes", "n166008.jpg"),
    ]


def test_answers_and_image_ids(tmp_path: Path) -> None:
    (tmp_path / "12.jpg").write_bytes(b"")
    questions = {
        "1": {"imageId": "12", "question": " What \n is it?", "answer": "a  cat", "fullAnswer": "It is a cat."},
        "2": {"imageId": 12, "question": "What?", "fullAnswer": "It is a dog."},
        "3": {"imageId": "12", "question": "What?", "answer": None, "fullAnswer": "A cow."},
        "4": {"imageId": "12", "question": "What?", "answer": ["cat"], "fullAnswer": "A cow."},
        "5": {"imageId": "12", "question": "What?", "answer": " ", "fullAnswer": "A hen."},
        "6": {"imageId": "12", "question": "What?", "answer": " ", "fullAnswer": "A fox."},
    }
    rows, tally, _ = _read(tmp_path, _write(tmp_path / "train_all_questions_3.json", questions))
    assert [(row.id, row.split, row.turns) for row in rows] == [
        ("1", "train", (("What is it?", "a cat"),)),
        ("2", "train", (("What?", "It is a dog."),)),
        ("3", "train", (("What?", "A cow."),)),
        ("4", "train", (("What?", "A cow."),)),
        ("5", "train", (("What?", "A hen."),)),
        ("6", "train", (("What?", "A fox."),)),
    ]
    assert (tally.records, tally.with_image) == (6, 6)


def test_left_out(tmp_path: Path) -> None:
    (tmp_path / "12.jpg").write_bytes(b"")
    good = {"imageId": "12", "question": "What?", "answer": "cat"}
    questions = {
        "1": {"imageId": "12", "question": "What?"},
        "2": good | {"question": ""},
        "3": good | {"question": 3},
        "4": good | {"answer": "w" * 50_001},
        "5": good | {"imageId": "../12"},
        "6": good | {"imageId": "/12"},
        "7": good | {"imageId": 1.5},
        "8": good | {"imageId": None},
        "9": good | {"imageId": True},
        "10": good | {"imageId": "13"},
        "11": "no object",
    }
    rows, tally, _ = _read(tmp_path, _write(tmp_path / "a.json", questions))
    assert rows == []
    assert dict(tally.rejected) == {
        "no answer": 1,
        "empty question": 3,
        "text longer than 50,000 characters": 1,
        "imageId is no name of letters and digits": 5,
    }
    assert (tally.records, tally.with_answer, tally.missing_images, tally.first_missing) == (11, 6, 1, "13.jpg")


def test_a_question_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"1": {"imageId": "1", "question": "q"}, "2": {"imageId": "1"}, "1": {"imageId": "1"}}')
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    assert str(error.value).startswith(f"{file}: ") and "twice" in str(error.value)


def test_recognised_by_content(shared: Path, tmp_path: Path) -> None:
    head = peek_json(shared / "fixtures/gqa/val_balanced_questions.json")
    assert head is not None and gqa.FORMAT.recognise(head) and gqa.FORMAT.few_files
    other = peek_json(_write(tmp_path / "gqa.json", {"1": {"image": "1", "question": "q"}}))
    assert other is not None and not gqa.FORMAT.recognise(other)
