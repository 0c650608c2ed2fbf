"""From a folder of public data sets to the training and validation samples of stages 1 and 2."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embervlm.data.files import Listing, Pictures, list_folder
from embervlm.data.formats import FORMATS
from embervlm.data.formats.record import Format, Ledger, Row, Tally, split_of
from embervlm.data.index import (
    INDEX_VERSION,
    VALIDATION,
    Index,
    IndexedSamples,
    open_index,
    write_index,
)
from embervlm.data.json_files import check_json, peek_json
from embervlm.data.sample import DataError

logger = logging.getLogger(__name__)

Stage = Literal[1, 2]

#: Share of the pictures that is split off, for data sets without a validation file of their own.
VALIDATION_SHARE = 0.02

_NAMED_AT_MOST = 8
_CHECKED_WHOLE_BYTES = 64 * 1024**2
_WAIT_SECONDS, _WAIT_LINE_SECONDS = 0.2, 30.0


@dataclass(frozen=True, slots=True)
class Caps:
    """How much is kept at most, drawn uniformly with the run's seed; None keeps all.

    Attributes:
        per_dataset: training samples of one data set.
        total: training samples of all data sets.
        validation: validation samples of all data sets.
        files: training files of a data set that comes in many large ones, which is GQA.
    """

    per_dataset: int | None = None
    total: int | None = None
    validation: int | None = 2_000
    files: int | None = 5

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

    train: IndexedSamples
    validation: IndexedSamples
    report: list[SourceReport] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Draw:
    """What a run takes of an index.

    Attributes:
        index: the index.
        tallies: what the readers counted, by data set.
        train, validation: rows of the index, sorted.
        report: what became of each data set's records.
    """

    index: Index
    tallies: dict[str, Tally]
    train: NDArray[Any]
    validation: NDArray[Any]
    report: list[SourceReport]


#: Told of a file that cannot be used, why, and of which stage it is if that can be told.
Refuse = Callable[[Path, DataError, Stage | None], None]


def load_base(
    folder: str | Path,
    stage: Stage,
    *,
    extra_image_roots: Sequence[str | Path] = (),
    seed: int = 0,
    validation_share: float = VALIDATION_SHARE,
    caps: Caps | None = None,
    datasets: Sequence[str] | None = None,
) -> LoadedData:
    """Index every data set of a stage below ``folder``, or open its index, and draw the run's samples.

    Annotation files are recognised by their content, whatever they and their folders are called; pictures are looked
    for below ``folder`` and ``extra_image_roots``. Stage 1 takes captions and questions with answers, stage 2
    conversations. No picture is in training and validation both, in any data set: what the publishers call validation
    or test is validation only, a share of the pictures of the data sets without such files is split off, and training
    records about any of these pictures are left out.

    Of several processes on one machine the first writes the index and the others wait for it.

    Args:
        folder: a folder, or one annotation file, with pictures beside or below it.
        stage: 1 or 2.
        extra_image_roots: further folders with pictures.
        seed: of the split and of the draws under the caps.
        validation_share: share of the pictures that is split off, for data sets without a validation file.
        caps: limits on what is kept; the recipe's unless given.
        datasets: names of the data sets to read; all unless given.

    Raises:
        DataError: the folder is missing, holds no data of this stage or none that can be used; a name in ``datasets``
            is unknown; or a file is damaged (see the readers in ``formats``).
    """
    folder = Path(folder)
    if not folder.exists():
        names = ", ".join(reader.name for reader in _wanted_formats(stage, datasets))
        raise DataError(f"{folder}: no such folder; expected one with {names}")
    drawn = draw_base(
        folder,
        stage,
        extra_image_roots=extra_image_roots,
        seed=seed,
        validation_share=validation_share,
        caps=caps,
        datasets=datasets,
    )
    assert drawn is not None  # without a `refuse`, what cannot be drawn from is an error
    for dataset, tally in drawn.tallies.items():
        _log_tally(dataset, tally)
    if not len(drawn.train) + len(drawn.validation):
        reasons = "; ".join(_left_out(dataset, tally) for dataset, tally in drawn.tallies.items())
        raise DataError(f"{folder}: no usable record for stage {stage}: {reasons}")
    if not len(drawn.train):
        held_out = sum(row.validation + row.over_cap for row in drawn.report)
        raise DataError(f"{folder}: nothing to train on in stage {stage}: all {held_out:,} samples are validation")
    for row in drawn.report:
        logger.info(
            "%s: %s for training, %s for validation (%s held out with their picture, %s over a cap, %s repeated)",
            row.dataset,
            *(f"{n:,}" for n in (row.train, row.validation, row.held_out, row.over_cap, row.duplicates)),
        )
    return LoadedData(
        IndexedSamples(drawn.index, drawn.train), IndexedSamples(drawn.index, drawn.validation), drawn.report
    )


def draw_base(
    folder: Path,
    stage: Stage,
    *,
    extra_image_roots: Sequence[str | Path] = (),
    seed: int = 0,
    validation_share: float = VALIDATION_SHARE,
    caps: Caps | None = None,
    datasets: Sequence[str] | None = None,
    refuse: Refuse | None = None,
) -> Draw | None:
    """Index the data sets of a stage and draw a run's rows, of training perhaps none; see :func:`load_base`.

    Args:
        folder, stage, extra_image_roots, seed, validation_share, caps, datasets: as there.
        refuse: told of each damaged file, which is then left out; without it the first is raised.

    Returns:
        what was drawn; None where nothing is there, if ``refuse`` is given.

    Raises:
        DataError: as there, but for a damaged file where ``refuse`` is given.
    """
    caps = caps or Caps.of_stage(stage)
    formats = _wanted_formats(stage, datasets)
    index = _index(folder, stage, [Path(root) for root in extra_image_roots], formats, caps, seed, refuse)
    if index is None:
        return None
    tallies = {name: tally for name, tally in index.tallies.items() if datasets is None or name in datasets}
    columns = _Columns(index, np.array([name in tallies for name in index.datasets], np.bool_))
    train, validation, held_out = _split(columns, validation_share, seed)
    kept = _under_caps(columns, train, validation, caps, seed)
    report = _report(stage, tallies, columns, held_out, (train, validation), kept)
    return Draw(index, tallies, *kept, report)


def dataset_names(stage: Stage | None = None) -> tuple[str, ...]:
    """The data sets that can be read, by the names that ``datasets`` takes."""
    return tuple(name for reader in FORMATS if stage in (None, reader.stage) for name in reader.datasets)


def _wanted_formats(stage: Stage, datasets: Sequence[str] | None) -> list[Format]:
    unknown = [name for name in datasets or () if name not in dataset_names()]
    if unknown:
        raise DataError(f"data set {unknown[0]!r:.60} is not known; there are: {', '.join(dataset_names())}")
    formats = [reader for reader in FORMATS if reader.stage == stage]
    if datasets is not None:
        formats = [reader for reader in formats if set(reader.datasets) & set(datasets)]
        if not formats:
            raise DataError(
                f"none of the data sets {', '.join(datasets)} is for stage {stage}; there are:"
                f" {', '.join(dataset_names(stage))}"
            )
    return formats


def _index(
    folder: Path,
    stage: Stage,
    roots: list[Path],
    formats: list[Format],
    caps: Caps,
    seed: int,
    refuse: Refuse | None,
) -> Index | None:
    """Open the index of these folders and formats, or write it."""
    settings = {
        "version": INDEX_VERSION,
        "folder": str(folder.resolve()),
        "roots": [str(root.resolve()) for root in roots],
        "stage": stage,
        "formats": [reader.name for reader in formats],
    }
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
    drawn = {"files": caps.files, "seed": seed}
    found = open_index(name, drawn)
    if found is None and os.environ.get("LOCAL_RANK", "0") != "0":
        # No collective, which could time out while a large folder is read. If the first process fails, torchrun ends
        # this one.
        waited = 0.0
        while found is None:
            time.sleep(_WAIT_SECONDS)
            waited += _WAIT_SECONDS
            if waited % _WAIT_LINE_SECONDS < _WAIT_SECONDS:
                logger.info("waiting for the index of %s", folder)
            found = open_index(name, drawn)
    if found is not None:
        return found
    try:
        return _write(name, folder, stage, roots, formats, drawn, None)
    except DataError:
        if refuse is None:
            raise
    # Kept apart from those that training opens: this one lacks what was damaged.
    return _write(f"partial-{name}", folder, stage, roots, formats, drawn, refuse)


def _write(
    name: str,
    folder: Path,
    stage: Stage,
    roots: list[Path],
    formats: list[Format],
    drawn: dict[str, Any],
    refuse: Refuse | None,
) -> Index | None:
    try:
        listings = [list_folder(folder if folder.is_dir() else folder.parent), *map(list_folder, roots)]
    except DataError as error:
        if refuse is None:
            raise
        refuse(folder, error, None)
        return None
    for each in listings:
        if each.links_out:
            logger.warning(
                "%s: %s links that leave the folder are not followed (first: %s); name their targets' folder itself",
                each.root,
                f"{len(each.links_out):,}",
                each.links_out[0],
            )
    found, looked_at = _recognise(listings[0], folder, formats, refuse)
    if refuse is not None:
        found |= {each.name: _sound_files(each, found[each.name], listings, refuse) for each in formats}
    if not any(found[reader.name] for reader in formats):
        if refuse is not None:
            return None
        layouts = "; ".join(f"{reader.name} ({reader.layout})" for reader in formats)
        raise DataError(f"{folder}: no data set for stage {stage} among {len(looked_at):,} files; looked for {layouts}")
    all_read = True
    for reader in formats:
        if reader.few_files and drawn["files"] is not None:
            read = _few(found[reader.name], drawn["files"], drawn["seed"])
            if len(read) < len(found[reader.name]):
                logger.info("%s: %d of %d files drawn", reader.name, len(read), len(found[reader.name]))
                found[reader.name], all_read = read, False
    pictures, ledger = Pictures(listings), Ledger()
    started = time.monotonic()
    logger.info("%s: reading %d annotation files into an index", folder, sum(len(found[each.name]) for each in formats))

    def rows() -> Iterator[Row]:
        for reader in formats:
            if found[reader.name]:
                yield from reader.read(found[reader.name], pictures, ledger)

    index = write_index(name, rows(), pictures, ledger, listings, looked_at, None if all_read else drawn)
    logger.info("%s: %s usable records indexed in %.1f s", folder, f"{index.rows:,}", time.monotonic() - started)
    return index


def _sound_files(reader: Format, files: list[Path], listings: list[Listing], refuse: Refuse) -> list[Path]:
    """Those of a format's files that can be read together."""
    left = list(files)
    while left:
        try:
            for _ in reader.read(left, Pictures(listings), Ledger()):
                pass
            break
        except DataError as error:
            text = str(error)
            named = [file for file in left if text.startswith(str(file))] or [
                file for file in left if str(file) in text
            ]
            # Without a name it is about how the files fit together.
            for file in named or list(left):
                refuse(file, error, reader.stage)
                left.remove(file)
    return left


def _few(files: list[Path], at_most: int, seed: int) -> list[Path]:
    """All validation files and a seeded draw of the training files."""
    train = [file for file in files if split_of(file.stem) == "train"]
    by_hash = sorted(train, key=lambda file: hashlib.sha256(f"{seed}/{file.name}".encode()).digest())
    kept = set(by_hash[:at_most])
    return [file for file in files if file in kept or file not in train]


def _recognise(
    listing: Listing, folder: Path, wanted: list[Format], refuse: Refuse | None
) -> tuple[dict[str, list[Path]], list[Path]]:
    """Which files each format is to read, and all that were looked at; what no format reads is named in one line."""
    suffixes = (".json", ".jsonl", *(suffix for reader in FORMATS for suffix in reader.suffixes))
    candidates = listing.with_suffix(*suffixes) if folder.is_dir() else [folder.resolve()]
    found: dict[str, list[Path]] = {reader.name: [] for reader in FORMATS}
    unknown: list[Path] = []
    for file in candidates:
        try:
            reader = _format_of(file)
            if reader is not None:
                found[reader.name].append(file)
                continue
            # A damaged annotation file would otherwise look like one that nobody reads.
            if file.suffix.lower() in (".json", ".jsonl") and file.stat().st_size <= _CHECKED_WHOLE_BYTES:
                check_json(file)
            unknown.append(file)
        except DataError as error:
            if refuse is None:
                raise
            refuse(file, error, None)
    if unknown:
        logger.info("not recognised, passed over: %s", _names(unknown, listing.root))
    other = [file for reader in FORMATS if reader not in wanted for file in found[reader.name]]
    if other:
        logger.info("of another stage or not asked for, passed over: %s", _names(other, listing.root))
    return found, candidates


def _format_of(file: Path) -> Format | None:
    if file.suffix.lower() in (".json", ".jsonl"):
        head = peek_json(file)
        return None if head is None else next((each for each in FORMATS if each.recognise(head)), None)
    fitting = (each for each in FORMATS if file.name.lower().endswith(each.suffixes or ("\0",)))
    return next((each for each in fitting if each.recognise_file(file)), None)


def _names(files: Sequence[Path], root: Path) -> str:
    named = ", ".join(str(file.relative_to(root)) for file in files[:_NAMED_AT_MOST])
    return named + (f" and {len(files) - _NAMED_AT_MOST:,} more" if len(files) > _NAMED_AT_MOST else "")


class _Columns:
    """The numbers of an index's rows that decide what is kept of them.

    Attributes:
        dataset: each row's data set, as a place in ``names``.
        official: rows that the publishers call validation or test.
        group: rows about one picture, or with one text and no picture, share a number.
        group_keys: by group a number that is the same in every index.
        usable: rows of the chosen data sets that are not repeated elsewhere.
    """

    def __init__(self, index: Index, chosen: NDArray[np.bool_]) -> None:
        self.names = index.datasets
        self.dataset = index.column("dataset")
        self.official = index.column("split") == VALIDATION
        self.group, self.group_keys = index.column("group"), index.column("group_keys")
        repeated = index.column("repeated")
        in_chosen = chosen[self.dataset] if len(chosen) else np.zeros(0, np.bool_)
        self.usable = in_chosen & ~repeated
        self.duplicates = self.count(np.flatnonzero(in_chosen & repeated))

    def count(self, rows: NDArray[Any]) -> dict[str, int]:
        """How many of ``rows`` each data set has."""
        counts = np.bincount(self.dataset[rows], minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}


def _split(columns: _Columns, share: float, seed: int) -> tuple[NDArray[Any], NDArray[Any], dict[str, int]]:
    """Training rows, validation rows, and how many training records each data set loses to validation pictures."""
    official = columns.usable & columns.official
    rest = columns.usable & ~columns.official
    has_official = np.bincount(columns.dataset[official], minlength=len(columns.names)) > 0
    to_split = rest & ~has_official[columns.dataset]
    in_drawn = _drawn_groups(columns, to_split, share, seed)[columns.group]
    held = in_drawn | _groups_of(columns, official)[columns.group]
    validation = official | (to_split & in_drawn)
    held_out = rest & held & ~validation
    train = rest & ~held
    return np.flatnonzero(train), np.flatnonzero(validation), columns.count(np.flatnonzero(held_out))


def _groups_of(columns: _Columns, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    found = np.zeros(len(columns.group_keys), np.bool_)
    found[columns.group[rows]] = True
    return found


def _drawn_groups(columns: _Columns, rows: NDArray[np.bool_], share: float, seed: int) -> NDArray[np.bool_]:
    """The share of the groups of ``rows`` whose keys' seeded hashes are smallest: (groups,).

    At least one of two or more is drawn when the share is above 0. Whether a group is drawn hardly depends on the
    others, so that a folder that grows keeps most of its split.
    """
    groups = np.flatnonzero(_groups_of(columns, rows))
    count = round(share * len(groups))
    if share > 0 and len(groups) > 1:
        count = min(max(count, 1), len(groups) - 1)
    mixed = _mix(columns.group_keys[groups] ^ _mix(np.array([seed], np.uint64)))
    drawn = np.zeros(len(columns.group_keys), np.bool_)
    drawn[groups[np.argsort(mixed, kind="stable")[:count]]] = True
    return drawn


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit numbers that looks random."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _under_caps(
    columns: _Columns, train: NDArray[Any], validation: NDArray[Any], caps: Caps, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    kept = [
        _draw(train[columns.dataset[train] == number], caps.per_dataset, f"{seed}/train/{name}")
        for number, name in enumerate(columns.names)
    ]
    joined = np.sort(np.concatenate([*kept, train[:0]]))
    return _draw(joined, caps.total, f"{seed}/train"), _draw(validation, caps.validation, f"{seed}/validation")


def _draw(rows: NDArray[Any], at_most: int | None, seed: str) -> NDArray[Any]:
    """A uniform draw without replacement, in the given order."""
    if at_most is None or len(rows) <= at_most:
        return rows
    numbers = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    return np.sort(numbers.choice(rows, at_most, replace=False, shuffle=False))


def _left_out(dataset: str, tally: Tally) -> str:
    parts = [f"{count:,} {reason}" for reason, count in tally.rejected.most_common()]
    if tally.missing_images:
        parts.append(f"{tally.missing_images:,} image not found (first: {tally.first_missing})")
    if not tally.records:
        parts += [note.rpartition(": ")[2] for note in tally.notes]
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
    tallies: dict[str, Tally],
    columns: _Columns,
    held_out: dict[str, int],
    before_caps: tuple[NDArray[Any], NDArray[Any]],
    kept: tuple[NDArray[Any], NDArray[Any]],
) -> list[SourceReport]:
    before = columns.count(np.concatenate(before_caps))
    train, validation = (columns.count(rows) for rows in kept)
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
            duplicates=columns.duplicates.get(dataset, 0),
            held_out=held_out.get(dataset, 0),
            over_cap=before.get(dataset, 0) - train.get(dataset, 0) - validation.get(dataset, 0),
            train=train.get(dataset, 0),
            validation=validation.get(dataset, 0),
        )
        for dataset, tally in tallies.items()
        if tally.records
    ]
