"""The checks that run before the first step: pure functions that raise with both numbers and the cure.

They hold the tokenizer, the embedding, the head, the positions, the pictures, the labels and the fleet against each
other, so that nothing of this surfaces as an index out of range in the middle of a run. torch is loaded by those alone
that look at a model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from embervlm.fleet import Fleet, FleetError
from embervlm.prompts import IGNORED, PROMPT_VERSION, robot_description
from embervlm.tokens import CONTROL_IDS, IMAGE, TokenizerError, check_tokenizer, encode_text

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)


class PreflightError(ValueError):
    """A run that would fail later; the message has what was found, what was expected and the cure."""


def embedding_rows(model: nn.Module) -> int:
    """Rows of the input embedding of ``model.language_model``, or of what it wraps, or of ``model`` itself."""
    return int(_input_embedding(model).weight.shape[0])


def head_rows(model: nn.Module) -> int:
    """Rows of the language head, which gives one logit a row."""
    return int(_language_head(model).weight.shape[0])


def check_embeddings(model: nn.Module, tokenizer: Any) -> None:
    """Refuse a model whose embedding or head does not fit the tokenizer.

    Raises:
        TokenizerError: the tokenizer itself is not the expected one.
        PreflightError: the sizes differ, or head and embedding are not one though they should be. Both errors name the
            rows, the tokenizer's size, every control token with its id, and the cure.
    """
    required, current, head = len(tokenizer), embedding_rows(model), head_rows(model)
    listed = ", ".join(f"{token} {index}" for token, index in CONTROL_IDS.items())
    try:
        check_tokenizer(tokenizer)
    except TokenizerError as error:
        sizes = f"the embedding has {current} rows, the tokenizer {required} tokens"
        raise TokenizerError(f"{sizes}. Expected special tokens: {listed}. Found: {error}") from None
    embedding, output = _input_embedding(model), _language_head(model)
    faults = []
    if current != required:
        faults.append(f"the embedding has {current} rows, the tokenizer {required} tokens")
    if head != required:
        faults.append(f"the language head has {head} rows, the tokenizer {required} tokens")
    if _is_tied(model) and output.weight is not embedding.weight and not faults:
        faults.append(f"the head ({head} rows) should share the embedding's weights ({current} rows), but has its own")
    if faults:
        raise PreflightError(
            f"{'; '.join(faults)}. Special tokens: {listed}. "
            "Cure: embervlm.preflight.align_embeddings(model, tokenizer), which the training command does by itself"
        )


def align_embeddings(model: Any, tokenizer: Any, source_tokenizer: Any = None) -> bool:
    """Make the embedding and the head fit the tokenizer, keep every known token's row, and verify.

    Args:
        model: a model whose weights were just loaded.
        tokenizer: the tokenizer to be used from here on.
        source_tokenizer: the tokenizer that the weights were trained with, where it is known. Rows move by token, so
            control tokens that stood at other ids keep their values.

    Returns:
        whether anything had to be changed.

    Raises:
        TokenizerError: ``tokenizer`` is not the expected one.
        PreflightError: the sizes still differ afterwards.
    """
    check_tokenizer(tokenizer)
    required, current = len(tokenizer), embedding_rows(model)
    moved = _moved_tokens(tokenizer, source_tokenizer, current)
    tied = _is_tied(model)
    # Where head and embedding should be one but are not, the head is the stale copy.
    own_head = None if tied else _language_head(model).weight.detach().clone()
    old_rows = _input_embedding(model).weight.detach().clone()
    changed = True
    if current != required:
        logger.warning("⚠️ CRITICAL: Embedding size mismatch detected!")
        logger.warning("   Current embedding size: %d", current)
        logger.warning("   Required (tokenizer size): %d", required)
        logger.warning("   Special tokens in use: %s", [f"{token} {index}" for token, index in CONTROL_IDS.items()])
        logger.warning("🔧 Resizing embeddings to match tokenizer...")
        _make_head_fit(model, current)
        # New rows drawn around the mean of the old ones leave the other tokens' probabilities about as they were.
        model.resize_token_embeddings(required, mean_resizing=True)
        logger.info("✓ Resized embeddings via resize_token_embeddings()")
    elif head_rows(model) != required or (tied and _language_head(model).weight is not _input_embedding(model).weight):
        logger.warning("⚠️ The language head (%d rows) does not match the embedding; taken anew", head_rows(model))
        _make_head_fit(model, required)
    else:
        changed = False
    if moved:
        changed = True
        logger.warning("⚠️ %d tokens stood at other ids where the weights come from; their rows are moved", len(moved))
        _move_rows(_input_embedding(model).weight, old_rows, moved)
        if own_head is not None:
            _move_rows(_language_head(model).weight, own_head, moved)
    check_embeddings(model, tokenizer)
    if current != required:
        logger.info("✅ Embedding resize successful: %d tokens", required)
    else:
        logger.info("✓ Embedding size matches tokenizer: %d tokens", required)
    return changed


def check_image_tokens(model: Any, processor: Any) -> None:
    """Refuse a processor that expands a picture to other places than the model fills.

    Raises:
        PreflightError: names both numbers and both image sizes.
    """
    token = model.config.image_token_id
    if token != CONTROL_IDS[IMAGE]:
        raise PreflightError(
            f"the model fills in pictures at token {token!r:.20}, the tokenizer's {IMAGE} is {CONTROL_IDS[IMAGE]}. "
            f"Cure: image_token_id {CONTROL_IDS[IMAGE]} in the model's config.json"
        )
    expected = model.config.vision_config.image_tokens
    if processor.image_tokens != expected:
        raise PreflightError(
            f"the processor expands a picture to {processor.image_tokens} image tokens, the model makes {expected} "
            "visual tokens of it. Cure: EmberVLMProcessor.for_config(model.config)"
        )
    positions = model.config.text_config.n_positions
    if not 1 <= model.image_tokens < positions:
        raise PreflightError(
            f"a picture would take {model.image_tokens:,} tokens of the language model's {positions:,} positions; "
            "expected at least one and room for a task. Cure: another image_size in the model's configuration"
        )
    size, image_size = processor.image_processor.size["height"], model.config.vision_config.image_size
    if size != image_size:
        raise PreflightError(
            f"the processor resizes pictures to {size} pixels, the model expects {image_size}. "
            "Cure: EmberVLMProcessor.for_config(model.config)"
        )


def check_prompt_version(version: int) -> None:
    """Refuse weights that were trained with another wording.

    Args:
        version: as their configuration has it.

    Raises:
        PreflightError: names both versions.
    """
    if version != PROMPT_VERSION:
        raise PreflightError(
            f"the weights were trained with prompt version {version}, this package writes "
            f"{PROMPT_VERSION}. Cure: train stage 3 again, or install the package version that they were trained with"
        )


def check_positions(tokens: int, positions: int, what: str) -> None:
    """Refuse a prompt longer than the language model's positions.

    Args:
        tokens: text and image tokens together.
        positions: the language model's.
        what: whose prompt it is, for the message.

    Raises:
        PreflightError: names both numbers.
    """
    if tokens > positions:
        raise PreflightError(
            f"{what}: {tokens} tokens, image tokens counted, but the language model has {positions} positions. "
            "Cure: a shorter text"
        )


def check_fleet_length(fleet: Fleet, tokenizer: Any, positions: int) -> None:
    """Refuse a robot whose description is longer than the language model's positions.

    Raises:
        PreflightError: names the robot and both numbers.
    """
    for robot in fleet:
        check_positions(len(encode_text(tokenizer, robot_description(robot))), positions, f"the robot {robot.name!r}")


def check_labels(input_ids: Sequence[int], labels: Sequence[int], rows: int, sample: str) -> None:
    """Refuse token or label ids without a row, and a sample that would teach nothing.

    Raises:
        PreflightError: names the sample, the id and the rows.
    """
    for name, ids in (("token", input_ids), ("label", labels)):
        out_of_range = [index for index in ids if not (0 <= index < rows or (name == "label" and index == IGNORED))]
        if out_of_range:
            raise PreflightError(
                f"{sample}: {name} id {out_of_range[0]} has no row: the embedding has {rows}. "
                "Cure: embervlm.preflight.align_embeddings(model, tokenizer)"
            )
    if all(label == IGNORED for label in labels):
        raise PreflightError(f"{sample}: no supervised token of {len(labels)}. Cure: an answer that fits the length")


def check_robots(names: Iterable[str], fleet: Fleet, where: str) -> None:
    """Refuse robots that the fleet does not have.

    Raises:
        FleetError: names the place, the robot and the fleet's names.
    """
    for name in names:
        if name not in fleet:
            raise FleetError(f"{where}: unknown robot {name!r}; the fleet has: {', '.join(fleet.names)}")


def _text_model(model: nn.Module) -> Any:
    inner: Any = getattr(model, "language_model", model)
    return inner


def _input_embedding(model: nn.Module) -> nn.Embedding:
    from torch import nn

    embedding = _text_model(model).get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding


def _language_head(model: nn.Module) -> nn.Linear:
    from torch import nn

    head = _text_model(model).get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head


def _is_tied(model: nn.Module) -> bool:
    config: Any = model.config
    return bool(config.tie_word_embeddings)


def _make_head_fit(model: Any, rows: int) -> None:
    """Give the head the embedding's rows: shared when tied, otherwise its own with the old values where there are."""
    from torch import nn

    head, embedding = _language_head(model), _input_embedding(model)
    if not _is_tied(model) and head.weight.shape[0] != rows:
        weight = embedding.weight.detach().clone()
        kept = min(head.weight.shape[0], rows)
        weight[:kept] = head.weight.detach()[:kept]
        head.weight = nn.Parameter(weight, requires_grad=head.weight.requires_grad)
    elif _is_tied(model):
        head.weight = embedding.weight
    head.out_features = rows


def _moved_tokens(tokenizer: Any, source_tokenizer: Any, source_rows: int) -> dict[int, int]:
    """Where each token that stands at another id comes from: new id -> old id."""
    if source_tokenizer is None:
        return {}
    source = source_tokenizer.get_vocab()
    return {
        index: source[token]
        for token, index in tokenizer.get_vocab().items()
        if token in source and source[token] != index and source[token] < source_rows
    }


def _move_rows(weight: Tensor, old_rows: Tensor, moved: dict[int, int]) -> None:
    rows = weight.detach()
    for new, old in moved.items():
        if old < old_rows.shape[0]:
            rows[new] = old_rows[old].to(weight.dtype)
