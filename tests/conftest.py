"""Fixtures that every test may use: the folder of real and hostile data beside a checkout, and a tiny model."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# No test asks a hub for anything; set before a library reads it.
os.environ["HF_HUB_OFFLINE"] = "1"
# Indexes of the data that the tests make; gone with the run.
_CACHE = tempfile.TemporaryDirectory(prefix="embervlm-test-cache-")
os.environ["EMBERVLM_CACHE"] = _CACHE.name

SHARED = Path(__file__).resolve().parents[2] / "shared"

#: A model that runs in milliseconds: 4 visual tokens, all the rows of the real vocabulary.
TINY_VISION = {"widths": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "image_size": 64}
TINY_TEXT = {
    "vocab_size": 50262,
    "n_positions": 512,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": 50256,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


@pytest.fixture(autouse=True)
def package_logger() -> Iterator[None]:
    """Every test finds the package's logger as a library leaves it, whatever a command has set up before."""
    logger = logging.getLogger("embervlm")
    before = (logger.handlers[:], logger.propagate, logger.level)
    logger.handlers.clear()
    yield
    logger.handlers[:], logger.propagate, logger.level = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of outside test data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the outside test data are not there: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The package's tokenizer. Tests must not change it."""
    from embervlm.tokens import load_tokenizer

    return load_tokenizer()


@pytest.fixture(scope="session")
def make_gpt2_tokenizer() -> Callable[..., Any]:
    """A function that makes GPT-2's own tokenizer, optionally with further special tokens in the given order."""
    from transformers import GPT2TokenizerFast

    from embervlm.tokens import _base_vocabulary_files

    files = _base_vocabulary_files()

    def make(extra: list[str] | None = None) -> Any:
        tokenizer = GPT2TokenizerFast(vocab=str(files["encoder.json"]), merges=str(files["vocab.bpe"]))
        if extra:
            tokenizer.add_special_tokens({"extra_special_tokens": extra})
        return tokenizer

    return make


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Any]:
    """A function that makes a tiny random model: ``seed``, ``vision`` and ``text`` override its configuration."""
    import torch

    from embervlm.model import EmberVLMConfig, EmberVLMForConditionalGeneration

    def make(
        seed: int = 0, *, vision: dict[str, Any] | None = None, tied: bool = True, spread: float = 1.0, **text: Any
    ) -> Any:
        torch.manual_seed(seed)
        config = EmberVLMConfig(
            vision_config=TINY_VISION | (vision or {}),
            text_config=TINY_TEXT | text,
            tie_word_embeddings=tied,
            text_encoder_width=32,
            text_encoder_layers=2,
            text_encoder_taught=True,
            word_places=1024,
            word_width=8,
        )
        model = EmberVLMForConditionalGeneration(config)
        # Weights as small as GPT-2's would make every place of so narrow a model look alike.
        with torch.no_grad():
            for name, parameter in model.language_model.named_parameters():
                if parameter.ndim > 1 and not name.startswith("lm_head"):
                    parameter.normal_(std=0.3 * spread)
            # As if it had been fitted, without which the match by words says nothing.
            by_words = model.robot_head.by_words
            by_words.rarity.fill_(1.0)
            for numbers in (by_words.table, by_words.leader_key, by_words.member_key, by_words.count_key):
                numbers.normal_(std=0.3)
            by_words.known_key[:, -1] = 1.0
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_folder(make_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete folder of a tiny random model with the default fleet. Tests must not change it."""
    from embervlm.fleet import Fleet
    from embervlm.model import EmberVLMProcessor
    from embervlm.model.weights import save_folder

    model = make_tiny()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_folder(folder, model, EmberVLMProcessor.for_config(model.config), Fleet.default())


@pytest.fixture(scope="session")
def tiny_selector(tiny_folder: Path) -> Any:
    """A selector with the tiny model. Tests must not change it."""
    from embervlm.selection import RobotSelector

    return RobotSelector.from_pretrained(tiny_folder)


@pytest.fixture
def one_line() -> Callable[[BaseException | str], str]:
    """A function that returns a message after making sure that it is one line."""

    def check(error: BaseException | str) -> str:
        text = str(error)
        assert text and "\n" not in text.strip()
        return text

    return check
