"""Which file a record's picture name means, and which names are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from embervlm.data.files import Pictures, list_folder
from embervlm.data.sample import DataError, PackedPicture, key_hash


def _tree(root: Path, *files: str) -> Pictures:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return Pictures.of(root)


def _found(images: Pictures, root: Path, name: str, **hints: object) -> str | None:
    number = images.find(name, "a.json: record 3", **hints)
    if number is None:
        return None
    path = images[number]
    assert isinstance(path, Path)
    return str(path.relative_to(root.resolve()))


def test_longest_agreeing_path_wins(tmp_path: Path) -> None:
    images = _tree(tmp_path, "a/kitchen/1.jpg", "b/kitchen/1.jpg", "b/garage/1.jpg", "c/attic/2.JPG", "c/notes.txt")
    assert len(images) == 4
    assert _found(images, tmp_path, "b/kitchen/1.jpg") == "b/kitchen/1.jpg"
    assert _found(images, tmp_path, "x/garage/1.jpg") == "b/garage/1.jpg"
    assert _found(images, tmp_path, "kitchen/1.jpg") is None  # two fit equally
    assert _found(images, tmp_path, "kitchen/1.jpg", near=tmp_path.resolve() / "a") == "a/kitchen/1.jpg"
    assert _found(images, tmp_path, "1.jpg", split_folder="garage") == "b/garage/1.jpg"
    assert _found(images, tmp_path, "2.JPG") == "c/attic/2.JPG"
    assert _found(images, tmp_path, "cellar/2.JPG") is None  # another folder's file of the same name is another picture
    assert _found(images, tmp_path, "notes.txt") is None


def test_coco_numbers_are_one_photograph(tmp_path: Path) -> None:
    images = _tree(
        tmp_path, "train2017/000000033471.jpg", "old/train2014/COCO_train2014_000000033471.jpg", "flat/000000000009.jpg"
    )
    assert _found(images, tmp_path, "000000033471.jpg") == "train2017/000000033471.jpg"
    assert _found(images, tmp_path, "coco/train2017/000000033471.jpg") == "train2017/000000033471.jpg"
    assert (
        _found(images, tmp_path, "COCO_train2014_000000033471.jpg") == "old/train2014/COCO_train2014_000000033471.jpg"
    )
    assert _found(images, tmp_path, "COCO_val2014_000000000009.jpg") == "flat/000000000009.jpg"
    assert _found(images, tmp_path, "coco/train2017/000000000009.jpg") == "flat/000000000009.jpg"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd.jpg", "is an absolute path"),
        ("C:/x.jpg", "is an absolute path"),
        ("a\\b.jpg", "is an absolute path"),
        ("../x.jpg", "leaves the data folder; '..' is not allowed in names"),
        ("a/../x.jpg", "leaves the data folder; '..' is not allowed in names"),
        ("", "expected the name of a picture, found ''"),
        (7, "expected the name of a picture, found 7"),
        ("a\nb.jpg", "is not a file name"),
        (".", "is not a file name"),
        ("a" * 1001, "has 1001 characters; at most 1000"),
    ],
)
def test_refused_names(tmp_path: Path, name: object, message: str) -> None:
    with pytest.raises(DataError) as error:
        Pictures.of(tmp_path).find(name, "a.json: record 3")
    assert str(error.value).startswith("a.json: record 3: ") and message in str(error.value)


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    _tree(outside, "secret.jpg")
    _tree(root, "in/1.jpg")
    (root / "file.jpg").symlink_to(outside / "secret.jpg")
    (root / "folder").symlink_to(outside)
    (root / "broken.jpg").symlink_to("nothing.jpg")
    (root / "again.jpg").symlink_to("in/1.jpg")
    (root / "in" / "circle").symlink_to(root)
    (root / "round.jpg").symlink_to("round.jpg")
    listing = list_folder(root)
    below = lambda files: [str(Path(file).relative_to(root)) for file in files]  # noqa: E731
    found = [str(Path(folder, name)) for folder, names in listing.pictures.items() for name in names]
    assert (below(found), listing.files) == (["again.jpg", "in/1.jpg"], ())
    assert below(listing.folders) == [".", "in"]
    assert below(listing.links_out) == ["broken.jpg", "file.jpg", "folder", "round.jpg"]
    pictures = Pictures.of(root)
    assert pictures.find("secret.jpg", "x") is None
    for name in ("file.jpg", "folder/secret.jpg"):
        with pytest.raises(DataError, match=rf"a\.json: record 3: picture '{name}' leaves the data folder by a link"):
            pictures.find(name, "a.json: record 3")


def test_packed_pictures_come_after_the_single_ones(tmp_path: Path) -> None:
    pictures = _tree(tmp_path, "b/2.jpg", "a/1.jpg", "a/000000000009.jpg")
    assert pictures.add_packed(tmp_path / "x.tar", 512, 7, "x.tar/1.jpg") == 3
    assert pictures.add_packed(tmp_path / "x.tar", 2048, 9, "x.tar/2.jpg") == 4
    assert [str(pictures[number]).removeprefix(f"{tmp_path.resolve()}/") for number in range(3)] == [
        "a/000000000009.jpg",
        "a/1.jpg",
        "b/2.jpg",
    ]
    assert pictures[4] == PackedPicture(tmp_path / "x.tar", 2048, 9)
    assert list(pictures.keys) == [
        key_hash(key) for key in ("coco/000000000009", "1.jpg", "2.jpg", "x.tar/1.jpg", "x.tar/2.jpg")
    ]


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder with data, found nothing"):
        list_folder(tmp_path / "x")
    _tree(tmp_path, "y")
    with pytest.raises(DataError, match="expected a folder with data, found a file"):
        list_folder(tmp_path / "y")
