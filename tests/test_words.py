"""Hashed words: the exact hashes and weights of small texts, rarity by hand, and the arrays of several texts."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from embervlm.words import hashed_words, padded, rarity


def crc(term: str) -> int:
    """The hash of a word or a pair, which is even, or of a part of a word, marked with #, which is odd."""
    return zlib.crc32(term[1:].encode()) | 1 if term.startswith("#") else zlib.crc32(term.encode()) & ~1


def test_a_text_is_its_words_pairs_and_parts() -> None:
    # Parts have two to five letters, the marks of the word's ends among them; a whole short word is one, too.
    ends = ["#<g", "#go", "#o>", "#<u", "#up", "#p>"]
    terms = ["go", "up", "go up", *ends, "#<go", "#go>", "#<go>", "#<up", "#up>", "#<up>"]
    assert hashed_words("Go up!") == {crc(term): 1.0 for term in terms}
    assert list(hashed_words("Go up!"))[:3] == [crc("go"), crc("up"), crc("go up")]
    pipe = [
        "pipe",
        "#<p",
        "#pi",
        "#ip",
        "#pe",
        "#e>",
        "#<pi",
        "#pip",
        "#ipe",
        "#pe>",
        "#<pip",
        "#pipe",
        "#ipe>",
        "#<pipe",
        "#pipe>",
    ]
    assert hashed_words("pipe") == {crc(term): 1.0 for term in pipe}
    assert hashed_words("a") == {crc("a"): 1.0, crc("#<a"): 1.0, crc("#a>"): 1.0, crc("#<a>"): 1.0}


def test_what_occurs_more_often_weighs_by_its_logarithm() -> None:
    found = hashed_words("up, up; up")
    assert found == {
        crc("up"): 1 + math.log(3),
        crc("up up"): 1 + math.log(2),
        **{crc(part): 1 + math.log(3) for part in ("#<u", "#up", "#p>", "#<up", "#up>", "#<up>")},
    }


def test_case_and_punctuation_do_not_count_and_order_does() -> None:
    assert hashed_words("Film the ROOF") == hashed_words("film, the (roof).")
    assert hashed_words("film roof") != hashed_words("roof film")
    assert set(hashed_words("Lösch 火事")) >= {crc("lösch"), crc("火事"), crc("lösch 火事"), crc("#<火事>")}
    assert hashed_words("") == hashed_words(" ?! ") == {}
    # Half of a surrogate pair, as damaged JSON may hold, is passed over and not refused.
    assert hashed_words("up \ud83d") == hashed_words("up")


def test_rarity_by_hand() -> None:
    rows = 2**22  # so many that no two terms share a row here
    texts = ["go up", "go on", "go", "up up"]
    found = rarity(iter(texts), rows)
    assert found.dtype == np.float32 and found.shape == (rows,)

    def of(term: str) -> float:
        return float(found[crc(term) % rows])

    assert of("go") == of("#<go>") == pytest.approx(math.log(5 / 4) + 1)
    # Twice in one text counts once.
    assert of("up") == pytest.approx(math.log(5 / 3) + 1)
    # What a single text has, or none, tells nothing.
    assert of("on") == of("go up") == of("up up") == of("never") == 0
    assert int((found > 0).sum()) == 2 * 7
    assert float(rarity(["go", "go", "go"], rows)[crc("go") % rows]) == 1
    assert not rarity([], 8).any()
    # Rows that several terms share count the texts that have any of them; words and their parts share none.
    assert rarity(texts, 2).tolist() == [1, 1]


def test_texts_are_filled_up_with_weights_of_nothing() -> None:
    hashes, weights = padded([{5: 1.0, 4_294_967_295: 2.5}, {}, {7: 1.5}])
    assert hashes.tolist() == [[5, 4_294_967_295], [0, 0], [7, 0]] and hashes.dtype == np.int64
    assert weights.tolist() == [[1.0, 2.5], [0.0, 0.0], [1.5, 0.0]] and weights.dtype == np.float32
    # There is always a column, since a mean over no column would be none of numbers.
    for rows in ([{}], [{}, {}], []):
        hashes, weights = padded(rows)
        assert hashes.shape == weights.shape == (len(rows), 1) and not weights.any()
