"""The clauses of a task: what it is made of where it has several phases, and the order that it gives them.

A task in phases nearly always says each in a clause of its own (90% of the phases of the collection's plans do). So the
robot head can be asked about each clause by itself, and a plan keeps the words in which its phases were asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Where a clause ends: behind a sentence or a comma, at a dash, and before a word that joins.
_JOINT = re.compile(
    r"(?<=[.!?;:])\s+|,\s+|\s+[-–—]\s+"
    r"|\s+(?=(?:and|then|while|whilst|after|before|once|meanwhile|until|but|so)\b)",
    re.IGNORECASE,
)
#: What is shorter is part of the clause before it, or of the next where it opens a sentence ("Once done, ...").
LEAST_CHARACTERS = 12
_SENTENCE_ENDS = ".!?;:"
#: Clauses of one task that are looked at; those behind them belong to the last.
MAX_CLAUSES = 24

_OPENING = re.compile(r"(?:and|then|but|so|also|meanwhile|finally|afterwards|thereafter|please)\b[\s,]*", re.IGNORECASE)
_SIDE_BY_SIDE = re.compile(
    r"\b(?:while|whilst|meanwhile|meantime|at the same time|during that time|in the same (?:hour|window)|concurrently"
    r"|simultaneously|alongside|in parallel|side by side|both at once)\b",
    re.IGNORECASE,
)
_FIRST = re.compile(
    r"^(?:but |and )?(?:after (?!which|that|this|it\b|them\b)|once (?!that|this|it\b|done))|\bbeforehand\b"
    r"|\bahead of (?:it|that|this|all)\b|\b(?:before|prior to) (?:all|any|that|this)\b"
    r"|\bfirst(?= of all| thing|[.,;:!?]|$)",
    re.IGNORECASE,
)


def clauses(text: str) -> list[str]:
    """The clauses of a text, in order; a text without a joint is one.

    ``"Film the roof, then fetch the ladder from the shed."`` gives ``["Film the roof", "then fetch the ladder from the
    shed."]``.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for joint in [*_JOINT.finditer(text), None]:
        end = len(text) if joint is None else joint.start()
        if end > start:
            if spans and (_joins(text, spans[-1], (start, end)) or len(spans) == MAX_CLAUSES):
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        start = end if joint is None else joint.end()
    if len(spans) > 1 and spans[-1][1] - spans[-1][0] < LEAST_CHARACTERS:
        (start, _), (_, end) = spans[-2:]
        spans[-2:] = [(start, end)]
    return [text[start:end] for start, end in spans]


def _joins(text: str, before: tuple[int, int], span: tuple[int, int]) -> bool:
    """Whether a span is part of the clause before it."""
    opens_sentence = text[before[1] - 1] in _SENTENCE_ENDS
    short_before, short = (end - start < LEAST_CHARACTERS for start, end in (before, span))
    return short_before or (short and not opens_sentence)


def bare(clause: str) -> str:
    """A clause without the words that join it to the one before, and without its last point or comma."""
    text = " ".join(clause.split())
    while (opening := _OPENING.match(text)) and opening.end() < len(text):
        text = text[opening.end() :]
    return text.strip(" .,;:-–—") or clause


def orders(phases: Sequence[str]) -> list[int]:
    """The order of a task's phases, given as they stand in it one after another: 1 for what is done first.

    Each comes after the one before it, unless it says that it runs beside that, or that it comes first.
    """
    found: list[int] = []
    for phase in phases:
        last = found[-1] if found else 0
        found.append(max(1, last) if _SIDE_BY_SIDE.search(phase) else last + 1)
    for place, phase in enumerate(phases):
        if place and _FIRST.search(phase):
            found[place] = min(found) - 1
    ranks = {order: rank for rank, order in enumerate(sorted(set(found)), 1)}
    return [ranks[order] for order in found]
