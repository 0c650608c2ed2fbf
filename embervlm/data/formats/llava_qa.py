"""Reader of LLaVA's single questions: one object a line with ``instruction`` and ``output`` about a picture."""

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
    Ledger,
    Row,
    clean_text,
    split_folder_of,
    split_of,
)
from embervlm.data.json_files import LINES, Head
from embervlm.data.json_stream import read_records

DATASET = "llava_qa"


class _Record(msgspec.Struct):
    image: Any = None
    instruction: Any = None
    output: Any = None


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row a question, a conversation of one turn.

    A raw line, and the sample made of it when it stands first in its file::

        {"id": "000000525439", "image": "COCO_val2014_000000525439.jpg", "type": "conv",
         "instruction": "What is the position of the skateboard in the image?",
         "output": "The skateboard in the image is in an upside-down position, ..."}

        Sample(id="llava_qa/coco2014_val_gpt4_qa_30x3.jsonl[0]", dataset="llava_qa", style="chat",
               image=Path(".../val2014/COCO_val2014_000000525439.jpg"),
               turns=(Turn("What is the position of the skateboard in the image?",
                           "The skateboard in the image is in an upside-down position, ..."),), split="validation")

    The record's own id is the picture's and no key, so the place in the file is used.

    Raises:
        DataError: a file is damaged, or a picture's name leaves the data folder.
    """
    tally = ledger[DATASET]
    for file in files:
        tally.files.append(file)
        split, split_folder, near = split_of(file.stem), split_folder_of(file.stem), file.parent
        for block in read_records(file, _Record):
            for number, record in enumerate(block.records, block.start):
                tally.records += 1
                question, answer = clean_text(record.instruction), clean_text(record.output)
                if question is None or answer is None:
                    tally.rejected["empty instruction" if question is None else "empty output"] += 1
                    continue
                if max(len(question), len(answer)) > MAX_TEXT_CHARACTERS:
                    tally.rejected[TEXT_TOO_LONG] += 1
                    continue
                tally.with_answer += 1
                if record.image is None:
                    tally.rejected["no picture is named"] += 1
                    continue
                place = f"{file}: record {number}"
                picture = tally.picture(pictures, record.image, place, split_folder=split_folder, near=near)
                if picture is not None:
                    yield Row(DATASET, f"{file.name}[{number}]", "chat", split, picture, ((question, answer),))


def _recognise(head: Head) -> bool:
    # With 'input' it is a robot task.
    named = {"image", "instruction", "output"} <= head.first.keys()
    return head.key in ("", LINES) and named and "input" not in head.first


FORMAT = Format(
    "LLaVA's questions",
    (DATASET,),
    2,
    "lines or a list of objects with 'image', 'instruction' and 'output'",
    _recognise,
    read,
)
