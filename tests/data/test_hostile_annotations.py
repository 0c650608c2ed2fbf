"""Annotation files from strangers: whatever is wrong with one is said with file and place, and nothing is indexed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.index import cache_folder
from embervlm.data.loaders import load_base
from embervlm.data.sample import DataError

DUPLICATE_KEYS = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}


def document(**changes: Any) -> dict[str, Any]:
    """Captions of two pictures, one of them changed."""
    captions = [{"id": 1, "image_id": 1, "caption": "A cat."}, {"id": 2, "image_id": 2, "caption": "A dog."}]
    return {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"} | changes],
        "annotations": captions,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (root / name).write_bytes(b"")
    (root / "captions.json").write_text(json.dumps(document()))
    return root


def test_the_public_suite_of_hostile_json_as_annotation_files(shared: Path, folder: Path) -> None:
    files = sorted((shared / "hostile/json/test_parsing").glob("*.json"))
    read, refused = set(), {}
    for file in files:
        hostile = folder / file.name
        shutil.copyfile(file, hostile)
        try:
            assert len(load_base(folder, 1, validation_share=0).train) == 2
        except DataError as error:
            refused[file.name] = str(error)
        else:
            read.add(file.name)
        hostile.unlink()
    assert len(files) == 318
    assert {name for name in read if name.startswith("n_")} == set()
    assert {name for name in refused if name.startswith("y_")} == DUPLICATE_KEYS
    for name, message in refused.items():
        assert message.startswith(f"{(folder / name).resolve()}: ") and "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf" + json.dumps(document()).encode(), "line 1: the file begins with a byte order mark"),
        (
            json.dumps(document(height=float("nan"))).encode(),
            "line 1 column 46: not valid JSON (NaN is not a JSON number)",
        ),
        (json.dumps(document()).encode()[:-30], "not valid JSON (ends too early)"),
        (
            json.dumps(document()).replace('"id": 2, "image_id"', '"id": 1, "image_id"').encode(),
            "annotations[1]: id occurs",
        ),
        (
            json.dumps(document()).replace('"id": 2, "image_id"', '"id": 2, "id": 2, "image_id"').encode(),
            "key 'id' occurs",
        ),
        (
            json.dumps(document(file_name="../b.jpg")).encode(),
            "annotations[1]: picture '../b.jpg' leaves the data folder",
        ),
        (json.dumps(document(file_name="/b.jpg")).encode(), "annotations[1]: picture '/b.jpg' is an absolute path"),
        (
            json.dumps(document(file_name="link.jpg")).encode(),
            "annotations[1]: picture 'link.jpg' leaves the data folder by",
        ),
        (
            json.dumps(document(file_name="out/b.jpg")).encode(),
            "annotations[1]: picture 'out/b.jpg' leaves the data folder",
        ),
        (b"[" * 200_000, "nested too deeply"),
        (b"", "line 1 column 1: not valid JSON (ends too early)"),
    ],
)
def test_refused_with_file_and_place(folder: Path, content: bytes, message: str) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "b.jpg").write_bytes(b"")
    (folder / "link.jpg").symlink_to(outside / "b.jpg")
    (folder / "out").symlink_to(outside)
    before = set((cache_folder() / "index").glob("*"))
    file = folder / "captions.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_base(folder, 1)
    said = str(error.value)
    assert message in said and "\n" not in said
    assert said.startswith(f"{file.resolve()}: ") or "no data set for stage 1" in said
    assert set((cache_folder() / "index").glob("*")) == before


def test_a_damaged_file_of_lines_is_not_passed_over(folder: Path) -> None:
    (folder / "own.jsonl").write_text('{"image": "a.jpg" "caption": "A cat."}\n')
    with pytest.raises(DataError, match=r"own\.jsonl: line 1 column 19: not valid JSON"):
        load_base(folder, 1)
