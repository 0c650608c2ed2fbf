"""One's own data: what a line may hold, what is left out, and that a misspelt key is never passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.files import Pictures
from embervlm.data.formats import FORMATS, jsonl
from embervlm.data.formats.names import distinct_names
from embervlm.data.formats.record import NO_PICTURE, Ledger, Row, Tally
from embervlm.data.json_files import peek_json
from embervlm.data.sample import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(b"")
    return tmp_path


def _lines(file: Path, *records: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(json.dumps(record) for record in records) + "\n")
    return file


def _read(root: Path, *files: Path) -> tuple[list[Row], Tally]:
    ledger = Ledger()
    return list(jsonl.read(files, Pictures.of(root), ledger)), ledger["own"]


def _chats(root: Path, *files: Path) -> tuple[list[Row], Tally]:
    ledger = Ledger()
    return list(jsonl.read_chats(files, Pictures.of(root), ledger)), ledger["own_chat"]


RECORDS = (
    {"image": "a.jpg", "caption": " A pump\nroom. "},
    {"image": "a.jpg", "question": "Is it open?", "answer": "no", "id": "b-1", "split": "validation"},
    {"image": "a.jpg", "caption": "A door.", "id": 7, "split": "train"},
)
TURNS = ({"question": "What is this?", "answer": "A pump."}, {"question": "Does it run?", "answer": "No."})


def test_captions_and_questions(folder: Path) -> None:
    expected = [
        ("own", "mine{}[0]", "caption", "train", 0, (("", "A pump room."),)),
        ("own", "mine{}/b-1", "short_answer", "validation", 0, (("Is it open?", "no"),)),
        ("own", "mine{}/7", "caption", "train", 0, (("", "A door."),)),
    ]
    rows, tally = _read(folder, _lines(folder / "mine.jsonl", *RECORDS))
    assert rows == [(row[0], row[1].format(".jsonl"), *row[2:]) for row in expected]
    assert (tally.records, tally.with_answer, tally.with_image, dict(tally.rejected)) == (3, 3, 3, {})
    as_list = folder / "mine.json"
    as_list.write_text(json.dumps(RECORDS))
    assert _read(folder, as_list)[0] == [(row[0], row[1].format(".json"), *row[2:]) for row in expected]
    rows, _ = _read(folder, _lines(folder / "my_val.jsonl", *RECORDS))
    assert [row.split for row in rows] == ["validation", "validation", "train"]


def test_conversations(folder: Path) -> None:
    file = _lines(folder / "talks.jsonl", {"image": "a.jpg", "turns": TURNS}, {"turns": TURNS[:1], "id": "t"})
    rows, tally = _chats(folder, file)
    turns = (("What is this?", "A pump."), ("Does it run?", "No."))
    assert rows == [
        ("own_chat", "talks.jsonl[0]", "chat", "train", 0, turns),
        ("own_chat", "talks.jsonl/t", "chat", "train", NO_PICTURE, turns[:1]),
    ]
    assert (tally.records, tally.with_answer, tally.with_image) == (2, 2, 1)


def test_ids_of_files_with_one_name_differ(folder: Path) -> None:
    files = [_lines(folder / name / "mine.jsonl", RECORDS[0]) for name in ("x", "y")]
    assert [row.id for row in _read(folder, *files)[0]] == ["x/mine.jsonl[0]", "y/mine.jsonl[0]"]
    paths = [Path("/r/a/z/m"), Path("/r/b/z/m"), Path("/r/c/n")]
    assert list(distinct_names(paths).values()) == ["a/z/m", "b/z/m", "n"]


def test_left_out(folder: Path) -> None:
    image = {"image": "a.jpg"}
    file = _lines(
        folder / "m.jsonl",
        {"caption": "A door."},
        image,
        image | {"question": "What?"},
        image | {"answer": "no"},
        image | {"caption": "A door.", "answer": "no"},
        image | {"caption": ""},
        image | {"question": "What?", "answer": 5},
        image | {"caption": "w" * 50_001},
        image | {"turns": []},
        {"image": "b.jpg", "caption": "A door."},
        ["no object"],
    )
    rows, tally = _read(folder, file)
    assert rows == []
    assert dict(tally.rejected) == {
        "no image": 1,
        "neither caption nor question": 1,
        "a question without answer": 1,
        "an answer without question": 1,
        "a caption and a question in one record": 1,
        "empty text": 2,
        "text longer than 50,000 characters": 1,
        "turns in a file of captions and questions; put them into a file of their own": 1,
        "the record is no object": 1,
    }
    assert (tally.records, tally.with_answer, tally.missing_images, tally.first_missing) == (11, 2, 1, "b.jpg")


def test_conversations_left_out(folder: Path) -> None:
    file = _lines(
        folder / "t.jsonl",
        {"turns": []},
        {"turns": [TURNS[0]] * 201},
        {"turns": "What?"},
        {"image": "a.jpg", "caption": "A door."},
        {"turns": TURNS, "caption": "A door."},
        {"turns": ["What?"]},
        {"turns": [TURNS[0], {"question": "What?"}]},
        {"turns": [{"question": "What?", "answer": "w" * 50_001}]},
        {"turns": TURNS, "image": "b.jpg"},
    )
    rows, tally = _chats(folder, file)
    assert rows == []
    assert dict(tally.rejected) == {
        "no turns, or more than 200": 4,
        "a caption or question beside turns": 1,
        "a turn is no object": 1,
        "a turn lacks its question or answer": 1,
        "text longer than 50,000 characters": 1,
    }
    assert (tally.records, tally.missing_images) == (9, 1)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"image": "a.jpg", "question": "What?", "anwser": "no"},
            "line 3: unknown key 'anwser'; did you mean 'answer'? Known keys: image, caption, question, answer, turns, "
            "id, split",
        ),
        (
            {"image": "a.jpg", "caption": "A door.", "xyz": 1},
            "line 3: unknown key 'xyz'; Known keys: image, caption, question, answer, turns, id, split",
        ),
        ({"image": "a.jpg", "caption": "A door.", "split": "test"}, "line 3: expected train or validation for 'split'"),
        ({"image": "a.jpg", "caption": "A door.", "split": ["train"]}, "line 3: expected train or validation"),
        ({"image": "a.jpg", "caption": "A door.", "id": 1.5}, "line 3: expected text or a whole number for 'id'"),
        ({"image": "../a.jpg", "caption": "A door."}, "line 3: picture '../a.jpg' leaves the data folder"),
        ({"image": "/a.jpg", "caption": "A door."}, "line 3: picture '/a.jpg' is an absolute path"),
        ({"image": 5, "caption": "A door."}, "line 3: expected the name of a picture, found 5"),
        ({"image": "a.jpg", "caption": "A door.", "id": "x"}, "records[1]: id occurs twice"),
    ],
)
def test_refused(folder: Path, record: Any, message: str) -> None:
    file = _lines(folder / "m.jsonl", {"image": "a.jpg", "caption": "A door.", "id": "x"}, record)
    with pytest.raises(DataError) as error:
        _read(folder, file)
    assert str(error.value).startswith(f"{file}: {message}")


def test_an_unknown_key_in_a_turn_or_a_list_is_refused(folder: Path) -> None:
    file = _lines(folder / "t.jsonl", {"turns": [TURNS[0], {"question": "What?", "answr": "no"}]})
    with pytest.raises(DataError) as error:
        _chats(folder, file)
    assert str(error.value) == (
        f"{file}: line 1: turns[1]: unknown key 'answr'; did you mean 'answer'? Known keys: question, answer"
    )
    file = folder / "m.json"
    file.write_text(json.dumps([RECORDS[0], RECORDS[0] | {"captoin": "x"}]))
    with pytest.raises(DataError) as error:
        _read(folder, file)
    assert str(error.value).startswith(f"{file}: record 1: unknown key 'captoin'; did you mean 'caption'?")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"image": "a.jpg", "caption": "x"}\n{"image": "a.jpg", "cap', "line 2 column 20: not valid JSON"),
        (b'{"image": "a.jpg", "caption": "x", "caption": "y"}\n', "line 1 column 1: not valid JSON (key 'caption'"),
        (b'{"image": "a.jpg", "caption": "x"}{"image": "a.jpg", "caption": "x"}\n', "line 1 column 35: not valid"),
        (b'{"image": "a.jpg", "caption": NaN}\n', "line 1 column 1: not valid JSON (NaN"),
        (b'{"image": "a.jpg", "caption": "\xff"}\n', "line 1: not UTF-8 text (byte 31)"),
        (b'\xef\xbb\xbf{"image": "a.jpg", "caption": "x"}\n', "line 1: the file begins with a byte order mark"),
        (b'{"image": "a.jpg", "caption": "' + b"x" * 4_200_000 + b'"}', "line 1: longer than 4,194,304 bytes"),
    ],
)
def test_damaged_files_are_refused(folder: Path, data: bytes, message: str) -> None:
    file = folder / "m.jsonl"
    file.write_bytes(data)
    with pytest.raises(DataError) as error:
        list(_read(folder, file))
    assert str(error.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("record", "format"),
    [
        (RECORDS[0], "own data"),
        (RECORDS[1], "own data"),
        ({"image": "a.jpg", "question": "What?", "anwser": "no"}, "own data"),
        ({"turns": TURNS}, "own conversations"),
        ({"image": "a.jpg", "turns": TURNS}, "own conversations"),
        ({"image": "a.jpg", "caption": "x", "image_name": "a.jpg"}, "CC3M"),
        ({"image": "a.jpg", "expression": "x", "bbox": [1, 2, 3, 4], "caption": "x"}, "RefCOCO"),
        ({"question_id": 0, "image": "a.jpg", "text": "What?"}, None),
        ({"question_id": 0, "image": "a.jpg", "question": "What?", "answer": "x"}, None),
        ({"image": "a.jpg", "captions": ["x"]}, None),
        ({"caption": "x"}, None),
    ],
)
def test_a_file_is_taken_by_one_format_at_most(folder: Path, record: Any, format: str | None) -> None:
    for file in (_lines(folder / "x.jsonl", record), folder / "x.json"):
        if file.suffix == ".json":
            file.write_text(json.dumps([record]))
        head = peek_json(file)
        assert head is not None
        assert [each.name for each in FORMATS if each.recognise(head)] == ([] if format is None else [format])


def test_every_fixture_is_taken_by_the_format_that_it_is_of(shared: Path) -> None:
    root = shared / "fixtures"
    found = {}
    for file in sorted([*root.rglob("*.json"), *root.rglob("*.jsonl")]):
        head = peek_json(file)
        names = [each.name for each in FORMATS if head is not None and each.recognise(head)]
        assert len(names) < 2, file
        found[str(file.relative_to(root))] = names[0] if names else None
    for file in sorted(root.rglob("*")):
        fitting = [each for each in FORMATS if each.suffixes and file.name.lower().endswith(each.suffixes)]
        names = [each.name for each in fitting if each.recognise_file(file)]
        assert len(names) < 2, file
        if fitting:
            found[str(file.relative_to(root))] = names[0] if names else None
    assert found == {
        "aokvqa/aokvqa_v1p0_train.json": "A-OKVQA",
        "aokvqa/aokvqa_v1p0_val.json": "A-OKVQA",
        "cc3m/Validation_GCC-1.1.0-Validation.tsv": "CC3M",
        "cc3m/cc3m-train-0000.tar": "CC3M",
        "cc3m/nextgpt/cc3m.json": "CC3M",
        "cc3m/nextgpt/cc3m_comprehension.json": "LLaVA-Instruct",
        "coco_captions/captions_train2017.json": "COCO captions",
        "coco_captions/captions_val2017.json": "COCO captions",
        "coco_captions/image_licence_ids.json": None,
        "gqa/allennlp_gqa_questions.json": "GQA",
        "gqa/testdev_balanced_questions.json": "GQA",
        "gqa/val_balanced_questions.json": "GQA",
        "llava/caps_boxes_coco2014_val_80.jsonl": None,
        "llava/coco2014_val_gpt4_qa_30x3.jsonl": "LLaVA's questions",
        "llava/llava_instruct_150k.json": "LLaVA-Instruct",
        "llava/qa90_questions.jsonl": None,
        "okvqa/OpenEnded_mscoco_train2014_questions.json": "VQA v2 or OK-VQA",
        "okvqa/OpenEnded_mscoco_val2014_questions.json": "VQA v2 or OK-VQA",
        "okvqa/mscoco_train2014_annotations.json": "VQA v2 or OK-VQA",
        "okvqa/mscoco_val2014_annotations.json": "VQA v2 or OK-VQA",
        "photos/photos.json": None,
        "refcoco/refcocos_test.json": "RefCOCO",
        "vqav2/allennlp_fixture/annotations.json": "VQA v2 or OK-VQA",
        "vqav2/allennlp_fixture/questions.json": "VQA v2 or OK-VQA",
        "vqav2/v2_OpenEnded_mscoco_train2014_questions.json": "VQA v2 or OK-VQA",
        "vqav2/v2_mscoco_train2014_annotations.json": "VQA v2 or OK-VQA",
    }
