"""The model: size, saving and loading, the Auto classes, generation, losses, the fleet prefix, and clear errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from embervlm import prompts
from embervlm.data.collate import encode_fleet_text, task_rows
from embervlm.fleet import Fleet, Robot
from embervlm.model import EmberVLMForConditionalGeneration, EmberVLMProcessor, preset_config
from embervlm.model.modeling_embervlm import FleetState
from embervlm.model.weights import save_folder
from embervlm.prompts import IGNORED, chat_pieces, encode, robot_description, task_pieces
from embervlm.tokens import CONTROL_IDS, VOCABULARY, encode_text

IMAGE_ID = CONTROL_IDS["<|image|>"]
FLEET = Fleet(
    [
        Robot("Drone", ("flying", "filming")),
        Robot("Crawler", ("pipes",), ("slow",), ("sewers", "tanks")),
        Robot("Boat", ("floating", "towing", "sonar"), ("water only",)),
    ]
)


@pytest.fixture(scope="module")
def model(make_tiny: Callable[..., Any]) -> Any:
    """A tiny model; tests leave it without gradients and in eval mode."""
    return make_tiny()


@pytest.fixture(scope="module")
def spark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    spark = EmberVLMForConditionalGeneration(preset_config("spark"))
    with torch.no_grad():  # statistics that differ from those of a new encoder
        for name, buffer in spark.vision.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape) * 0.1)
    folder = tmp_path_factory.mktemp("models") / "spark"
    return save_folder(folder, spark, EmberVLMProcessor.for_config(spark.config), Fleet.default())


def picture_ids(model: Any, text: list[int]) -> Tensor:
    """One prompt with a picture's places before ``text``."""
    return torch.tensor([[IMAGE_ID] * model.image_tokens + text])


def test_ember_is_of_the_size_that_it_is_called() -> None:
    with torch.device("meta"):
        ember = EmberVLMForConditionalGeneration(preset_config("ember"))
        spark = EmberVLMForConditionalGeneration(preset_config("spark"))
    assert (ember.num_parameters(), spark.num_parameters()) == (37_743_328, 9_092_884)
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert "- `ember`: 37.7M parameters" in readme and "- `spark`: 9.1M parameters" in readme
    assert (ember.image_tokens, spark.image_tokens) == (49, 16)
    text = ember.config.text_config
    assert (text.n_layer, text.n_embd, text.n_head, text.n_positions) == (6, 384, 6, 1024)
    with pytest.raises(ValueError, match="unknown preset 'big'; there are: ember, spark"):
        preset_config("big")


def test_the_head_shares_the_embedding(model: Any, spark_folder: Path) -> None:
    loaded = EmberVLMForConditionalGeneration.from_pretrained(spark_folder)
    for each in (model, loaded):
        assert each.get_output_embeddings().weight is each.get_input_embeddings().weight
        assert each.get_input_embeddings().weight.shape[0] == VOCABULARY


@torch.no_grad()
def test_saving_and_loading_changes_nothing(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    for name, tied in (("tied", True), ("untied", False)):
        saved = make_tiny(3, tied=tied)
        for buffer in saved.vision.buffers():
            if buffer.dtype.is_floating_point:
                buffer.add_(torch.rand(buffer.shape))
        saved.save_pretrained(tmp_path / name)
        assert [path.suffix for path in (tmp_path / name).iterdir() if path.stat().st_size > 1e5] == [".safetensors"]
        loaded, info = EmberVLMForConditionalGeneration.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        before, after = saved.state_dict(), loaded.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert not loaded.training
        ids, pixels = picture_ids(saved, [50, 60, 70]), torch.randn(1, 3, 64, 64)
        inputs = {
            "fleet_input_ids": torch.tensor([[5, 6], [7, 8]]),
            "fleet_lengths": torch.tensor([2, 1]),
            "selection_index": torch.tensor([6]),
            **task_rows([[50, 60, 70]]),
            "pixel_values": pixels,
        }
        # Loaded tensors lie in the file's own mapped pages, less aligned than torch's, which moves the last bit of some
        # convolutions; a copy lies where the saved model's do.
        outputs = [each(ids, **inputs) for each in (saved, copy.deepcopy(loaded), loaded)]
        for part in ("logits", "leader_logits", "member_logits"):
            assert torch.equal(outputs[0][part], outputs[1][part])
            torch.testing.assert_close(outputs[2][part], outputs[0][part], rtol=0, atol=1e-5)


def test_the_auto_classes_and_the_pipeline_take_a_saved_folder(spark_folder: Path) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(spark_folder)
    processor = AutoProcessor.from_pretrained(spark_folder)
    assert type(loaded) is EmberVLMForConditionalGeneration and type(processor) is EmberVLMProcessor
    assert (processor.image_tokens, processor.image_processor.size["height"]) == (16, 112)

    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content}]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    written = loaded.generate(**batch, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    expected = processor.tokenizer.decode(written[0, batch["input_ids"].shape[1] :])

    ask = pipeline("image-text-to-text", model=str(spark_folder))
    (answer,) = ask(text=messages, max_new_tokens=5, min_new_tokens=5, do_sample=False, return_full_text=False)
    assert answer["generated_text"].strip() == expected.strip()


def test_the_processor_s_two_ways_to_pixels_agree(spark_folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(spark_folder)
    noise = np.random.default_rng(0).integers(0, 256, (140, 90, 3), dtype=np.uint8)
    for picture in (Image.fromarray(noise), Image.fromarray(noise[..., 0]), Image.fromarray(noise).resize((112, 112))):
        library = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
        own = torch.from_numpy(processor.image_processor.pixels(picture))
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, library, rtol=0, atol=1e-5)


def test_generation_with_the_cache_equals_generation_without(make_tiny: Callable[..., Any]) -> None:
    model = make_tiny()
    with torch.no_grad():
        model.projector.down.weight.mul_(100)  # pictures start fainter than words
    ids, pixels = picture_ids(model, [50, 60, 70, 80]), torch.randn(1, 3, 64, 64)
    written = [
        model.generate(ids, pixel_values=pixels, max_new_tokens=12, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert written[0].shape == (1, model.image_tokens + 4 + 12)
    assert torch.equal(*written)
    # What was generated depends on the picture, or the test would say little.
    blind = model.generate(ids, pixel_values=-pixels, max_new_tokens=12, do_sample=False)
    assert not torch.equal(blind, written[0])


def test_a_left_padded_batch_generates_what_each_prompt_does_alone(model: Any) -> None:
    prompts = [[50, 60, 70, 80, 90], [31, 41]]
    pixels = torch.randn(2, 3, 64, 64)
    alone = [
        model.generate(picture_ids(model, prompt), pixel_values=pixels[i : i + 1], max_new_tokens=8, do_sample=False)
        for i, prompt in enumerate(prompts)
    ]
    padded = torch.cat([torch.full((1, 3), 50256), picture_ids(model, prompts[1])], 1)
    mask = torch.ones(2, padded.shape[1], dtype=torch.long)
    mask[1, :3] = 0
    together = model.generate(
        torch.cat([picture_ids(model, prompts[0]), padded]),
        attention_mask=mask,
        pixel_values=pixels,
        max_new_tokens=8,
        do_sample=False,
    )
    for row, single in enumerate(alone):
        assert together[row, -8:].tolist() == single[0, -8:].tolist()


def test_the_loss_is_cross_entropy_at_the_supervised_places(make_tiny: Callable[..., Any]) -> None:
    model = make_tiny(7)
    torch.manual_seed(1)
    ids = torch.randint(0, 50257, (3, 14))
    ids[:, : model.image_tokens] = IMAGE_ID
    pixels = torch.randn(3, 3, 64, 64)
    labels = ids.clone()
    labels[:, : model.image_tokens + 2] = IGNORED
    labels[1, 9:12] = IGNORED
    labels[2, :] = IGNORED  # a row that teaches nothing

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    outputs = model(ids, pixel_values=pixels, labels=labels)
    assert outputs.logits is None
    own, own_gradients = outputs.loss.item(), gradients(outputs.loss)
    logits = model(ids, pixel_values=pixels).logits
    assert logits.shape == (3, 14, VOCABULARY)
    naive = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    naive_gradients = gradients(naive)
    assert own == pytest.approx(naive.item(), rel=1e-5)
    assert set(own_gradients) == set(naive_gradients) and "vision.stem.conv1.c.weight" in own_gradients
    for name, gradient in own_gradients.items():
        size = float(naive_gradients[name].abs().max())
        torch.testing.assert_close(gradient, naive_gradients[name], rtol=1e-4, atol=1e-5 * size + 1e-9)


def test_a_batch_without_supervised_tokens_has_a_loss_of_zero(make_tiny: Callable[..., Any]) -> None:
    model = make_tiny()
    loss = model(torch.tensor([[1, 2, 3]]), labels=torch.full((1, 3), IGNORED)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_losses_of_a_selection_are_those_of_its_parts(model: Any, tokenizer: Any) -> None:
    ids = torch.tensor([[40, 41, 42, 50259, 43], [44, 45, 50259, 46, 47]])
    labels = ids.clone()
    labels[:, :3] = IGNORED
    leaders = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    members = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    parts: list[tuple[Tensor, Tensor]] = []
    matches = (model.robot_head.by_state, model.robot_head.by_meaning)
    hooks = [each.register_forward_hook(lambda _module, _given, logits: parts.append(logits)) for each in matches]
    with torch.no_grad():
        outputs = model(
            ids,
            labels=labels,
            selection_index=torch.tensor([3, 2]),
            **task_rows([[40, 41, 42], [44, 45]]),
            leader_labels=leaders,
            member_labels=members,
            **encode_fleet_text(FLEET, tokenizer),
        )
    for hook in hooks:
        hook.remove()
    leader, member = (by_state + by_meaning for by_state, by_meaning in zip(*parts, strict=True))
    assert torch.equal(outputs.leader_logits, leader) and torch.equal(outputs.member_logits, member)
    expected = -(leaders * torch.log_softmax(leader, -1)).sum(1).mean()
    assert float(outputs.leader_loss) == pytest.approx(float(expected), rel=1e-5)
    going = torch.sigmoid(member)
    wrong = -(members * going.log() + (1 - members) * (1 - going).log()).mean()
    assert float(outputs.member_loss) == pytest.approx(float(wrong), rel=1e-5)
    total = outputs.language_loss + outputs.leader_loss + outputs.member_loss
    assert float(outputs.loss) == pytest.approx(float(total), rel=1e-6)


@torch.no_grad()
def test_the_fleet_s_order_orders_the_logits(model: Any, tokenizer: Any) -> None:
    ids = torch.tensor([[*encode(task_pieces("Look into the pipe.", False), tokenizer, 4).input_ids, 50259]])

    def logits(fleet: Fleet) -> tuple[Tensor, Tensor]:
        outputs = model(
            ids,
            selection_index=torch.tensor([ids.shape[1] - 1]),
            **task_rows([ids[0, :-1].tolist()]),
            **encode_fleet_text(fleet, tokenizer),
        )
        return outputs.leader_logits[0], outputs.member_logits[0]

    given = logits(FLEET)
    assert float(given[0].std()) > 1e-3 and float(given[1].std()) > 1e-3
    order = [2, 0, 1]
    moved = logits(Fleet([FLEET.robots[place] for place in order]))
    for before, after in zip(given, moved, strict=True):
        torch.testing.assert_close(after, before[order], rtol=1e-5, atol=1e-6)


@pytest.fixture(params=[False, True], ids=["small fleet", "large fleet"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether fleets of three count as so large that only the last token of a description is read."""
    if request.param:
        monkeypatch.setattr(prompts, "MOST_READ_WHOLE", 1)
    return bool(request.param)


@torch.no_grad()
def test_the_fleet_s_cache_equals_one_masked_forward(model: Any, tokenizer: Any, large: bool) -> None:
    prompt = [*encode(task_pieces("Look into the pipe.", False), tokenizer, 4).input_ids, 50259, 400]
    segments = [encode_text(tokenizer, robot_description(robot)) for robot in FLEET]
    assert len({len(segment) for segment in segments}) == 3  # so that padding is at stake
    outputs = model(
        torch.tensor([prompt]),
        selection_index=torch.tensor([len(prompt) - 2]),
        **task_rows([prompt[:-2]]),
        **encode_fleet_text(FLEET, tokenizer),
    )

    # [robot 1][robot 2][robot 3][prompt]: each robot sees itself alone, the prompt sees all robots and itself; of a
    # large fleet's robots the last token.
    ids = [token for segment in [*segments, prompt] for token in segment]
    positions = [place for segment in [*segments, prompt] for place in range(len(segment))]
    owner = torch.tensor([number for number, segment in enumerate([*segments, prompt]) for _ in segment])
    is_prompt = owner == len(segments)
    ends = torch.tensor([len(segment) for segment in segments]).cumsum(0) - 1
    read = torch.isin(torch.arange(len(ids)), ends) if large else ~is_prompt
    seen = (owner[:, None] == owner[None]) | (is_prompt[:, None] & read[None])
    seen &= torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    mask = torch.zeros(1, 1, len(ids), len(ids)).masked_fill(~seen, torch.finfo(torch.float32).min)
    states = model.language_model.transformer(
        input_ids=torch.tensor([ids]),
        attention_mask=mask,
        position_ids=torch.tensor([positions]),
        use_cache=False,
    ).last_hidden_state
    start = len(ids) - len(prompt)
    head = model.robot_head
    vectors = [
        head.text_encoder(model.get_input_embeddings()(torch.tensor([text])), torch.tensor([len(text)]))
        for text in [*segments, prompt[:-2]]
    ]
    fleet = FleetState(states[0, ends], torch.cat(vectors[:-1]), [], [])
    by_state = head.match_state(states[:, start + len(prompt) - 2], fleet)
    by_meaning = head.match_meaning(vectors[-1], fleet)
    leader, member = (first + second for first, second in zip(by_state, by_meaning, strict=True))
    torch.testing.assert_close(outputs.leader_logits, leader, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.member_logits, member, rtol=1e-4, atol=1e-5)
    logits = model.language_model.lm_head(states[:, start:])
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-4, atol=1e-4)
    # Without the fleet the prompt reads otherwise, or the comparison would hold of anything.
    assert not torch.allclose(model(torch.tensor([prompt])).logits, logits, atol=1e-2)


def test_one_fleet_for_a_batch_equals_one_for_each(make_tiny: Callable[..., Any], tokenizer: Any) -> None:
    model = make_tiny(2)
    fleet = encode_fleet_text(FLEET, tokenizer)
    rows = [[IMAGE_ID] * 4 + [10, 11, 50259], [IMAGE_ID] * 4 + [20, 50259], [IMAGE_ID] * 4 + [30, 31, 32, 33, 50259]]
    pixels = torch.randn(3, 3, 64, 64)
    leaders = torch.eye(3)
    longest = max(map(len, rows))
    padded = torch.tensor([row + [50256] * (longest - len(row)) for row in rows])

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together = model(
        padded,
        pixel_values=pixels,
        selection_index=torch.tensor([len(row) - 1 for row in rows]),
        **task_rows([row[4:-1] for row in rows]),
        leader_labels=leaders,
        **fleet,
    )
    singles = [
        model(
            torch.tensor([row]),
            pixel_values=pixels[i : i + 1],
            selection_index=torch.tensor([len(row) - 1]),
            **task_rows([row[4:-1]]),
            leader_labels=leaders[i : i + 1],
            **fleet,
        )
        for i, row in enumerate(rows)
    ]
    torch.testing.assert_close(
        together.leader_logits, torch.cat([single.leader_logits for single in singles]), rtol=1e-4, atol=1e-5
    )
    whole = gradients(together.leader_loss)
    parts = gradients(torch.stack([single.leader_loss for single in singles]).mean())
    assert set(whole) == set(parts) and "language_model.transformer.wte.weight" in whole
    for name, gradient in whole.items():
        size = float(parts[name].abs().max())
        torch.testing.assert_close(gradient, parts[name], rtol=1e-3, atol=2e-5 * size + 1e-6)


@pytest.mark.usefixtures("large")
def test_a_fleet_mask_equals_a_fleet_of_its_own(make_tiny: Callable[..., Any], tokenizer: Any) -> None:
    model = make_tiny(3)
    own = [[0, 2], [1, 2], [0, 1, 2]]
    rows = [[10, 11, 50259, 60, 61], [20, 50259, 62], [30, 31, 32, 33, 50259, 63]]
    places, leads, goes = [2, 1, 4], [2, 1, 0], [[0, 2], [1], [0, 2]]

    def hot(robots: list[int]) -> list[float]:
        return [float(robot in robots) for robot in range(3)]

    def run(chosen: list[int], robots: list[int], mask: list[list[int]] | None) -> Any:
        length = max(len(rows[row]) for row in chosen)
        labels = [
            [IGNORED] * (places[row] + 1) + rows[row][places[row] + 1 :] + [IGNORED] * (length - len(rows[row]))
            for row in chosen
        ]
        masked = {} if mask is None else {"fleet_mask": torch.tensor([hot(row) for row in mask]).bool()}
        return model(
            torch.tensor([rows[row] + [50256] * (length - len(rows[row])) for row in chosen]),
            labels=torch.tensor(labels),
            selection_index=torch.tensor([places[row] for row in chosen]),
            **task_rows([rows[row][: places[row]] for row in chosen]),
            leader_labels=torch.tensor([hot([leads[row]]) for row in chosen])[:, robots],
            member_labels=torch.tensor([hot(goes[row]) for row in chosen])[:, robots],
            **encode_fleet_text(Fleet([FLEET.robots[robot] for robot in robots]), tokenizer),
            **masked,
        )

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together = run([0, 1, 2], [0, 1, 2], own)
    alone = [run([row], robots, None) for row, robots in enumerate(own)]
    for row, robots in enumerate(own):
        others = [robot for robot in range(3) if robot not in robots]
        for name in ("leader_logits", "member_logits"):
            logits = getattr(together, name)
            torch.testing.assert_close(logits[row, robots], getattr(alone[row], name)[0], rtol=1e-5, atol=1e-5)
            assert logits[row, others].tolist() == [torch.finfo(torch.float32).min / 4] * len(others)
    language = torch.stack([alone[0].language_loss * 2, alone[1].language_loss, alone[2].language_loss]).sum() / 4
    leader = torch.stack([each.leader_loss for each in alone]).mean()
    member = torch.stack([each.member_loss * len(robots) for each, robots in zip(alone, own, strict=True)]).sum() / 7
    for name, expected in (("language_loss", language), ("leader_loss", leader), ("member_loss", member)):
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-5, atol=1e-6)
    whole, parts = gradients(together.loss), gradients(language + leader + member)
    assert set(whole) == set(parts)
    for name, gradient in whole.items():
        size = float(parts[name].abs().max())
        torch.testing.assert_close(gradient, parts[name], rtol=1e-3, atol=2e-5 * size + 1e-6)
    # A mask with all robots is no mask, and what the masked robot is would otherwise be seen.
    everyone, unmasked = run([0, 1, 2], [0, 1, 2], [[0, 1, 2]] * 3), run([0, 1, 2], [0, 1, 2], None)
    torch.testing.assert_close(everyone.loss, unmasked.loss, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(unmasked.leader_logits[0, own[0]], together.leader_logits[0, own[0]], atol=1e-3)


def test_too_few_image_tokens_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"3 image tokens in the text, but 1 pictures give 4 visual tokens \(4 each\)"):
        model(torch.tensor([[IMAGE_ID] * 3 + [7]]), pixel_values=torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="8 image tokens in the text, but 1 pictures give 4"):
        model(torch.tensor([[IMAGE_ID] * 8]), pixel_values=torch.zeros(1, 3, 64, 64))


def test_more_tokens_than_positions_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="513 tokens, but the language model has 512 positions"):
        model(torch.ones(1, 513, dtype=torch.long))
    with pytest.raises(ValueError, match="513 tokens, but the language model has 512 positions"):
        model.generate(torch.ones(1, 510, dtype=torch.long), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert model(torch.ones(1, 512, dtype=torch.long), logits_to_keep=1).logits.shape == (1, 1, VOCABULARY)


@torch.no_grad()
def test_the_fleet_takes_none_of_the_prompt_s_positions(model: Any, tokenizer: Any) -> None:
    fleet = encode_fleet_text(FLEET, tokenizer)
    ids = torch.ones(1, 512, dtype=torch.long)
    asked = {"selection_index": torch.tensor([511]), **task_rows([[1] * 511])}
    outputs = model(ids, logits_to_keep=1, **asked, **fleet)
    assert torch.isfinite(outputs.leader_logits).all()
    with pytest.raises(ValueError, match="tokens, but the language model has 512 positions"):
        model(torch.ones(1, 513, dtype=torch.long), **asked, **fleet)


def test_a_frozen_encoder_keeps_its_statistics(make_tiny: Callable[..., Any]) -> None:
    model = make_tiny()
    ids, pixels = picture_ids(model, [1]), torch.randn(1, 3, 64, 64)
    model.vision.requires_grad_(False)
    model.train()
    assert model.training and model.language_model.training and not any(m.training for m in model.vision.modules())
    before = {name: buffer.clone() for name, buffer in model.vision.named_buffers()}
    model(ids, pixel_values=pixels)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.vision.named_buffers())
    model.vision.requires_grad_(True)
    model.train()
    assert all(m.training for m in model.vision.modules())
    model(ids, pixel_values=pixels)
    assert not all(torch.equal(buffer, before[name]) for name, buffer in model.vision.named_buffers())


def test_a_new_model_starts_as_intended() -> None:
    torch.manual_seed(0)
    spark = EmberVLMForConditionalGeneration(preset_config("spark"))
    # Pictures start as faint as words, and deep branches as nothing; both survive the library's own initialisation.
    assert float(spark.projector.down.weight.detach().std()) == pytest.approx(0.002, rel=0.05)
    zero = [m for m in spark.vision.modules() if getattr(m, "starts_at_zero", False)]
    assert zero and all(not m.weight.any() for m in zero)
    words = spark.get_input_embeddings().weight.detach()
    assert float(words.std()) == pytest.approx(0.02, rel=0.05)
    assert all(torch.isfinite(p).all() for p in spark.parameters())


def test_text_without_pictures_and_chats_pass(model: Any, tokenizer: Any) -> None:
    ids = torch.tensor([encode(chat_pieces([("Hello?", None)], False), tokenizer, 4).input_ids])
    with torch.no_grad():
        assert model(ids).logits.shape == (1, ids.shape[1], VOCABULARY)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
