"""A-OKVQA's reader: which answer it takes, what it leaves out and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.files import Pictures
from embervlm.data.formats import a_okvqa
from embervlm.data.formats.record import Ledger, Row, Tally
from embervlm.data.sample import DataError


def _write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def _picture(root: Path, name: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def _read(root: Path, *files: Path) -> tuple[list[tuple[Row, Path]], Tally]:
    ledger, pictures = Ledger(), Pictures.of(root)
    return [(row, pictures[row.picture]) for row in a_okvqa.read(files, pictures, ledger)], ledger["a_okvqa"]  # type: ignore[misc]


def _record(**changes: Any) -> dict[str, Any]:
    record = {"split": "train", "image_id": 5, "question_id": "a", "question": "What?", "choices": ["x", "y", "z"]}
    return record | {"correct_choice_idx": 1, "direct_answers": ["p", "q", "q"]} | changes


def test_the_fixture_without_pictures(shared: Path) -> None:
    folder = shared / "fixtures/aokvqa"
    rows, tally = _read(folder, folder / "aokvqa_v1p0_train.json", folder / "aokvqa_v1p0_val.json")
    assert (rows, tally.records, tally.with_answer, tally.with_image, tally.missing_images) == ([], 2, 2, 0, 2)
    assert tally.first_missing == "000000299207.jpg"


def test_the_fixture_with_its_pictures_names(shared: Path, tmp_path: Path) -> None:
    train = _picture(tmp_path, "train2017/000000299207.jpg")
    held_out = _picture(tmp_path, "val2017/000000461751.jpg")
    folder = shared / "fixtures/aokvqa"
    rows, tally = _read(tmp_path, folder / "aokvqa_v1p0_train.json", folder / "aokvqa_v1p0_val.json")
    assert rows[0][0][:4] == ("a_okvqa", "22MexNkBPpdZGX6sxbxVBH", "short_answer", "train")
    assert rows[0][0].turns == (("What is the man by the bags awaiting?", "cab"),)
    assert rows[1][0][:4] == ("a_okvqa", "22jbM6gDxdaMaunuzgrsBB", "short_answer", "validation")
    assert rows[1][0].turns == (("What is in the motorcyclist's mouth?", "cigarette"),)
    assert [path for _, path in rows] == [train, held_out]
    assert (tally.records, tally.with_answer, tally.with_image, dict(tally.rejected)) == (2, 2, 2, {})


def test_the_majority_answers_where_no_choice_is_right(tmp_path: Path) -> None:
    _picture(tmp_path, "000000000005.jpg")
    records = [
        _record(correct_choice_idx=None),
        _record(question_id="b", split="val"),
        _record(question_id="c", split="test"),
        _record(question_id="d", split=None, image_id="5"),
    ]
    rows, _ = _read(tmp_path, _write(tmp_path / "aokvqa_val.json", records))
    assert [(row.id, row.turns[0][1], row.split) for row, _ in rows] == [
        ("a", "q", "train"),
        ("b", "y", "validation"),
        ("c", "y", "validation"),
        ("d", "y", "validation"),
    ]


def test_lines_are_read_too(tmp_path: Path) -> None:
    _picture(tmp_path, "000000000005.jpg")
    file = tmp_path / "a.json"
    file.write_text(json.dumps(_record()) + "\n" + json.dumps(_record(question_id="b")) + "\n")
    assert [row.id for row, _ in _read(tmp_path, file)[0]] == ["a", "b"]


def test_left_out(tmp_path: Path) -> None:
    test = _record(question_id="t")
    del test["correct_choice_idx"], test["direct_answers"]
    records = [
        test,
        _record(question_id=None),
        _record(question_id="b", question=" "),
        _record(question_id="c", correct_choice_idx=3),
        _record(question_id="d", correct_choice_idx=-1),
        _record(question_id="e", correct_choice_idx=True),
        _record(question_id="f", choices=None),
        _record(question_id="g", question="w" * 50_001),
        _record(question_id="h", image_id="n1"),
        _record(question_id="i", image_id=-5),
        _record(question_id="j", image_id=6),
        "no object",
    ]
    rows, tally = _read(tmp_path, _write(tmp_path / "a.json", records))
    assert rows == []
    assert dict(tally.rejected) == {
        "no answer (a test record)": 1,
        "no question_id": 2,
        "empty question": 1,
        "correct_choice_idx names no choice": 4,
        "text longer than 50,000 characters": 1,
        "image_id is no number": 2,
    }
    assert (tally.records, tally.with_answer, tally.missing_images) == (12, 3, 1)


def test_an_id_of_two_records_is_refused(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.json", [_record(), _record(question_id="b"), _record()])
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    assert str(error.value) == f"{file}: records[2]: question_id occurs twice"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([_record(), _record(question_id="b")])[:-20])
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    assert str(error.value).startswith(f"{file}: line 1 column ")
