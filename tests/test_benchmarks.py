"""The synthetic files of the benchmarks: exact counts through the package's readers, and the same bytes every time."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.loaders import Caps, load_base

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCALE = 0.001
COUNTS = {
    "captions": 592,
    "captioned_images": 118,
    "vqa_train": 444,
    "vqa_train_images": 83,
    "vqa_val": 214,
    "vqa_val_images": 41,
    "gqa": 943,
    "gqa_images": 72,
    "llava": 158,
    "llava_images": 81,
}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[[str], Any]]:
    """A function that imports one of the benchmarks' files by name."""
    if not BENCHMARKS.is_dir():
        pytest.skip(f"the benchmarks are not part of an installed package: {BENCHMARKS}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module


@pytest.fixture(scope="module")
def official_files(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("official_files")


@pytest.fixture(scope="module")
def made(official_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command's output at a thousandth of the official size."""
    out = tmp_path_factory.mktemp("full") / "data"
    command = [sys.executable, str(BENCHMARKS / "data.py"), "make", "--out", str(out), "--scale", str(SCALE)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBERVLM_CACHE", str(tmp_path / "cache"))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_counts_are_the_official_ones_and_scale(official_files: Any) -> None:
    full = official_files.Counts()
    assert (full.captions, full.vqa_train, full.vqa_val, full.gqa, full.llava) == (
        591_753,
        443_757,
        214_354,
        943_000,
        157_712,
    )
    scaled = official_files.Counts.scaled(SCALE)
    assert {name: getattr(scaled, name) for name in COUNTS} == COUNTS
    with pytest.raises(ValueError, match="scale 0: expected a number above 0"):
        official_files.Counts.scaled(0)


def test_the_readers_find_every_record_and_picture(made: Path) -> None:
    loaded = load_base(made, 1, caps=Caps(validation=None))
    rows = {row.dataset: row for row in loaded.report}
    assert {name: rows[name].records for name in ("coco_captions", "vqa_v2")} == {
        "coco_captions": COUNTS["captions"],
        "vqa_v2": COUNTS["vqa_train"] + COUNTS["vqa_val"],
    }
    for row in rows.values():
        assert row.with_answer == row.with_image == row.records
        assert sum(row.rejected.values()) == 0
    samples = [*loaded.train, *loaded.validation]
    assert {sample.split for sample in samples if sample.dataset == "vqa_v2"} == {"train", "validation"}

    llava = load_base(made / "llava", 2, extra_image_roots=[made])
    (row,) = llava.report
    assert (row.dataset, row.records, row.with_answer, row.with_image) == ("llava", COUNTS["llava"], 158, 158)
    samples = [*llava.train, *llava.validation]
    assert len({sample.image.name for sample in samples if isinstance(sample.image, Path)}) == 81
    turns = Counter(len(sample.turns) for sample in samples)
    assert set(turns) == {1, 3, 4, 5, 6, 7, 8}
    assert not any("<image>" in turn.question for sample in samples for turn in sample.turns)


def test_gqa_has_the_publishers_fields(made: Path, shared: Path) -> None:
    questions = json.loads((made / "gqa/train_balanced_questions.json").read_text(encoding="utf-8"))
    real = json.loads((shared / "fixtures/gqa/val_balanced_questions.json").read_text(encoding="utf-8"))
    assert len(questions) == COUNTS["gqa"]
    assert len({question["imageId"] for question in questions.values()}) == COUNTS["gqa_images"]
    model = next(iter(real.values()))
    for key, question in questions.items():
        assert len(key) == 8 and key.isdigit()
        assert question.keys() == model.keys()
        assert question["types"].keys() == model["types"].keys()
        assert question["annotations"].keys() == model["annotations"].keys()
        assert (made / f"gqa/images/{question['imageId']}.jpg").is_file()


@pytest.mark.parametrize(
    ("made_file", "real_file", "key"),
    [
        ("coco/annotations/captions_train2017.json", "coco_captions/captions_val2017.json", "images"),
        ("coco/annotations/captions_train2017.json", "coco_captions/captions_val2017.json", "annotations"),
        (
            "vqa_v2/v2_OpenEnded_mscoco_train2014_questions.json",
            "vqav2/v2_OpenEnded_mscoco_train2014_questions.json",
            "questions",
        ),
        (
            "vqa_v2/v2_mscoco_train2014_annotations.json",
            "vqav2/v2_mscoco_train2014_annotations.json",
            "annotations",
        ),
        ("gqa/train_balanced_questions.json", "gqa/val_balanced_questions.json", None),
    ],
)
def test_a_record_takes_as_many_bytes_as_a_real_one(
    made: Path, shared: Path, made_file: str, real_file: str, key: str | None
) -> None:
    def mean_bytes(path: Path) -> float:
        document = json.loads(path.read_text(encoding="utf-8"))
        records = list(document.values()) if key is None else document[key]
        return sum(len(json.dumps(record)) for record in records) / len(records)

    assert mean_bytes(made / made_file) == pytest.approx(mean_bytes(shared / "fixtures" / real_file), rel=0.06)


def test_the_same_seed_writes_the_same_bytes(official_files: Any, made: Path, tmp_path: Path) -> None:
    official_files.write_all(tmp_path / "again", scale=SCALE)
    assert digest(tmp_path / "again") == digest(made)
    official_files.write_all(tmp_path / "other", scale=SCALE, seed=1)
    other = digest(tmp_path / "other")
    name = "gqa/train_balanced_questions.json"
    assert other[name] != digest(made)[name]


def test_what_is_there_is_not_overwritten(official_files: Any, made: Path) -> None:
    with pytest.raises(FileExistsError, match="expected an empty folder or none"):
        official_files.write_all(made, scale=SCALE)


def test_photos_have_the_size_and_the_bytes_of_photographs(official_files: Any, tmp_path: Path) -> None:
    from embervlm.data.images import decode_image

    found = official_files.write_photo_captions(tmp_path, photos=3)
    assert found["captions"] == 15
    assert 60_000 < found["mean_bytes"] < 100_000
    photos = sorted((tmp_path / "coco/train2017").iterdir())
    assert [decode_image(photo).size for photo in photos] == [(640, 480)] * 3
    assert len({photo.read_bytes() for photo in photos}) == 3


def test_each_stage_has_batches_of_both_ways(benchmark: Callable[[str], Any], tmp_path: Path) -> None:
    naive, workload = benchmark("naive"), benchmark("workload")
    from embervlm.fleet import Fleet
    from embervlm.model import EmberVLMProcessor, preset_config

    with pytest.MonkeyPatch.context() as patch:
        # What it asks of training for the sake of equal work must not reach other tests.
        for module in (workload.collate, workload.robot_fleets):
            for name in [name for name in vars(module) if name.endswith(("_SHARE", "_DROPOUT"))]:
                patch.setattr(module, name, getattr(module, name))
        processor = EmberVLMProcessor.for_config(preset_config("spark"))
        pictures = workload.write_pictures(tmp_path, 2)
        for stage in (1, 2, 3):
            samples = workload.stage_samples(stage, 4, pictures)
            dataset = workload.stage_dataset(stage, samples, processor)
            (first, second) = workload.examples(dataset, 2, 2)
            fleet = Fleet.default() if stage == 3 else None
            batch = naive.batch_of(first, processor.tokenizer, fleet, processor.image_tokens)
            assert batch["input_ids"].shape == (2, processor.image_tokens + (960 if stage == 3 else 512))
            assert batch["pixel_values"].shape[0] == len(second) == 2
            # The same places are supervised as in the package's own batches.
            assert (batch["labels"] != -100).sum() == sum(each.encoded.supervised_tokens for each in first)


def test_a_table_becomes_markdown(benchmark: Callable[[str], Any]) -> None:
    measured = benchmark("measured")
    table = measured.table("Title", "what", "ms")
    table.add_row("a step", "3.5")
    assert measured.markdown(table).splitlines() == ["| what | ms |", "| --- | ---: |", "| a step | 3.5 |"]
    assert measured.line([1, 2, 3], [5.0, 7.0, 9.0]) == pytest.approx((3.0, 2.0))
    assert measured.spread([4.0, 1.0, 2.0, 3.0])["median"] == 2.5


def test_the_reckoning_of_a_ring(benchmark: Callable[[str], Any]) -> None:
    scaling = benchmark("scaling")
    slow, fast = (row for row in scaling.reckon(1, 8e9, 30_000_000) if row["samples"] == 32)
    # 120 MB twice but for a sixty-fourth, at 25 and at 100 Gbit/s.
    assert slow["sending_ms"] == pytest.approx(2 * 63 / 64 * 120e6 / 3.125e9 * 1000)
    assert fast["sending_ms"] == pytest.approx(slow["sending_ms"] / 4)
    assert slow["efficiency"] < fast["efficiency"] < 1 and slow["accumulation"] > fast["accumulation"] > 1
