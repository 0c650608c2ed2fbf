"""``embervlm evaluate`` as it is typed: what it writes and prints, and one clear line and exit 1 for bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from embervlm.cli import main
from embervlm.fleet import Fleet, Robot

NAMES = Fleet.default().names
Ran = tuple[int, str, str]


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> Callable[..., Ran]:
    """A function that runs the command: its exit code, what it printed, and its lines on standard error."""

    def call(*arguments: object, model: bool = True) -> Ran:
        capsys.readouterr()
        chosen = ["--model", str(tiny_folder)] if model else []
        try:
            code = main(["evaluate", *chosen, *map(str, arguments)])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        captured = capsys.readouterr()
        # The libraries' loading bars are no line of ours.
        err = "\n".join(line for line in captured.err.splitlines() if not re.match(r"(\r|Loading|$)", line))
        return code, captured.out, err

    return call


@pytest.fixture
def refused(evaluate: Callable[..., Ran]) -> Callable[..., str]:
    """A function that runs the command and returns the one line that it fails with, progress and warnings aside."""

    def call(*arguments: object, model: bool = True) -> str:
        code, out, err = evaluate(*arguments, model=model)
        assert code == 1 and out == ""
        (line,) = [x for x in err.splitlines() if not re.fullmatch(r"[a-z ]+: \d+ tasks|.* - WARNING - .*", x)]
        assert line.startswith("embervlm evaluate: ") and "Traceback" not in err
        return line.removeprefix("embervlm evaluate: ")

    return call


def write(file: Path, *lines: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def task(text: str, leader: str = NAMES[0], **more: Any) -> dict[str, Any]:
    return {"task": text, "leader": leader, "robots": [leader], **more}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five tasks, each with another robot, three of them about two pictures."""
    for colour in ("red", "blue"):
        Image.new("RGB", (24, 24), colour).save(tmp_path / f"{colour}.png")
    pictures = ["red.png", "blue.png", "red.png", None, None]
    lines = [
        task(f"Do the work number {number}", name, voice="child", **({"image": picture} if picture else {}))
        for number, (name, picture) in enumerate(zip(NAMES, pictures, strict=True))
    ]
    return write(tmp_path / "tasks.jsonl", *lines)


def test_json_report_and_cases(evaluate: Callable[..., Ran], data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder = tmp_path / "made" / "report"
    code, out, err = evaluate("--data", data, "--json", "--report", folder, "--written", 2)
    assert code == 0
    values = json.loads(out)
    assert values == json.loads((folder / "report.json").read_text())
    assert (values["tasks"], values["pictures"], values["robots"]) == (5, 2, list(NAMES))
    assert values["own_pictures"]["leader_accuracy"]["tasks"] == 3
    assert values["written"]["tasks"] == 2 and values["written"]["valid"]["value"] == 1.0
    assert values["by_voice"]["child"]["tasks"] == 5
    # The model was never calibrated.
    assert values["coverage"] is None and values["notes"][0].startswith("prediction sets: not measured, no coverage")
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    assert len(cases) == 5 and sum(case["written"] is not None for case in cases) == 2
    assert len(list(folder.glob("*.html"))) == 1
    assert "shuffled pictures: 3 tasks" in err.splitlines()


def test_a_report_that_cannot_be_drawn_is_refused_at_once(
    refused: Callable[..., str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embervlm.evaluation.report_plots.find_spec", lambda name: None)
    found = refused("--data", data, "--report", tmp_path / "report")
    assert "matplotlib" in found and "embervlm[evaluate]" in found
    assert not (tmp_path / "report").exists()


def test_table_for_people(evaluate: Callable[..., Ran], data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    train = write(tmp_path / "train" / "t.jsonl", *(task(f"Other work {n}", NAMES[n % 5]) for n in range(10)))
    code, out, _ = evaluate("--data", data, "--train", train, "--written", 1)
    assert code == 0
    first, *lines = out.splitlines()
    assert first == "5 tasks about 2 pictures; 95% intervals in brackets"
    assert "Leading robot right in the 3 tasks with pictures" in lines
    assert "Baselines, trained on 10 tasks: leader, exact set, Jaccard, macro-F1" in lines
    for name in ("majority", "key words", r"n-grams \+ logistic regression"):
        assert re.search(rf"^  {name} +\d+\.\d% +\d+\.\d%  \d\.\d{{3}}  \d\.\d{{3}}$", out, re.MULTILINE)
    assert re.search(r"^Whole answers to 1 tasks, \d+ ms each$", out, re.MULTILINE)
    assert re.search(r"^  child +\d+\.\d%  \(\d+\.\d% to \d+\.\d%\)$", out, re.MULTILINE)


def test_folds_need_no_model(evaluate: Callable[..., Ran], tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    data = write(tmp_path / "t.jsonl", *(task(f"Work {n}", NAMES[n % 5]) for n in range(10)))
    code, out, _ = evaluate("--folds", 5, "--data", data, "--json", model=False)
    values = json.loads(out)
    assert code == 0 and values["model"] is None and (values["folds"], values["train_tasks"]) == (5, 8)
    code, out, _ = evaluate("--folds", 5, "--data", data, model=False)
    assert code == 0 and "Baselines, trained on 8 tasks, 5 folds: leader, exact set, Jaccard, macro-F1" in out


@pytest.mark.parametrize(
    "arguments",
    [["--folds", "3"], ["--seed", "-1"], ["--written", "-1"], ["--coverage", "most"], ["--no-such-flag"]],
)
def test_bad_usage_is_2(evaluate: Callable[..., Ran], data: Path, arguments: list[str]) -> None:
    code, out, err = evaluate("--data", data, *arguments)
    assert code == 2 and out == "" and "usage:" in err


def test_both_model_and_folds_or_a_single_fold_is_2(evaluate: Callable[..., Ran], data: Path) -> None:
    assert evaluate("--data", data, "--folds", 2)[0] == 2
    assert evaluate("--data", data, "--folds", 1, model=False)[0] == 2
    assert evaluate("--data", data, "--fleet_size", 1)[0] == 2


def test_missing_paths(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refused("--data", missing) == f"{missing}: no such robot data"
    assert refused("--data", missing, "--folds", 2, model=False) == f"{missing}: no such robot data"
    assert refused("--data", data, "--train", missing, "--written", 0) == f"{missing}: no such robot data"
    assert refused("--data", data, "--model", missing, model=False) == f"{missing}: no such model folder"
    assert refused("--data", data, "--fleet", missing).startswith(f"{missing}: cannot read the fleet file")
    assert refused("--data", data, "--report", data) == f"{data}: is no folder; expected the name of one for the report"


def test_data_without_tasks(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused("--data", tmp_path / "empty").startswith(f"{tmp_path / 'empty'}: no robot data among 0 JSON files")
    nothing = write(tmp_path / "nothing.jsonl")
    assert refused("--data", nothing).startswith(f"{nothing}: no robot data")
    gone = write(tmp_path / "gone.jsonl", task("Look", image="gone.png"))
    assert "no usable robot record: 1 records in 1 files, 1 of them name a picture" in refused("--data", gone)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (task("Look", "Zeppelin"), "Zeppelin"),
        (task("Look", colour="red"), "colour"),
        (task(""), "'task' must have 1 to 2,000 characters, found 0"),
        (task(" \t "), "'task' must have 1 to 2,000 characters, found 0"),
        (task("?!"), "'task' holds no task"),
        (task("look " * 20_000), "found 100,000"),
        (task("Look", image="../secret.png"), "picture '../secret.png' leaves the data folder"),
        ({"task": "Look", "leader": NAMES[0], "robots": []}, "robots"),
    ],
)
def test_bad_records_are_named(refused: Callable[..., str], tmp_path: Path, line: dict[str, Any], fault: str) -> None:
    file = write(tmp_path / "tasks.jsonl", task("Fly"), line)
    found = refused("--data", file)
    assert found.startswith(f"{file}: line 2: ") and fault in found
    assert len(found) < 500


def test_a_picture_of_one_pixel_is_refused_where_an_answer_is_written(
    evaluate: Callable[..., Ran], refused: Callable[..., str], tmp_path: Path
) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    file = write(tmp_path / "tasks.jsonl", task("Look", image="dot.png"))
    assert refused("--data", file).startswith(f"{tmp_path / 'dot.png'}: 1x1 pixels show no scene")
    assert evaluate("--data", file, "--written", 0)[0] == 0


def test_a_damaged_picture_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    file = write(tmp_path / "tasks.jsonl", task("Look", image="text.png"))
    assert refused("--data", file).startswith(f"{tmp_path / 'text.png'}: not a picture that can be read")


@pytest.mark.parametrize("coverage", ["0", "0.2", "1", "nan", "inf"])
def test_a_coverage_that_cannot_be(refused: Callable[..., str], data: Path, coverage: str) -> None:
    assert refused("--data", data, "--coverage", coverage).startswith("coverage must be from 0.5 to 0.99, found ")


def test_more_folds_than_tasks(refused: Callable[..., str], data: Path) -> None:
    found = refused("--data", data, "--folds", 6, model=False)
    assert found == "6 folds of 5 different task texts; expected 2 to as many as there are texts"


def test_another_fleet(evaluate: Callable[..., Ran], refused: Callable[..., str], tmp_path: Path) -> None:
    fleet = tmp_path / "other.yaml"
    Fleet([Robot("Crane", ("lifting",)), Robot("Mole", ("digging",))]).to_yaml(fleet)
    file = write(tmp_path / "tasks.jsonl", task("Lift it", "Crane"), task("Dig it", "Mole"))
    assert "Crane" in refused("--data", file)
    code, out, _ = evaluate("--data", file, "--fleet", fleet, "--json", "--written", 2)
    values = json.loads(out)
    assert code == 0 and values["robots"] == ["Crane", "Mole"]
    assert values["written"]["valid"]["value"] == 1.0
    fleet.write_text("robots: []\n")
    assert "the fleet has no robots" in refused("--data", file, "--fleet", fleet)
