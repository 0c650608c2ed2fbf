"""Samples that cannot be read: which one takes their place, where they are named, and when there are too many."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embervlm.data.collate import FAILURES, Collator, ConversationDataset, Example, RobotTaskDataset
from embervlm.data.quarantine import REPLACEMENTS, Failure, Quarantine, read_quarantine, replacements
from embervlm.data.sample import DataError, RobotSample, Sample, Turn
from embervlm.fleet import Fleet
from embervlm.training.arguments import RunSettings, SettingsError
from embervlm.training.engine import training_arguments
from embervlm.training.stage1_align import Stage1Trainer


def failure(sample: str, **more: Any) -> Failure:
    given = {"sample": sample, "split": "train", "picture": f"{sample}.jpg", "reason": "bad", "epoch": 0}
    return Failure(**(given | more))


def write_pictures(folder: Path, count: int, damaged: set[int]) -> list[Path]:
    """JPEG files named as COCO names them, some of them cut off in the middle."""
    rng = np.random.default_rng(0)
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        file = folder / f"{number:012}.jpg"
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
        if number in damaged:
            data = file.read_bytes()
            file.write_bytes(data[: len(data) // 2])
        files.append(file)
    return files


def chats(files: list[Path]) -> list[Sample]:
    return [Sample(f"chat/{n}", "chats", "chat", file, (Turn("What?", f"Thing {n}."),)) for n, file in enumerate(files)]


def test_replacements_are_others_and_a_function_of_what_they_replace() -> None:
    places = replacements(17, 1000, seed=0, epoch=3)
    assert len(set(places)) == len(places) == REPLACEMENTS and 17 not in places
    assert all(0 <= place < 1000 for place in places)
    assert places == replacements(17, 1000, seed=0, epoch=3)
    others = [replacements(18, 1000, seed=0, epoch=3), replacements(17, 1000, seed=1, epoch=3)]
    assert places not in [*others, replacements(17, 1000, seed=0, epoch=4)]
    assert sorted(replacements(2, 5, seed=0, epoch=0)) == [0, 1, 3, 4]
    assert replacements(0, 1, seed=0, epoch=0) == []


def test_a_damaged_picture_is_replaced_whoever_meets_it(tmp_path: Path, tiny_selector: Any) -> None:
    files = write_pictures(tmp_path, 6, {2, 4})
    dataset = ConversationDataset(chats(files), tiny_selector.processor, augment=True, seed=0)
    dataset.set_epoch(1)
    other = next(place for place in replacements(2, 6, seed=0, epoch=1) if place not in (2, 4))
    example = dataset[2]
    assert example.failures[0] == Failure("chat/2", "train", str(files[2]), example.failures[0].reason, 1)
    assert example.failures[0].reason.startswith("damaged picture (")
    assert (example.encoded, dataset[other].failures) == (dataset[other].encoded, ())
    assert example.pixels is not None and (example.pixels == dataset[other].pixels).all()

    batch = Collator(tiny_selector.tokenizer)([dataset[0], example])
    assert batch[FAILURES] == list(example.failures) and len(batch["pixel_values"]) == 2
    assert FAILURES not in Collator(tiny_selector.tokenizer)([dataset[0], dataset[1]])


def test_a_record_that_cannot_be_read_is_replaced_too(tiny_selector: Any) -> None:
    class Damaged(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index == 1:
                raise DataError("index.arrow: row 1 is damaged")
            return super().__getitem__(index)

    samples = Damaged([RobotSample("a", "Look.", ("Drone",), ("Drone",)), None])
    dataset = RobotTaskDataset(samples, tiny_selector.processor, Fleet.default(), augment=False, seed=0)
    dataset.set_epoch(5)  # which says nothing: validation is the same in every epoch
    assert dataset[1].failures == (Failure("#1", "validation", None, "index.arrow: row 1 is damaged", 0),)
    assert dataset[1].encoded == dataset[0].encoded


def test_nothing_is_made_up_where_no_sample_can_be_read(tmp_path: Path, tiny_selector: Any) -> None:
    files = write_pictures(tmp_path, 3, {0, 1, 2})
    example = ConversationDataset(chats(files), tiny_selector.processor, augment=True, seed=0)[1]
    assert [each.replaced for each in example.failures] == [True, True, False]
    batch = Collator(tiny_selector.tokenizer, Fleet.default())([example, Example(example.encoded, None)])
    assert set(batch) == {"input_ids", "labels", FAILURES} and len(batch["input_ids"]) == 2
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1.0)
    with pytest.raises(DataError) as error:
        quarantine.count(2, batch[FAILURES])
    last = example.failures[-1]
    assert str(error.value) == (
        f"{last.sample}: {last.reason}; nor could those before it be read, of up to 17 tried in turn. All are named in "
        f"{tmp_path / 'quarantine.jsonl'}. Cure: repair or remove them, then --resume auto"
    )
    assert {entry["sample"] for entry in read_quarantine(quarantine.path)} == {"chat/0", "chat/1", "chat/2"}
    assert (quarantine.drawn, quarantine.failed) == (4, 3)  # two rows, of which one is none


def test_each_sample_is_named_once_by_all_processes(tmp_path: Path) -> None:
    path = tmp_path / "stage1" / "quarantine.jsonl"
    one, two = Quarantine(path, 1.0), Quarantine(path, 1.0)
    one.count(4, [])
    assert not path.exists()
    one.count(4, [failure("a"), failure("b", picture=None, reason="x\u2028y")])
    two.count(4, [failure("b", epoch=1), failure("c")])
    one.count(4, [failure("c"), failure("a", split="validation")])
    with path.open("ab") as file:
        file.write(b'{"sample": "cut o')  # by a process that was killed
    two.count(4, [failure("d")])
    Quarantine(path, 1.0).count(4, [failure("d"), failure("c")])
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines == [
        '{"sample": "a", "split": "train", "picture": "a.jpg", "reason": "bad", "epoch": 0}',
        '{"sample": "b", "split": "train", "picture": null, "reason": "x\u2028y", "epoch": 0}',
        '{"sample": "c", "split": "train", "picture": "c.jpg", "reason": "bad", "epoch": 0}',
        '{"sample": "a", "split": "validation", "picture": "a.jpg", "reason": "bad", "epoch": 0}',
        '{"sample": "cut o',
        '{"sample": "d", "split": "train", "picture": "d.jpg", "reason": "bad", "epoch": 0}',
        "",
    ]
    assert [entry["sample"] for entry in read_quarantine(path)] == ["a", "b", "c", "a", "d"]
    assert read_quarantine(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("allowed", "drawn", "failed", "stops"),
    [
        (0.05, 3, 1, False),
        # As 200 draws: 10, and three times 3.08 by chance.
        (0.05, 30, 19, False),
        (0.05, 30, 20, True),
        # 50, and three times 6.89.
        (0.05, 1000, 70, False),
        (0.05, 1000, 71, True),
        (0.0, 3, 1, True),
        (1.0, 300, 300, False),
    ],
)
def test_a_run_stops_above_the_allowed_share(
    allowed: float, drawn: int, failed: int, stops: bool, tmp_path: Path
) -> None:
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", allowed)
    quarantine.count(drawn - failed, [])
    failures = [failure(f"s{n}") for n in range(failed)]
    if not stops:
        quarantine.count(0, failures)
        assert (quarantine.drawn, quarantine.failed) == (drawn, failed)
        return
    with pytest.raises(DataError) as error:
        quarantine.count(0, failures)
    first = "; ".join(f"s{n}: bad" for n in range(min(failed, 3)))
    assert str(error.value) == (
        f"{failed:,} of {drawn:,} samples drawn ({failed / drawn:.1%}) could not be read; expected at most "
        f"{allowed:.1%}. First: {first}. All are named in {quarantine.path}. "
        "Cure: repair or remove them, then --resume auto; or allow more by --max_bad_share"
    )


@pytest.mark.parametrize(
    ("drawn", "failed", "stops"), [(3, 1, False), (19, 3, False), (19, 4, True), (100, 11, False), (100, 12, True)]
)
def test_a_small_set_is_judged_when_its_stage_ends(drawn: int, failed: int, stops: bool, tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 0.05)
    if stops:
        with pytest.raises(DataError, match=f"^{failed} of {drawn} samples drawn"):
            quarantine.check(drawn, failed)
    else:
        quarantine.check(drawn, failed)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_the_share_is_between_0_and_1(share: float, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"--max_bad_share {share}: expected 0 to 1"):
        RunSettings(tmp_path, max_bad_share=share).check()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_without_a_damaged_picture(
    workers: int, tmp_path: Path, make_tiny: Callable[..., Any], tiny_selector: Any, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_pictures(tmp_path / "pictures", 30, {7})
    held_out = write_pictures(tmp_path / "held_out", 3, {1})
    settings = RunSettings(tmp_path / "run", batch_size=8, num_workers=workers, stage1_epochs=2, seed=1)
    processor = tiny_selector.processor
    trainer = Stage1Trainer(
        make_tiny(),
        training_arguments(settings, 1, tmp_path / "run"),
        ConversationDataset(chats(files), processor, augment=True, seed=1),
        ConversationDataset(chats(held_out), processor, augment=False, seed=1),
        processing_class=processor,
    )
    trainer.train()
    assert trainer.state.global_step == 8 and np.isfinite(trainer.evaluate()["eval_loss"])
    named = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    reasons = [entry.pop("reason") for entry in named]
    assert named == [
        {"sample": "chat/7", "split": "train", "picture": str(files[7]), "epoch": 0},
        {"sample": "chat/1", "split": "validation", "picture": str(held_out[1]), "epoch": 0},
    ]
    assert all(reason.startswith("damaged picture (") for reason in reasons)
    with caplog.at_level("INFO", logger="embervlm.training.engine"):
        replaced = trainer.report_replaced()
    # Twice for its own draws, and once more each time that it was drawn in another's place or to fill the last batch.
    assert 2 <= replaced <= 4
    assert (
        f"Stage 1: {replaced} of {64 + replaced} training samples drawn and 1 of 4 for validation could not be read "
        f"and were replaced; they are named in {tmp_path / 'run' / 'quarantine.jsonl'}"
    ) in caplog.text


def test_the_command_ends_with_one_line_where_too_many_are_damaged(tmp_path: Path, tiny_folder: Path) -> None:
    files = write_pictures(tmp_path / "coco" / "train2017", 80, set(range(0, 80, 3)))
    document = {
        "images": [{"id": n, "file_name": file.name} for n, file in enumerate(files)],
        "annotations": [{"id": n, "image_id": n, "caption": f"Thing {n}."} for n in range(len(files))],
    }
    (tmp_path / "coco" / "captions_train2017.json").write_text(json.dumps(document))
    output = tmp_path / "outputs"
    flags = ["--output_dir", str(output), "--stage", "1", "--stage1_data", str(tmp_path / "coco")]
    flags += ["--init_from", str(tiny_folder), "--batch_size", "4", "--num_workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "embervlm.cli", "train", *flags], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stderr
    named = read_quarantine(output / "stage1" / "quarantine.jsonl")
    assert len(named) == len({entry["sample"] for entry in named}) >= 3
    assert {Path(entry["picture"]) for entry in named} <= set(files[::3])
    last = done.stderr.splitlines()[-1]
    first = "; ".join(f"{entry['sample']}: {entry['reason']}" for entry in named[:3])
    assert last.startswith("embervlm train: stage 1: 2") and "Traceback" not in done.stderr
    assert last.endswith(
        f" could not be read; expected at most 5.0%. First: {first}. All are named in "
        f"{output / 'stage1' / 'quarantine.jsonl'}. "
        "Cure: repair or remove them, then --resume auto; or allow more by --max_bad_share"
    )
    assert not (output / "stage1" / "final").exists()


def test_damaged_validation_pictures_are_left_out_of_the_calibration(tmp_path: Path, tiny_folder: Path) -> None:
    write_pictures(tmp_path / "robots", 60, set(range(0, 60, 3)))
    records = [
        {"instruction": "Robots: ...", "input": f"Task: Look at thing {n}.", "output": "Drone", "image": f"{n:012}.jpg"}
        for n in range(60)
    ]
    (tmp_path / "robots" / "single.json").write_text(json.dumps(records))
    output = tmp_path / "outputs"
    flags = ["--output_dir", str(output), "--stage", "3", "--robot_data", str(tmp_path / "robots"), "--max_steps", "1"]
    flags += ["--init_from", str(tiny_folder), "--batch_size", "8", "--num_workers", "0", "--max_bad_share", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "embervlm.cli", "train", *flags], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((output / "final" / "metrics.json").read_text())
    held_out = metrics["stage3"]["validation_samples"]
    named = read_quarantine(output / "stage3" / "quarantine.jsonl")
    damaged = {entry["sample"] for entry in named if entry["split"] == "validation"}
    assert 0 < len(damaged) < held_out
    assert metrics["validation"]["tasks"] == held_out - len(damaged)
