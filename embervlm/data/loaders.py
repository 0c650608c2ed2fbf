"""From a folder of public data sets to the training and validation samples of stages 1 and 2."""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from embervlm.data.files import ImageFolder, Listing, list_folder
from embervlm.data.formats import FORMATS
from embervlm.data.formats.record import Format, Ledger, Tally
from embervlm.data.json_files import peek_json, read_json
from embervlm.data.sample import DataError, Sample, image_key, split_by_key

logger = logging.getLogger(__name__)

Stage = Literal[1, 2]

_NAMED_AT_MOST = 8


@dataclass(frozen=True, slots=True)
class Caps:
    """How many samples are kept at most, drawn uniformly with the run's seed; None keeps all.

    Attributes:
        per_dataset: training samples of one data set.
        total: training samples of all data sets.
        validation: validation samples of all data sets.
    """

    per_dataset: int | None = None
    total: int | None = None
    validation: int | None = 2_000

    @classmethod
    def of_stage(cls, stage: Stage) -> Caps:
        """The recipe's caps."""
        return cls(per_dataset=150_000, total=1_000_000) if stage == 1 else cls()


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What became of one data set's records.

    ``records`` is the sum of ``rejected``, ``missing_images``, ``duplicates``, ``held_out``, ``over_cap``, ``train``
    and ``validation``.

    Attributes:
        dataset: the data set's name.
        stage: the training stage that takes it.
        files: its annotation files.
        records: records in them.
        with_answer: records that have something to learn to say.
        with_image: usable records whose picture was found.
        rejected: records left out, by reason.
        missing_images: usable records left out because their picture was not found.
        first_missing: the first such picture's name.
        duplicates: records left out because another file has them too.
        held_out: training records left out because their picture is kept for validation.
        over_cap: samples left out by a cap, of training or validation.
        train: samples kept for training.
        validation: samples kept for validation.
    """

    dataset: str
    stage: Stage
    files: tuple[Path, ...]
    records: int
    with_answer: int
    with_image: int
    rejected: dict[str, int]
    missing_images: int
    first_missing: str | None
    duplicates: int
    held_out: int
    over_cap: int
    train: int
    validation: int


@dataclass(frozen=True, slots=True)
class LoadedData:
    """The samples of one stage and what was left out on the way to them."""

    train: list[Sample]
    validation: list[Sample]
    report: list[SourceReport] = field(default_factory=list)


def load_base(
    folder: str | Path,
    stage: Stage,
    *,
    extra_image_roots: Sequence[str | Path] = (),
    seed: int = 0,
    validation_share: float = 0.02,
    caps: Caps | None = None,
) -> LoadedData:
    """Read every data set of a stage below ``folder``.

    Annotation files are recognised by their content, whatever they and their folders are called; pictures are looked
    for below ``folder`` and ``extra_image_roots``. Stage 1 takes captions and questions with answers, stage 2
    conversations. No picture is in training and validation both, in any data set: what the publishers call validation
    or test is validation only, a share of the pictures of the data sets without such files is split off, and training
    records about any of these pictures are left out.

    Args:
        folder: a folder, or one annotation file, with pictures beside or below it.
        stage: 1 or 2.
        extra_image_roots: further folders with pictures.
        seed: of the split and of the draws under the caps.
        validation_share: share of the pictures that is split off, for data sets without a validation file.
        caps: limits on what is kept; the recipe's unless given.

    Raises:
        DataError: the folder is missing, holds no data of this stage or none that can be used; or a file is damaged
            (see the readers in ``formats``).
    """
    folder = Path(folder)
    caps = caps or Caps.of_stage(stage)
    formats = [reader for reader in FORMATS if reader.stage == stage]
    listing, images = _list(folder, extra_image_roots, formats)
    found = _recognise(listing, folder, formats, stage)
    ledger = Ledger()
    samples: list[Sample] = []
    for reader in formats:
        if found[reader.name]:
            samples.extend(reader.read(found[reader.name], images, ledger))
    samples, duplicates = _without_repeats(samples)
    for dataset, tally in ledger.items():
        _log_tally(dataset, tally)
    if not samples:
        reasons = "; ".join(_left_out(dataset, tally) for dataset, tally in ledger.items())
        raise DataError(f"{folder}: no usable record for stage {stage}: {reasons}")

    train, validation, held_out = _split(samples, validation_share, seed)
    kept_train, kept_validation = _under_caps(train, validation, caps, seed)
    if not kept_train:
        raise DataError(f"{folder}: nothing to train on in stage {stage}: all {len(samples):,} samples are validation")
    report = _report(stage, ledger, duplicates, held_out, (train, validation), (kept_train, kept_validation))
    for row in report:
        logger.info(
            "%s: %s for training, %s for validation (%s held out with their picture, %s over a cap, %s repeated)",
            row.dataset,
            *(f"{n:,}" for n in (row.train, row.validation, row.held_out, row.over_cap, row.duplicates)),
        )
    return LoadedData(kept_train, kept_validation, report)


def _list(folder: Path, extra_image_roots: Sequence[str | Path], formats: list[Format]) -> tuple[Listing, ImageFolder]:
    if not folder.exists():
        names = ", ".join(reader.name for reader in formats)
        raise DataError(f"{folder}: no such folder; expected one with {names}")
    listing = list_folder(folder if folder.is_dir() else folder.parent)
    listings = [listing, *(list_folder(Path(root)) for root in extra_image_roots)]
    for each in listings:
        if each.links_out:
            logger.warning(
                "%s: %s links that leave the folder are not followed (first: %s); name their targets' folder itself",
                each.root,
                f"{len(each.links_out):,}",
                each.links_out[0],
            )
    return listing, ImageFolder(listings)


def _recognise(listing: Listing, folder: Path, wanted: list[Format], stage: Stage) -> dict[str, list[Path]]:
    """Which files each format is to read; what no format reads is named in one line."""
    candidates = listing.with_suffix(".json") if folder.is_dir() else [folder.resolve()]
    found: dict[str, list[Path]] = {reader.name: [] for reader in FORMATS}
    unknown: list[Path] = []
    for file in candidates:
        head = peek_json(file)
        reader = None if head is None else next((each for each in FORMATS if each.recognise(head)), None)
        if reader is None:
            unknown.append(file)
        else:
            found[reader.name].append(file)
    if not any(found[reader.name] for reader in wanted):
        if folder.is_file():
            read_json(folder)  # a damaged file is told with the place of the damage
        layouts = "; ".join(f"{reader.name} ({reader.layout})" for reader in wanted)
        raise DataError(
            f"{folder}: no data set for stage {stage} among {len(candidates):,} JSON files; looked for {layouts}"
        )
    if unknown:
        logger.info("not recognised, passed over: %s", _names(unknown, listing.root))
    other = [file for reader in FORMATS if reader not in wanted for file in found[reader.name]]
    if other:
        logger.info("of another stage, passed over: %s", _names(other, listing.root))
    return found


def _names(files: Sequence[Path], root: Path) -> str:
    named = ", ".join(str(file.relative_to(root)) for file in files[:_NAMED_AT_MOST])
    return named + (f" and {len(files) - _NAMED_AT_MOST:,} more" if len(files) > _NAMED_AT_MOST else "")


def _without_repeats(samples: list[Sample]) -> tuple[list[Sample], Counter[str]]:
    """Drop records that a second file repeats, such as COCO's 2014 captions that are in its 2017 files too."""
    kept: dict[str, Sample] = {}
    repeated: Counter[str] = Counter()
    for sample in samples:
        # The publisher's validation file decides where a record belongs.
        if sample.id not in kept or (sample.split == "validation" and kept[sample.id].split == "train"):
            repeated[sample.dataset] += sample.id in kept
            kept[sample.id] = sample
        else:
            repeated[sample.dataset] += 1
    return list(kept.values()), repeated


def _text_key(sample: Sample) -> str:
    return "text/" + hashlib.sha256(repr(sample.turns).encode()).hexdigest()


def _split(samples: list[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample], Counter[str]]:
    """Training and validation samples, and how many training records each data set loses to validation pictures."""
    of_image = {image: image_key(image) for image in {sample.image for sample in samples} if image is not None}
    keys = {sample.id: _text_key(sample) if sample.image is None else of_image[sample.image] for sample in samples}
    official = [sample for sample in samples if sample.split == "validation"]
    with_official = {sample.dataset for sample in official}
    rest = [sample for sample in samples if sample.split == "train"]
    to_split = [sample for sample in rest if sample.dataset not in with_official]
    _, drawn = split_by_key(to_split, lambda sample: keys[sample.id], share, seed)
    held_out_keys = {keys[sample.id] for sample in (*official, *drawn)}

    drawn_ids = {sample.id for sample in drawn}
    train: list[Sample] = []
    validation = list(official)
    held_out: Counter[str] = Counter()
    for sample in rest:
        if sample.id in drawn_ids:
            validation.append(sample)
        elif keys[sample.id] in held_out_keys:
            held_out[sample.dataset] += 1
        else:
            train.append(sample)
    return train, validation, held_out


def _under_caps(
    train: list[Sample], validation: list[Sample], caps: Caps, seed: int
) -> tuple[list[Sample], list[Sample]]:
    by_dataset: dict[str, list[Sample]] = {}
    for sample in train:
        by_dataset.setdefault(sample.dataset, []).append(sample)
    kept = [
        sample
        for dataset, group in by_dataset.items()
        for sample in _draw(group, caps.per_dataset, f"{seed}/train/{dataset}")
    ]
    return _draw(kept, caps.total, f"{seed}/train"), _draw(validation, caps.validation, f"{seed}/validation")


def _draw(samples: list[Sample], at_most: int | None, seed: str) -> list[Sample]:
    """A uniform draw without replacement, in the given order."""
    if at_most is None or len(samples) <= at_most:
        return samples
    return [samples[place] for place in sorted(random.Random(seed).sample(range(len(samples)), at_most))]


def _left_out(dataset: str, tally: Tally) -> str:
    parts = [f"{count:,} {reason}" for reason, count in tally.rejected.most_common()]
    if tally.missing_images:
        parts.append(f"{tally.missing_images:,} image not found (first: {tally.first_missing})")
    if not tally.records:
        parts += [re.sub(r"^.*: ", "", note) for note in tally.notes]
    return f"{dataset}: {tally.records:,} records, left out: {', '.join(parts) or 'none'}"


def _log_tally(dataset: str, tally: Tally) -> None:
    for note in tally.notes:
        logger.info("%s", note)
    left_out = tally.missing_images + tally.rejected.total()
    line = f"{dataset}: {tally.records:,} records in {len(tally.files)} files, {tally.with_image:,} with image found"
    if not left_out:
        logger.info("%s", line)
        return
    reasons = [f"{count:,} {reason}" for reason, count in tally.rejected.most_common()]
    if tally.missing_images:
        reasons.insert(0, f"{tally.missing_images:,} image not found (first: {tally.first_missing})")
    logger.warning("%s; %s records left out: %s", line, f"{left_out:,}", ", ".join(reasons))


def _report(
    stage: Stage,
    ledger: Ledger,
    duplicates: Counter[str],
    held_out: Counter[str],
    before_caps: tuple[list[Sample], list[Sample]],
    kept: tuple[list[Sample], list[Sample]],
) -> list[SourceReport]:
    before = _by_dataset(sample for part in before_caps for sample in part)
    train, validation = (_by_dataset(part) for part in kept)
    return [
        SourceReport(
            dataset=dataset,
            stage=stage,
            files=tuple(tally.files),
            records=tally.records,
            with_answer=tally.with_answer,
            with_image=tally.with_image,
            rejected=dict(tally.rejected),
            missing_images=tally.missing_images,
            first_missing=tally.first_missing,
            duplicates=duplicates[dataset],
            held_out=held_out[dataset],
            over_cap=before[dataset] - train[dataset] - validation[dataset],
            train=train[dataset],
            validation=validation[dataset],
        )
        for dataset, tally in ledger.items()
        if tally.records
    ]


def _by_dataset(samples: Iterable[Sample]) -> Counter[str]:
    return Counter(sample.dataset for sample in samples)
