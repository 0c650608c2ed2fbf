"""Reader of COCO captions, 2014 and 2017: ``captions_train2017.json`` and its like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from embervlm.data.files import Pictures
from embervlm.data.formats.record import (
    MAX_TEXT_CHARACTERS,
    TEXT_TOO_LONG,
    Format,
    Ids,
    Ledger,
    Row,
    clean_line,
    split_folder_of,
    split_of,
)
from embervlm.data.json_files import Head
from embervlm.data.json_stream import Block, read_lists
from embervlm.data.sample import DataError

DATASET = "coco_captions"


class _Caption(msgspec.Struct, gc=False):
    id: Any = None
    image_id: Any = None
    caption: Any = None


class _Picture(msgspec.Struct, gc=False):
    id: Any = None
    file_name: Any = None


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row a caption.

    The raw file, and the sample made of its one caption::

        {"images": [{"id": 179765, "file_name": "000000179765.jpg", ...}],
         "annotations": [{"id": 38, "image_id": 179765, "caption": "A black Honda motorcycle in front of a garage."}]}

        Sample(id="coco_captions/38", dataset="coco_captions", style="caption",
               image=Path(".../val2017/000000179765.jpg"),
               turns=(Turn("", "A black Honda motorcycle in front of a garage."),), split="validation")

    Raises:
        DataError: a file is damaged, two of its records share an id, or a picture's name leaves the data folder.
    """
    for file in files:
        yield from _read(file, pictures, ledger)


def _read(file: Path, pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    tally = ledger[DATASET]
    tally.files.append(file)
    split, split_folder, near = split_of(file.stem), split_folder_of(file.stem), file.parent
    names: dict[Any, Any] = {}
    found: dict[Any, int | None] = {}  # by image_id
    ids = Ids(file, "annotations", "id")

    def rows(block: Block[Any]) -> Iterator[Row]:
        for number, caption in enumerate(block.records, block.start):
            tally.records += 1
            if not ids.add(caption.id, number):
                tally.rejected["no caption, id or image_id"] += 1
                continue
            text = clean_line(caption.caption)
            if text is None:
                tally.rejected["empty caption"] += 1
                continue
            if len(text) > MAX_TEXT_CHARACTERS:
                tally.rejected[TEXT_TOO_LONG] += 1
                continue
            tally.with_answer += 1
            image = caption.image_id
            if not isinstance(image, (int, str)) or image not in names:
                tally.rejected["image_id is not among the file's images"] += 1
                continue
            if image not in found:
                place = f"{file}: annotations[{number}]"
                found[image] = pictures.find(names[image], place, split_folder=split_folder, near=near, again=False)
            picture = tally.count_picture(found[image], names[image])
            if picture is not None:
                yield Row(DATASET, caption.id, "caption", split, picture, (("", text),))

    waiting: list[Block[Any]] = []
    for block in read_lists(file, {"images": _Picture, "annotations": _Caption}):
        if block.key == "images":
            for number, picture in enumerate(block.records, block.start):
                if not isinstance(picture.id, (int, str)) or picture.file_name is None:
                    raise DataError(f"{file}: images[{number}]: expected 'id' and 'file_name'")
                if picture.id in names:
                    raise DataError(f"{file}: images[{number}]: id {picture.id!r} occurs twice")
                names[picture.id] = picture.file_name
        elif names:
            yield from rows(block)
        else:  # the captions stand before the pictures' names
            waiting.append(block)
    for block in waiting:
        yield from rows(block)
    ids.check()


def _recognise(head: Head) -> bool:
    return head.key == "annotations" and "caption" in head.first and "image_id" in head.first


FORMAT = Format(
    "COCO captions",
    (DATASET,),
    1,
    "an object with 'images' and 'annotations' that hold 'caption'",
    _recognise,
    read,
)
