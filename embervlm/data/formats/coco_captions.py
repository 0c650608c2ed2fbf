"""Reader of COCO captions, 2014 and 2017: ``captions_train2017.json`` and its like."""

from __future__ import annotations

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
from embervlm.data.json_files import Head, read_json
from embervlm.data.sample import DataError, Sample, Turn

DATASET = "coco_captions"


class _Caption(NamedTuple):
    id: Any
    image_id: Any
    text: Any


class _Picture(NamedTuple):
    id: Any
    name: Any


def read(files: Sequence[Path], images: ImageFolder, ledger: Ledger) -> Iterator[Sample]:
    """Yield one sample a caption.

    The raw file, and the sample made of its one caption::

        {"images": [{"id": 179765, "file_name": "000000179765.jpg", ...}],
         "annotations": [{"id": 38, "image_id": 179765, "caption": "A black Honda motorcycle in front of a garage."}]}

        Sample(id="coco_captions/38", dataset="coco_captions", style="caption",
               image=Path(".../val2017/000000179765.jpg"),
               turns=(Turn("", "A black Honda motorcycle in front of a garage."),), split="validation")

    Raises:
        DataError: a file is damaged, two of its records share an id, or a picture's name leaves the data folder.
    """
    tally = ledger[DATASET]
    for file in files:
        document = read_json(file, shrink=_shrink)
        pictures, captions = _tables(document, file)
        tally.files.append(file)
        split, split_folder, near = split_of(file.stem), split_folder_of(file.stem), file.parent
        names: dict[Any, Any] = {}
        for number, picture in enumerate(pictures):
            if not isinstance(picture, _Picture) or not isinstance(picture.id, (int, str)):
                raise DataError(f"{file}: images[{number}]: expected 'id' and 'file_name', found {picture!r:.80}")
            if picture.id in names:
                raise DataError(f"{file}: images[{number}]: id {picture.id!r} occurs twice")
            names[picture.id] = picture.name
        seen: set[int | str] = set()
        for number, caption in enumerate(captions):
            place = f"{file}: annotations[{number}]"
            tally.records += 1
            if not isinstance(caption, _Caption) or not isinstance(caption.id, (int, str)):
                tally.rejected["no caption, id or image_id"] += 1
                continue
            if caption.id in seen:
                raise DataError(f"{place}: id {caption.id!r} occurs twice")
            seen.add(caption.id)
            text = clean_line(caption.text)
            if text is None:
                tally.rejected["empty caption"] += 1
                continue
            if len(text) > MAX_TEXT_CHARACTERS:
                tally.rejected[TEXT_TOO_LONG] += 1
                continue
            tally.with_answer += 1
            if not isinstance(caption.image_id, (int, str)) or caption.image_id not in names:
                tally.rejected["image_id is not among the file's images"] += 1
                continue
            image = tally.picture(images, names[caption.image_id], place, split_folder=split_folder, near=near)
            if image is not None:
                yield Sample(f"{DATASET}/{caption.id}", DATASET, "caption", image, (Turn("", text),), split)


def _recognise(head: Head) -> bool:
    return head.key == "annotations" and "caption" in head.first and "image_id" in head.first


def _shrink(found: dict[str, Any]) -> Any:
    if "caption" in found:
        return _Caption(found.get("id"), found.get("image_id"), found["caption"])
    if "file_name" in found:
        return _Picture(found.get("id"), found["file_name"])
    return found


def _tables(document: Any, file: Path) -> tuple[list[Any], list[Any]]:
    if isinstance(document, dict):
        pictures, captions = document.get("images"), document.get("annotations")
        if isinstance(pictures, list) and isinstance(captions, list):
            return pictures, captions
    raise DataError(f"{file}: expected an object with the lists 'images' and 'annotations'")


FORMAT = Format("COCO captions", 1, "an object with 'images' and 'annotations' that hold 'caption'", _recognise, read)
