"""RefCOCO's reader: places in words and percent, what it leaves out and what it refuses or never opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.files import Pictures
from embervlm.data.formats import refcoco
from embervlm.data.formats.record import Ledger, Row, Tally
from embervlm.data.json_files import peek_json
from embervlm.data.sample import DataError


def _read(root: Path, *files: Path) -> tuple[list[Row], Tally]:
    ledger = Ledger()
    return list(refcoco.read(files, Pictures.of(root), ledger)), ledger["refcoco"]


def _record(**changes: Any) -> dict[str, Any]:
    record = {"image": "a.jpg", "expression": "the red door", "bbox": [10, 20, 30, 40], "width": 100, "height": 200}
    return record | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(b"")
    return tmp_path


def _write(folder: Path, records: Any, name: str = "refs.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(records))
    return file


def test_the_fixture(shared: Path, tmp_path: Path) -> None:
    file = shared / "fixtures/refcoco/refcocos_test.json"
    rows, tally = _read(tmp_path, file)
    assert (rows, tally.records, tally.with_answer, tally.missing_images) == ([], 100, 86, 86)
    assert (dict(tally.rejected), tally.first_missing) == ({"no box": 14}, "val2017/000000494869.jpg")

    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017/000000494869.jpg").write_bytes(b"")
    (tmp_path / "val2017/000000554002.jpg").write_bytes(b"")
    rows, tally = _read(tmp_path, file)
    assert rows[0]._replace(picture=0) == (
        "refcoco",
        "refcocos_test.json[0]",
        "short_answer",
        "validation",
        0,
        (("Where is a bowl whose exterior is neither red nor white?", "right, 80 37 92 41"),),
    )
    assert rows[1].turns[0] == (
        "Where is the person wearing sneakers that are not blue?",
        "top left, 3 1 17 61",
    )
    assert (tally.with_image, tally.missing_images) == (len(rows), 86 - len(rows))


@pytest.mark.parametrize(
    ("box", "answer"),
    [
        ([0, 0, 30, 60], "top left, 0 0 30 30"),
        ([40, 0, 60, 20], "top, 40 0 60 10"),
        ([70, 0, 100, 20], "top right, 70 0 100 10"),
        ([0, 80, 30, 120], "left, 0 40 30 60"),
        ([0, 0, 100, 200], "center, 0 0 100 100"),
        ([70, 80, 99.5, 120], "right, 70 40 100 60"),
        ([0, 180, 30, 200], "bottom left, 0 90 30 100"),
        ([40, 180, 60, 200], "bottom, 40 90 60 100"),
        ([-1, 180, 101, 201], "bottom, 0 90 100 100"),
        ([98, 198, 101, 201], "bottom right, 98 99 100 100"),
    ],
)
def test_the_place_of_a_box(folder: Path, box: list[float], answer: str) -> None:
    rows, _ = _read(folder, _write(folder, [_record(bbox=box)]))
    assert [row.turns for row in rows] == [(("Where is the red door?", answer),)]


def test_other_layouts(folder: Path) -> None:
    lines = [
        {"img_path": "a.jpg", "sentence": "The door. ", "bbox": [10, 20, 30, 40], "width": 100, "height": 200},
        _record(expression=None, expressions=["one", " ", "two"], split="testB"),
    ]
    file = folder / "refcoco_train.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, tally = _read(folder, file)
    assert [(row.id, row.split, row.turns[0][0]) for row in rows] == [
        ("refcoco_train.jsonl[0]", "train", "Where is The door?"),
        ("refcoco_train.jsonl[1]/0", "validation", "Where is one?"),
        ("refcoco_train.jsonl[1]/2", "validation", "Where is two?"),
    ]
    assert (tally.records, dict(tally.rejected)) == (4, {"empty expression": 1})
    assert [row.split for row in _read(folder, _write(folder, [_record()], "refcoco_testA.json"))[0]] == ["validation"]


def test_left_out(folder: Path) -> None:
    file = folder / "refs.json"
    records = [
        _record(expression=" . "),
        _record(expression=None),
        _record(expressions=[]) | {"expression": None},
        _record(expression="w" * 50_001),
        _record(bbox=None),
        _record(bbox=[1, 2, 3]),
        _record(bbox=[1, 2, "3", 4]),
        _record(bbox=[1, 2, 10**30, 4]),
        _record(bbox={"x": 1}),
        _record(width=None),
        _record(height=0),
        _record(bbox=[10, 20, 10, 40]),
        _record(bbox=[10, 20, 102, 40]),
        _record(bbox=[10, -2, 30, 40]),
        _record(image=None),
        _record(image="b.jpg"),
    ]
    rows, tally = _read(folder, _write(folder, records))
    assert rows == []
    assert dict(tally.rejected) == {
        "empty expression": 3,
        "text longer than 50,000 characters": 1,
        "no box": 1,
        "the box is not four numbers": 4,
        "no width and height of the picture": 2,
        "the box is empty, or its corners are not x1 y1 x2 y2": 1,
        "the box leaves the picture": 2,
        "no picture is named": 1,
    }
    assert (tally.records, tally.with_answer, tally.missing_images, tally.files) == (16, 2, 1, [file])


def test_not_a_number_is_refused(folder: Path) -> None:
    file = _write(folder, [_record(bbox=[float("nan"), 2, 3, 4])])
    with pytest.raises(DataError) as error:
        _read(folder, file)
    assert str(error.value).startswith(f"{file}: line 1 column ") and "NaN" in str(error.value)


def test_boxes_of_width_and_height_are_refused(folder: Path) -> None:
    file = _write(folder, [_record(bbox=[60, 80, 20, 30]), _record(bbox=[50, 80, 20, 90]), _record()])
    with pytest.raises(DataError) as error:
        _read(folder, file)
    assert str(error.value) == (
        f"{file}: in 2 of 3 boxes the second corner is not right of and below the first; expected x1 y1 x2 y2 in "
        "pixels. Cure: convert x y width height to corners"
    )


@pytest.mark.parametrize(
    ("name", "reason"), [("../a.jpg", "leaves the data folder"), ("/a.jpg", "is an absolute path")]
)
def test_pictures_outside_are_refused(folder: Path, name: str, reason: str) -> None:
    file = _write(folder, [_record(), _record(image=name)])
    with pytest.raises(DataError) as error:
        _read(folder, file)
    assert str(error.value).startswith(f"{file}: record 1: picture {name!r} {reason}")


def test_the_official_pickle_is_never_opened(folder: Path) -> None:
    file = folder / "refs(unc).p"
    assert not file.exists() and refcoco.FORMAT.recognise_file(file)
    assert not refcoco.FORMAT.recognise_file(folder / "weights.p")
    rows, tally = _read(folder, file)
    assert (rows, tally.records, tally.files) == ([], 0, [])
    assert tally.notes == [
        f"{file}: passed over, a pickle can run any program; convert it to JSON lines with 'image', 'expression', "
        "'bbox' (x1 y1 x2 y2 in pixels), 'width' and 'height'"
    ]


def test_recognised_by_content(folder: Path) -> None:
    head = peek_json(_write(folder, [_record()], "x.json"))
    assert head is not None and refcoco.FORMAT.recognise(head)
    head = peek_json(_write(folder, [{"image": "a.jpg", "bbox": [1, 2, 3, 4]}], "x.json"))
    assert head is not None and not refcoco.FORMAT.recognise(head)
