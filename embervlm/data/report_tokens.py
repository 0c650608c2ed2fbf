"""How long prompts are in tokens, counted exactly over a draw of the samples: the token columns of ``report``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embervlm.prompts import Piece
from embervlm.tokens import IMAGE

#: Prompts that are encoded of one set: so many drawn uniformly, and so many of those with the most bytes.
DRAWN = 2_000
LONGEST = 2_000
#: More than the tokens and bytes that the fixed wording of one exchange adds to its text.
WORDING = 64
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The tokens of one set's kept samples, image tokens included.

    Attributes:
        encoded: prompts that were encoded for ``median``, ``p95`` and ``supervised``.
        median, p95: over these.
        longest: of the prompts with the most bytes and of these.
        cut: prompts that are longer than the model's positions, whose ends are not trained on.
        cut_exact: whether ``cut`` was counted; otherwise it is computed from the share among the drawn ones.
        supervised: tokens that an epoch of the training samples teaches, what is cut off not among them.
        supervised_exact: whether ``supervised`` was counted; otherwise it is the mean times the number.
    """

    encoded: int
    median: int
    p95: int
    longest: int
    cut: int
    cut_exact: bool
    supervised: int
    supervised_exact: bool


def count_tokens(
    prompt: Callable[[int], list[Piece]],
    lengths: NDArray[Any],
    is_train: NDArray[np.bool_],
    tokenizer: Any,
    *,
    image_tokens: int,
    positions: int,
    seed: str,
    single_turns: bool = False,
) -> TokenCount | None:
    """Count the tokens of a set's samples; None where there are none.

    Args:
        prompt: the prompt of the sample at a place.
        lengths: (samples,) bytes of each sample's text, or anything that grows with them.
        is_train: (samples,) whether the sample is trained on.
        tokenizer: of :func:`embervlm.tokens.load_tokenizer`.
        image_tokens: places that a picture takes.
        positions: places that the model has.
        seed: of the draw.
        single_turns: every sample is one exchange, so that ``lengths`` bounds its tokens.
    """
    count = len(lengths)
    if not count:
        return None
    drawn = draw(count, DRAWN, seed)
    by_length = np.argsort(-lengths, kind="stable")
    longest = np.setdiff1d(by_length[:LONGEST], drawn)
    of_drawn = _count(prompt, drawn, tokenizer, image_tokens, positions)
    of_longest = _count(prompt, longest, tokenizer, image_tokens, positions)

    too_long = of_drawn[:, 0] > positions
    in_longest = np.isin(drawn, by_length[:LONGEST])
    cut = int((of_longest[:, 0] > positions).sum() + (too_long & in_longest).sum())
    rest = count - min(count, LONGEST)
    seen_of_rest = int((~in_longest).sum())
    bounded = rest > 0 and single_turns and lengths[by_length[LONGEST]] + image_tokens + WORDING <= positions
    cut_exact = seen_of_rest == rest or bool(bounded)
    if cut_exact:
        cut += int((too_long & ~in_longest).sum())
    elif seen_of_rest:
        cut += round(rest * float(too_long[~in_longest].mean()))

    trained = is_train[drawn]
    all_counted = len(drawn) == count
    supervised = of_drawn[trained, 1]
    mean = float(supervised.mean()) if len(supervised) else 0.0
    return TokenCount(
        encoded=len(drawn),
        median=int(np.quantile(of_drawn[:, 0], 0.5, method="lower")),
        p95=int(np.quantile(of_drawn[:, 0], 0.95, method="lower")),
        longest=int(max(of_drawn[:, 0].max(), of_longest[:, 0].max(initial=0))),
        cut=cut,
        cut_exact=cut_exact,
        supervised=int(supervised.sum()) if all_counted else round(mean * int(is_train.sum())),
        supervised_exact=all_counted,
    )


def draw(count: int, at_most: int, seed: str) -> NDArray[np.int64]:
    """Places drawn uniformly without replacement, ascending; all where there are not more."""
    if count <= at_most:
        return np.arange(count)
    numbers = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    return np.sort(numbers.choice(count, at_most, replace=False, shuffle=False))


def _count(
    prompt: Callable[[int], list[Piece]], places: NDArray[Any], tokenizer: Any, image_tokens: int, positions: int
) -> NDArray[np.int64]:
    """(places, 2): tokens of each prompt, and how many of its first ``positions`` are supervised."""
    found: list[tuple[int, int]] = []
    for start in range(0, len(places), _BLOCK):
        prompts = [prompt(int(place)) for place in places[start : start + _BLOCK]]
        found += prompt_sizes(prompts, tokenizer, image_tokens, positions)
    return np.array(found, np.int64).reshape(len(found), 2)


def prompt_sizes(
    prompts: Sequence[list[Piece]], tokenizer: Any, image_tokens: int, positions: int
) -> Iterator[tuple[int, int]]:
    """Tokens and supervised tokens of prompts: the sizes of what :func:`embervlm.prompts.encode` gives.

    The texts of all prompts go to the tokenizer at once, which takes a fraction of the time.
    """
    texts = list({piece.text: None for pieces in prompts for piece in pieces if piece.control is None})
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []
    sizes = {text: len(row) for text, row in zip(texts, rows, strict=True)}
    for pieces in prompts:
        tokens = supervised = 0
        for piece in pieces:
            size = sizes[piece.text] if piece.control is None else image_tokens if piece.control == IMAGE else 1
            if piece.supervised:
                supervised += max(0, min(size, positions - tokens))
            tokens += size
        yield tokens, supervised
