"""The written folder: the publishers' layouts, true answers, and the same bytes with any number of workers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from embervlm.data.sample import DataError, normalise_task
from embervlm.data.sample_data import SampleDataSummary, write_sample_data
from embervlm.data.sample_data.scenes import KINDS
from embervlm.fleet import Fleet

SCENES = 64
ROBOT_FILES = ("single_robot_selection.json", "multi_robot_selection_dataset.json")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleDataSummary]:
    out = tmp_path_factory.mktemp("sample") / "data"
    return out, write_sample_data(out, SCENES, 7, size=32, workers=1, progress=False)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def robot_records(folder: Path) -> list[dict[str, Any]]:
    return [record for name in ROBOT_FILES for record in load(folder / name)]


def test_the_number_of_workers_does_not_change_a_byte(written: tuple[Path, SampleDataSummary], tmp_path: Path) -> None:
    write_sample_data(tmp_path / "again", SCENES, 7, size=32, workers=2, progress=False)

    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    first, second = content(written[0]), content(tmp_path / "again")
    assert list(first) == list(second)
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_counts(written: tuple[Path, SampleDataSummary]) -> None:
    out, summary = written
    assert (summary.train_scenes, summary.validation_scenes, summary.held_out_scenes) == (51, 3, 10)
    assert summary.scenes == SCENES
    assert summary.captions == 2 * 54
    assert summary.questions == 5 * 51
    assert summary.conversations == 51
    assert len(robot_records(out / "robot-selection-dataset")) == summary.single_tasks + summary.multi_tasks
    assert len(robot_records(out / "heldout")) == summary.held_out_tasks
    assert "seed 7" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("split", "count"), [("train", 51), ("val", 3)])
def test_coco_layout(written: tuple[Path, SampleDataSummary], split: str, count: int) -> None:
    root = written[0] / "base_vlm" / "coco"
    document = load(root / "annotations" / f"captions_{split}2017.json")
    assert list(document) == ["info", "licenses", "images", "annotations"]
    assert len(document["images"]) == count
    for image in document["images"]:
        assert image["file_name"] == f"{image['id']:012d}.jpg"
        with Image.open(root / f"{split}2017" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (32, 32)
            assert picture.format == "JPEG"
    ids = [annotation["id"] for annotation in document["annotations"]]
    assert len(set(ids)) == len(ids) == 2 * count
    assert {a["image_id"] for a in document["annotations"]} == {image["id"] for image in document["images"]}
    for annotation in document["annotations"]:
        assert 4 <= len(annotation["caption"].split()) <= 16, annotation["caption"]


def test_vqa_layout(written: tuple[Path, SampleDataSummary]) -> None:
    root = written[0] / "base_vlm" / "vqa"
    questions = load(root / "v2_OpenEnded_mscoco_train2014_questions.json")
    annotations = load(root / "v2_mscoco_train2014_annotations.json")
    assert set(questions) == {"info", "task_type", "data_type", "license", "data_subtype", "questions"}
    assert set(annotations) == {"info", "license", "data_subtype", "annotations", "data_type"}
    assert [q["question_id"] for q in questions["questions"]] == [a["question_id"] for a in annotations["annotations"]]
    for question, annotation in zip(questions["questions"], annotations["annotations"], strict=True):
        assert question["image_id"] == annotation["image_id"]
        assert (root / "train2014" / f"COCO_train2014_{question['image_id']:012d}.jpg").is_file()
        answer = annotation["multiple_choice_answer"]
        assert 1 <= len(answer.split()) <= 3
        assert [a["answer"] for a in annotation["answers"]] == [answer] * 10
        assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))
        assert annotation["answer_type"] == ("yes/no" if answer in ("yes", "no") else "other")
        assert annotation["question_type"]


def test_answers_agree_with_the_robot_files_environment(written: tuple[Path, SampleDataSummary]) -> None:
    out = written[0]
    phrases = {
        int(Path(record["image"]).stem): record["reasoning"]["environment"]
        for record in robot_records(out / "robot-selection-dataset")
    }
    places = {kind.phrase: kind for kind in KINDS.values()}
    questions = load(out / "base_vlm/vqa/v2_OpenEnded_mscoco_train2014_questions.json")["questions"]
    annotations = load(out / "base_vlm/vqa/v2_mscoco_train2014_annotations.json")["annotations"]
    checked = 0
    for question, annotation in zip(questions, annotations, strict=True):
        kind = places[phrases[question["image_id"]]]
        answer = annotation["multiple_choice_answer"]
        expected = {
            "Is this under water?": "yes" if kind.setting == "under water" else "no",
            "Is this indoors?": "yes" if kind.setting == "indoors" else "no",
            "Are there stairs?": "yes" if kind.name == "staircase" else "no",
            "What kind of place is this?": kind.place,
        }.get(question["question"])
        if expected is not None:
            checked += 1
            assert answer == expected
    assert checked >= 30


def test_llava_layout(written: tuple[Path, SampleDataSummary]) -> None:
    root = written[0] / "base_vlm" / "llava"
    places = set()
    for record in load(root / "llava_instruct_150k.json"):
        assert list(record) == ["id", "image", "conversations"]
        assert re.fullmatch(r"\d{12}\.jpg", record["image"])
        assert (root / "train2017" / record["image"]).is_file()
        turns = record["conversations"]
        assert len(turns) >= 4
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        first = turns[0]["value"]
        assert first.startswith("<image>\n") or first.endswith("\n<image>")
        places.add(first.startswith("<image>"))
        assert not any("<image>" in turn["value"] for turn in turns[1:])
    assert places == {True, False}


@pytest.mark.parametrize("folder", ["robot-selection-dataset", "heldout"])
def test_robot_files(written: tuple[Path, SampleDataSummary], folder: str) -> None:
    root = written[0] / folder
    fleet = Fleet.default()
    for record in load(root / ROBOT_FILES[0]):
        assert list(record) == ["instruction", "input", "output", "image", "leader", "reasoning"]
        assert record["output"] == record["leader"]
    multi = load(root / ROBOT_FILES[1])
    assert multi
    for record in multi:
        assert list(record) == [
            "instruction", "input", "subtasks", "original_single_robot_output", "image", "leader", "reasoning",
        ]  # fmt: skip
        assert record["original_single_robot_output"] == record["leader"] == record["subtasks"][0]["assigned_robot"]
        orders = [step["execution_order"] for step in record["subtasks"]]
        assert orders == sorted(orders)
        assert len({step["assigned_robot"] for step in record["subtasks"]}) >= 2
        assert all(step["assigned_robot"] in fleet.names for step in record["subtasks"])
    for record in robot_records(root):
        assert record["input"].startswith("Task: ")
        assert (root / record["image"]).is_file()
        assert set(record["reasoning"]) == {"requirements", "environment", "capabilities"}
        assert set(record["reasoning"]["capabilities"]) <= set(fleet[record["leader"]].capabilities)


def test_instruction_is_that_of_the_published_files(written: tuple[Path, SampleDataSummary], shared: Path) -> None:
    published = {record["instruction"] for record in load(shared / "robot-selection-dataset" / ROBOT_FILES[0])}
    head = next(iter(published)).splitlines()
    ours = {record["instruction"] for record in robot_records(written[0] / "heldout")}
    assert len(ours) == 1
    assert sorted(next(iter(ours)).splitlines()) == sorted(head)


def test_held_out_shares_no_text_and_no_picture_with_training(written: tuple[Path, SampleDataSummary]) -> None:
    out = written[0]
    train, test = robot_records(out / "robot-selection-dataset"), robot_records(out / "heldout")
    assert not {normalise_task(r["input"]) for r in train} & {normalise_task(r["input"]) for r in test}
    assert not {r["image"] for r in train} & {r["image"] for r in test}
    elsewhere = {path.name[-16:] for path in (out / "base_vlm").rglob("*.jpg")}
    assert not {Path(r["image"]).name for r in test} & elsewhere


def test_no_robot_is_named_where_the_picture_is_described(written: tuple[Path, SampleDataSummary]) -> None:
    out = written[0]
    texts = [
        record["input"].removeprefix("Task: ")
        for f in ("robot-selection-dataset", "heldout")
        for record in robot_records(out / f)
    ]
    for split in ("train", "val"):
        document = load(out / f"base_vlm/coco/annotations/captions_{split}2017.json")
        texts += [annotation["caption"] for annotation in document["annotations"]]
    texts += [
        q["question"] for q in load(out / "base_vlm/vqa/v2_OpenEnded_mscoco_train2014_questions.json")["questions"]
    ]
    for record in load(out / "base_vlm/llava/llava_instruct_150k.json"):
        texts += [turn["value"] for turn in record["conversations"]]
    assert [text for text in texts if re.search(r"robot|drone|humanoid|wheel|\bleg", text, re.IGNORECASE)] == []


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(DataError, match="already exists and is not empty"):
        write_sample_data(tmp_path, 20, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(("scenes", "size", "seed"), [(19, 32, 0), (20, 16, 0), (20, 32, -1)])
def test_numbers_out_of_range_are_refused(tmp_path: Path, scenes: int, size: int, seed: int) -> None:
    with pytest.raises(DataError, match=f"scenes={scenes}, size={size}, seed={seed}"):
        write_sample_data(tmp_path / "out", scenes, seed, size=size, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind_by_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("embervlm.data.sample_data.write._dump", fail)
    with pytest.raises(OSError, match="disk full"):
        write_sample_data(tmp_path / "out", 20, size=32, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []
