"""Preflight: every combination of tokenizer, embedding, head and stage trains or is refused, and each other check."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import TrainingArguments

from embervlm.data.collate import ConversationDataset, RobotTaskDataset
from embervlm.data.sample import PlanStep, Reasoning, RobotSample, Sample, Turn
from embervlm.fleet import Fleet, FleetError, Robot
from embervlm.model import EmberVLMProcessor
from embervlm.preflight import (
    PreflightError,
    align_embeddings,
    check_embeddings,
    check_fleet_length,
    check_image_tokens,
    check_labels,
    check_positions,
    check_prompt_version,
    check_robots,
    embedding_rows,
    head_rows,
)
from embervlm.prompts import PROMPT_VERSION
from embervlm.tokens import CONTROL_IDS, CONTROL_TOKENS, TokenizerError
from embervlm.training.stage1_align import Stage1Trainer
from embervlm.training.stage2_instruct import Stage2Trainer
from embervlm.training.stage3_robots import Stage3Trainer

TRAINERS: dict[int, Any] = {1: Stage1Trainer, 2: Stage2Trainer, 3: Stage3Trainer}
REORDERED = list(reversed(CONTROL_TOKENS))
FLEET = Fleet([Robot("Drone", ("flying",)), Robot("Crawler", ("pipes",))])


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """The Trainer collects garbage at each run; what the libraries have made by now need not be gone through again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def tokenizers(tokenizer: Any, make_gpt2_tokenizer: Callable[..., Any]) -> dict[str, Any]:
    return {"50257": make_gpt2_tokenizer(), "50262": tokenizer, "reordered": make_gpt2_tokenizer(REORDERED)}


@pytest.fixture(scope="module")
def make_cell(make_tiny: Callable[..., Any]) -> Callable[[int, str], Any]:
    def make(rows: int, head: str) -> Any:
        model = make_tiny(
            vision={"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "image_size": 32},
            tied=head != "untied",
            vocab_size=rows,
            n_layer=1,
        )
        if head == "stale":
            # What is left when an embedding was exchanged and the head that should share it was not.
            model.language_model.lm_head = nn.Linear(16, 50257, bias=False)
        return model

    return make


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("run")),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


@pytest.fixture
def train_a_step(picture: Path, arguments: TrainingArguments) -> Callable[[Any, Any, int], None]:
    """A function that builds the trainer of a stage directly and trains one step."""

    def train(model: Any, tokenizer: Any, stage: int) -> None:
        processor = EmberVLMProcessor.for_config(model.config, tokenizer)
        dataset: Any
        if stage == 3:
            reasoning = Reasoning("Needs to fly.", "A tall facade.", ("flying",))
            plan = (PlanStep(1, "Drone", "Look"),)
            samples = [RobotSample("t", "Look.", ("Drone",), ("Drone",), plan, reasoning, picture)] * 2
            dataset = RobotTaskDataset(samples, processor, FLEET, augment=False, seed=0)
        else:
            chats = [Sample("s", "set", "chat", picture, (Turn("What is it?", "A facade."),))] * 2
            dataset = ConversationDataset(chats, processor, augment=False, seed=0)
        fleet = FLEET if stage == 3 else None
        trainer = TRAINERS[stage](model, arguments, dataset, processing_class=processor, fleet=fleet)
        before = model.get_input_embeddings().weight.detach().clone()
        outcome = trainer.train()
        assert outcome.global_step == 1 and np.isfinite(outcome.training_loss)
        assert not torch.equal(model.get_input_embeddings().weight, before)

    return train


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("head", ["tied", "untied", "stale"])
@pytest.mark.parametrize("rows", [50257, 50262, 50304])
@pytest.mark.parametrize("name", ["50257", "50262", "reordered"])
def test_every_cell_trains_or_is_refused(
    name: str,
    rows: int,
    head: str,
    stage: int,
    tokenizers: dict[str, Any],
    make_cell: Callable[[int, str], Any],
    train_a_step: Callable[[Any, Any, int], None],
) -> None:
    model, used = make_cell(rows, head), tokenizers[name]
    if (name, rows) == ("50262", 50262) and head != "stale":
        train_a_step(model, used, stage)
        return
    with pytest.raises((PreflightError, TokenizerError)) as caught:
        train_a_step(model, used, stage)
    message = str(caught.value)
    head_alone = (name, rows) == ("50262", 50262)
    sizes = "the language head has 50257 rows" if head_alone else f"the embedding has {rows} rows"
    assert f"{sizes}, the tokenizer {len(used)} tokens" in message
    for token, index in CONTROL_IDS.items():
        assert f"{token} {index}" in message
    assert "Cure: " in message and "\n" not in message

    good = tokenizers["50262"]
    only_the_tokenizer_was_wrong = (name, rows) == ("50257", 50262) and head != "stale"
    assert align_embeddings(model, good, used) == (not only_the_tokenizer_was_wrong)
    assert embedding_rows(model) == head_rows(model) == len(good) == 50262
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (head != "untied")
    train_a_step(model, good, stage)


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("rows", [50257, 50262, 50304])
@pytest.mark.parametrize("name", ["50257", "50262", "reordered"])
def test_rows_keep_their_values_by_token(
    name: str, rows: int, head: str, tokenizers: dict[str, Any], make_cell: Callable[[int, str], Any]
) -> None:
    model, source = make_cell(rows, head), tokenizers[name].get_vocab()
    before = [part.weight.detach().clone() for part in _both(model)]
    align_embeddings(model, tokenizers["50262"], tokenizers[name])
    for old, part in zip(before, _both(model), strict=True):
        new = part.weight.detach()
        assert new.shape == (50262, 16)
        assert torch.equal(new[:50257], old[:50257])
        for token, index in CONTROL_IDS.items():
            if source.get(token, rows) < rows:
                assert torch.equal(new[index], old[source[token]]), token
        assert torch.isfinite(new).all()
        # Rows that nothing was known of are new, and each its own.
        assert len({tuple(row) for row in new[50257:].tolist()}) == 5


def _both(model: Any) -> list[Any]:
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def test_a_stale_head_is_taken_from_the_embedding(
    tokenizers: dict[str, Any], make_cell: Callable[[int, str], Any]
) -> None:
    model = make_cell(50262, "stale")
    before = model.get_input_embeddings().weight.detach().clone()
    align_embeddings(model, tokenizers["50262"])
    assert torch.equal(model.get_output_embeddings().weight, before)
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert model.get_output_embeddings().out_features == 50262


def test_what_was_aligned_saves_and_loads(
    tokenizers: dict[str, Any], make_cell: Callable[[int, str], Any], tmp_path: Path
) -> None:
    from embervlm.model.weights import load_model

    for head in ("tied", "untied", "stale"):
        model = make_cell(50257, head)
        align_embeddings(model, tokenizers["50262"])
        assert model.config.text_config.vocab_size == 50262
        model.save_pretrained(tmp_path / head)
        loaded = load_model(tmp_path / head)
        check_embeddings(loaded, tokenizers["50262"])
        state = loaded.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[list[tuple[str, str]]]:
    """Level and message of what preflight logs, in order, whether or not the command line has set logging up."""
    lines: list[tuple[str, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((record.levelname, record.getMessage()))

    logger, handler = logging.getLogger("embervlm.preflight"), Keep()
    logger.addHandler(handler)
    with caplog.at_level(logging.INFO, logger="embervlm.preflight"):
        yield lines
    logger.removeHandler(handler)


def test_the_lines_of_a_match(
    tokenizers: dict[str, Any], make_cell: Callable[[int, str], Any], log: list[tuple[str, str]]
) -> None:
    assert not align_embeddings(make_cell(50262, "tied"), tokenizers["50262"], tokenizers["50262"])
    assert log == [("INFO", "✓ Embedding size matches tokenizer: 50262 tokens")]


def test_the_lines_of_a_mismatch(
    tokenizers: dict[str, Any], make_cell: Callable[[int, str], Any], log: list[tuple[str, str]]
) -> None:
    assert align_embeddings(make_cell(50257, "tied"), tokenizers["50262"])
    special = [f"{token} {index}" for token, index in CONTROL_IDS.items()]
    assert [message for _, message in log] == [
        "⚠️ CRITICAL: Embedding size mismatch detected!",
        "   Current embedding size: 50257",
        "   Required (tokenizer size): 50262",
        f"   Special tokens in use: {special}",
        "🔧 Resizing embeddings to match tokenizer...",
        "✓ Resized embeddings via resize_token_embeddings()",
        "✅ Embedding resize successful: 50262 tokens",
    ]
    assert log[0][0] == "WARNING" and log[-1][0] == "INFO"


def test_the_text_model_alone_is_checked_like_the_whole(
    tokenizers: dict[str, Any], make_cell: Callable[[int, str], Any]
) -> None:
    whole = make_cell(50257, "tied")
    assert embedding_rows(whole) == embedding_rows(whole.language_model) == 50257
    with pytest.raises(PreflightError, match="the embedding has 50257 rows, the tokenizer 50262 tokens"):
        check_embeddings(whole.language_model, tokenizers["50262"])
    align_embeddings(whole, tokenizers["50262"])
    check_embeddings(whole.language_model, tokenizers["50262"])


def test_aligning_to_another_tokenizer_is_refused_and_changes_nothing(
    tokenizers: dict[str, Any], make_cell: Callable[[int, str], Any]
) -> None:
    model = make_cell(50262, "tied")
    for name in ("50257", "reordered"):
        with pytest.raises(TokenizerError):
            align_embeddings(model, tokenizers[name])
    assert embedding_rows(model) == 50262


def test_positions() -> None:
    check_positions(1024, 1024, "t[0]")
    expected = "t[0]: 1025 tokens, image tokens counted, but the language model has 1024 positions. Cure: "
    with pytest.raises(PreflightError, match=re.escape(expected)):
        check_positions(1025, 1024, "t[0]")


def test_image_tokens(make_tiny: Callable[..., Any], tokenizer: Any) -> None:
    model = make_tiny()
    processor = EmberVLMProcessor.for_config(model.config, tokenizer)
    check_image_tokens(model, processor)
    processor.image_tokens = 5
    with pytest.raises(PreflightError, match="to 5 image tokens, the model makes 4 visual tokens"):
        check_image_tokens(model, processor)
    # The same number of places from another size of picture.
    processor = EmberVLMProcessor.for_config(make_tiny(vision={"image_size": 60}).config, tokenizer)
    assert processor.image_tokens == 4
    with pytest.raises(PreflightError, match="to 60 pixels, the model expects 64"):
        check_image_tokens(model, processor)
    model.config.image_token_id = 7
    with pytest.raises(PreflightError, match=r"at token 7, the tokenizer's <\|image\|> is 50261"):
        check_image_tokens(model, processor)


def test_a_picture_leaves_room_for_a_task(make_tiny: Callable[..., Any], tokenizer: Any) -> None:
    for size in (0, 100_000):
        model = make_tiny(vision={"image_size": size})
        expected = f"a picture would take {model.image_tokens:,} tokens of the language model's 512 positions"
        with pytest.raises(PreflightError, match=expected):
            check_image_tokens(model, EmberVLMProcessor.for_config(model.config, tokenizer))


def test_labels() -> None:
    check_labels([1, 2, 3], [-100, 2, 3], 4, "t[0]")
    for ids, labels, fault in (
        ([1, 4], [-100, 1], r"t\[0\]: token id 4 has no row: the embedding has 4\. Cure: "),
        ([1, -1], [-100, 1], r"t\[0\]: token id -1 has no row"),
        ([1, 2], [-100, 4], r"t\[0\]: label id 4 has no row: the embedding has 4"),
        ([1, 2], [-100, -1], r"t\[0\]: label id -1 has no row"),
        ([1, -100], [-100, 1], r"t\[0\]: token id -100 has no row"),
        ([1, 2], [-100, -100], r"t\[0\]: no supervised token of 2\. Cure: "),
    ):
        with pytest.raises(PreflightError, match=fault):
            check_labels(ids, labels, 4, "t[0]")


def test_robots() -> None:
    check_robots(["drone", "Crawler"], FLEET, "t[0]")
    with pytest.raises(FleetError, match=r"t\[0\]: unknown robot 'Boat'; the fleet has: Drone, Crawler"):
        check_robots(["Drone", "Boat"], FLEET, "t[0]")


def test_fleet_length(tokenizer: Any) -> None:
    long = Fleet([Robot("Drone", ("flying",)), Robot("Talker", tuple(f"skill number {n}" for n in range(50)))])
    check_fleet_length(long, tokenizer, 512)
    with pytest.raises(PreflightError, match=r"the robot 'Talker': \d+ tokens, .* has 64 positions"):
        check_fleet_length(long, tokenizer, 64)


def test_prompt_version(make_tiny: Callable[..., Any]) -> None:
    model = make_tiny()
    check_prompt_version(model.config.prompt_version)
    model.config.prompt_version = PROMPT_VERSION + 1
    expected = f"trained with prompt version {PROMPT_VERSION + 1}, this package writes {PROMPT_VERSION}"
    with pytest.raises(PreflightError, match=expected):
        check_prompt_version(model.config.prompt_version)
