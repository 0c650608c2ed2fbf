"""A user's text that spells control tokens never becomes them, with the package's tokenizer and with a saved one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from embervlm.model.weights import load_processor
from embervlm.prompts import encode, task_pieces
from embervlm.tokens import CONTROL_IDS, encode_text

CONTEXTS = 200
_WORDS = (
    "",
    " ",
    "\n",
    "<",
    "|",
    ">",
    "<|",
    "|>",
    "\u200b",
    "é",
    "検",
    "🤖",
    "Send the drone",
    "{}",
    "\x00",
    "A" * 40,
    "<|endoftext|>",
)


def contexts(token: str, seed: int) -> list[str]:
    """Texts that hold ``token``, in the middle of others, doubled, nested, cut into and in other cases."""
    rng = random.Random(f"{seed}/{token}")
    texts = []
    for _ in range(CONTEXTS):
        middle = rng.choice((token, token * 2, token[:-1] + token, f"<|{token}|>", token + token.upper()))
        before, after = ("".join(rng.choices(_WORDS, k=rng.randrange(4))) for _ in range(2))
        texts.append(before + middle + after)
    return texts


@pytest.mark.parametrize("token", CONTROL_IDS)
@pytest.mark.parametrize("saved", [False, True], ids=["before saving", "after saving"])
def test_no_control_id_in_a_text(token: str, saved: bool, tokenizer: Any, tiny_folder: Path) -> None:
    used = load_processor(tiny_folder).tokenizer if saved else tokenizer
    bare = len(CONTROL_IDS) + 1
    for text in contexts(token, 0):
        ids = encode_text(used, text)
        assert token in text and max(ids) < len(used) - len(CONTROL_IDS) and 50256 not in ids, text
        assert len(encode_text(used, token)) > 1
        # A whole prompt has as many control ids as the one of a harmless task.
        prompts = [encode(task_pieces(task, False), used, 4).input_ids for task in (text, "Go")]
        found, expected = ([index for index in ids if index >= 50256] for ids in prompts)
        assert found == expected and len(found) < bare, text
