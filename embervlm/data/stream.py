"""Shards as an endless line of training pairs: counted once, dealt out over processes and workers, gone through in
shuffled windows, and entered at any place. What stage 1 trains on where the pairs fill more than a disk.

From the counts of all shards follows who reads what and when, as a function of seed, epoch and place: no process
reads what another trains on, and a run goes on in mid-epoch without reading or decoding what it has seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from embervlm.data.collate import Collator, ConversationDataset, Example
from embervlm.data.images import ImageError
from embervlm.data.quarantine import REPLACEMENTS, Failure
from embervlm.data.sample import DataError, PackedPicture, Sample, Turn
from embervlm.data.shards import DATASET, Pair, Shard, caption_of, library, located_pairs, read_pairs, scan
from embervlm.prompts import IGNORED, Encoded
from embervlm.tokens import END_OF_TEXT_ID

logger = logging.getLogger(__name__)

#: Above this share of damaged shards a run does not begin.
MAX_DAMAGED_SHARE = 0.05
#: Pairs that are shuffled together, fewer where pictures are large.
WINDOW = 1_024
WINDOW_BYTES = 128 * 1024**2
VALIDATION_SHARE = 0.02
MAX_VALIDATION = 2_000
#: Shards that are read for validation pairs, at most; and pairs looked at for each that is held out.
VALIDATION_SHARDS = 16
VALIDATION_PICKS = 5
#: In a stage's folder: what decides the order of the pairs.
ORDER_FILE = "order.json"

_WAIT_SECONDS = 0.2
_SILENT_SECONDS = 1_800.0


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A validation pair: where its picture lies, and its caption."""

    id: str
    shard: str
    offset: int
    size: int
    caption: str


@dataclass(frozen=True)
class Catalogue:
    """The shards of a run, counted, and the pairs among them that are kept for validation.

    Attributes:
        shards: in the pattern's order.
        held_out: by a shard's place, the numbers of its pairs that are not trained on, ascending.
        pictures: digests of the held-out pictures; wherever else their bytes occur, they are not trained on either.
        validation: the held-out pairs.
    """

    shards: tuple[Shard, ...]
    held_out: dict[int, tuple[int, ...]]
    pictures: frozenset[bytes]
    validation: tuple[HeldOut, ...]

    def __len__(self) -> int:
        """Training pairs of all shards."""
        return sum(self.counts)

    @cached_property
    def digest(self) -> str:
        """A short name for the shards' names and training pairs."""
        pairs = [(Path(shard.path).name, count) for shard, count in zip(self.shards, self.counts, strict=True)]
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]

    @cached_property
    def counts(self) -> list[int]:
        """Training pairs of each shard."""
        return [shard.pairs - len(self.held_out.get(place, ())) for place, shard in enumerate(self.shards)]

    def validation_samples(self) -> list[Sample]:
        """The held-out pairs as samples."""
        return [
            Sample(
                *(pair.id, DATASET, "caption", PackedPicture(Path(pair.shard), pair.offset, pair.size)),
                (Turn("", pair.caption),),
                "validation",
            )
            for pair in self.validation
        ]

    @cached_property
    def window(self) -> int:
        """Pairs that are shuffled together: as many as ``WINDOW_BYTES`` hold on average, ``WINDOW`` at most."""
        mean = sum(shard.size for shard in self.shards) / max(1, sum(shard.pairs for shard in self.shards))
        return max(16, min(WINDOW, int(WINDOW_BYTES / max(1.0, mean))))

    def read(self, place: int, first: int, last: int) -> Iterator[Pair]:
        """A shard's training pairs from the ``first`` to before the ``last`` of them."""
        held = self.held_out.get(place)
        if held is None:
            yield from read_pairs(self.shards[place], first, last)
        elif first < last:
            numbers = np.delete(np.arange(self.shards[place].pairs), held)
            skipped = frozenset(held)
            for pair in read_pairs(self.shards[place], int(numbers[first]), int(numbers[last - 1]) + 1):
                if pair.number not in skipped:
                    yield pair


def open_catalogue(
    files: Sequence[str], cache: Path, *, seed: int, rank: int = 0, ranks: int = 1, share: float = VALIDATION_SHARE
) -> Catalogue:
    """Count the pairs of ``files`` and choose the validation pairs.

    Every process counts its part of the shards and leaves the counts in ``cache``, where all find the others'; a
    second run finds them all. The first process reads a few shards for the validation pairs.

    Args:
        files: the shards.
        cache: a folder that all processes see.
        seed: of the choice.
        rank, ranks: which process this is, of how many.
        share: of the pairs that is held out, up to ``MAX_VALIDATION``.

    Raises:
        DataError: webdataset is not installed; too many shards are damaged; no pair in them; the other processes'
            counts do not come.
    """
    library()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / f"counts-{rank:05d}.jsonl").touch()
    except OSError as error:
        raise DataError(
            f"{cache}: counts of the shards cannot be kept there ({error.strerror or error}). "
            "Cure: set EMBERVLM_CACHE to a folder that all processes can write"
        ) from None
    shards = _count_all(files, cache, rank, ranks)
    _check_damage(shards)
    incomplete = sum(shard.incomplete for shard in shards)
    pairs = sum(shard.pairs for shard in shards)
    if pairs < 2:
        raise DataError(
            f"{files[0]} and {len(files) - 1} more: {pairs} pairs of a picture and a text, {incomplete} incomplete "
            "records; expected members such as 000000001.jpg and 000000001.txt, one after the other"
        )
    digest = hashlib.sha256(f"{seed}/{share}".encode())
    for shard in shards:
        digest.update(f"{shard.path}\0{shard.size}\0{shard.modified}\0{shard.pairs}\n".encode())
    choice = cache / f"validation-{digest.hexdigest()[:16]}.json"
    if rank == 0 and not choice.is_file():
        _write(choice, json.dumps(_choose(shards, seed, share)))
    _wait_for(choice.is_file, f"{choice} from the first process", ranks)
    chosen = json.loads(choice.read_text(encoding="utf-8"))
    catalogue = Catalogue(
        tuple(shards),
        {int(place): tuple(numbers) for place, numbers in chosen["held_out"].items()},
        frozenset(bytes.fromhex(picture) for picture in chosen["pictures"]),
        tuple(HeldOut(*fields) for fields in chosen["validation"]),
    )
    if rank == 0:
        logger.info(
            "%d shard%s: %s pairs to train on, %s for validation, %s records without a picture or text",
            *(
                len(shards),
                "" if len(shards) == 1 else "s",
                f"{sum(catalogue.counts):,}",
                f"{len(catalogue.validation):,}",
                f"{incomplete:,}",
            ),
        )
    return catalogue


def _count_all(files: Sequence[str], cache: Path, rank: int, ranks: int) -> list[Shard]:
    # Counted once a run for each shard, whoever counted it before.
    states = {}
    for path in files:
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError as error:
            raise DataError(f"{path}: cannot open the shard ({error.strerror or error})") from None
        states[path] = (status.st_size, status.st_mtime_ns)
    known: dict[str, Shard] = {}
    read_to: dict[Path, int] = {}

    def look() -> bool:
        for file in sorted(cache.glob("counts-*.jsonl")):
            with file.open("rb") as lines:
                lines.seek(read_to.get(file, 0))
                new = lines.read()
            whole = new.rfind(b"\n") + 1
            read_to[file] = read_to.get(file, 0) + whole
            for line in new[:whole].splitlines():
                shard = Shard.of_line(line)
                if shard is not None and states.get(shard.path) == (shard.size, shard.modified):
                    known[shard.path] = shard
        return len(known) == len(files)

    look()
    mine = [path for path in files[rank::ranks] if path not in known]
    with (cache / f"counts-{rank:05d}.jsonl").open("ab") as out:
        if out.tell():
            out.write(b"\n")  # a line that a killed process left half written ends here
        for number, path in enumerate(mine):
            shard = scan(path)
            if (shard.size, shard.modified) != states[path]:
                raise DataError(f"{path}: the shard changes while it is read")
            out.write(shard.line().encode())
            out.flush()
            known[path] = shard
            if rank == 0 and (number + 1) % 1_000 == 0:
                logger.info("%d of %d shards counted", number + 1, len(mine))
    _wait_for(look, f"the other processes' counts in {cache}", ranks, progress=lambda: len(known))
    return [known[path] for path in files]


def _wait_for(done: Callable[[], bool], what: str, ranks: int, progress: Callable[[], int] = lambda: 0) -> None:
    seen, since = progress(), time.monotonic()
    while not done():
        if progress() != seen:
            seen, since = progress(), time.monotonic()
        if time.monotonic() - since > _SILENT_SECONDS:
            raise DataError(f"waited {_SILENT_SECONDS / 60:.0f} minutes for {what}; do all processes see that folder?")
        # Many processes that look into one folder would keep its server busy with nothing else.
        time.sleep(_WAIT_SECONDS * max(1.0, ranks / 4))


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _check_damage(shards: Sequence[Shard]) -> None:
    damaged = [shard for shard in shards if shard.damage]
    for shard in damaged[:10]:
        logger.warning("%s: %s; the %s pairs before it are used", shard.path, shard.damage, f"{shard.pairs:,}")
    if len(damaged) > MAX_DAMAGED_SHARE * max(len(shards), 20):
        raise DataError(
            f"{len(damaged):,} of {len(shards):,} shards are damaged; expected at most {MAX_DAMAGED_SHARE:.0%}. "
            f"First: {damaged[0].path}: {damaged[0].damage}. Cure: fetch them again, or leave them out of the pattern"
        )


def _choose(shards: Sequence[Shard], seed: int, share: float) -> dict[str, Any]:
    """Hold out the pictures with the smallest seeded hashes among those of a few shards.

    A picture goes by its bytes: neither its key nor its shard nor its place says where it goes, and a second copy is
    found wherever it lies. Which shards are looked at goes by a hash of their names, so that it hardly changes when
    others are added.
    """

    def rank(key: bytes) -> bytes:
        return hashlib.blake2b(key, key=str(seed).encode()).digest()

    pairs = sum(shard.pairs for shard in shards)
    wanted = 0 if share <= 0 else min(MAX_VALIDATION, max(1, round(share * pairs)))
    places = sorted(range(len(shards)), key=lambda place: rank(Path(shards[place].path).name.encode()))
    seen: dict[bytes, list[tuple[int, int, HeldOut | None]]] = {}
    looked_at = 0
    for place in places[:VALIDATION_SHARDS]:
        if looked_at >= wanted * VALIDATION_PICKS:
            break
        for pair, offset in located_pairs(shards[place]):
            held = _held_out(pair, offset)
            seen.setdefault(picture_digest(pair.picture), []).append((place, pair.number, held))
            looked_at += 1
    usable = [digest for digest, found in seen.items() if any(held for _, _, held in found)]
    # Half of what was seen at most, so that something is left to train on.
    pictures = sorted(usable, key=rank)[: min(wanted, len(usable) // 2)]
    held_out: dict[int, list[int]] = {}
    validation = []
    for digest in pictures:
        for place, number, _ in seen[digest]:
            held_out.setdefault(place, []).append(number)
        held = next(held for _, _, held in seen[digest] if held)
        validation.append([held.id, held.shard, held.offset, held.size, held.caption])
    return {
        "held_out": {place: sorted(numbers) for place, numbers in held_out.items()},
        "pictures": [digest.hex() for digest in pictures],
        "validation": validation,
    }


def _held_out(pair: Pair, offset: int) -> HeldOut | None:
    try:
        caption = caption_of(pair.text, pair.is_json)
    except DataError:
        return None
    return HeldOut(pair.id, pair.shard, offset, len(pair.picture), caption)


def picture_digest(data: bytes) -> bytes:
    """What tells a picture from others: a hash of its bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


# ---- the order ----


@dataclass(frozen=True, slots=True)
class Reader:
    """One worker's part of an epoch: ``count`` places from ``start`` on, in the epoch's order of the pairs."""

    start: int
    count: int

    @classmethod
    def of(cls, pairs: int, *, rank: int, ranks: int, worker: int, workers: int, batch_size: int) -> Reader:
        """The part of worker ``worker`` of process ``rank``.

        Every process has ``pairs // ranks`` places one after the other, and its workers as many whole batches as they
        take in turn; the last batch may be short, on all processes alike.
        """
        share = pairs // ranks
        batches = -(-share // batch_size)
        start = rank * share
        for earlier in range(worker + 1):
            count = len(range(earlier, batches, workers)) * batch_size
            if batches and (batches - 1) % workers == earlier:
                count -= batches * batch_size - share
            if earlier < worker:
                start += count
        return cls(start, count)


def epoch_pairs(
    catalogue: Catalogue, reader: Reader, *, seed: int, epoch: int, skip: int = 0
) -> Iterator[tuple[Pair, list[Pair]]]:
    """One worker's pairs of an epoch, in order, from its place ``skip`` on.

    The shards are shuffled and laid end to end; a worker reads its part of that line from start to end and shuffles
    each window of it. Nothing before the window of ``skip`` is read, but for at most ``_STRIDE`` pairs.

    Yields:
        a pair, and those of its window that are tried in turn where it cannot be used: the ones that follow half a
        window later, away from the batch that it stands in.
    """
    counts = catalogue.counts
    order = list(range(len(counts)))
    random.Random(f"{seed}/{epoch}/shards").shuffle(order)
    ends = np.cumsum([counts[place] for place in order]).tolist()
    window = catalogue.window
    first = skip // window * window
    stream = _line(catalogue, order, counts, ends, reader.start + first, reader.start + reader.count)
    for start in range(first, reader.count, window):
        pairs = _within_memory(islice(stream, min(window, reader.count - start)))
        random.Random(f"{seed}/{epoch}/{reader.start + start}").shuffle(pairs)
        for number in range(max(0, skip - start), len(pairs)):
            after = number + len(pairs) // 2
            yield pairs[number], [pairs[(after + step) % len(pairs)] for step in range(min(len(pairs), REPLACEMENTS))]


def _within_memory(pairs: Iterable[Pair]) -> list[Pair]:
    """Drop the pictures with which a window would take a multiple of its share of the memory."""
    kept, total = [], 0
    for pair in pairs:
        total += len(pair.picture) + len(pair.text)
        if total > 4 * WINDOW_BYTES:
            total -= len(pair.picture) + len(pair.text)
            reason = f"{len(pair.picture):,} bytes among pictures that are much larger than the other shards'"
            pair = replace(pair, picture=b"", text=b"", refused=reason)
        kept.append(pair)
    return kept


def _line(
    catalogue: Catalogue, order: list[int], counts: list[int], ends: list[int], start: int, end: int
) -> Iterator[Pair]:
    turn = bisect_right(ends, start)
    while start < end:
        count, begin = counts[order[turn]], ends[turn] - counts[order[turn]]
        last = min(count, end - begin)
        yield from catalogue.read(order[turn], start - begin, last)
        start, turn = begin + last, turn + 1


# ---- the data set ----


class StreamedDataset(IterableDataset[Example | None]):
    """One process's training pairs of an epoch, each worker reading its own part.

    Args:
        catalogue: the shards.
        processor: the model's processor.
        seed: of order and augmentation.
        batch_size: of one process.
        rank, ranks: which process this is, of how many.

    Raises:
        DataError: fewer pairs than processes.
    """

    def __init__(
        self, catalogue: Catalogue, processor: Any, *, seed: int, batch_size: int, rank: int = 0, ranks: int = 1
    ) -> None:
        if len(catalogue) < ranks:
            raise DataError(f"{len(catalogue)} pairs to train on for {ranks} processes. Cure: fewer processes")
        self.catalogue, self.seed, self.batch_size, self.rank, self.ranks = catalogue, seed, batch_size, rank, ranks
        self.encoder = ConversationDataset((), processor, augment=True, seed=seed)
        self.epoch = self.skipped = 0

    def start_at(self, epoch: int, skipped: int = 0) -> None:
        """Say which epoch is next, and how many of its batches are trained already: they come as empty ones."""
        self.epoch, self.skipped = epoch, skipped

    def __len__(self) -> int:
        """Pairs of this process in an epoch, the same on every process."""
        return len(self.catalogue) // self.ranks

    def check_order(self, file: Path, workers: int, *, write: bool) -> None:
        """Say in the log where this run reads its pairs in another order than the one that it goes on with.

        Args:
            file: where the first run of a stage wrote what decides the order.
            workers: of each process.
            write: whether this process writes it, where it is not there.
        """
        decides = {
            "shards and pairs": self.catalogue.digest,
            "seed": self.seed,
            "processes": self.ranks,
            "workers": max(1, workers),
            "batch size": self.batch_size,
        }
        if write and not file.is_file():
            _write(file, json.dumps(decides, indent=2) + "\n")
        elif write:
            before = json.loads(file.read_text(encoding="utf-8"))
            changed = [
                f"{name} {before.get(name)} -> {now}" for name, now in decides.items() if before.get(name) != now
            ]
            if changed:
                logger.warning(
                    "The order of the pairs has changed (%s): until this epoch ends, some are seen twice and some not "
                    "at all. Cure: the former settings, or take it as it is",
                    "; ".join(changed),
                )

    def __iter__(self) -> Iterator[Example | None]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        reader = Reader.of(
            *(len(self.catalogue),),
            rank=self.rank,
            ranks=self.ranks,
            worker=worker,
            workers=workers,
            batch_size=self.batch_size,
        )
        # The workers' batches are taken in turn.
        skip = min(len(range(worker, self.skipped, workers)) * self.batch_size, reader.count)
        yield from repeat(None, skip)
        for pair, others in epoch_pairs(self.catalogue, reader, seed=self.seed, epoch=self.epoch, skip=skip):
            yield self._example(pair, others)

    def _example(self, pair: Pair, others: Sequence[Pair]) -> Example:
        failures: list[Failure] = []
        for tried in (pair, *others):
            if picture_digest(tried.picture) in self.catalogue.pictures:
                continue  # a second copy of a validation picture: nothing is wrong with it
            rng = random.Random(f"{self.seed}/{self.epoch}/{tried.id}")
            try:
                sample = tried.sample()
                example = self.encoder.example(sample, tried.picture, [sample.turns[0].answer], rng)
                return replace(example, failures=tuple(failures))
            except (ImageError, DataError) as error:
                reason = str(error).removeprefix("picture: ")
                failures.append(Failure(tried.id, "train", tried.picture_name, reason, self.epoch))
        last = failures[-1] if failures else self._held_out(pair)
        return Example(
            Encoded([END_OF_TEXT_ID], [IGNORED]), None, failures=(*failures[:-1], replace(last, replaced=False))
        )

    def _held_out(self, pair: Pair) -> Failure:
        return Failure(pair.id, "train", pair.picture_name, "a copy of a validation picture", self.epoch)


def without_traceback(error: DataError) -> str:
    """The line that an error says, also where it comes from a worker, which sends its traceback along."""
    return str(error).strip().splitlines()[-1].rpartition(f"{DataError.__qualname__}: ")[2]


class StreamCollator:
    """A collator that makes an empty batch of what a resumed run skips."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[Example | None]) -> dict[str, Any]:
        """The batch, or an empty one for skipped places."""
        there = [example for example in examples if example is not None]
        return self.collator(there) if there else {}
