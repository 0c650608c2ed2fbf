"""Pictures that cannot be read: few are replaced and counted exactly, many are refused."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embervlm.data.index import CACHE_VARIABLE
from embervlm.data.loaders import load_base
from embervlm.data.order import EpochSampler, text_lengths
from embervlm.data.quarantine import read_quarantine, replacements

PICTURES = 400
BATCH = 4
SEED = 4


def write_captions(folder: Path, damaged: int) -> set[Path]:
    """``PICTURES`` captions as COCO has them, some of whose pictures are cut off, empty, or something else."""
    rng, pixels = random.Random(7), np.random.default_rng(7)
    bad: set[Path] = set()
    pictures = folder / "train2017"
    pictures.mkdir(parents=True)
    faults = (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>Not found</html>")
    chosen = set(rng.sample(range(PICTURES), damaged))
    for number in range(PICTURES):
        file = pictures / f"{number:012}.jpg"
        Image.fromarray(pixels.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
        if number in chosen:
            file.write_bytes(faults[number % len(faults)](file.read_bytes()))
            bad.add(file)
    document = {
        "images": [{"id": n, "file_name": f"{n:012}.jpg"} for n in range(PICTURES)],
        "annotations": [{"id": n, "image_id": n, "caption": f"Thing {n}."} for n in range(PICTURES)],
    }
    (folder / "captions_train2017.json").write_text(json.dumps(document))
    return bad


def expected_counts(folder: Path, bad: set[Path]) -> tuple[int, int]:
    """How many draws of an epoch fail, and how many draws that makes, worked out from the seed alone."""
    samples = load_base(folder, 1, seed=SEED).train
    sound = [sample.image not in bad for sample in samples]
    failed = drawn = 0
    for place in EpochSampler(text_lengths(samples), seed=SEED, group=BATCH):
        for tried in (place, *replacements(place, len(sound), seed=SEED, epoch=0)):
            drawn += 1
            failed += not sound[tried]
            if sound[tried]:
                break
    return failed, drawn


def train(folder: Path, model: Path, output: Path) -> subprocess.CompletedProcess[str]:
    flags = {"output_dir": output, "stage": 1, "stage1_data": folder, "init_from": model, "batch_size": BATCH}
    flags |= {"stage1_epochs": 1, "seed": SEED, "num_workers": 2, "save_steps": 1_000}
    command = [sys.executable, "-m", "embervlm.cli", "train"]
    command += [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def test_five_percent_are_replaced_and_counted(tiny_folder: Path, tmp_path: Path) -> None:
    bad = write_captions(tmp_path / "coco", PICTURES * 5 // 100)
    done = train(tmp_path / "coco", tiny_folder, tmp_path / "outputs")
    assert done.returncode == 0, done.stderr[-3000:]
    failed, drawn = expected_counts(tmp_path / "coco", bad)
    said = re.search(r"Stage 1: ([\d,]+) of ([\d,]+) training samples drawn and", done.stderr)
    assert said is not None and (int(said[1]), int(said[2])) == (failed, drawn)
    stage = tmp_path / "outputs" / "stage1"
    assert json.loads((stage / "final" / "metrics.json").read_text())["replaced_samples"] == failed
    named = read_quarantine(stage / "quarantine.jsonl")
    assert {Path(entry["picture"]) for entry in named} == bad and len(named) == len(bad)
    print(f"{len(bad)} of {PICTURES} pictures damaged: finished; {failed} of {drawn} draws failed, as worked out")


def test_thirty_percent_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    bad = write_captions(tmp_path / "coco", PICTURES * 30 // 100)
    done = train(tmp_path / "coco", tiny_folder, tmp_path / "outputs")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "could not be read; expected at most 5.0%. First: " in last
    assert not (tmp_path / "outputs" / "stage1" / "final").exists()
    print(f"{len(bad)} of {PICTURES} pictures damaged: {last.partition('; expected')[0]}")
