"""The command line: exit codes, errors in one line on stderr, JSON on stdout, and what people read."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from embervlm.cli import _for_people, main
from embervlm.selection import Phase, RobotScore, Selection

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Ran:
    """What a command left: its exit code and both of its outputs."""

    code: int
    out: str
    err: str

    def error(self, command: str) -> str:
        """The one line that a failed command says."""
        assert self.code == 1 and self.out == ""
        (line,) = self.err.strip().splitlines()
        assert line.startswith(f"embervlm {command}: ")
        return line.removeprefix(f"embervlm {command}: ")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """A function that runs a command in this process."""

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        captured = capsys.readouterr()
        # The progress bars of the libraries' loading are no line of ours.
        err = "\n".join(line for line in captured.err.splitlines() if not re.match(r"(\r|Loading|$)", line))
        return Ran(code, captured.out, err)

    return call


def test_help_and_version(run: Callable[..., Ran]) -> None:
    shown = run("--help")
    assert shown.code == 0 and shown.err == ""
    for command in ("train", "select", "evaluate", "data", "doctor"):
        assert re.search(rf"^    {command}\s", shown.out, re.M)
        assert run(command, "--help").code == 0
    assert run("--version").out == "embervlm 0.1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["select"],
        ["select", "--model", "m"],
        ["select", "--model", "m", "--task", "Look.", "--tasks", "f.jsonl", "--json"],
        ["select", "--model", "m", "--tasks", "f.jsonl"],
        ["select", "--model", "m", "--tasks", "f.jsonl", "--json", "--image", "a.jpg"],
        ["select", "--model", "m", "--task", "Look.", "--top-n", "0"],
        ["select", "--model", "m", "--task", "Look.", "--top-n", "many"],
        ["select", "--model", "m", "--task", "Look.", "--fly"],
        ["evaluate", "--model", "m"],
        ["data"],
        ["data", "sample"],
        ["data", "sample", "--out", "o", "--scenes", "0"],
        ["train", "--stage", "4", "--output_dir", "o"],
        ["train"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_2(run: Callable[..., Ran], arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.code == 2 and done.out == ""
    assert "usage: embervlm" in done.err and "Traceback" not in done.err
    assert re.search(r"^embervlm.*: error: .+", done.err, re.M)


def test_select_json(run: Callable[..., Ran], tiny_folder: Path, tiny_selector: Any) -> None:
    done = run("select", "--model", tiny_folder, "--task", "Сфотографируй крышу", "--json", "--no-reason")
    assert done.code == 0 and done.err == ""
    answer = json.loads(done.out)
    assert done.out.count("\n") == 1 and "Сфотографируй крышу" in done.out
    expected = tiny_selector.select("Сфотографируй крышу", reason=False).to_dict()
    for part in ("task", "primary", "selected", "reasoning", "plan"):
        assert answer[part] == expected[part]
    assert answer["reasoning"] == [] and len(answer["robots"]) == 5
    cut = run("select", "--model", tiny_folder, "--task", "Look.", "--json", "--top-n", "2")
    answer = json.loads(cut.out)
    assert len(answer["robots"]) == 2 and len(answer["reasoning"]) == 4


def test_select_tasks_of_a_file_in_order(run: Callable[..., Ran], tiny_folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (30, 40), (10, 200, 90)).save(tmp_path / "scene.png")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("robots: [{name: Crawler, capabilities: [pipes], limitations: [], environments: []}]")
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"task": "One.", "image": "scene.png"}\n{"task": "Two."}\n{"task": "Three."}\n')
    done = run("select", "--model", tiny_folder, "--tasks", tasks, "--json", "--no-reason", "--fleet", fleet)
    assert done.code == 0
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["task"] for answer in answers] == ["One.", "Two.", "Three."]
    assert {answer["primary"] for answer in answers} == {"Crawler"}


def test_select_for_people(run: Callable[..., Ran], tiny_folder: Path) -> None:
    done = run("select", "--model", tiny_folder, "--task", "Look into the pipe.")
    assert done.code == 0 and done.err == ""
    first, *rest = done.out.splitlines()
    assert re.fullmatch(r"(Selected Robot: [\w ]+ \(confidence: \d+%\))|(Primary Robot: [\w ]+ \(\d+%\))", first)
    assert "Reasoning:" in rest
    silent = run("select", "--model", tiny_folder, "--task", "Look into the pipe.", "--no-reason")
    assert "Reasoning:" not in silent.out.splitlines()


def selection(selected: list[str], plan: list[Phase], reasoning: list[str]) -> Selection:
    robots = [RobotScore("Robot with Wheels", 0.9512, True), RobotScore("Drone", 0.0488, len(selected) > 1)]
    return Selection("Look.", selected[0], selected, robots, plan, reasoning, {"total": 1.0})


def test_one_robot_reads_as_the_contract_has_it() -> None:
    one = selection(["Robot with Wheels"], [Phase(1, "Robot with Wheels", "Look.", [])], ["a", "b", "c", "d"])
    assert _for_people(one).splitlines() == [
        "Selected Robot: Robot with Wheels (confidence: 95%)",
        "Reasoning:",
        "  1. a",
        "  2. b",
        "  3. c",
        "  4. d",
    ]
    silent = selection(["Robot with Wheels"], [Phase(1, "Robot with Wheels", "Look.", [])], [])
    assert _for_people(silent) == "Selected Robot: Robot with Wheels (confidence: 95%)"


def test_several_robots_read_as_the_contract_has_it() -> None:
    plan = [
        Phase(1, "Drone", "Survey", []),
        Phase(2, "Robot with Wheels", "Carry", [1]),
        Phase(3, "Drone", "Film", [1]),
        Phase(4, "Drone", "Land", [2, 3]),
    ]
    assert _for_people(selection(["Robot with Wheels", "Drone"], plan, ["a", "b", "c", "d"])).splitlines() == [
        "Primary Robot: Robot with Wheels (95%)",
        "Additional Robots: Drone",
        "Reasoning:",
        "  1. a",
        "  2. b",
        "  3. c",
        "  4. d",
        "Plan:",
        "  1. Drone: Survey",
        "  2. Robot with Wheels: Carry (after 1)",
        "  3. Drone: Film (after 1)",
        "  4. Drone: Land (after 2, 3)",
    ]


def test_failures_are_1_with_one_line(run: Callable[..., Ran], tiny_folder: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert run("select", "--model", missing, "--task", "Look.").error("select") == f"{missing}: no such model folder"
    assert "not a model folder" in run("select", "--model", tmp_path, "--task", "Look.").error("select")
    model = ("select", "--model", tiny_folder)
    assert "the task is empty" in run(*model, "--task", " ").error("select")
    text = tmp_path / "scene.jpg"
    text.write_text("no picture\n")
    found = run(*model, "--task", "Look.", "--image", text).error("select")
    assert found.startswith(f"{text}: not a picture that can be read")
    assert str(missing) in run(*model, "--task", "Look.", "--image", missing).error("select")
    assert str(missing) in run(*model, "--task", "Look.", "--fleet", missing).error("select")
    assert str(missing) in run(*model, "--tasks", missing, "--json").error("select")
    assert str(missing) in run("evaluate", "--model", tiny_folder, "--data", missing).error("evaluate")
    assert not missing.exists()


def test_a_damaged_model_is_one_line(run: Callable[..., Ran], tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = run("select", "--model", folder, "--task", "Look.").error("select")
    assert found.startswith(f"{folder}: model.safetensors is missing or damaged")


@pytest.fixture(scope="module")
def vouching_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a calibration whose sets hold every robot from a coverage of 90% on, one below."""
    from embervlm.fleet import Fleet
    from embervlm.model.weights import load_model, load_processor, save_folder
    from embervlm.selection import CALIBRATION_FILE, Calibration, fleet_mark

    fleet = Fleet.default()
    calibration = Calibration(1.0, 0.5, 400, fleet_mark(fleet), (0.0,) * 40 + (1.0,) * 10)
    folder = tmp_path_factory.mktemp("models") / "vouching"
    files = {CALIBRATION_FILE: json.dumps(calibration.to_dict())}
    return save_folder(folder, load_model(tiny_folder), load_processor(tiny_folder), fleet, files)


def test_select_with_coverage(run: Callable[..., Ran], vouching_folder: Path, tmp_path: Path) -> None:
    select = ("select", "--model", vouching_folder, "--no-reason")
    done = run(*select, "--task", "Look.", "--coverage", "0.9")
    assert done.code == 0 and done.err == ""
    (line,) = [line for line in done.out.splitlines() if "coverage" in line]
    robot = "(?:Drone|Underwater Robot|Humanoid|Robot with Wheels|Robot with Legs)"
    assert re.fullmatch(
        rf"Not sure enough \(90% coverage\): (?:{robot}, ){{3}}{robot} or {robot}\. Ask a person\.", line
    )
    done = run(*select, "--task", "Look.", "--coverage", "0.875")
    (line,) = [line for line in done.out.splitlines() if "coverage" in line]
    assert re.fullmatch(rf"Sure enough \(87\.5% coverage\): {robot}\.", line)
    assert "coverage" not in run(*select, "--task", "Look.").out
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"task": "One."}\n{"task": "Two."}\n')
    for coverage, size in (("0.95", 5), ("0.8", 1)):
        done = run(*select, "--tasks", tasks, "--json", "--coverage", coverage, "--top-n", "2")
        assert done.code == 0
        answers = [json.loads(line) for line in done.out.splitlines()]
        assert [answer["task"] for answer in answers] == ["One.", "Two."]
        for answer in answers:
            assert len(answer["prediction_set"]) == size and answer["ask_a_person"] is (size > 1)
            assert answer["prediction_set"][0] == answer["primary"]
    (answer,) = [json.loads(line) for line in run(*select, "--task", "Look.", "--json").out.splitlines()]
    assert not {"prediction_set", "ask_a_person"} & set(answer)


ONE = "{name: %s, capabilities: [pipes], limitations: [], environments: []}"


@pytest.mark.parametrize(
    ("flags", "content", "message"),
    [
        (["--task", ""], None, "the task is empty; say in a sentence what is to be done"),
        (["--task", "Look \udcff."], None, "the task is not Unicode text: character 6 is none; write UTF-8"),
        (["--task", "a" * 100_000], None, "the task has 100000 characters; at most 2000 are read"),
        (
            ["--json", "--tasks"],
            b'{"task": "Look."}\n{"task": "Look.", "robot": "Drone"}\n',
            """, line 2: expected {"task": text} and optionally "image": a file name; found also: 'robot'""",
        ),
        (["--json", "--tasks"], b'{"task": "Look."}\n{"task": ""}\n', ", line 2: the task is empty; say in a sentence"),
        (["--json", "--tasks"], b"", ": no tasks"),
        (
            ["--task", "Look.", "--fleet"],
            f"robots: [{ONE % 'Crawler'}, {ONE % 'crawler'}]".encode(),
            ": two robots of the fleet are called 'crawler' (case is ignored); names must be distinct",
        ),
        (
            ["--task", "Look.", "--fleet"],
            b"robots: []",
            ": the fleet has no robots; list at least one under 'robots:'",
        ),
        (["--task", "Look.", "--fleet"], b"", ": expected one key 'robots' with a list of robots"),
        (
            ["--task", "Look.", "--image"],
            b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\1\0\0\0\1\0\0\0\1\0\x18\0" + bytes(24) + b"\1\2\3\0",
            ": 1x1 pixels show no scene; at least 8 a side are needed",
        ),
        (["--task", "Look.", "--image"], b"", ": the file is empty"),
        (["--task", "Look.", "--coverage=0.3"], None, "coverage must be from 0.5 to 0.99, found 0.3"),
        (["--task", "Look.", "--coverage=1"], None, "coverage must be from 0.5 to 0.99, found 1.0"),
        (["--task", "Look.", "--coverage=nan"], None, "coverage must be from 0.5 to 0.99, found nan"),
        (
            ["--task", "Look.", "--coverage=0.9", "--fleet"],
            f"robots: [{ONE % 'Crawler'}]".encode(),
            "no coverage can be promised for this fleet (Crawler): the model's calibration was fitted for another",
        ),
    ],
    ids=lambda value: " ".join(flag[:20] for flag in value) if isinstance(value, list) else "",
)
def test_bad_input_of_select_is_one_line(
    run: Callable[..., Ran],
    vouching_folder: Path,
    tmp_path: Path,
    flags: list[str],
    content: bytes | None,
    message: str,
) -> None:
    file = tmp_path / "given"
    if content is not None:
        file.write_bytes(content)
    found = run("select", "--model", vouching_folder, *flags, *([file] if content is not None else [])).error("select")
    assert found.removeprefix(str(file)).startswith(message)


def test_coverage_of_a_model_that_was_not_calibrated_is_one_line(run: Callable[..., Ran], tiny_folder: Path) -> None:
    assert run("select", "--model", tiny_folder, "--task", "Look.", "--coverage", "0.9").error("select") == (
        "no coverage can be promised: the model was calibrated on 0 validation tasks, prediction sets need 100;"
        " train on more robot tasks, or ask without coverage"
    )


def test_an_unknown_robot_in_a_file_is_one_line(run: Callable[..., Ran], tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "robots.json"
    data.write_text(json.dumps([{"instruction": "Robots: ...", "input": "Task: Look.", "output": "Submarine"}]))
    found = run("evaluate", "--model", tiny_folder, "--data", tmp_path).error("evaluate")
    assert "robots.json" in found and "'Submarine'" in found and "Drone, Underwater Robot" in found


def test_debug_shows_the_whole_error(run: Callable[..., Ran], tmp_path: Path) -> None:
    from embervlm.folders import WeightsError

    with pytest.raises(WeightsError, match="no such model folder"):
        run("select", "--model", tmp_path / "missing", "--task", "Look.", "--debug")


def test_training_settings_are_refused_all_at_once(run: Callable[..., Ran], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(
        *("train", "--output_dir", out, "--stage1_data", tmp_path / "none", "--batch_size", "0"),
        *("--learning_rate", "nan", "--report_to", "pigeon", "--datasets", "gqa,gqq"),
    ).error("train")
    for fault in (
        "--batch_size 0: expected 1 or more",
        "--learning_rate nan: expected a number above 0",
        "--report_to pigeon: not known; there are: none, tensorboard, wandb, codecarbon",
        "--datasets: gqq is not known; there are: ",
        f"--stage1_data {tmp_path / 'none'}: no such folder",
        "stage 2 needs --stage2_data",
        "stage 3 needs --robot_data",
    ):
        assert fault in found
    assert not out.exists()
    # What begins like a flag is a mistyped one.
    abbreviated = run("train", "--output_dir", out, "--robot_dat", tmp_path)
    assert abbreviated.code == 2 and "unrecognized arguments: --robot_dat" in abbreviated.err


def test_data_that_cannot_be_used_leave_nothing_half_written(run: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "robots").mkdir()
    (tmp_path / "robots" / "a.json").write_text('[{"instruction": "r", "input": "Task: Look.", "output": "Submarine"}]')
    out = tmp_path / "out"
    done = run("train", "--output_dir", out, "--stage", "3", "--robot_data", tmp_path / "robots", "--preset", "spark")
    assert "'Submarine'" in done.error("train")
    assert not out.exists()


def test_evaluate(run: Callable[..., Ran], tiny_folder: Path, tmp_path: Path) -> None:
    records = [
        {"instruction": "Robots: ...", "input": f"Task: {task}", "output": robot}
        for task, robot in (("Fly up.", "Drone"), ("Dive down.", "Underwater Robot"), ("Open it.", "Humanoid"))
    ]
    (tmp_path / "robots.json").write_text(json.dumps(records))
    arguments = ("evaluate", "--model", tiny_folder, "--data", tmp_path / "robots.json")
    done = run(*arguments, "--json", "--report", tmp_path / "report")
    report = json.loads(done.out)
    assert done.code == 0 and report["tasks"] == 3 and report["pictures"] == 0
    assert report["text_only_bound"] == 1.0 and report["majority"] == pytest.approx(1 / 3)
    assert report["shuffled_pictures"] is None and report["picture_only_bound"] is None
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report
    shown = run(*arguments)
    assert shown.code == 0
    assert shown.out.startswith("3 tasks about 0 pictures") and re.search(r"leading robot right +\d+\.\d%", shown.out)


def test_log_lines_have_the_contract_s_format(run: Callable[..., Ran], capsys: pytest.CaptureFixture[str]) -> None:
    run("--version")
    with pytest.raises(SystemExit):
        main(["--version"])
    from embervlm.cli import _set_up_logging

    _set_up_logging()
    _set_up_logging()  # twice, and still one line
    logging.getLogger("embervlm.preflight").info("✓ Embedding size matches tokenizer: %d tokens", 50262)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - embervlm\.preflight - INFO - "
        r"✓ Embedding size matches tokenizer: 50262 tokens",
        line,
    )


def test_a_failing_process_says_one_line_and_leaves_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "embervlm.cli", "select", "--model", str(tmp_path / "missing"), "--task", "Look."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"embervlm select: {tmp_path / 'missing'}: no such model folder\n"
    script = [sys.executable, "scripts/train_all.py", "--output_dir", str(tmp_path / "out"), "--fly"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "unrecognized arguments: --fly" in done.stderr


def test_a_plan_may_be_printed_as_a_behaviour_tree(run: Callable[..., Ran], tiny_folder: Path) -> None:
    shown = run("select", "--model", tiny_folder, "--task", "Film the roof", "--plan-format", "behaviortree")
    assert shown.code == 0 and shown.out.startswith("<?xml") and 'BTCPP_format="4"' in shown.out
    as_json = run("select", "--model", tiny_folder, "--task", "Film the roof", "--plan-format", "json")
    assert json.loads(as_json.out)["plan"]
    assert run("select", "--task", "x", "--json", "--plan-format", "behaviortree").code == 2


@pytest.mark.parametrize(("command", "module"), [("serve", "uvicorn"), ("mcp", "mcp")])
def test_a_missing_extra_is_named(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, command: str, module: str
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest))
    said = run(command).error(command)
    assert said == f'{module} is not installed; run: pip install "embervlm[{command}]"'


def test_a_server_is_refused_what_it_cannot_do(run: Callable[..., Ran]) -> None:
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    assert "--slots must be from 1 to 64, found 0" in run("serve", "--slots", 0).error("serve")
