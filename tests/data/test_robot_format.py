"""The one format of robot tasks: reading, the round trip, the leak check, the report's row, and what is refused."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from embervlm.cli import main
from embervlm.data import robot_format, robot_loader
from embervlm.data.robot_format import MAX_LINE_BYTES, is_robot_lines, read_robot_lines, write_robot_lines
from embervlm.data.robot_loader import check_no_leak, load_robot_tasks, read_robot_tasks
from embervlm.data.sample import DataError, PlanStep, Reasoning, RobotSample
from embervlm.fleet import Fleet

FLEET = Fleet.default()
DAM = {
    "id": "dam-1",
    "task": "Survey the dam, then open the gate.",
    "image": "images/dam.jpg",
    "leader": "drone",
    "robots": ["Humanoid", "Drone", "Robot with legs"],
    "plan": [
        {"order": 1, "robot": "drone", "subtask": "Survey the dam"},
        {"order": 2, "robot": "Humanoid", "subtask": "Open the gate"},
        {"order": 2, "robot": "Robot with Legs", "subtask": "Hold the rope"},
    ],
    "reasoning": {"requirements": "a view, hands", "environment": "a dam", "capabilities": ["Fastest"]},
    "family": "dam",
    "voice": "engineer",
}
PLAIN = {"task": "Mow the lawn.", "leader": "Drone", "robots": ["Drone"]}


def _lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in records))
    return path


def test_every_field(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/dam.jpg").write_bytes(b"")
    file = _lines(
        tmp_path / "tasks.jsonl",
        DAM,
        "",
        {
            **PLAIN,
            "leader": None,
            "leaders": ["Humanoid", "drone"],
            "robots": ["Humanoid", "Drone"],
            "plan": None,
            "image": None,
        },
    )
    assert read_robot_tasks(file, FLEET) == [
        RobotSample(
            id="dam-1",
            task="Survey the dam, then open the gate.",
            leaders=("Drone",),
            selected=("Drone", "Humanoid", "Robot with Legs"),
            plan=(
                PlanStep(1, "Drone", "Survey the dam"),
                PlanStep(2, "Humanoid", "Open the gate"),
                PlanStep(2, "Robot with Legs", "Hold the rope"),
            ),
            reasoning=Reasoning("a view, hands", "a dam", ("fastest",)),
            image=tmp_path.resolve() / "images/dam.jpg",
            family="dam",
            voice="engineer",
        ),
        RobotSample("tasks.jsonl[3]", "Mow the lawn.", ("Drone", "Humanoid"), ("Drone", "Humanoid")),
    ]
    assert read_robot_tasks(tmp_path, FLEET) == read_robot_tasks(file, FLEET)


def test_robots_that_could_lead_too_and_grounds_without_a_picture(tmp_path: Path) -> None:
    grounds = {"requirements": "hands", "capabilities": ["tool use"]}
    record = PLAIN | {
        "leader": "Humanoid",
        "robots": ["Humanoid"],
        "suitable": ["humanoid", "Drone"],
        "reasoning": grounds,
    }
    file = _lines(tmp_path / "tasks.jsonl", record)
    (task,) = read_robot_tasks(file, FLEET)
    assert (task.suitable, task.leaders) == (("Drone", "Humanoid"), ("Humanoid",))
    assert task.reasoning == Reasoning("hands", "", ("tool use",))
    write_robot_lines(tmp_path / "again.jsonl", [task])
    assert read_robot_tasks(tmp_path / "again.jsonl", FLEET) == [task]
    _lines(file, record | {"suitable": ["Drone"]})
    with pytest.raises(DataError, match=r"line 1: the leader Humanoid is not among 'suitable': Drone"):
        read_robot_tasks(file, FLEET)
    (tmp_path / "a.jpg").write_bytes(b"")
    _lines(file, record | {"image": "a.jpg"})
    with pytest.raises(DataError, match=r"line 1: 'reasoning': 'environment' must be text, found nothing"):
        read_robot_tasks(file, FLEET)


def test_a_family_is_never_split(tmp_path: Path) -> None:
    records = [PLAIN | {"task": f"Mow lawn {n}.", "family": f"lawn-{n // 4}"} for n in range(40)]
    # A text of two families ties them together.
    records += [PLAIN | {"task": "Mow lawn 0.", "family": "lawn-1"}]
    _lines(tmp_path / "tasks.jsonl", *records[:40])
    _lines(tmp_path / "more.jsonl", records[40])
    for seed in range(4):
        data = load_robot_tasks(tmp_path, FLEET, seed=seed, validation_share=0.3, variants=1)
        held_out = {sample.family for sample in data.validation}
        assert held_out and not held_out & {sample.family for sample in data.train}
        numbers = {int(sample.task[9:-1]) for sample in data.validation}
        assert {0, 4} <= numbers or not {0, 4} & numbers


def _split(
    tmp_path: Path, records: list[dict[str, Any]], **options: Any
) -> tuple[list[RobotSample], list[RobotSample]]:
    _lines(tmp_path / "tasks.jsonl", *records)
    data = load_robot_tasks(tmp_path / "tasks.jsonl", FLEET, variants=1, **options)
    assert len(data.train) + len(data.validation) == len(records)
    return data.train, data.validation


def _voices(samples: list[RobotSample]) -> set[str | None]:
    return {sample.voice for sample in samples}


def test_whole_voices_are_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [PLAIN | {"task": f"Mow lawn {n}.", "voice": f"voice {n % 20}"} for n in range(400)]
    drawn = set()
    for seed in range(5):
        train, validation = _split(tmp_path, records, seed=seed)
        assert len(validation) == 40 and len(_voices(validation)) == 2
        assert not _voices(train) & _voices(validation)
        # Whatever the order of the records.
        assert _voices(_split(tmp_path, records[::-1], seed=seed)[1]) == _voices(validation)
        drawn |= _voices(validation)
    assert len(drawn) > 4
    assert not caplog.records
    assert _split(tmp_path, records, validation_share=0)[1] == []


def test_families_bind_voices_without_joining_everything(tmp_path: Path) -> None:
    # Each voice shares a family with the next one, so that all of them hang together.
    records = [PLAIN | {"task": f"Mow lawn {n}.", "voice": f"voice {n // 20}"} for n in range(400)]
    for voice in range(20):
        records[20 * voice]["family"] = records[20 * voice - 1]["family"] = f"family {voice}"
    for seed in range(5):
        train, validation = _split(tmp_path, records, seed=seed)
        assert not {s.family for s in train} & {s.family for s in validation} - {None}
        own = _voices(validation) - _voices(train)
        assert len(own) == 2
        # Up to two tasks in neighbours' voices come along with each voice.
        assert 40 <= len(validation) <= 44
        assert sum(s.voice in own for s in validation) == 40


def test_large_voices_are_drawn_last(tmp_path: Path) -> None:
    voices = ["large"] * 100 + [f"voice {n % 10}" for n in range(100)]
    records = [PLAIN | {"task": f"Mow lawn {n}.", "voice": voice} for n, voice in enumerate(voices)]
    for seed in range(6):
        train, validation = _split(tmp_path, records, seed=seed)
        assert len(validation) == 20 and "large" in _voices(train)
        assert not _voices(train) & _voices(validation)


def test_tasks_without_voice_are_split_by_text_beside_those_with_one(tmp_path: Path) -> None:
    silent = [PLAIN | {"task": f"Mow lawn {n}."} for n in range(50)]
    spoken = [PLAIN | {"task": f"Dig ditch {n}.", "voice": f"voice {n % 10}"} for n in range(100)]
    alone = {s.task for s in _split(tmp_path, silent, seed=3)[1]}
    assert len(alone) == 5
    train, validation = _split(tmp_path, [*silent, *spoken], seed=3)
    assert {s.task for s in validation if s.voice is None} == alone
    assert len(validation) == 15 and not _voices(train) & _voices(validation) - {None}
    # A text in one family with a spoken one goes where that goes.
    held_out = next(s for s in validation if s.voice is not None)
    tied = [r | {"family": "tied"} if r["task"] in (held_out.task, "Mow lawn 0.") else r for r in [*silent, *spoken]]
    assert {"Mow lawn 0.", held_out.task} <= {s.task for s in _split(tmp_path, tied, seed=3)[1]}


@pytest.mark.parametrize("voices", [1, 2], ids=["one voice", "two halves in the same families"])
def test_voices_that_cannot_be_held_out_are_split_by_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, voices: int
) -> None:
    records = [
        PLAIN | {"task": f"Mow lawn {n}.", "voice": f"voice {n % voices}", "family": f"family {n // voices}"}
        for n in range(40)
    ]
    train, validation = _split(tmp_path, records)
    assert len(validation) == 4 and _voices(train) == _voices(validation)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == (
        f"robot tasks: none of {voices} voices can be held out for validation, which is split by text alone;"
        " it will read higher than on tasks in other voices"
    )


def test_the_public_files_survive_the_round_trip(shared: Path, tmp_path: Path) -> None:
    samples = read_robot_tasks(shared / "robot-selection-dataset", FLEET)
    file = tmp_path / "new" / "all.jsonl"
    assert write_robot_lines(file, samples) == 203
    assert read_robot_tasks(file, FLEET) == samples
    assert [path.name for path in file.parent.iterdir()] == ["all.jsonl"]
    assert file.read_text(encoding="utf-8").splitlines()[0] == (
        '{"id": "single_robot_selection.json[0]", "task": "Inspect a high-rise building’s exterior for damage.",'
        ' "leader": "Drone", "robots": ["Drone"], "plan": [{"order": 1, "robot": "Drone", "subtask": "Aerial overview'
        ' and structural assessment from above"}, {"order": 2, "robot": "Drone", "subtask": "Close-up facade inspection'
        ' at building level"}]}'
    )


def test_pictures_and_grounds_survive_the_round_trip(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/dam.jpg").write_bytes(b"")
    (tmp_path / "images/link.jpg").symlink_to("dam.jpg")
    file = _lines(tmp_path / "a.jsonl", DAM, {**PLAIN, "image": "images/link.jpg"})
    samples = read_robot_tasks(file, FLEET)
    assert write_robot_lines(tmp_path / "b.jsonl", samples) == 2
    assert [sample for _, sample in read_robot_lines(tmp_path / "b.jsonl", FLEET)] == samples
    with pytest.raises(DataError, match=r"c\.jsonl: the picture of dam-1, .*dam\.jpg, is not below .*; write the file"):
        write_robot_lines(tmp_path / "elsewhere/c.jsonl", samples)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    sample = RobotSample("a", "Look.", ("Drone",), ("Drone",))
    file = tmp_path / "a.jsonl"
    assert write_robot_lines(file, [sample]) == 1
    before = file.read_bytes()
    with pytest.raises(DataError, match=r"a\.jsonl: id 'a' occurs twice; each task needs its own"):
        write_robot_lines(file, [sample, sample])
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~robot_format._umask()
    with pytest.raises(DataError, match=r"d: cannot write the file \("):
        (tmp_path / "d").mkdir()
        write_robot_lines(tmp_path / "d", [sample])


def test_lines_lead_over_the_public_files_about_the_same_task(tmp_path: Path) -> None:
    _lines(tmp_path / "z.jsonl", {**PLAIN, "robots": ["Drone", "Humanoid"], "voice": "farmer"})
    (tmp_path / "a.json").write_text(
        json.dumps(
            [{"input": "Task: mow the lawn", "output": "Robot with Wheels"}, {"input": "Dive", "output": "Drone"}]
        )
    )
    samples = read_robot_tasks(tmp_path, FLEET)
    assert samples[0] == RobotSample("z.jsonl[1]", "Mow the lawn.", ("Drone",), ("Drone", "Humanoid"), voice="farmer")
    assert [sample.id for sample in samples] == ["z.jsonl[1]", "a.json[1]"]


def test_recognised_by_content(tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = _lines(tmp_path / "any.name", PLAIN, {**PLAIN, "task": "Dig."})
    assert is_robot_lines(file)
    assert [sample.id for sample in read_robot_tasks(file, FLEET)] == ["any.name[1]", "any.name[2]"]
    _lines(tmp_path / "d/tasks.jsonl", {"task": "Look.", "image": "a.jpg"})  # what the select command takes
    _lines(tmp_path / "d/robots.jsonl", PLAIN)
    caplog.set_level(logging.INFO, "embervlm")
    assert [sample.id for sample in read_robot_tasks(tmp_path / "d", FLEET)] == ["robots.jsonl[1]"]
    assert [record.getMessage() for record in caplog.records] == ["no robot data, passed over: tasks.jsonl"]
    for other in sorted((shared / "fixtures").rglob("*.jsonl")):
        assert not is_robot_lines(other)


def test_files_of_one_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    _lines(tmp_path / "a/tasks.jsonl", PLAIN)
    _lines(tmp_path / "b/tasks.jsonl", {**PLAIN, "task": "Dig."})
    assert [sample.id for sample in read_robot_tasks(tmp_path, FLEET)] == ["a/tasks.jsonl[1]", "b/tasks.jsonl[1]"]
    _lines(tmp_path / "a/tasks.jsonl", {**PLAIN, "id": "x"})
    _lines(tmp_path / "b/tasks.jsonl", {**PLAIN, "task": "Dig.", "id": "x"})
    with pytest.raises(DataError) as error:
        read_robot_tasks(tmp_path, FLEET)
    root = tmp_path.resolve()
    assert str(error.value) == f"{root}/b/tasks.jsonl: line 1: id 'x' is that of {root}/a/tasks.jsonl: line 1 already"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[1]", "expected an object with a task, found list"),
        ('{"task": "a"', "column 14: not valid JSON (Expecting ',' delimiter)"),
        (
            '{"task": "a", "task": "b"}',
            "column 1: not valid JSON (key 'task' occurs twice in one object; expected once)",
        ),
        ('{"task": NaN}', "column 1: not valid JSON (NaN is not a JSON number)"),
        ({}, "'task' must be text, found nothing"),
        ({**PLAIN, "task": ""}, "'task' must have 1 to 2,000 characters, found 0"),
        ({**PLAIN, "task": "a" * 2_001}, "'task' must have 1 to 2,000 characters, found 2,001"),
        ({**PLAIN, "task": "Task: ?!"}, "'task' holds no task, found 'Task: ?!'"),
        (
            {**PLAIN, "Robot": ["Drone"]},
            "unknown key 'Robot'; did you mean 'robots'? keys are id, task, image, leader, leaders, robots, plan,"
            " reasoning, family, voice",
        ),
        ({**PLAIN, "xyz": 1}, "unknown key 'xyz'; keys are id, task,"),
        ({"task": "a", "leader": "Drone"}, "'robots' must be a list of robot names, found nothing"),
        ({**PLAIN, "robots": "Drone"}, "'robots' must be a list of robot names, found 'Drone'"),
        ({**PLAIN, "robots": []}, "'robots' must be a list of robot names, found []"),
        (
            {**PLAIN, "robots": ["Drone", "Cat"]},
            "'robots': unknown robot 'Cat'; the fleet has: Drone, Underwater Robot",
        ),
        ({**PLAIN, "robots": ["Drone", "drone"]}, "'robots': Drone occurs twice; expected each robot once"),
        ({"task": "a", "robots": ["Drone"]}, "expected 'leader' (one name) or 'leaders' (a list), found neither"),
        ({**PLAIN, "leaders": ["Drone"]}, "expected 'leader' (one name) or 'leaders' (a list), found both"),
        ({**PLAIN, "leader": ["Drone"]}, "'leader' must be text, found ['Drone']"),
        ({**PLAIN, "leader": "Humanoid"}, "'leader' Humanoid is not among 'robots': Drone"),
        ({**PLAIN, "plan": {}}, "'plan' must be a list of at most 50 phases, found {}"),
        (
            {**PLAIN, "plan": [{"order": 1, "robot": "Drone", "subtask": "s"}] * 51},
            "'plan' must be a list of at most 50 phases, found 51 entries",
        ),
        ({**PLAIN, "plan": ["s"]}, "phase 1: expected an object, found str"),
        (
            {**PLAIN, "plan": [{"orders": 1}]},
            "phase 1: unknown key 'orders'; did you mean 'order'? keys are order, robot, subtask",
        ),
        ({**PLAIN, "plan": [{"order": 2, "robot": "Drone", "subtask": "s"}]}, "phase 1: 'order' must be 1, found 2"),
        (
            {**PLAIN, "plan": [{"order": True, "robot": "Drone", "subtask": "s"}]},
            "phase 1: 'order' must be 1, found True",
        ),
        (
            {**PLAIN, "plan": [{"order": n, "robot": "Drone", "subtask": "s"} for n in (1, 3)]},
            "phase 2: 'order' must be 1 or 2, found 3",
        ),
        (
            {**PLAIN, "plan": [{"order": 1, "robot": "Humanoid", "subtask": "s"}]},
            "phase 1: 'robot' Humanoid is not among 'robots': Drone",
        ),
        (
            {**PLAIN, "plan": [{"order": 1, "robot": "Drone", "subtask": ""}]},
            "phase 1: 'subtask' must have 1 to 500 characters, found 0",
        ),
        ({**PLAIN, "reasoning": "why"}, "'reasoning': expected an object, found str"),
        (
            {**PLAIN, "reasoning": {"environments": "e"}},
            "'reasoning': unknown key 'environments'; did you mean 'environment'?",
        ),
        (
            {**PLAIN, "reasoning": {"requirements": "r", "environment": "e", "capabilities": ["tool use"]}},
            "'reasoning': capability 'tool use' is not among those of Drone: fastest",
        ),
        ({**PLAIN, "voice": ""}, "'voice' must have 1 to 200 characters, found 0"),
        ({**PLAIN, "id": 5}, "'id' must be text, found 5"),
        ({**PLAIN, "id": "good"}, "'id' 'good' is that of line 1 already"),
        ({**PLAIN, "image": "/etc/x.jpg"}, "picture '/etc/x.jpg' is an absolute path"),
        ({**PLAIN, "image": "a/../../x.jpg"}, "picture 'a/../../x.jpg' leaves the data folder"),
        ({**PLAIN, "image": "out/x.jpg"}, "picture 'out/x.jpg' leads out of"),
        ({**PLAIN, "image": "circle"}, "picture 'circle' leads out of"),
        ({**PLAIN, "task": "a" * MAX_LINE_BYTES}, "longer than 524,288 bytes; expected one task a line"),
    ],
)
def test_lines_refused(tmp_path: Path, record: Any, message: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x.jpg").write_bytes(b"")
    file = _lines(tmp_path / "data/tasks.jsonl", {**PLAIN, "id": "good"}, "", record)
    (tmp_path / "data/out").symlink_to(tmp_path / "outside")
    (tmp_path / "data/circle").symlink_to("circle")
    with pytest.raises(DataError) as error:
        read_robot_tasks(file, FLEET)
    expected = f"{file}: line 3 {message}" if message.startswith("column") else f"{file}: line 3: {message}"
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused_and_not_passed_over(tmp_path: Path) -> None:
    good = json.dumps(PLAIN).encode()
    for content, message in (
        (b"\xef\xbb\xbf" + good, r"t\.jsonl: line 1: the file begins with a byte order mark; save it as UTF-8 without"),
        (good + b"\n" + good[:-9], r"t\.jsonl: line 2 column \d+: not valid JSON \("),
        (good + b"\n\xff" + good, r"t\.jsonl: line 2: not UTF-8 text \(byte 0\)"),
        (b'{"task": "a", "robots": [', r"t\.jsonl: line 1 column \d+: not valid JSON \("),
        (good.replace(b'"robots"', b'"robot"'), r"t\.jsonl: line 1: unknown key 'robot'; did you mean 'robots'\?"),
    ):
        (tmp_path / "t.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_robot_tasks(tmp_path, FLEET)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: expected a file of robot tasks, found something that is no file"):
        is_robot_lines(tmp_path / "pipe")


def test_the_size_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _lines(tmp_path / "t.jsonl", PLAIN)
    monkeypatch.setattr(robot_format, "MAX_FILE_BYTES", 10)
    with pytest.raises(DataError, match=r"t\.jsonl: 66 bytes; at most 10 are read"):
        read_robot_tasks(tmp_path, FLEET)
    assert file.stat().st_size == 66


def test_a_validation_task_in_training_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    file = _lines(tmp_path / "t.jsonl", {**PLAIN, "image": "a.jpg"}, {**PLAIN, "task": "Mow, the lawn!"})
    public = tmp_path / "p.json"
    public.write_text(json.dumps([{"input": "Task: Dive.", "output": "Drone"}]))
    monkeypatch.setattr(robot_loader, "split_by_key", lambda samples, *_: (samples[1:], samples[:1]))
    with pytest.raises(DataError) as error:
        load_robot_tasks(tmp_path, FLEET)
    root = tmp_path.resolve()
    assert str(error.value) == (
        f"task 'Mow the lawn.' is in validation ({root}/{file.name}: line 1) and, normalised, in training"
        f" ({root}/{file.name}: line 2); a validation task must not be trained on"
    )


def test_a_rewording_that_says_a_validation_task_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _lines(tmp_path / "t.jsonl", PLAIN, {**PLAIN, "task": "Dig a hole."})
    monkeypatch.setattr(robot_loader, "split_by_key", lambda samples, *_: (samples[:1], samples[1:]))
    real = robot_loader.add_rewordings

    def leaky(samples: Any, held_out: Any, **keys: Any) -> list[RobotSample]:
        first, *others = real(samples, held_out, **keys)
        return [first, *(RobotSample(other.id, "DIG a hole", ("Drone",), ("Drone",)) for other in others)]

    monkeypatch.setattr(robot_loader, "add_rewordings", leaky)
    with pytest.raises(DataError) as error:
        load_robot_tasks(tmp_path, FLEET)
    root = tmp_path.resolve()
    assert str(error.value) == (
        f"task 'Dig a hole.' is in validation ({root}/t.jsonl: line 2) and, normalised, in training"
        f" ({root}/t.jsonl: line 1, reworded 1); a validation task must not be trained on"
    )
    with pytest.raises(DataError, match=r"task 'A b' is in validation \(v\) and, normalised, in training \(t\)"):
        check_no_leak(
            [RobotSample("t", "a, B!", ("Drone",), ("Drone",))], [RobotSample("v", "A b", ("Drone",), ("Drone",))]
        )


def test_the_row_for_the_report(tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "embervlm")
    assert load_robot_tasks(shared / "robot-selection-dataset", FLEET).report.row() == {
        "stage": 3,
        "dataset": "robot_tasks",
        "files": 2,
        "records": 416,
        "with_answer": 416,
        "with_image": 0,
        "rejected": 0,
        "duplicates": 213,
        "kept": 203,
        "reworded": 366,
    }
    assert caplog.records[-1].getMessage() == (
        "robot tasks: 416 records in 2 files, 203 tasks on 203 distinct texts, 0 with a picture; 183 for training and"
        " 366 rewordings of them, 20 for validation (213 records merged, 0 tasks with differing labels)"
    )
    (tmp_path / "a.jpg").write_bytes(b"")
    seen = {**PLAIN, "image": "a.jpg"}
    _lines(tmp_path / "t.jsonl", seen, seen, {**PLAIN, "image": "b.jpg"}, {**PLAIN, "task": "Dig."})
    row = load_robot_tasks(tmp_path, FLEET, variants=2).report.row()
    assert row == {
        "stage": 3,
        "dataset": "robot_tasks",
        "files": 1,
        "records": 4,
        "with_answer": 4,
        "with_image": 2,
        "rejected": 1,
        "duplicates": 1,
        "kept": 2,
        "reworded": 1,
    }


def test_the_command_that_converts(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "all.jsonl"
    command = ["data", "robots", "--in", str(shared / "robot-selection-dataset"), "--out", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"203 robot tasks written to {out}\n"
    assert read_robot_tasks(out, FLEET) == read_robot_tasks(shared / "robot-selection-dataset", FLEET)
    assert main(command) == 1
    assert capsys.readouterr().err == f"embervlm data: {out}: is there already; expected the name of a new file\n"
