"""Whether data are enough to train a model of a preset's size: the last lines of ``report``.

The numbers are rules of thumb: how much data the published recipe, or the package's own demo, trains on. Less can do
for a narrow task, and more is not always better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Word = Literal["enough", "thin", "too little", "cannot train", "no data"]

STAGE_NAMES = {1: "stage 1, captions and answers", 2: "stage 2, conversations", 3: "stage 3, robot tasks"}


@dataclass(frozen=True, slots=True)
class Reference:
    """How much of something a known training run had.

    Attributes:
        what: what is counted: ``samples`` and ``pictures`` that are trained on.
        enough: from how many on it is enough.
        source: whose number that is.
    """

    what: Literal["samples", "pictures"]
    enough: int
    source: str


_DEMO = "about what `embervlm data sample` writes for the demo"
REFERENCES: dict[tuple[str, int], tuple[Reference, ...]] = {
    ("ember", 1): (
        Reference("samples", 558_000, "LLaVA-1.5's alignment, arXiv 2310.03744"),
        Reference("pictures", 118_000, "COCO 2017, cocodataset.org"),
    ),
    ("ember", 2): (
        Reference("samples", 150_000, "LLaVA-Instruct-150K, arXiv 2304.08485"),
        Reference("pictures", 75_000, "the same"),
    ),
    ("ember", 3): (Reference("samples", 4_000, _DEMO), Reference("pictures", 1_200, "the same")),
    ("spark", 1): (Reference("samples", 6_000, _DEMO), Reference("pictures", 1_200, "the same")),
    ("spark", 2): (Reference("samples", 1_200, _DEMO), Reference("pictures", 1_200, "the same")),
    ("spark", 3): (Reference("samples", 4_000, _DEMO), Reference("pictures", 1_200, "the same")),
}
#: Below this share of a reference it is too little; from it on, thin. Ours.
THIN_FROM = 0.1
#: Above these shares nothing is better than thin. The first is the share of bad pictures at which training stops.
MISSING_PICTURES, CUT = 0.05, 0.05


@dataclass(frozen=True, slots=True)
class StageSize:
    """What one stage has, over all sets.

    Attributes:
        stage: 1, 2 or 3.
        records: in the files.
        samples, pictures: that are trained on; pictures without repeats.
        supervised: tokens that an epoch teaches.
        missing_pictures: records left out for want of their picture.
        cut, kept: samples longer than the model's positions, and all samples kept.
    """

    stage: int
    records: int
    samples: int
    pictures: int
    supervised: int
    missing_pictures: int
    cut: int
    kept: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """One stage's verdict: a word and the sentence with its reason."""

    stage: int
    word: Word
    reason: str

    @property
    def title(self) -> str:
        """Which stage it is about."""
        return STAGE_NAMES[self.stage].capitalize()


def judge(size: StageSize, preset: str, parameters: int) -> Verdict:
    """The verdict on one stage's data for a model of ``preset``, which has so many ``parameters``."""
    if not size.records:
        return Verdict(size.stage, "no data", "none of the paths holds any.")
    missing = size.missing_pictures / size.records
    if not size.samples:
        left = f", {missing:.0%} of them for want of their picture" if missing else ""
        return Verdict(size.stage, "cannot train", f"no training sample is left of {size.records:,} records{left}.")
    if not size.supervised:
        reason = f"none of the {size.samples:,} training samples teaches a token within the model's positions."
        return Verdict(size.stage, "cannot train", reason)
    found = {"samples": size.samples, "pictures": size.pictures}
    references = REFERENCES[preset, size.stage]
    shares = [found[reference.what] / reference.enough for reference in references]
    cut = size.cut / size.kept
    word: Word = "enough" if min(shares) >= 1 else "thin" if min(shares) >= THIN_FROM else "too little"
    if word == "enough" and (missing > MISSING_PICTURES or cut > CUT):
        word = "thin"
    counts = [f"{found[each.what]:,} {each.what} (enough: {each.enough:,})" for each in references]
    parts = [
        f"{' and '.join(counts)} to train on",
        f"{_shown(missing)} of the records lack their picture",
        f"{_shown(cut)} of the samples are cut",
        f"an epoch teaches {size.supervised:,} tokens, {_ratio(size.supervised / parameters)} for each parameter",
    ]
    return Verdict(size.stage, word, f"{'; '.join(parts)}.")


def rules_of_thumb(preset: str) -> Sequence[str]:
    """The thresholds and where they come from, a line each."""
    lines = []
    for stage, name in STAGE_NAMES.items():
        numbers = [f"{each.enough:,} {each.what} ({each.source})" for each in REFERENCES[preset, stage]]
        lines.append(f"{name}: enough from {' and '.join(numbers)}")
    return [
        *lines,
        f"thin from {THIN_FROM:.0%} of these, or where more than {MISSING_PICTURES:.0%} of the records lack their"
        f" picture or more than {CUT:.0%} of the samples are cut; too little below that",
    ]


def _shown(share: float) -> str:
    return "none" if share == 0 else "under 1%" if share < 0.01 else f"{share:.0%}"


def _ratio(ratio: float) -> str:
    return f"{ratio:,.1f}" if ratio >= 1 else f"{ratio:.2g}" if ratio >= 0.0001 else "under 0.0001"
