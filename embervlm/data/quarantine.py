"""What becomes of a sample that cannot be read while training: which one takes its place, where it is named, and how
many there may be. Workers meet the failures, batches carry them, and the trainer hands them to a :class:`Quarantine`.
"""

from __future__ import annotations

import fcntl
import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embervlm.data.sample import DataError, Split

#: The file in a stage's folder: one JSON object a line, ``{"sample", "split", "picture", "reason", "epoch"}``.
QUARANTINE_FILE = "quarantine.jsonl"
#: How many others are tried in place of a sample.
REPLACEMENTS = 16
#: While a stage runs, fewer draws than this count as so many, so that an early failure is not taken for a large share.
FEWEST_RUNNING = 200
#: The same when a stage ends, so that a single failure in a small set does not fail it.
FEWEST_AT_END = 20
#: So many standard deviations above the allowed share count as chance: of a set that has just that share, as many are
#: drawn more as fewer.
DEVIATIONS = 3.0

_NAMED = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """One draw of a sample that could not be read.

    Attributes:
        sample: the sample's id, or its place (``#17``) where not even its record could be read.
        split: whether it was to train or to validate on.
        picture: its picture's name, or None without one.
        reason: what was wrong.
        epoch: in which epoch it was drawn, from 0.
        replaced: whether another was tried in its place; False for the last that was tried in vain.
    """

    sample: str
    split: Split
    picture: str | None
    reason: str
    epoch: int
    replaced: bool = True


def replacements(index: int, count: int, *, seed: int, epoch: int) -> list[int]:
    """The places that are tried in turn instead of ``index`` among ``count`` samples: no place twice, ``index`` never.

    A function of its arguments alone, so that whichever worker or process meets the sample replaces it alike.
    """
    rng = random.Random(f"{seed}/{epoch}/{index}/replacements")
    steps = rng.sample(range(1, count), min(REPLACEMENTS, count - 1))
    return [(index + step) % count for step in steps]


class Quarantine:
    """One process's count of the failures in one split, and the file in which all processes name them.

    Args:
        path: the file; made when the first failure is named.
        allowed: the share of draws that may fail; 0 for none, 1 for any.
    """

    def __init__(self, path: Path, allowed: float) -> None:
        self.path, self.allowed = path, allowed
        self.drawn = self.failed = 0
        self._named: set[tuple[str, str]] = set()
        self._read_to = 0

    def count(self, rows: int, failures: Sequence[Failure]) -> None:
        """Take note of a batch of ``rows`` samples, in whose place ``failures`` were drawn before.

        Raises:
            DataError: more than the allowed share has failed, or no sample could be found in a failed one's place.
        """
        in_vain = [failure for failure in failures if not failure.replaced]
        self.drawn += rows - len(in_vain) + len(failures)
        if not failures:
            return
        self.failed += len(failures)
        self._name(failures)
        self.check(self.drawn, self.failed, FEWEST_RUNNING)
        if in_vain:
            raise DataError(
                f"{in_vain[0].sample}: {in_vain[0].reason}; nor could those before it be read, of up to "
                f"{REPLACEMENTS + 1} tried in turn. All are named in {self.path}. "
                "Cure: repair or remove them, then --resume auto"
            )

    def check(self, drawn: int, failed: int, fewest: int = FEWEST_AT_END) -> None:
        """Hold a count against the allowed share and what chance may add; fewer draws than ``fewest`` count as so many.

        Raises:
            DataError: names count, share, the first reasons, the file and the cure.
        """
        draws = max(drawn, fewest)
        if failed <= self.allowed * draws + DEVIATIONS * math.sqrt(self.allowed * (1 - self.allowed) * draws):
            return
        named = [entry for entry in read_quarantine(self.path) if entry["split"] == "train"]
        first = "; ".join(f"{entry['sample']}: {entry['reason']}" for entry in named[:_NAMED])
        raise DataError(
            f"{failed:,} of {drawn:,} samples drawn ({failed / drawn:.1%}) could not be read; expected at most "
            f"{self.allowed:.1%}. First: {first}. All are named in {self.path}. "
            "Cure: repair or remove them, then --resume auto; or allow more by --max_bad_share"
        )

    def _name(self, failures: Iterable[Failure]) -> None:
        """Append the samples that no process has named yet, each as one whole line."""
        new = [failure for failure in failures if (failure.split, failure.sample) not in self._named]
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            # Held until the file is closed: what the others name meanwhile is read first.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self._read_to)
            seen = file.read()
            self._named |= {(entry["split"], entry["sample"]) for entry in _entries(seen)}
            # A process that was killed while it wrote leaves half a line.
            lines = b"\n" if seen and not seen.endswith(b"\n") else b""
            for failure in new:
                if (failure.split, failure.sample) not in self._named:
                    self._named.add((failure.split, failure.sample))
                    lines += _line(failure)
            file.write(lines)
            file.flush()
            self._read_to = file.tell()


def read_quarantine(path: Path) -> list[dict[str, Any]]:
    """The entries of a quarantine file, in order; none where there is no file."""
    return _entries(path.read_bytes()) if path.is_file() else []


def _line(failure: Failure) -> bytes:
    entry = {
        "sample": failure.sample,
        "split": failure.split,
        "picture": failure.picture,
        "reason": failure.reason,
        "epoch": failure.epoch,
    }
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _entries(data: bytes) -> list[dict[str, Any]]:
    entries = []
    for line in data.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"sample", "split", "reason"} <= entry.keys():
            entries.append(entry)
    return entries
