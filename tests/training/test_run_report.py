"""The training report: whole after a resume, self-contained, and never the end of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.sample_data import write_sample_data
from embervlm.training import pipeline, report
from embervlm.training.arguments import RunSettings
from embervlm.training.report import PAGE_NAME, RECORD_NAME

STEPS, BATCH = 4, 2


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """Stage 1 of a tiny model, which was stopped after two steps of four and resumed."""
    data = tmp_path_factory.mktemp("sample") / "data"
    write_sample_data(data, scenes=20, seed=3, workers=1, progress=False)
    settings = RunSettings(
        tmp_path_factory.mktemp("run") / "outputs",
        stages=(1,),
        init_from=tiny_folder,
        stage1_data=data / "base_vlm",
        batch_size=BATCH,
        save_steps=2,
        log_steps=1,
        max_steps=STEPS,
        num_workers=0,
        max_stage1=10,
    )
    pipeline.run(settings)
    for gone in ("final", "checkpoint-4"):
        shutil.rmtree(settings.stage_dir(1) / gone)
    (settings.output_dir / PAGE_NAME).unlink()
    pipeline.run(replace(settings, resume="auto"))
    return settings


def record_of(settings: RunSettings) -> dict[str, Any]:
    return json.loads((settings.stage_result(1) / RECORD_NAME).read_text())


def test_a_resumed_stage_is_reported_whole(run: RunSettings) -> None:
    record = record_of(run)
    assert [entry["step"] for entry in record["log"] if "loss" in entry] == [1, 2, 3, 4]
    assert [(step, samples) for step, samples, _ in record["pace"]] == [(1, 2), (2, 4), (3, 6), (4, 8)]
    seconds = [passed for _, _, passed in record["pace"]]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert (record["step"], record["samples"]) == (STEPS, STEPS * BATCH) and record["seconds"] >= seconds[-1]
    assert {part["name"] for part in record["parts"] if part["trained"]} == {"vision", "projector", "language_model"}
    captions = next(each for each in record["data"] if each["dataset"] == "coco_captions")
    assert captions["files"] == ["captions_train2017.json", "captions_val2017.json"]
    for each in record["data"]:
        assert each["records"] == each["train"] + each["validation"] + sum(each["passed_over"].values())
    assert sum(each["train"] for each in record["data"]) == record["metrics"]["train_samples"] == 10
    assert record["settings"]["max_steps"] == str(STEPS) and record["settings"]["stage"] == "1"


class Page(HTMLParser):
    """What a page would load, its elements that are open, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loaded += [tag] * (tag in ("script", "link", "iframe", "object"))
        self.loaded += [str(value) for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "br", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_it_and_loads_nothing(run: RunSettings) -> None:
    page = Page((run.output_dir / PAGE_NAME).read_text())
    assert page.loaded == [] and page.open == []
    for shown in ("Training report: outputs", "Stage 1: Visual-Language Alignment", "4 steps, 8 samples in"):
        assert shown in page.text
    parts = {part["name"]: part for part in record_of(run)["parts"]}
    assert f"robot headfrozen{parts['robot_head']['parameters']:,}" in page.text
    assert f"vision encodertrained{parts['vision']['parameters']:,}" in page.text
    for plot in ("Losses of stage 1", "Learning rate", "Samples a second"):
        assert plot in page.text
    assert "over a cap" in page.text and "--learning_rate" in page.text


def test_a_failing_report_loses_no_run(run: RunSettings, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def failing(*args: Any) -> Iterator[str]:
        raise OSError(28, "No space left on device")

    before = (run.output_dir / PAGE_NAME).read_bytes()
    monkeypatch.setattr(report, "page", failing)
    monkeypatch.setattr(report, "data_used", failing)
    shutil.rmtree(run.stage_result(1))
    folder = pipeline.run(replace(run, resume="auto"))
    assert (folder / "manifest.json").is_file() and not (folder / RECORD_NAME).exists()
    assert "nothing is noted for the training report" in caplog.text
    assert "could not be written ([Errno 28] No space left on device); the model is whole" in caplog.text
    assert (run.output_dir / PAGE_NAME).read_bytes() == before


def test_what_comes_from_data_is_escaped_and_odd_numbers_are_drawn() -> None:
    record = {
        "stage": 3,
        "title": "<b>&",
        "parts": [{"name": "vision", "parameters": 0, "trained": False}],
        "data": [
            {
                "dataset": "<i>",
                "files": ["<u>"] * 30,
                "records": 1,
                "train": 0,
                "validation": 1,
                "passed_over": {"<": 2},
            }
        ],
        "metrics": {"steps": 1, "train_samples": 1, "validation_samples": 0, "replaced_samples": 3},
        "settings": {"output_dir": "<img src=x>"},
        "processes": 1,
        "device": "CPU",
        "threads": 1,
        "versions": {"embervlm": "0"},
        "finished": "2026-01-01",
        "samples": 0,
        "seconds": 0.0,
        "pace": [[1, 2, 0.0]],
        "log": [{"loss": None, "step": 1}, {"loss": 0.0, "learning_rate": 1e-9, "step": 2}, {"train_runtime": 1.0}],
    }
    page = Page("".join(report.page([record], "<script>", {})))
    assert page.loaded == [] and page.open == []
    assert all(text in page.text for text in ("<script>", "<img src=x>", "2 <", "and 10 more", "3 draws"))
    assert Page("".join(report.page([], "nothing", {}))).open == []
