"""Export to ONNX: the folder, the same answers as PyTorch's, what quantising may cost, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from embervlm.cli import main
from embervlm.export import write
from embervlm.export.check import Loss, Questions, loss, rendered_questions
from embervlm.export.graphs import ExportError
from embervlm.export.tables import Table
from embervlm.export.write import save_onnx
from embervlm.fleet import Fleet, Robot
from embervlm.folders import _HUB_FILES, WeightsError, verify_folder
from embervlm.model import EmberVLMProcessor
from embervlm.model.weights import load_model, save_folder
from embervlm.prompts import MOST_READ_WHOLE
from embervlm.runtime.onnx_model import GRAPHS, OnnxRuntime
from embervlm.selection import RobotSelector, Selection

TASKS = [
    "Look along the pipe for cracks and leaks.",
    "Film the roof from above, then carry the ladder from the shed to the gate.",
    "Carry <|image|> to <|robot_selection|>, müde Brücke 電気",
    "Dive!",
]
FILES = {
    *(f"{name}.onnx" for name in GRAPHS),
    *("tokens.bin", "words.bin", "merges.txt", "onnx.json", "config.json"),
    *("fleet.yaml", "calibration.json", "manifest.json"),
}


@pytest.fixture(scope="module")
def source(make_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tiny model, wide enough for whole blocks, with a calibration that makes clauses count."""
    model = make_tiny(n_embd=32)
    calibration = json.dumps({"temperature": 2.0, "member_threshold": 0.4, "clause_share": 0.5, "samples": 0})
    folder = tmp_path_factory.mktemp("source") / "model"
    processor = EmberVLMProcessor.for_config(model.config)
    return save_folder(folder, model, processor, Fleet.default(), {"calibration.json": calibration})


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder's model as exact graphs. Tests must not change it."""
    folder = tmp_path_factory.mktemp("exported") / "exact"
    assert save_onnx(folder, source) is None
    return folder


def answer(selection: Selection) -> dict[str, Any]:
    """The answer without what may differ: times, and confidences' last digits."""
    found = selection.to_dict() | {"timing_ms": sorted(selection.timing_ms)}
    found["robots"] = [{**robot, "confidence": round(robot["confidence"], 4)} for robot in found["robots"]]
    return found


def test_the_answers_are_those_of_pytorch(source: Path, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    verify_folder(exported, exact=True)
    torch_s, graphs = RobotSelector.from_pretrained(source), RobotSelector.from_pretrained(exported)
    assert isinstance(graphs.runtime, OnnxRuntime)
    picture = Image.effect_mandelbrot((90, 70), (-3, -2.5, 2, 2.5), 60).convert("RGB")
    pictures = [picture, None, None, picture]
    for one, other in zip(torch_s.score(TASKS, pictures), graphs.score(TASKS, pictures), strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(other, one, atol=1e-3, rtol=0)
        assert one.std() > 0.1
    two = Fleet([Robot("Crawler", ("pipes",)), Robot("Glider", ("mapping", "flying far"))])
    for task, shown in zip(TASKS, pictures, strict=True):
        for fleet in (None, two):
            expected = torch_s.select(task, shown, fleet=fleet, reason=fleet is None)
            assert answer(graphs.select(task, shown, fleet=fleet, reason=fleet is None)) == answer(expected)
    many = Fleet([Robot(f"Crawler {n}", ("pipes", f"tools of kind {n}")) for n in range(MOST_READ_WHOLE + 1)])
    expected = torch_s.select(TASKS[0], picture, fleet=many, reason=True)
    assert answer(graphs.select(TASKS[0], picture, fleet=many, reason=True)) == answer(expected)


def test_one_by_one_is_as_together(exported: Path) -> None:
    selector = RobotSelector.from_pretrained(exported)
    together, _ = selector.score(TASKS, [None] * len(TASKS))
    alone = np.concatenate([selector.score([task], [None])[0] for task in TASKS])
    np.testing.assert_allclose(alone, together, atol=1e-4)


def test_a_quantised_model_is_smaller_and_nearly_the_same(
    make_tiny: Callable[..., Any], exported: Path, tmp_path: Path
) -> None:
    # Of weights that are not so wild that a rounding error makes another leader.
    model = make_tiny(n_embd=32, spread=0.2)
    source = save_folder(tmp_path / "source", model, EmberVLMProcessor.for_config(model.config), Fleet.default())
    asked = rendered_questions(scenes=4)
    assert len(asked.tasks) == len(asked.pictures) == len(asked.leaders) >= 24
    anyone = Questions(asked.tasks, asked.pictures, [Fleet.default().names] * len(asked.tasks))
    found = save_onnx(tmp_path / "small", source, "int8", anyone)
    assert found is not None and (found.exact, found.quantised, found.tasks) == (1, 1, len(asked.tasks))
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in (exported, tmp_path / "small")]
    assert sizes[1] < 0.35 * sizes[0]
    exact, small = RobotSelector.from_pretrained(source), RobotSelector.from_pretrained(tmp_path / "small")
    one, other = (selector.score(asked.tasks, asked.pictures)[0] for selector in (exact, small))
    assert np.abs(one - other).max() > 0 and np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.98
    assert small.select(TASKS[1], Image.new("RGB", (64, 48))).reasoning
    # The encoder's convolutions are among what is in bytes, whatever their weights share.
    weights = convolution_weights(tmp_path / "small")
    assert len(weights) > 20 and set(weights) == {"DequantizeLinear"}
    pixels = [exact.pixels(picture) for picture in asked.pictures if picture is not None]
    seen = [np.stack([np.asarray(each) for each in of.runtime.see(pixels)]) for of in (exact, small)]
    assert np.abs(seen[0] - seen[1]).mean() < 0.1 * np.abs(seen[0]).mean()


def test_what_lost_too_much_is_not_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def lossy(*_: Any) -> Loss:
        tried.append(1)
        return Loss(200, 0.8, 0.785, 0.95)

    monkeypatch.setattr(write, "loss", lossy)
    questions = Questions(["Dive!"], [None], [("Drone",)])
    with pytest.raises(
        ExportError, match=r"int8 costs 1\.5 points of leader accuracy, more than 1 \(leader right in 78"
    ):
        save_onnx(tmp_path / "out", source, "int8", questions)
    # Tables of more bits were tried before, and the exact encoder with both.
    assert len(tried) == len(write.QUANTISED) == 4
    assert list(tmp_path.iterdir()) == []


def convolution_weights(folder: Path) -> list[str | None]:
    """What the weights of the encoder's convolutions come from, by the kind of the node."""
    graph = onnx.load(folder / "vision.onnx").graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    return [made_by.get(node.input[1]) for node in graph.node if node.op_type == "Conv"]


def test_an_encoder_that_loses_too_much_stays_exact(
    make_tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny(n_embd=32, tied=False)
    source = save_folder(tmp_path / "source", model, EmberVLMProcessor.for_config(model.config), Fleet.default())
    losses = [Loss(200, 0.8, 0.785, 0.95), Loss(200, 0.8, 0.8, 0.99)]
    monkeypatch.setattr(write, "loss", lambda *_: losses.pop(0))
    save_onnx(tmp_path / "out", source, "int8", Questions(["Dive!"], [None], [("Drone",)]))
    assert losses == []
    weights = convolution_weights(tmp_path / "out")
    assert len(weights) > 20 and "DequantizeLinear" not in weights
    # All that a folder has is downloaded from a hub.
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*FILES, "head.bin"} - {"calibration.json"}
    assert all(any(fnmatch(name, pattern) for pattern in _HUB_FILES) for name in names)


def test_the_loss_counts_right_leaders(exported: Path) -> None:
    selector = RobotSelector.from_pretrained(exported)
    picks = [names[0] for names in selector.selected_names(*selector.score(TASKS, [None] * 4), [False] * 4)]
    other = next(name for name in selector.fleet.names if name != picks[0])
    found = loss(selector, selector, Questions(TASKS, [None] * 4, [(other,), *((pick, other) for pick in picks[1:])]))
    assert (found.tasks, found.exact, found.quantised, found.same, found.points) == (4, 0.75, 0.75, 1.0, 0.0)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "graphs"
    assert main(["export", "--format", "onnx", "--model", str(source), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    # One that is there is replaced; what is no such folder is not.
    assert main(["export", "--format", "onnx", "--model", str(source), "--out", str(out)]) == 0
    (tmp_path / "mine").mkdir()
    assert main(["export", "--format", "onnx", "--model", str(source), "--out", str(tmp_path / "mine")]) == 1
    assert "is there already and no ONNX model" in capsys.readouterr().err
    assert main(["select", "--model", str(out), "--task", "Dive!", "--json", "--no-reason"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "Dive!"
    for flags in (["--card", "x"], ["--data", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(["export", "--format", "onnx", "--model", str(source), "--out", str(tmp_path / "x"), *flags])
        assert ended.value.code == 2


def test_graphs_are_not_trained_on(exported: Path) -> None:
    with pytest.raises(WeightsError, match="of ONNX graphs, which embervlm select and serve run"):
        load_model(exported)
    with pytest.raises(WeightsError, match="of ONNX graphs, which only answer"):
        _ = RobotSelector.from_pretrained(exported).model


def test_another_fleet_needs_tasks_of_its_own(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(source, folder)
    (folder / "manifest.json").unlink()
    Fleet([Robot("Crawler", ("pipes",))]).to_yaml(folder / "fleet.yaml")
    with pytest.raises(ExportError, match=r"its fleet is not the default one.* Cure: --data"):
        save_onnx(tmp_path / "out", folder, "int8")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [64, 48])
def test_a_table_keeps_its_numbers_to_half_a_step(bits: int, columns: int) -> None:
    values = np.random.default_rng(0).normal(size=(7, columns)).astype(np.float32)
    values[3] = 0
    table = Table.of("rows", values, bits)
    assert table.scales is not None and table.block == (32 if columns == 64 else 16)
    numbers: Any = table.numbers
    if bits == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], -1).reshape(7, columns)
    steps = np.repeat(table.scales.astype(np.float32), table.block, 1)
    found = (numbers.astype(np.float32) - 2 ** (bits - 1)) * steps
    assert np.abs(found - values).max() <= 0.51 * steps.max()
    assert (found[3] == 0).all()
    assert table.content() == table.numbers.tobytes() + table.scales.tobytes()
    # Rows that fill no block stay exact.
    assert Table.of("rows", values[:, :5], bits).bits == 32
