"""RepViT: the released weights' names and shapes, the reference's output, and that the fused encoder equals it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embervlm.data.collate import Collator, RobotTaskDataset
from embervlm.data.sample import PlanStep, Reasoning, RobotSample
from embervlm.fleet import Fleet
from embervlm.model import EmberVLMProcessor
from embervlm.model.repvit import RepViT

M0_9 = ((48, 96, 192, 384), (2, 2, 14, 2))


def _tensor(name: str, like: torch.Tensor) -> torch.Tensor:
    """The reference's recipe for a tensor: a cosine whose start depends on its name."""
    count = like.numel()
    wave = np.cos(np.arange(count, dtype=np.float64) * 0.7548776662466927 + zlib.crc32(name.encode()) % 1000)
    if not like.dtype.is_floating_point:
        values = np.zeros(count)
    elif name.endswith("running_var"):
        values = 1 + 0.5 * wave
    elif "bn" in name and name.endswith("weight"):
        values = 1 + 0.25 * wave
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * wave
    else:
        fan_in = like[0].numel() if like.ndim > 1 else 1
        values = 0.6 * wave / np.sqrt(fan_in)
    return torch.tensor(values).reshape(like.shape).to(like.dtype)


@pytest.fixture(scope="module")
def reference_encoder() -> RepViT:
    encoder = RepViT(*M0_9)
    encoder.load_state_dict({name: _tensor(name, tensor) for name, tensor in encoder.state_dict().items()})
    return encoder.eval()


@pytest.fixture(scope="module")
def reference_input() -> torch.Tensor:
    wave = np.cos(np.arange(3 * 224 * 224, dtype=np.float64) * 0.5698402909980532)
    return torch.tensor(wave).reshape(1, 3, 224, 224).float()


def test_names_and_shapes_are_the_released_ones(shared: Path) -> None:
    listed = json.loads((shared / "repvit" / "repvit_m0_9_keys.json").read_text())
    assert len(listed) == 713
    expected = {name: shape for name, shape in listed.items() if not name.startswith("head.")}
    encoder = RepViT(*M0_9)
    assert {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 4_717_792


@torch.no_grad()
def test_the_output_is_the_reference_s(shared: Path, reference_encoder: RepViT, reference_input: torch.Tensor) -> None:
    golden = json.loads((shared / "repvit" / "repvit_m0_9_golden.json").read_text())
    found = reference_encoder(reference_input)
    assert list(found.shape) == golden["shape"] == [1, 384, 7, 7]
    assert float(found.mean()) == pytest.approx(golden["mean"], abs=1e-5)
    assert float(found.std()) == pytest.approx(golden["std"], rel=1e-5)
    torch.testing.assert_close(found[0, 0].flatten(), torch.tensor(golden["first_channel"]), rtol=0, atol=2e-5)
    torch.testing.assert_close(found[0, :, 3, 3], torch.tensor(golden["centre_all_channels"]), rtol=0, atol=2e-5)


@torch.no_grad()
def test_fused_equals_unfused(reference_input: torch.Tensor) -> None:
    encoder = RepViT(*M0_9)
    encoder.load_state_dict({name: _tensor(name, tensor) for name, tensor in encoder.state_dict().items()})
    encoder.eval()
    before = encoder(reference_input)
    fused = encoder.fuse()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(reference_input), before, rtol=1e-4, atol=1e-4)


def test_fusing_is_an_operation_of_eval_mode() -> None:
    # In training mode BatchNorm uses the batch's own statistics, so the two must differ: the test above is not vacuous.
    torch.manual_seed(0)
    encoder = RepViT((8, 8, 16, 16), (1, 1, 1, 1))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        encoder.load_state_dict({name: _tensor(name, tensor) for name, tensor in encoder.state_dict().items()})
        trained = encoder.train()(pixels)
        assert not torch.allclose(trained, encoder.eval().fuse()(pixels), atol=1e-2)


@pytest.mark.parametrize(("size", "side"), [(224, 7), (112, 4), (64, 2), (32, 1), (33, 2)])
def test_each_side_is_halved_five_times_rounding_up(size: int, side: int, make_tiny: Callable[..., Any]) -> None:
    encoder = RepViT((8, 8, 16, 16), (1, 1, 1, 1)).eval()
    assert encoder(torch.zeros(1, 3, size, size)).shape == (1, 16, side, side)
    assert make_tiny(vision={"image_size": size}).image_tokens == side * side


def test_every_trainable_parameter_gets_a_finite_gradient(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    from PIL import Image

    scene = tmp_path / "scene.png"
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(scene)
    fleet = Fleet.default()
    reasoning = Reasoning("Needs to fly.", "A tall facade.", ("aerial inspection",))
    samples = [
        RobotSample("a", "Inspect it.", ("Drone",), ("Drone",), (), reasoning, scene),
        RobotSample("b", "Carry it.", ("Humanoid",), ("Drone", "Humanoid"), (PlanStep(1, "Humanoid", "Carry"),)),
    ]
    model = make_tiny()
    dataset = RobotTaskDataset(samples, EmberVLMProcessor.for_config(model.config), fleet, augment=False, seed=0)
    batch = Collator(dataset.tokenizer, fleet)([dataset[0], dataset[1]])
    assert batch["pixel_values"].shape[0] == 1
    model.train()
    # A residual branch that starts as nothing gives what lies before it no gradient in the very first step.
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "starts_at_zero", False):
                module.weight.fill_(0.5)
    model(**batch)["loss"].backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    not_finite = [name for name, p in model.named_parameters() if not torch.isfinite(p.grad).all()]
    assert not_finite == []
    zero = [name for name, p in model.named_parameters() if not p.grad.any()]
    # A bias that adds the same to every robot's logit leaves the softmax as it is.
    assert set(zero) <= {"robot_head.by_state.leader_key.bias"}
