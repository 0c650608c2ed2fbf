"""A text as the words and parts of words in it, hashed: what the robot head's match by words reads of a task.

Word pairs and letters count beside words, so that a form or a compound that training did not have is not unknown
(Bojanowski et al., arXiv 1607.04606). Hashing keeps the table small whatever the vocabulary (Weinberger et al., arXiv
0902.2206); what shares a place is told apart by the rest of the text.

Words and pairs have even hashes and parts of words odd ones, so that each kind can be weighed by itself: a text has
many times more parts than words.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

#: Lengths of the parts of a word, whose ends are marked.
PART_LENGTHS = (2, 3, 4, 5)
#: Words also tell how many robots go: 1, 2 ... or this many and more.
MOST_COUNTED = 4

_WORD = re.compile(r"\w+")


def hashed_words(text: str) -> dict[int, float]:
    """The hashes of a text's words, word pairs and parts of words, each with 1 + log of how often it occurs.

    A hash is the CRC-32 with its lowest bit 0 for words and pairs and 1 for parts of words. Case is ignored. A table of
    n rows, an even number, has the hash h in row h % n.
    """
    words = _WORD.findall(text.lower())
    terms = [*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))]
    counts = Counter(zlib.crc32(term.encode()) & ~1 for term in terms)
    for word in words:
        marked = f"<{word}>"
        parts = [marked[i : i + n] for n in PART_LENGTHS for i in range(len(marked) - n + 1)]
        counts.update(zlib.crc32(part.encode()) | 1 for part in parts)
    return {hashed: 1 + math.log(count) for hashed, count in counts.items()}


def rarity(texts: Iterable[str], rows: int) -> NDArray[np.float32]:
    """How much each row of a table of hashed words tells: the smoothed inverse document frequency over ``texts``.

    It is 0 for what fewer than two texts have, which would only be learnt by heart (Manning et al., Introduction to
    Information Retrieval, chapter 6.2).

    Returns:
        (rows,), 1 for what is in every text.
    """
    found = np.zeros(rows, np.int64)
    count = 0
    for text in texts:
        found[sorted({hashed % rows for hashed in hashed_words(text)})] += 1
        count += 1
    weights: NDArray[np.float32] = (np.log((1 + count) / (1 + found)) + 1).astype(np.float32)
    weights[found < 2] = 0
    return weights


def padded(rows: Sequence[Mapping[int, float]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Hashes and weights as arrays, (rows, longest) each, filled up with hash 0 and weight 0."""
    longest = max([1, *(len(row) for row in rows)])
    hashes = np.zeros((len(rows), longest), np.int64)
    weights = np.zeros((len(rows), longest), np.float32)
    for number, row in enumerate(rows):
        hashes[number, : len(row)] = list(row)
        weights[number, : len(row)] = list(row.values())
    return hashes, weights
