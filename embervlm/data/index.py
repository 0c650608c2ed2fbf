"""The index of a data folder: every usable record once in memory-mapped Arrow files, cached until the folder changes.

``loaders`` has it written from what the readers yield, and draws the samples of a run from it by row. Processes and
workers share its pages; a sample is made of its row when it is asked for.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import shutil
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embervlm.data.files import Listing, Pictures
from embervlm.data.formats.record import NO_PICTURE, Ledger, Row, Tally
from embervlm.data.sample import DataError, PackedPicture, Picture, Sample, Split, Style, Turn, key_hash

logger = logging.getLogger(__name__)

#: Raised with every change of what an index holds, so that older ones are written anew.
INDEX_VERSION = 1
BATCH_ROWS = 65_536
STYLES: tuple[Style, ...] = ("caption", "short_answer", "chat")
SPLITS: tuple[Split, ...] = ("train", "validation")
VALIDATION = SPLITS.index("validation")
CACHE_VARIABLE = "EMBERVLM_CACHE"

_TURNS = pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))
_ROWS = pa.schema(
    [
        ("dataset", pa.int8()),
        ("id", pa.string()),
        ("style", pa.int8()),
        ("split", pa.int8()),
        ("picture", pa.int32()),
        ("turns", _TURNS),
    ]
)
_PICTURES = pa.schema([("place", pa.int32()), ("name", pa.string()), ("position", pa.int64()), ("size", pa.int64())])
_SECONDS_BETWEEN_LINES = 10.0
_BATCH_CHARACTERS = 8_000_000


def cache_folder() -> Path:
    """Where indexes are kept: ``EMBERVLM_CACHE``, else ``embervlm`` in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "embervlm"


@dataclass(frozen=True, slots=True)
class Index:
    """An index that was opened.

    Attributes:
        folder: where it is.
        datasets: names of the data sets; rows hold places in it.
        tallies: what became of each data set's records while they were read.
        rows: the number of rows.
    """

    folder: Path
    datasets: tuple[str, ...]
    tallies: dict[str, Tally]
    rows: int

    def column(self, name: str) -> NDArray[Any]:
        """Numbers that stand for the rows, mapped from their file.

        ``dataset``, ``style`` and ``split`` are places in ``datasets``, ``STYLES`` and ``SPLITS``; ``length`` is the
        UTF-8 bytes of the text; rows about one picture, or with one text and no picture, share a ``group``;
        ``repeated`` rows say again what another file's row says. All of shape (rows,). ``group_keys`` has a 64-bit
        number for each group, the same in every index.
        """
        found: NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return found


def open_index(name: str, drawn: dict[str, Any] | None) -> Index | None:
    """Open the index called ``name`` if it is there and its files and folders are as they were.

    Args:
        name: as it was given to :func:`write_index`.
        drawn: what would decide now which files are read, where not all are.
    """
    for folder in sorted(_versions(name), key=lambda path: path.suffix, reverse=True):
        about = _fresh(folder)
        if about is not None and about["drawn"] in (None, drawn):
            tallies = {dataset: _tally_of(tally) for dataset, tally in about["tallies"].items()}
            return Index(folder, tuple(about["datasets"]), tallies, about["rows"])
    return None


def _versions(name: str) -> list[Path]:
    return [path for path in (cache_folder() / "index").glob(f"{name}-*.*") if path.suffix != ".tmp"]


def _fresh(folder: Path) -> dict[str, Any] | None:
    """What an index says of itself; None where it is damaged or its files or folders have changed since."""
    try:
        about: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        for path, (size, changed) in about["files"].items():
            status = os.stat(path)  # noqa: PTH116 - one of thousands
            if (status.st_size, status.st_mtime_ns) != (size, changed):
                return None
        if any(os.stat(path).st_mtime_ns != changed for path, changed in about["folders"].items()):  # noqa: PTH116
            return None
    except (OSError, ValueError, KeyError):
        return None
    return about


def write_index(
    name: str,
    rows: Iterable[Row],
    pictures: Pictures,
    ledger: Ledger,
    listings: Sequence[Listing],
    files: Sequence[Path],
    drawn: dict[str, Any] | None,
) -> Index:
    """Write the index called ``name`` from what the readers yield; it is there whole or not at all.

    Args:
        name: a file name that stands for the folders and settings.
        rows: of the readers; an error that they raise goes through, and nothing is left behind.
        pictures, ledger: those that the readers fill.
        listings: of the folders, whose later changes make the index stale.
        files: the files that the readers look at, likewise.
        drawn: what decided which files are read, or None where all are.

    Raises:
        DataError: the cache folder cannot be written to.
    """
    base = cache_folder() / "index"
    try:
        base.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f"{name}-", suffix=".tmp", dir=base))
    except OSError as error:
        raise DataError(
            f"{base}: cannot write the index there ({error.strerror or error}); set {CACHE_VARIABLE} to another folder"
        ) from None
    try:
        # Taken before the files are read: what changes meanwhile makes the index stale.
        seen_files = {str(path): _state(path) for path in files}
        with _no_garbage_collection():
            datasets, count = _write_rows(building, rows, pictures)
        _write_pictures(building, pictures)
        np.save(building / "repeated.npy", _find_repeated(building, datasets, ledger))
        about = {
            "version": INDEX_VERSION,
            "rows": count,
            "datasets": datasets,
            "places": pictures.places,
            "tallies": {dataset: _tally_to(tally) for dataset, tally in ledger.items()},
            "folders": {path: changed for listing in listings for path, changed in listing.folders.items()},
            "files": seen_files,
            "drawn": drawn,
        }
        (building / "index.json").write_text(json.dumps(about), encoding="utf-8")
        final = building.with_suffix(f".{time.time_ns()}")
        building.rename(final)
    except OSError as error:
        raise DataError(
            f"{base}: cannot write the index there ({error.strerror or error}); set {CACHE_VARIABLE} to another folder"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for older in _versions(name):
        if older != final and _fresh(older) is None:
            shutil.rmtree(older, ignore_errors=True)
    opened = open_index(name, drawn)
    if opened is None:
        raise DataError(f"{listings[0].root}: the files changed while they were read; try again when they are at rest")
    return opened


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Records come and go by the million and hold no cycles; looking for them would cost a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class _Numbers:
    """The number columns, collected batch by batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def add(self, name: str, values: NDArray[Any]) -> None:
        self._parts.setdefault(name, []).append(values)

    def take(self, name: str, kind: type[np.generic]) -> NDArray[Any]:
        return np.concatenate(self._parts.pop(name, []) or [np.empty(0, kind)])


def _write_rows(folder: Path, rows: Iterable[Row], pictures: Pictures) -> tuple[list[str], int]:
    datasets: dict[str, int] = {}
    styles, splits = {each: n for n, each in enumerate(STYLES)}, {each: n for n, each in enumerate(SPLITS)}
    columns: list[list[Any]] = [[] for _ in range(5)]
    in_dataset, ids, in_style, in_split, in_pictures = columns
    offsets: list[int] = [0]
    questions: list[str] = []
    answers: list[str] = []
    numbers = _Numbers()
    count, characters, said = 0, 0, time.monotonic()

    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, _ROWS) as writer:

        def flush() -> None:
            texts = [pa.array(questions, pa.string()), pa.array(answers, pa.string())]
            turns = pa.ListArray.from_arrays(
                pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(texts, ["question", "answer"])
            )
            arrays = [pa.array(values, kind.type) for values, kind in zip(columns, _ROWS, strict=False)]
            writer.write_batch(pa.record_batch([*arrays, turns], schema=_ROWS))
            for name, array in zip(("dataset", "style", "split"), (arrays[0], arrays[2], arrays[3]), strict=True):
                numbers.add(name, array.to_numpy())
            numbers.add("length", _lengths(offsets, texts))
            numbers.add("key", _keys(in_pictures, turns, pictures))
            for values in (*columns, offsets, questions, answers):
                values.clear()
            offsets.append(0)

        for dataset, id, style, split, picture, turns in rows:
            in_dataset.append(datasets.setdefault(dataset, len(datasets)))
            ids.append(str(id))
            in_style.append(styles[style])
            in_split.append(splits[split])
            in_pictures.append(picture)
            for question, answer in turns:
                questions.append(question)
                answers.append(answer)
                characters += len(question) + len(answer)
            offsets.append(len(questions))
            if len(ids) == BATCH_ROWS or characters > _BATCH_CHARACTERS:
                count, characters = count + len(ids), 0
                flush()
                if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    logger.info("%s: %s records so far", dataset, f"{count:,}")
        if ids:
            count += len(ids)
            flush()
    for name, kind in (("dataset", np.int8), ("style", np.int8), ("split", np.int8), ("length", np.int32)):
        np.save(folder / f"{name}.npy", numbers.take(name, kind))
    groups = pa.array(numbers.take("key", np.uint64)).dictionary_encode()
    np.save(folder / "group.npy", groups.indices.to_numpy())
    np.save(folder / "group_keys.npy", groups.dictionary.to_numpy())
    return list(datasets), count


def _keys(in_pictures: list[int], turns: pa.Array, pictures: Pictures) -> NDArray[np.uint64]:
    """A number for each row's picture, or for its text where there is none."""
    numbers = np.array(in_pictures)
    keys = np.zeros(len(numbers), np.uint64)
    has_picture = numbers != NO_PICTURE
    if has_picture.any():
        keys[has_picture] = np.frombuffer(pictures.keys, np.uint64)[numbers[has_picture]]
    for row in np.flatnonzero(~has_picture).tolist():
        keys[row] = key_hash(f"text/{turns[row].as_py()!r}")
    return keys


def _lengths(offsets: list[int], texts: list[pa.Array]) -> NDArray[np.int32]:
    of_turns = sum(pc.binary_length(part).to_numpy().astype(np.int64) for part in texts)
    ends = np.concatenate([[0], np.cumsum(of_turns)])[offsets]
    return np.diff(ends).astype(np.int32)


def _write_pictures(folder: Path, pictures: Pictures) -> None:
    with pa.OSFile(str(folder / "pictures.arrow"), "wb") as sink, pa.ipc.new_file(sink, _PICTURES) as writer:
        single = len(pictures.names)
        for start in range(0, len(pictures), BATCH_ROWS):
            end = min(start + BATCH_ROWS, len(pictures))
            files, packed = slice(start, min(end, single)), slice(max(start - single, 0), max(end - single, 0))
            names = pictures.names[files]
            columns = [
                pa.array(np.asarray(pictures.place_of[start:end])),
                pa.array([*names, *[None] * (end - start - len(names))], pa.string()),
                pa.array([*[0] * len(names), *pictures.positions[packed]], pa.int64()),
                pa.array([*[0] * len(names), *pictures.sizes[packed]], pa.int64()),
            ]
            writer.write_batch(pa.record_batch(columns, schema=_PICTURES))


def _find_repeated(folder: Path, datasets: list[str], ledger: Ledger) -> NDArray[np.bool_]:
    """Records that a second file repeats, such as COCO's 2014 captions that are in its 2017 files too.

    The publisher's validation file decides where a record belongs; otherwise the first file read keeps it.
    """
    in_dataset = np.load(folder / "dataset.npy", allow_pickle=False)
    is_train = np.load(folder / "split.npy", allow_pickle=False) != VALIDATION
    repeated = np.zeros(len(in_dataset), np.bool_)
    several = [number for number, dataset in enumerate(datasets) if len(ledger[dataset].files) > 1]
    if not several:
        return repeated
    ids = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all().column("id")
    for number in several:
        rows = np.flatnonzero(in_dataset == number)
        codes = ids.take(rows).combine_chunks().dictionary_encode().indices.to_numpy()
        if codes.max(initial=-1) + 1 == len(codes):
            continue
        order = np.lexsort((rows, is_train[rows], codes))
        again = np.concatenate([[False], codes[order][1:] == codes[order][:-1]])
        repeated[rows[order[again]]] = True
    return repeated


def _tally_to(tally: Tally) -> dict[str, Any]:
    return {name: getattr(tally, name) for name in Tally.__slots__} | {"files": [str(file) for file in tally.files]}


def _tally_of(values: dict[str, Any]) -> Tally:
    tally = Tally(**values | {"files": [Path(file) for file in values["files"]]})
    tally.rejected = type(Tally().rejected)(tally.rejected)
    return tally


class IndexedSamples(Sequence[Sample]):
    """Some of an index's rows as samples, each made when it is asked for.

    What it holds are numbers, some twenty bytes a sample; it can be sent to another process or forked.

    Args:
        index: the index.
        rows: which of its rows, in this order.
    """

    def __init__(self, index: Index, rows: NDArray[Any]) -> None:
        self.folder, self.datasets = index.folder, index.datasets
        self.rows: NDArray[np.int32] = rows.astype(np.int32)
        #: UTF-8 bytes of each sample's text, a cheap measure of its length: (samples,)
        self.lengths: NDArray[np.int32] = index.column("length")[self.rows]
        self._groups: NDArray[np.int32] = index.column("group")[self.rows]
        captions = np.flatnonzero(index.column("style")[self.rows] == STYLES.index("caption"))
        captions = captions[np.argsort(self._groups[captions], kind="stable")]
        #: the rows that are captions, those about one picture together, and which picture that is
        self._caption_rows, self._caption_groups = self.rows[captions], self._groups[captions]
        self._tables: _Tables | None = _Tables(index.folder)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Sample]: ...
    def __getitem__(self, place: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        batch, row = self._open().row(int(self.rows[place]))
        dataset = self.datasets[batch.column(0)[row].as_py()]
        picture = batch.column(4)[row].as_py()
        return Sample(
            id=f"{dataset}/{batch.column(1)[row].as_py()}",
            dataset=dataset,
            style=STYLES[batch.column(2)[row].as_py()],
            image=None if picture == NO_PICTURE else self._open().picture(picture),
            turns=_turns(batch, row),
            split=SPLITS[batch.column(3)[row].as_py()],
        )

    def captions(self, place: int) -> list[str]:
        """The captions, among these samples, of the picture that sample ``place`` is about."""
        start = np.searchsorted(self._caption_groups, self._groups[place], "left")
        end = np.searchsorted(self._caption_groups, self._groups[place], "right")
        found = (self._open().row(int(row)) for row in self._caption_rows[start:end])
        return [turn.answer for batch, row in found for turn in _turns(batch, row)]

    def _open(self) -> _Tables:
        if self._tables is None:
            self._tables = _Tables(self.folder)
        return self._tables

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": None}


def _turns(batch: pa.RecordBatch, row: int) -> tuple[Turn, ...]:
    return tuple(Turn(turn["question"], turn["answer"]) for turn in batch.column(5)[row].as_py())


class _Tables:
    """The open files of an index."""

    def __init__(self, folder: Path) -> None:
        self._batches, self._starts = _batches(folder / "rows.arrow")
        self._pictures, self._picture_starts = _batches(folder / "pictures.arrow")
        self._places: list[str] = json.loads((folder / "index.json").read_text(encoding="utf-8"))["places"]

    def row(self, row: int) -> tuple[pa.RecordBatch, int]:
        number = bisect_right(self._starts, row) - 1
        return self._batches[number], row - self._starts[number]

    def picture(self, picture: int) -> Picture:
        number = bisect_right(self._picture_starts, picture) - 1
        batch, row = self._pictures[number], picture - self._picture_starts[number]
        place, name = self._places[batch.column(0)[row].as_py()], batch.column(1)[row].as_py()
        if name is not None:
            return Path(place, name)
        return PackedPicture(Path(place), batch.column(2)[row].as_py(), batch.column(3)[row].as_py())


def _batches(path: Path) -> tuple[list[pa.RecordBatch], list[int]]:
    batches = pa.ipc.open_file(pa.memory_map(str(path))).read_all().to_batches()
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    return batches, starts[:-1].tolist()
