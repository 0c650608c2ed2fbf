"""What makes training fast changes nothing: the loss and the gradients are those of the plain way, in fp32."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from embervlm.data.collate import Collator, ConversationDataset, RobotTaskDataset
from embervlm.data.sample import PlanStep, Reasoning, RobotSample, Sample, Turn
from embervlm.fleet import Fleet
from embervlm.model import EmberVLMProcessor
from embervlm.model.attention import attend_in_fp32
from embervlm.model.modeling_embervlm import MATCHING_TEMPERATURE
from embervlm.prompts import IGNORED

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FLEET = Fleet.default()


@pytest.fixture(scope="module")
def naive() -> Any:
    if not BENCHMARKS.is_dir():
        pytest.skip(f"the benchmarks are not part of an installed package: {BENCHMARKS}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("naive")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return paths


def conversations(pictures: list[Path]) -> list[Sample]:
    captions = ("A dog on a red sofa.", "Two boats beside a long wooden pier in the rain.", "A kitchen.")
    talk = (Turn("What is there?", "A valve, half open, and a ladder."), Turn("Is it wet?", "Yes."))
    return [
        *(
            Sample(f"c{n}", "made", "caption", picture, (Turn("", caption),))
            for n, (picture, caption) in enumerate(zip(pictures, captions, strict=True))
        ),
        Sample("t", "made", "chat", pictures[0], talk),
    ]


def tasks(pictures: list[Path]) -> list[RobotSample]:
    reasoning = Reasoning("Needs to fly.", "A tall facade.", ("aerial inspection",))
    return [
        RobotSample("a", "Inspect the facade.", ("Drone",), ("Drone",), (), reasoning, pictures[0]),
        RobotSample("b", "Carry it.", ("Humanoid",), ("Drone", "Humanoid"), (PlanStep(1, "Humanoid", "Carry"),)),
        RobotSample("c", "Look under the bridge.", ("Underwater Robot",), ("Underwater Robot",), image=pictures[1]),
    ]


def trained(model: Any, frozen: tuple[str, ...] = ()) -> Any:
    """The model in training, its encoder in eval mode, since a batch's own statistics fit no fused encoder."""
    for part in frozen:
        getattr(model, part).requires_grad_(False)
    model.train()
    model.vision.eval()
    return model


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name].layout == torch.strided, name
        # Of the tensor's size, as single numbers that nearly cancel have fewer digits; and some are 0 but for rounding,
        # such as that of a bias which adds the same to all robots' logits.
        off, size = float((found[name] - wanted).norm()), float(wanted.norm())
        assert off <= 1e-5 * size + 1e-7, f"{name}: off by {off:.1e} of {size:.1e}"


@pytest.mark.parametrize("tied", [True, False])
def test_stages_1_and_2_learn_what_the_plain_way_learns(
    naive: Any, make_tiny: Callable[..., Any], pictures: list[Path], tied: bool
) -> None:
    model = trained(make_tiny(tied=tied), ("vision", "robot_head"))
    processor = EmberVLMProcessor.for_config(model.config)
    dataset = ConversationDataset(conversations(pictures), processor, augment=False, seed=0)
    examples = [dataset[n] for n in range(len(dataset))]

    plain = naive.plain(copy.deepcopy(model))
    batch = naive.batch_of(examples, processor.tokenizer, None, processor.image_tokens, length=120)
    assert batch["input_ids"].shape == (4, 120 + processor.image_tokens)
    expected = naive.loss(plain, batch)

    model.fuse_frozen_vision(True, torch.float32)
    loss = model(**Collator(processor.tokenizer)(examples)).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_equal(gradients(model, loss), gradients(plain, expected))


def plain_stage_3_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Stage 3's loss, each task by itself behind descriptions that are encoded anew, with all logits."""
    head, embedding = model.robot_head, model.get_input_embeddings()
    fleet_text = {name: batch[name] for name in ("fleet_input_ids", "fleet_lengths")}
    following = batch["labels"][:, 1:]
    language, leading, going, states, features = 0.0, 0.0, 0.0, [], []
    pixels = iter(batch["pixel_values"])
    count = len(batch["input_ids"])
    for row, ids in enumerate(batch["input_ids"]):
        fleet = model.encode_fleet(**fleet_text)
        seen = None
        if (ids == model.config.image_token_id).any():
            seen = model.projector(model.vision(next(pixels)[None]))
            features.append(seen[0].mean(0))
        state = model.language_model.transformer(
            inputs_embeds=model.embed(ids[None], seen),
            past_key_values=fleet.cache(1),
            position_ids=torch.arange(len(ids))[None],
            use_cache=True,
        ).last_hidden_state
        logits = model.language_model.lm_head(state)[0, :-1]
        language = language + F.cross_entropy(logits, following[row], ignore_index=IGNORED, reduction="sum")
        task = batch["task_input_ids"][row, : batch["task_lengths"][row]]
        meaning = head.text_encoder(embedding(task)[None], torch.tensor([len(task)]))
        by_state = head.match_state(state[:, batch["selection_index"][row]], fleet)
        leader, members = (sum(both) for both in zip(by_state, head.match_meaning(meaning, fleet), strict=True))
        leading = leading + F.cross_entropy(leader, batch["leader_labels"][row][None]) / count
        going = going + F.binary_cross_entropy_with_logits(members, batch["member_labels"][row][None]) / count
        states.append(state[0, batch["task_index"][row]])

    def matched(vectors: list[Tensor], words: Tensor) -> Tensor:
        taking_part = (words != IGNORED).any(1)
        own = torch.stack(vectors)[taking_part]
        texts = torch.stack([embedding(row[row != IGNORED]).sum(0) for row in words[taking_part]])
        likeness = F.normalize(own, dim=-1) @ F.normalize(texts, dim=-1).T / MATCHING_TEMPERATURE
        places = torch.arange(len(likeness))
        return (F.cross_entropy(likeness, places) + F.cross_entropy(likeness.T, places)) / 2

    language = language / (following != IGNORED).sum()
    return language + leading + going + matched(features, batch["image_words"]) + matched(states, batch["task_words"])


def test_stage_3_learns_what_the_plain_way_learns(make_tiny: Callable[..., Any], pictures: list[Path]) -> None:
    model = trained(make_tiny())
    processor = EmberVLMProcessor.for_config(model.config)
    dataset = RobotTaskDataset(tasks(pictures), processor, FLEET, augment=False, seed=0)
    batch = Collator(processor.tokenizer, FLEET)([dataset[n] for n in range(3)])
    assert (batch["task_words"] == IGNORED).all(1).tolist() == [False, True, True]  # not all take part
    expected = plain_stage_3_loss(model, batch)
    wanted = gradients(model, expected)
    loss = model(**batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_equal(gradients(model, loss), wanted)


def test_the_places_that_the_batch_names_are_those_that_the_model_finds(
    make_tiny: Callable[..., Any], pictures: list[Path]
) -> None:
    model = make_tiny()
    processor = EmberVLMProcessor.for_config(model.config)
    dataset = RobotTaskDataset(tasks(pictures), processor, FLEET, augment=False, seed=0)
    batch = Collator(processor.tokenizer, FLEET)([dataset[n] for n in range(3)])
    without = {name: value for name, value in batch.items() if not name.endswith("_places")}
    assert len(batch) - len(without) == 2
    with torch.no_grad():
        assert torch.equal(model(**batch).loss, model(**without).loss)


def test_gradients_of_several_batches_add_up(make_tiny: Callable[..., Any], pictures: list[Path]) -> None:
    model = trained(make_tiny(), ("vision", "robot_head"))
    processor = EmberVLMProcessor.for_config(model.config)
    dataset = ConversationDataset(conversations(pictures), processor, augment=False, seed=0)
    collate = Collator(processor.tokenizer)
    batches = [collate([dataset[0], dataset[1]]), collate([dataset[2], dataset[3]])]
    each = [gradients(model, model(**batch).loss) for batch in batches]
    model.zero_grad()
    for batch in batches:
        model(**batch).loss.backward()
    summed = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal(summed, {name: each[0][name] + each[1][name] for name in each[0]})


def test_a_fused_encoder_is_no_part_of_what_is_saved(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    model = make_tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.get_image_features(pixels)
        model.fuse_frozen_vision(True, torch.float32)
        torch.testing.assert_close(model.get_image_features(pixels), expected, rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    model.save_pretrained(tmp_path)
    assert "fused" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    model.fuse_frozen_vision(False, torch.float32)
    with torch.no_grad():
        assert torch.equal(model.get_image_features(pixels), expected)


def test_attending_in_fp32_is_as_near_as_in_bf16(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    model = make_tiny()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        exact = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            usual = model(ids).logits
            attend_in_fp32(model)
            found = model(ids).logits
        assert torch.equal(model(ids).logits, exact)  # without autocast nothing is different
    assert float((found - exact).norm()) <= 1.1 * float((usual - exact).norm())
    model.save_pretrained(tmp_path)
    assert "sdpa_in_fp32" not in (tmp_path / "config.json").read_text(encoding="utf-8")


_FAULTS = """
import resource
from embervlm.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 << 20)
    block[::4096] = bytes(len(block) // 4096)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [faults(), faults()][1]
told = keep_freed_memory()
print(told, before, [faults(), faults()][1])
"""


def test_memory_that_was_freed_is_not_cleared_by_the_system_again() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    told, before, after = done.stdout.split()
    if told == "False":
        pytest.skip("this C library's allocator cannot be told")
    assert int(before) > 1000 and int(after) < 100
