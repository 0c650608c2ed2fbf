"""What data folders hold and what training would make of it: the rows behind ``embervlm data report``.

Everything is read as training reads it, and through the same indexes; what training refuses is listed here and the
rest is still counted. ``report_tokens`` counts the tokens, ``report_verdict`` judges, ``report_table`` and
``report_page`` show.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embervlm.data.collate import conversation_pieces, robot_task_pieces
from embervlm.data.files import list_folder
from embervlm.data.formats.record import NO_PICTURE
from embervlm.data.index import STYLES, Index, IndexedSamples, cache_folder
from embervlm.data.loaders import SourceReport, Stage, dataset_names, draw_base
from embervlm.data.order import text_lengths
from embervlm.data.report_tokens import TokenCount, count_tokens, draw
from embervlm.data.report_verdict import StageSize, Verdict, judge
from embervlm.data.robot_loader import DATASET as ROBOT_TASKS
from embervlm.data.robot_loader import Kind, RobotData, file_pictures, kind_of, load_robot_tasks
from embervlm.data.robot_rewording import REWORDED
from embervlm.data.sample import DataError, RobotSample, Sample
from embervlm.data.shards import DATASET as SHARDS
from embervlm.data.shards import find, names_shards
from embervlm.data.stream import Catalogue, open_catalogue
from embervlm.fleet import Fleet
from embervlm.model.configuration_embervlm import preset_config
from embervlm.prompts import Piece
from embervlm.tokens import load_tokenizer

logger = logging.getLogger(__name__)

#: Records of each set that the page shows.
SHOWN = 6
NO_IMAGE = "image not found"
#: Shards that captions are drawn from, and pairs read of each, one after the other.
_DRAWN_SHARDS, _DRAWN_PAIRS = 8, 250


@dataclass(frozen=True, slots=True)
class SetRow:
    """What became of one data set of one path.

    ``records`` is the sum of ``rejected``, ``duplicates``, ``held_out``, ``over_cap``, ``train`` and ``validation``.

    Attributes:
        path: what was given.
        stage: 1, 2 or 3.
        dataset: the set's name.
        files: its annotation files, or shards.
        records: records in them.
        with_answer: records that have something to learn to say.
        with_image: usable records whose picture was found.
        unusable: records left out for what they say or lack, by reason.
        missing_images: records left out because their picture was not found.
        first_missing: the first such picture's name.
        duplicates: records left out because another has the same.
        held_out: training records left out because their picture is kept for validation.
        over_cap: samples left out by a cap.
        train, validation: samples kept.
        reworded: rewordings that stand beside the training tasks.
        pictures: pictures of the training samples, each once.
        tokens: None where nothing is kept.
        samples: a few of those kept, drawn with the seed.
    """

    path: Path
    stage: int
    dataset: str
    files: tuple[Path, ...]
    records: int
    with_answer: int
    with_image: int
    unusable: dict[str, int]
    missing_images: int
    first_missing: str | None = None
    duplicates: int = 0
    held_out: int = 0
    over_cap: int = 0
    train: int = 0
    validation: int = 0
    reworded: int = 0
    pictures: int = 0
    tokens: TokenCount | None = None
    samples: tuple[Sample | RobotSample, ...] = ()

    @property
    def rejected(self) -> int:
        """Records that cannot be used, those without their picture among them."""
        return sum(self.unusable.values()) + self.missing_images

    @property
    def kept(self) -> int:
        """Samples for training and validation."""
        return self.train + self.validation

    @property
    def reasons(self) -> dict[str, int]:
        """Why records were rejected, the most frequent reason first."""
        found = dict(self.unusable) | ({NO_IMAGE: self.missing_images} if self.missing_images else {})
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def to_dict(self) -> dict[str, Any]:
        """The row for JSON; the first eight keys are what scripts may rely on."""
        tokens = self.tokens
        return {
            "stage": self.stage,
            "dataset": self.dataset,
            "files": len(self.files),
            "records": self.records,
            "with_answer": self.with_answer,
            "with_image": self.with_image,
            "rejected": self.rejected,
            "kept": self.kept,
            "train": self.train,
            "validation": self.validation,
            "duplicates": self.duplicates,
            "held_out": self.held_out,
            "over_cap": self.over_cap,
            "reworded": self.reworded,
            "missing_images": self.missing_images,
            "first_missing": self.first_missing,
            "reasons": self.reasons,
            "pictures": self.pictures,
            "tokens_median": tokens.median if tokens else None,
            "tokens_p95": tokens.p95 if tokens else None,
            "tokens_longest": tokens.longest if tokens else None,
            "tokens_cut": tokens.cut if tokens else 0,
            "tokens_cut_exact": tokens.cut_exact if tokens else True,
            "tokens_supervised": tokens.supervised if tokens else 0,
            "tokens_supervised_exact": tokens.supervised_exact if tokens else True,
            "tokens_encoded": tokens.encoded if tokens else 0,
            "path": str(self.path),
            "file_names": [str(file) for file in self.files],
            "refused": None,
        }


@dataclass(frozen=True, slots=True)
class Refused:
    """A file or path that training would refuse.

    Attributes:
        file: which.
        reason: what is wrong and where in it.
        stage: which stage would have read it; None where that cannot be told.
    """

    file: Path
    reason: str
    stage: int | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """The row for JSON, all its numbers 0 but ``files``."""
        numbers = dict.fromkeys(("records", "with_answer", "with_image", "rejected", "kept"), 0)
        return {
            "stage": self.stage,
            "dataset": None,
            "files": 1,
            **numbers,
            "reasons": {},
            "file_names": [str(self.file)],
            "refused": self.reason,
        }


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the data are judged for.

    Attributes:
        preset: the preset's name.
        parameters: of the whole model.
        positions: of its language model.
        image_tokens: places that a picture takes.
    """

    preset: str
    parameters: int
    positions: int
    image_tokens: int

    @classmethod
    def of(cls, preset: str) -> ModelSize:
        """The size of a preset, without making its weights."""
        import torch

        from embervlm.model import EmberVLMForConditionalGeneration

        config = preset_config(preset)
        with torch.device("meta"):
            model = EmberVLMForConditionalGeneration(config)
        parameters = sum(weight.numel() for weight in model.parameters())
        return cls(preset, parameters, config.text_config.n_positions, config.vision_config.image_tokens)

    def __str__(self) -> str:
        return (
            f"{self.preset}: {self.parameters / 1e6:.1f}M parameters, {self.positions:,} positions,"
            f" {self.image_tokens} of them for a picture"
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`make_report` found.

    Attributes:
        model: what the data are judged for.
        seed: of the split and every draw.
        paths: those that were looked at.
        rows: one a stage, path and set.
        refused: what could not be read.
        verdicts: one a stage.
        notes: what else is to be said, a line each.
    """

    model: ModelSize
    seed: int
    paths: tuple[Path, ...]
    rows: tuple[SetRow, ...]
    refused: tuple[Refused, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    def to_list(self) -> list[dict[str, Any]]:
        """All rows for JSON, the refused files last."""
        return [row.to_dict() for row in self.rows] + [refused.to_dict() for refused in self.refused]


def report_datasets() -> tuple[str, ...]:
    """The names that ``datasets`` of :func:`make_report` takes."""
    return (*dict.fromkeys(dataset_names()), SHARDS, ROBOT_TASKS)


def make_report(
    paths: Sequence[str | Path],
    *,
    preset: str = "ember",
    seed: int = 0,
    datasets: Sequence[str] | None = None,
    fleet: Fleet | None = None,
) -> Report:
    """Look at every path for data of all three stages.

    Args:
        paths: folders, annotation files, robot files or patterns of shards. For stage 2 the others serve as folders
            of pictures; one that lies in another is counted there.
        preset: the model that the data are judged for.
        seed: of the split and the draws, as training takes it.
        datasets: names of the sets to look at; all unless given.
        fleet: whose names the robot tasks use; the default five unless given.

    Raises:
        DataError: no path holds anything, damaged or not; or the index cannot be written.
        ValueError: unknown preset or data set.
    """
    unknown = [name for name in datasets or () if name not in report_datasets()]
    if unknown:
        raise DataError(f"data set {unknown[0]!r:.60} is not known; there are: {', '.join(report_datasets())}")
    looked_at, notes = _distinct(Path(path) for path in paths)
    survey = _Survey(ModelSize.of(preset), seed, datasets, fleet or Fleet.default())
    for path in looked_at:
        survey.look_at(path, [other for other in looked_at if other != path and other.is_dir()])
    if not survey.rows and not survey.refused:
        named = f"{looked_at[0]}" + (f" and {len(looked_at) - 1} more" if len(looked_at) > 1 else "")
        wanted = ", ".join(datasets or report_datasets())
        raise DataError(f"{named}: no data for stage 1, stage 2 or robot tasks; looked for {wanted}")
    rows = sorted(survey.rows, key=lambda row: (row.stage, looked_at.index(row.path)))
    sizes = (_stage_size(stage, rows, survey.picture_count(stage)) for stage in (1, 2, 3))
    verdicts = [judge(size, preset, survey.model.parameters) for size in sizes]
    return Report(
        survey.model,
        seed,
        tuple(looked_at),
        tuple(rows),
        tuple(survey.refused.values()),
        tuple(verdicts),
        (*notes, *survey.notes, *_read_twice(rows)),
    )


def _distinct(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The paths that do not lie in one another, and a note for each that does."""
    kept: list[Path] = []
    notes = []
    given = list(dict.fromkeys(paths))
    for path in given:
        above = next(
            (
                other
                for place, other in enumerate(given)
                if other != path
                and other.is_dir()
                and path.resolve().is_relative_to(other.resolve())
                and (path.resolve() != other.resolve() or place < given.index(path))
            ),
            None,
        )
        if above is None:
            kept.append(path)
        else:
            notes.append(f"{path} lies in {above} and is counted there")
    return kept, notes


def _read_twice(rows: Sequence[SetRow]) -> Iterator[str]:
    """A note for each file that two sets take for their own."""
    taken: dict[Path, SetRow] = {}
    for row in rows:
        for file in row.files:
            other = taken.setdefault(file.resolve(), row)
            if other.dataset != row.dataset:
                yield f"{file}: read as {other.dataset} (stage {other.stage}) and as {row.dataset} (stage {row.stage})"


def _stage_size(stage: int, rows: Sequence[SetRow], pictures: int) -> StageSize:
    of_stage = [row for row in rows if row.stage == stage]
    counts = [row.tokens for row in of_stage if row.tokens is not None]
    return StageSize(
        stage,
        records=sum(row.records for row in of_stage),
        samples=sum(row.train for row in of_stage),
        pictures=pictures,
        supervised=sum(count.supervised for count in counts),
        missing_pictures=sum(row.missing_images for row in of_stage),
        cut=sum(count.cut for count in counts),
        kept=sum(row.kept for row in of_stage),
    )


@dataclass(slots=True)
class _Survey:
    """Goes through the paths and collects."""

    model: ModelSize
    seed: int
    datasets: Sequence[str] | None
    fleet: Fleet
    rows: list[SetRow] = field(default_factory=list)
    refused: dict[Path, Refused] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tokenizer: Any = None
    #: by stage, numbers or paths that stand for the pictures of its training samples; sets may share some
    pictures: dict[int, list[NDArray[Any]]] = field(default_factory=dict)

    def picture_count(self, stage: int) -> int:
        """Pictures of a stage's training samples, each once; those in shards are taken to be different."""
        parts = self.pictures.get(stage, [])
        shards = sum(row.pictures for row in self.rows if row.stage == stage and row.dataset == SHARDS)
        return shards + (len(np.unique(np.concatenate(parts))) if parts else 0)

    def look_at(self, path: Path, roots: list[Path]) -> None:
        """Add what a path holds for every stage."""
        if names_shards(path):
            if self._wants(SHARDS):
                self._shards(path)
            return
        if not path.exists():
            self._refuse(path, "no such file or folder", None)
            return
        stages: tuple[Literal[1], Literal[2]] = (1, 2)
        for stage in stages:
            if self.datasets is None or set(self.datasets) & set(dataset_names(stage)):
                # As in training, where a conversation's pictures may stand with those of stage 1, but not the reverse.
                self._base(path, stage, roots if stage == 2 else [])
        if self._wants(ROBOT_TASKS):
            self._robots(path)

    def _wants(self, dataset: str) -> bool:
        return self.datasets is None or dataset in self.datasets

    def _refuse(self, file: Path, reason: str, stage: int | None) -> None:
        reason = " ".join(reason.split()).removeprefix(f"{file}: ")
        known = self.refused.get(file)
        if known is None or known.stage is None:
            self.refused[file] = Refused(file, reason, stage)

    # ---- stages 1 and 2 ----

    def _base(self, path: Path, stage: Stage, roots: list[Path]) -> None:
        drawn = draw_base(
            path,
            stage,
            extra_image_roots=roots,
            seed=self.seed,
            datasets=self.datasets and [name for name in self.datasets if name in dataset_names(stage)],
            refuse=lambda file, error, of_stage: self._refuse(file, str(error), of_stage),
        )
        if drawn is not None:
            self.notes += [note for tally in drawn.tallies.values() for note in tally.notes]
            for found in drawn.report:
                self.rows.append(self._base_row(path, drawn.index, found, drawn.train, drawn.validation))

    def _base_row(
        self, path: Path, index: Index, found: SourceReport, train: NDArray[Any], validation: NDArray[Any]
    ) -> SetRow:
        number = index.datasets.index(found.dataset) if found.dataset in index.datasets else -1
        in_set = index.column("dataset") == number
        train, validation = train[in_set[train]], validation[in_set[validation]]
        rows = np.concatenate([train, validation])
        samples = IndexedSamples(index, rows)
        groups = np.unique(index.column("group")[train[_has_picture(index)[train]]])
        self.pictures.setdefault(found.stage, []).append(index.column("group_keys")[groups])
        seed = f"{self.seed}/{found.stage}/{found.dataset}"
        logger.info("%s: counting tokens", found.dataset)
        return SetRow(
            path=path,
            stage=found.stage,
            dataset=found.dataset,
            files=found.files,
            records=found.records,
            with_answer=found.with_answer,
            with_image=found.with_image,
            unusable=found.rejected,
            missing_images=found.missing_images,
            first_missing=found.first_missing,
            duplicates=found.duplicates,
            held_out=found.held_out,
            over_cap=found.over_cap,
            train=found.train,
            validation=found.validation,
            pictures=len(groups),
            tokens=self._tokens(
                lambda place: conversation_pieces(samples[place]),
                samples.lengths,
                len(train),
                seed,
                single_turns=STYLES.index("chat") not in index.column("style")[rows],
            ),
            samples=tuple(samples[int(place)] for place in draw(len(rows), SHOWN, f"{seed}/shown")),
        )

    def _tokens(
        self,
        prompt: Callable[[int], list[Piece]],
        lengths: NDArray[Any],
        train: int,
        seed: str,
        *,
        single_turns: bool = False,
    ) -> TokenCount | None:
        """Count the tokens of a set's samples, of which the first ``train`` are trained on."""
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(max_length=self.model.positions)
        return count_tokens(
            prompt,
            lengths,
            np.arange(len(lengths)) < train,
            self.tokenizer,
            image_tokens=self.model.image_tokens,
            positions=self.model.positions,
            seed=f"{seed}/tokens",
            single_turns=single_turns,
        )

    # ---- shards ----

    def _shards(self, path: Path) -> None:
        try:
            files = find(path)
            catalogue = open_catalogue(files, cache_folder() / "shards", seed=self.seed)
        except DataError as error:
            self._refuse(path, str(error), 1)
            return
        for shard in catalogue.shards:
            if shard.damage is not None:
                self._refuse(Path(shard.path), f"{shard.damage}; the pairs before it are used", 1)
        pairs, train = sum(shard.pairs for shard in catalogue.shards), len(catalogue)
        incomplete = sum(shard.incomplete for shard in catalogue.shards)
        held_out = catalogue.validation_samples()
        logger.info("%s: reading some captions", path)
        captions = _some_captions(catalogue, f"{self.seed}/1/{SHARDS}/tokens")
        tokens = self._tokens(
            lambda place: conversation_pieces(captions[place]),
            text_lengths(captions),
            len(captions),
            SHARDS,
            single_turns=True,
        )
        if tokens is not None and len(captions) < train:
            share = train / len(captions)
            tokens = replace(
                tokens,
                cut=round(tokens.cut * share),
                cut_exact=False,
                supervised=round(tokens.supervised * share),
                supervised_exact=False,
            )
        self.rows.append(
            SetRow(
                path=path,
                stage=1,
                dataset=SHARDS,
                files=tuple(map(Path, files)),
                records=pairs + incomplete,
                with_answer=pairs,
                with_image=pairs,
                unusable={"no picture or no text beside it": incomplete} if incomplete else {},
                missing_images=0,
                first_missing=None,
                duplicates=0,
                held_out=pairs - train - len(held_out),
                over_cap=0,
                train=train,
                validation=len(held_out),
                pictures=train,
                tokens=tokens,
                samples=tuple(
                    held_out[int(place)] for place in draw(len(held_out), SHOWN, f"{self.seed}/1/{SHARDS}/shown")
                ),
            )
        )

    # ---- stage 3 ----

    def _robots(self, path: Path) -> None:
        try:
            candidates = list_folder(path).with_suffix(".json", ".jsonl") if path.is_dir() else [path]
            files = [(file, kind) for file in candidates if (kind := kind_of(file)) is not None]
        except DataError as error:
            self._refuse(path, str(error), None)
            return
        if not files:
            return
        try:
            data = load_robot_tasks(path, self.fleet, seed=self.seed)
        except DataError as error:
            self._unloadable_robots(path, files, error)
            return
        self.rows.append(self._robot_row(path, data))

    def _unloadable_robots(self, path: Path, files: list[tuple[Path, Kind]], error: DataError) -> None:
        """Note the damaged files; where there are none, count what cannot be trained on."""
        records = 0
        missing: list[str] = []
        damaged = 0
        for file, kind in files:
            try:
                pictures = file_pictures(file, kind, self.fleet)
                records += len(pictures)
                missing += [str(picture) for picture in pictures if picture is not None and not picture.is_file()]
            except DataError as found:
                self._refuse(file, str(found), 3)
                damaged += 1
        if damaged:
            if damaged < len(files):
                self.notes.append(f"{path}: robot files are counted together, so that none is while one is refused")
        elif len(missing) == records:
            row = SetRow(path, 3, ROBOT_TASKS, tuple(file for file, _ in files), records, records, 0, {}, records)
            self.rows.append(replace(row, first_missing=missing[0] if missing else None))
        else:
            self._refuse(path, str(error), 3)

    def _robot_row(self, path: Path, data: RobotData) -> SetRow:
        ids = {sample.id for sample in data.train}
        train = [each for each in data.train if each.id.rpartition(REWORDED)[0] not in ids]
        samples = [*train, *data.validation]

        def prompt(place: int) -> list[Piece]:
            return shown_prompt(samples[place])

        lengths = np.array([sum(len(piece.text.encode()) for piece in shown_prompt(sample)) for sample in samples])
        pictures = {str(sample.image) for sample in train if sample.image is not None}
        self.pictures.setdefault(3, []).append(np.array(sorted(pictures), np.str_))
        found, seed = data.report, f"{self.seed}/3/{ROBOT_TASKS}"
        return SetRow(
            path=path,
            stage=3,
            dataset=ROBOT_TASKS,
            files=found.files,
            records=found.records,
            with_answer=found.records,
            with_image=found.records_with_image,
            unusable={},
            missing_images=found.missing_images,
            first_missing=None,
            duplicates=found.merged,
            held_out=0,
            over_cap=0,
            train=found.train,
            validation=found.validation,
            reworded=found.reworded,
            pictures=len(pictures),
            tokens=self._tokens(prompt, lengths, len(train), seed),
            samples=tuple(samples[int(place)] for place in draw(len(samples), SHOWN, f"{seed}/shown")),
        )


def shown_prompt(sample: Sample | RobotSample) -> list[Piece]:
    """The prompt that a sample is trained with; of a robot task with all that is written about it."""
    if isinstance(sample, Sample):
        return conversation_pieces(sample)
    return robot_task_pieces(sample, with_reasoning=True, with_image=True, leader=sample.leaders[0])


def _has_picture(index: Index) -> NDArray[np.bool_]:
    """(rows,): which of an index's rows have a picture."""
    table = pa.ipc.open_file(pa.memory_map(str(index.folder / "rows.arrow"))).read_all()
    found: NDArray[np.bool_] = table.column("picture").to_numpy() != NO_PICTURE
    return found


def _some_captions(catalogue: Catalogue, seed: str) -> list[Sample]:
    """Captions of a few shards, in stretches, since a shard is read from its start on."""
    found: list[Sample] = []
    for place in draw(len(catalogue.shards), _DRAWN_SHARDS, seed):
        for pair in catalogue.read(int(place), 0, min(_DRAWN_PAIRS, catalogue.counts[place])):
            with contextlib.suppress(DataError):
                found.append(pair.sample())
    return found
