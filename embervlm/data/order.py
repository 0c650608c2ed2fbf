"""The order in which training samples are drawn, between the data set and the batches: a function of seed and epoch.

No number of workers, no earlier draw and no process has a say in it, so that a run can be repeated and resumed, and
one process with twice the batch takes the samples that two would.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from embervlm.data.sample import Sample as DataSample

#: Groups in one window, inside which samples are sorted: enough that a group's samples are of one length, few enough
#: that what is drawn together changes from epoch to epoch.
WINDOW = 64
#: Lengths that differ by less than this many bytes count as the same: about thirty tokens, fewer than a picture takes.
#: Captions and short answers thus stay mixed, conversations are sorted. A batch of captions of one length is a batch of
#: one wording, from which pictures, told apart within the batch, are learnt more slowly.
BUCKET = 128

#: Batches in one window of short texts.
_SHORT_WINDOW = 16

_CHUNK = 4096


def epoch_order(lengths: NDArray[np.int32] | int, *, seed: int, epoch: int, group: int) -> NDArray[np.int64]:
    """The order of one epoch: a permutation in which every run of ``group`` samples has similar lengths.

    All samples are shuffled, then cut into windows of ``WINDOW`` groups. Within a window they are sorted by length,
    equal lengths staying in their random order, and the groups are shuffled. The samples that fill no group come last.

    Args:
        lengths: (samples,), of any unit near a byte of text; or the number of samples, to group by nothing.
        seed: of the run, 0 or more.
        epoch: 0 for the first.
        group: samples of one optimizer step over all processes.

    Returns:
        (samples,), every place once.
    """
    rng = np.random.default_rng([seed, epoch])
    if isinstance(lengths, int):
        return rng.permutation(lengths)
    order = rng.permutation(len(lengths))
    whole = len(order) - len(order) % group
    for start in range(0, whole, WINDOW * group):
        window = order[start : min(start + WINDOW * group, whole)]  # a view: sorted in place
        by_length = window[np.argsort(lengths[window] // BUCKET, kind="stable")].reshape(-1, group)
        window[:] = by_length[rng.permutation(len(by_length))].reshape(-1)
    return order


def batches_by_length(lengths: Sequence[int], size: int, rng: random.Random) -> list[list[int]]:
    """One pass in batches of ``size`` or fewer places whose lengths are alike, in an order by lot: for short texts.

    Unlike :func:`epoch_order` it sorts by the exact length, since what learns from these batches tells no pictures
    apart within them.

    Args:
        lengths: of each text, of any unit.
        size: of a batch; the last one of a window may be smaller.
        rng: shuffles.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), _SHORT_WINDOW * size):
        window = sorted(order[start : start + _SHORT_WINDOW * size], key=lengths.__getitem__)
        batches += [window[place : place + size] for place in range(0, len(window), size)]
    rng.shuffle(batches)
    return batches


def text_lengths(samples: Iterable[DataSample]) -> NDArray[np.int32]:
    """(samples,): UTF-8 bytes of what is asked and answered, as an index keeps them; a cheap stand-in for tokens."""
    return np.fromiter(
        (sum(len(turn.question.encode()) + len(turn.answer.encode()) for turn in s.turns) for s in samples), np.int32
    )


class EpochSampler(Sampler[int]):
    """Draws the places of an epoch in their order, the last group filled up with the epoch's first places.

    Filled up, an epoch is a whole number of optimizer steps over all processes: every process takes equally many,
    and a sample more or less does not make one of them wait for the others.

    Args:
        lengths: as :func:`epoch_order` takes them.
        seed: of the run.
        group: samples of one optimizer step over all processes.
    """

    def __init__(self, lengths: NDArray[np.int32] | int, *, seed: int, group: int) -> None:
        self.lengths, self.seed, self.group, self.epoch = lengths, seed, group, 0
        self.count = lengths if isinstance(lengths, int) else len(lengths)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.group) * self.group

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(self.lengths, seed=self.seed, epoch=self.epoch, group=self.group)
        # A list of a million numbers would take ten times the array's memory, in every process.
        for start in range(0, self.count, _CHUNK):
            yield from order[start : start + _CHUNK].tolist()
        yield from np.resize(order[: self.group], len(self) - self.count).tolist()
