"""OCR-VQA's reader: one row a question, what it leaves out and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.files import Pictures
from embervlm.data.formats import ocr_vqa
from embervlm.data.formats.record import Ledger, Row, Tally
from embervlm.data.json_files import peek_json
from embervlm.data.sample import DataError

URL = "http://example.com/images/I/51.jpg"


def _read(root: Path, books: Any) -> tuple[list[Row], Tally, Pictures, Path]:
    file = root / "dataset.json"
    file.write_text(books if isinstance(books, str) else json.dumps(books))
    ledger, pictures = Ledger(), Pictures.of(root)
    return list(ocr_vqa.read([file], pictures, ledger)), ledger["ocr_vqa"], pictures, file


def _book(**changes: Any) -> dict[str, Any]:
    book = {"imageURL": URL, "title": "Silent Sky", "authorName": "A. Writer", "genre": "Travel", "split": 1}
    return (
        book
        | {"questions": ["What is the title?", "Is this a travel book?"], "answers": ["Silent Sky", "Yes"]}
        | changes
    )


def test_one_row_a_question(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("0001713996.jpg", "b.gif", "c.jpg", "d.jpg"):
        (tmp_path / "images" / name).write_bytes(b"")
    books = {
        "0001713996": _book(),
        "b": _book(split=2, imageURL="https://example.com/x.GIF?size=1", questions=["Who?"], answers=["A"]),
        "c": _book(split=3, imageURL="https://example.com/x.png", questions=["Who?"], answers=["B"]),
        "d": _book(split=None, imageURL=None, questions=["Who?"], answers=["C"]),
    }
    rows, tally, pictures, _ = _read(tmp_path, books)
    assert [row._replace(picture=0) for row in rows] == [
        ("ocr_vqa", "0001713996/0", "short_answer", "train", 0, (("What is the title?", "Silent Sky"),)),
        ("ocr_vqa", "0001713996/1", "short_answer", "train", 0, (("Is this a travel book?", "Yes"),)),
        ("ocr_vqa", "b/0", "short_answer", "validation", 0, (("Who?", "A"),)),
        ("ocr_vqa", "c/0", "short_answer", "validation", 0, (("Who?", "B"),)),
        ("ocr_vqa", "d/0", "short_answer", "train", 0, (("Who?", "C"),)),
    ]
    assert [Path(str(pictures[row.picture])).name for row in rows] == [
        *["0001713996.jpg"] * 2,
        *["b.gif", "c.jpg", "d.jpg"],
    ]
    assert (tally.records, tally.with_answer, tally.with_image, dict(tally.rejected)) == (5, 5, 5, {})


def test_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    books = {
        "a": _book(questions=["", "Q?", "Q?", "w" * 50_001], answers=["A", None, 5, "A"]),
        "b": _book(questions="Q?"),
        "c": _book(answers=["A"]),
        "d": _book(split=4),
        "e": _book(split="1"),
        "f": _book(),
        "g": [],
    }
    rows, tally, _, _ = _read(tmp_path, books)
    assert rows == []
    assert dict(tally.rejected) == {
        "empty question": 1,
        "empty answer": 2,
        "text longer than 50,000 characters": 1,
        "no list of questions and answers": 2,
        "as many answers as questions are expected": 2,
        "split is not 1, 2 or 3": 4,
    }
    assert (tally.records, tally.with_answer, tally.missing_images, tally.first_missing) == (14, 2, 2, "f.jpg")


@pytest.mark.parametrize(("key", "reason"), [("../a", "leaves the data folder"), ("/a", "is an absolute path")])
def test_keys_that_leave_the_folder_are_refused(tmp_path: Path, key: str, reason: str) -> None:
    with pytest.raises(DataError) as error:
        _read(tmp_path, {key: _book()})
    assert str(error.value).startswith(f"{tmp_path / 'dataset.json'}: key {key!r}: picture '{key}.jpg' {reason}")


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    book = json.dumps(_book())
    with pytest.raises(DataError) as error:
        _read(tmp_path, f'{{"a": {book}, "b": {book}, "a": {book}}}')
    assert str(error.value).startswith(f"{tmp_path / 'dataset.json'}: ") and "twice" in str(error.value)


def test_recognised_by_content(tmp_path: Path) -> None:
    *_, file = _read(tmp_path, {"a": _book()})
    head = peek_json(file)
    assert head is not None and ocr_vqa.FORMAT.recognise(head)
