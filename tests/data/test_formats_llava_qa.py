"""LLaVA's single questions on the real file, what their reader leaves out and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.files import Pictures
from embervlm.data.formats import llava_qa
from embervlm.data.formats.record import Ledger, Row, Tally
from embervlm.data.json_files import peek_json
from embervlm.data.sample import DataError


def _read(root: Path, file: Path) -> tuple[list[Row], Tally]:
    ledger = Ledger()
    return list(llava_qa.read([file], Pictures.of(root), ledger)), ledger["llava_qa"]


def test_the_fixture(shared: Path, tmp_path: Path) -> None:
    file = shared / "fixtures/llava/coco2014_val_gpt4_qa_30x3.jsonl"
    head = peek_json(file)
    assert head is not None and llava_qa.FORMAT.recognise(head) and llava_qa.FORMAT.stage == 2
    rows, tally = _read(tmp_path, file)
    assert (rows, tally.records, tally.with_answer, tally.missing_images) == ([], 90, 90, 90)
    (tmp_path / "COCO_val2014_000000525439.jpg").write_bytes(b"")
    rows, tally = _read(tmp_path, file)
    assert (tally.with_image, tally.missing_images, dict(tally.rejected)) == (3, 87, {})
    assert [row.id for row in rows] == [f"coco2014_val_gpt4_qa_30x3.jsonl[{n}]" for n in range(3)]
    assert rows[0] == (
        "llava_qa",
        "coco2014_val_gpt4_qa_30x3.jsonl[0]",
        "chat",
        "validation",
        0,
        (
            (
                "What is the position of the skateboard in the image?",
                "The skateboard in the image is in an upside-down position, with its wheels pointing up and laying on "
                "the ground.",
            ),
        ),
    )


def test_left_out_and_refused(tmp_path: Path) -> None:
    def record(**changes: Any) -> dict[str, Any]:
        return {"image": "a.jpg", "instruction": "What?", "output": "A cat."} | changes

    records = [
        record(),
        record(instruction=" "),
        record(output=None),
        record(output="w" * 50_001),
        record(image=None),
    ]
    file = tmp_path / "qa.json"
    file.write_text(json.dumps(records))
    rows, tally = _read(tmp_path, file)
    assert (rows, tally.records, tally.with_answer, tally.missing_images) == ([], 5, 2, 1)
    assert dict(tally.rejected) == {
        "empty instruction": 1,
        "empty output": 1,
        "text longer than 50,000 characters": 1,
        "no picture is named": 1,
    }
    file.write_text(json.dumps([record(), record(image="../a.jpg")]))
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    assert str(error.value).startswith(f"{file}: record 1: picture '../a.jpg' leaves the data folder")
