"""``embervlm calibrate``: a folder like the model's with another calibration, and one clear line for bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embervlm.cli import main
from embervlm.data.sample import RobotSample
from embervlm.evaluation.calibration import fitted
from embervlm.evaluation.card import with_calibration
from embervlm.evaluation.recalibration import recalibrate
from embervlm.fleet import FLEET_FILE, Fleet, Robot
from embervlm.folders import CARD_FILE, METRICS_FILE, verify_folder, write_manifest
from embervlm.selection import CALIBRATION_FILE, Calibration, RobotSelector, Scores, fleet_mark

NAMES = Fleet.default().names


def lines(file: Path, count: int, names: tuple[str, ...] = NAMES, **more: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    tasks = (
        {"task": f"Do the work number {n}.", "leader": names[n % len(names)], "robots": [names[n % len(names)]]} | more
        for n in range(count)
    )
    file.write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
    return file


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with a card and metrics, as training leaves it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / METRICS_FILE).write_text('{"validation": {"tasks": 3}}')
    (folder / CARD_FILE).write_text("# A model\n\n## Limits\n\nMany.\n")
    write_manifest(folder)
    return folder


def test_the_copy_differs_in_what_was_fitted(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = lines(tmp_path / "tasks.jsonl", 130), tmp_path / "out" / "calibrated"
    assert main(["calibrate", "--model", str(model), "--data", str(data), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tasks"], told["pictured"], told["before"]["covered"]) == (130, 0, None)
    assert told["after"]["covered"]["tasks"] == 130
    verify_folder(out, exact=True)
    of_model = {path.name: path.read_bytes() for path in model.iterdir()}
    of_copy = {path.name: path.read_bytes() for path in out.iterdir()}
    changed = {name for name, content in of_copy.items() if of_model.get(name) != content}
    assert changed <= {CALIBRATION_FILE, METRICS_FILE, CARD_FILE, FLEET_FILE, "manifest.json"}
    assert of_copy.keys() - of_model.keys() == {CALIBRATION_FILE}
    assert json.loads(of_copy[METRICS_FILE]) == {"validation": {"tasks": 3}, "calibration": told}
    card = of_copy[CARD_FILE].decode()
    assert card.startswith("# A model\n\n## Limits\n\nMany.\n\n## Calibration\n")
    assert f"| leading robot right | {told['before']['leader_accuracy']['value']:.1%} |" in card
    calibration = Calibration.from_folder(out)
    assert (calibration.samples, calibration.fleet) == (130, fleet_mark(Fleet.default()))
    # What was refused before is answered.
    answer = RobotSelector.from_pretrained(out).select("Do some work.", reason=False, coverage=0.9)
    assert answer.candidates


def test_another_fleet_becomes_the_folders_own(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = Fleet([Robot("Mole", ("digging",)), Robot("Crane", ("lifting",)), Robot("Gull", ("flying",))])
    data = lines(tmp_path / "farm" / "tasks.jsonl", 100, fleet.names)
    fleet.to_yaml(tmp_path / "farm" / FLEET_FILE)
    arguments = ["calibrate", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "calibrated")]
    assert main(arguments) == 1
    assert "Cure: --fleet with that file" in capsys.readouterr().err
    assert main([*arguments, "--fleet", str(tmp_path / "farm" / FLEET_FILE)]) == 0
    out = capsys.readouterr().out
    assert "100 tasks, 0 with a picture" in out and "fitted anew" in out
    selector = RobotSelector.from_pretrained(tmp_path / "calibrated")
    assert selector.fleet == fleet
    assert selector.select("Dig a hole.", reason=False, coverage=0.8).candidates


def test_what_cannot_be_calibrated_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, enough = lines(tmp_path / "few.jsonl", 99), lines(tmp_path / "enough.jsonl", 100)
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "manifest.json").unlink()
    out = str(tmp_path / "out")
    for arguments, message in (
        ([model, "--data", few, "--out", out], "99 tasks; expected at least 100"),
        ([model, "--data", enough, "--out", model], "is there already; expected the name of a new folder"),
        ([model, "--data", tmp_path / "none", "--out", out], "no such robot data"),
        ([bare, "--data", enough, "--out", out], "so was not written to its end"),
    ):
        assert main(["calibrate", "--model", *map(str, arguments)]) == 1
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("embervlm calibrate: ") and message in err
    assert not (tmp_path / "out").exists()


def _scores(count: int) -> Scores:
    rng = np.random.default_rng(0)
    leaders, members = rng.normal(size=(2, count, 5)).astype(np.float32)
    return Scores(leaders, members, [members[n : n + 1] for n in range(count)], np.zeros((count, 4), np.float32))


def test_a_kind_of_tasks_that_is_not_there_keeps_its_part(tiny_selector: RobotSelector, tmp_path: Path) -> None:
    told = [RobotSample(str(n), f"Work {n}.", (NAMES[n % 5],), (NAMES[n % 5],)) for n in range(120)]
    seen = [RobotSample(s.id, s.task, s.leaders, s.selected, image=tmp_path / "a.png") for s in told]
    before = Calibration(2.5, samples=7, fleet="f", with_picture=Calibration(3.5, samples=8, fleet="f"))
    found = fitted(tiny_selector, told, _scores(120), before)
    assert found.samples == 120 and found.with_picture == before.with_picture
    found = fitted(tiny_selector, seen, _scores(120), before)
    assert found.with_picture is not None and found.with_picture.samples == 120
    assert (found.temperature, found.samples) == (2.5, 7)
    # Without one before, and with too few of each kind, all tasks are fitted together.
    assert fitted(tiny_selector, told, _scores(120)).with_picture is None
    together = fitted(tiny_selector, [*told[:60], *seen[60:]], _scores(120), before)
    assert (together.samples, together.with_picture) == (120, None)


def test_the_figures_are_of_tasks_that_were_not_fitted_on(
    tiny_selector: RobotSelector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[set[str]] = []
    own = fitted

    def watched(selector: RobotSelector, samples: list[RobotSample], scores: Scores, before: Any) -> Calibration:
        parts.append({sample.task for sample in samples})
        return own(selector, samples, scores, before)

    monkeypatch.setattr("embervlm.evaluation.recalibration.fitted", watched)
    Image.new("RGB", (24, 24), "red").save(tmp_path / "red.png")
    found = recalibrate(tiny_selector, lines(tmp_path / "tasks.jsonl", 130, image="red.png"))
    assert found.pictured == 130
    *of_folds, of_all = parts
    assert len(of_folds) == 5 and len(of_all) == 130
    left_out = [of_all - part for part in of_folds]
    assert sum(map(len, left_out)) == 130 and set().union(*left_out) == of_all


def test_a_card_has_one_section_on_calibration() -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "tasks": 100}
    held = dict.fromkeys(("leader_accuracy", "exact_set", "ece", "covered", "robots"), figure)
    found: dict[str, Any] = {"tasks": 100, "pictured": 3, "before": held | {"covered": None}, "after": held}
    once = with_calibration("# Model\n\n## Use\n\nSo.\n", found)
    assert once.count("## Calibration") == 1 and once.startswith("# Model\n\n## Use\n\nSo.\n\n## Calibration\n")
    assert "| prediction sets for 90% that have a right leader | - | 50.0% |" in once
    twice = with_calibration(f"{once}\n## Limits\n\nMany.\n", found | {"tasks": 200})
    assert twice.count("## Calibration") == 1 and "on 200 tasks" in twice and "## Limits\n\nMany.\n" in twice


def test_folders_of_graphs_are_calibrated_too(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    graphs, out = tmp_path / "graphs", tmp_path / "calibrated"
    assert main(["export", "--format", "onnx", "--model", str(model), "--out", str(graphs)]) == 0
    data = lines(tmp_path / "tasks.jsonl", 100)
    assert main(["calibrate", "--model", str(graphs), "--data", str(data), "--out", str(out)]) == 0
    capsys.readouterr()
    verify_folder(out, exact=True)
    assert Calibration.from_folder(out).samples == 100
    assert RobotSelector.from_pretrained(out).select("Do some work.", reason=False, coverage=0.9).candidates
