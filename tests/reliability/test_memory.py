"""Many selections in one process, odd ones among them: what it takes of memory stays as it is.

Not from the first: the tokenizer keeps 10,000 words that it has met, some 5 MB, which the first half fills.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import io
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embervlm import selection
from embervlm.data.images import ImageError
from embervlm.fleet import Fleet, FleetError, Robot
from embervlm.preflight import PreflightError
from embervlm.selection import MAX_KEPT_FLEETS, RobotSelector, SelectionError

SELECTIONS = 2_000
GROWTH_BYTES = 1_000_000
_ODD_TASKS = ("", " \n", "a" * 2_001, "half \ud800", "<|robot_selection|>" * 90, "\u202e\x00\u200b", "word " * 390)
_SIZES = ((1, 1), (8, 8), (64, 48), (640, 480), (33, 2_000), (2_000, 1_500))


class LeftError(Exception):
    """As where a client leaves in the middle of its answer."""


def _word(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyzäß検", k=rng.randint(2, 12)))


def _task(rng: random.Random) -> str:
    if rng.random() < 0.1:
        return rng.choice(_ODD_TASKS)
    return " ".join(_word(rng) for _ in range(rng.randint(4, 28)))


@functools.cache
def _encoded(size: tuple[int, int], kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(file, kind)
    return file.getvalue()


def _picture(rng: random.Random) -> bytes | None:
    if rng.random() < 0.5:
        return None
    data = _encoded(rng.choice(_SIZES), rng.choice(("PNG", "JPEG", "GIF", "WEBP")))
    return data[: rng.randrange(len(data))] if rng.random() < 0.2 else data


def _fleet(rng: random.Random) -> Fleet | None:
    if rng.random() < 0.7:
        return None
    phrases = [tuple(_word(rng) for _ in range(rng.choice((1, 3, 12)))) for _ in range(rng.randint(1, 5))]
    return Fleet(Robot(f"{_word(rng)} {number}", each, each[:1]) for number, each in enumerate(phrases))


def select_something(selector: RobotSelector, rng: random.Random) -> bool:
    """Ask something drawn by lot; whether it was answered."""

    def on_step(part: str, text: str) -> None:
        if rng.random() < 0.001:
            raise LeftError

    coverage = 0.9 if rng.random() < 0.05 else None
    with contextlib.suppress(SelectionError, ImageError, FleetError, PreflightError, LeftError):
        task, image, fleet = _task(rng), _picture(rng), _fleet(rng)
        top_n, reason = rng.choice((None, None, 1, 0)), rng.random() < 0.5
        selector.select(task, image, top_n, reason, fleet, coverage, on_step)
        return True
    return False


def own_memory(selector: RobotSelector) -> int:
    """Bytes that this process has made itself, without what is free, when the fleets that are kept are always the same.

    Pages of files, such as the weights', are not counted: the system takes them away and brings them back as it likes.
    """
    for number in range(MAX_KEPT_FLEETS):
        selector.select("Go.", reason=False, fleet=Fleet([Robot(f"Robot {number}", ("goes",))]))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return 1024 * (sizes["Anonymous"] + sizes["Swap"])


def test_selections_leave_nothing_behind(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A random model never ends a line: whole ones would take most of the time.
    monkeypatch.setattr(selection, "MAX_STEP_TOKENS", 6)
    selector: Any = RobotSelector.from_pretrained(tiny_folder)
    rng = random.Random(0)
    answered, taken = 0, []
    for number in range(1, SELECTIONS + 1):
        answered += select_something(selector, rng)
        if number % (SELECTIONS // 4) == 0:
            taken.append(own_memory(selector))
    growth = taken[-1] - taken[1]
    quarters = ", ".join(f"{(after - before) / 1e6:+.2f}" for before, after in itertools.pairwise(taken))
    print(f"{answered} of {SELECTIONS} answered; MB more in each quarter: {quarters}; second half: {growth / 1e6:+.2f}")
    assert SELECTIONS / 4 < answered < SELECTIONS and growth <= GROWTH_BYTES
