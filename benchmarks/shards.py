"""Measures what streaming tar shards costs a process: counting, reading, decoding, memory, going on in mid-epoch.

The figures of ``docs/scale.md`` come from here. Shards are written to a temporary folder first.
Rates are per second of processor time, so that what else runs on the machine does not change them.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import sys
import tarfile
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from measured import MIB, machine, resident
from official_files import photo_like_jpeg
from torch.utils.data import DataLoader, IterableDataset

from embervlm.data.collate import Collator
from embervlm.data.shards import Shard, read_pairs, scan
from embervlm.data.stream import Catalogue, Reader, StreamCollator, StreamedDataset, epoch_pairs, open_catalogue
from embervlm.model import EmberVLMProcessor, preset_config

#: The plan of ``docs/scale.md``.
PAIRS = 100_000_000
PAIRS_A_SHARD = 5_000
PROCESSES = 64

_PICTURES = 32
_OFFSETS_A_SHARD = math.ceil(PAIRS_A_SHARD / 256)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=2_000, help="of one shard")
    parser.add_argument("--examples", type=int, default=400, help="pairs to decode and encode")
    parser.add_argument("--picture", default="640x480", metavar="WxH", help="pixels of the pictures")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the shards go, some 600 MB")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        files = _write(Path(folder), options.shards, options.pairs, options.picture)
        found = {"machine": machine()} | _measure(files, Path(folder) / "cache", options.examples) | _at_full_size()
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


def _write(folder: Path, shards: int, pairs: int, size: str) -> list[str]:
    width, height = map(int, size.split("x"))
    pictures = [photo_like_jpeg(seed, (width, height)) for seed in range(_PICTURES)]
    rng = random.Random(0)
    files = []
    for place in range(shards):
        files.append(str(folder / f"{place:05d}.tar"))
        with tarfile.open(files[-1], "w") as tar:
            for number in range(place * pairs, (place + 1) * pairs):
                caption = " ".join(rng.choices(["a", "red", "house", "by", "the", "river", "people", "walk"], k=12))
                data = rng.choice(pictures) + number.to_bytes(4, "big")
                about = json.dumps({"caption": caption, "url": "x" * 100, "key": f"{number:09d}"}).encode()
                for suffix, content in (("jpg", data), ("txt", caption.encode()), ("json", about)):
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return files


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    result = run()
    return result, time.process_time() - started


def _characters_read() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def _measure(files: list[str], cache: Path, examples: int) -> dict[str, Any]:
    before = _characters_read()
    shards, counting = _timed(lambda: [scan(file) for file in files])
    header_bytes = _characters_read() - before
    pairs = sum(shard.pairs for shard in shards)
    total = sum(shard.size for shard in shards)
    read, reading = _timed(lambda: sum(len(pair.picture) for s in shards for pair in read_pairs(s, 0, s.pairs)))
    catalogue = open_catalogue(files, cache, seed=0)

    processor = EmberVLMProcessor.for_config(preset_config("ember"))
    dataset = StreamedDataset(catalogue, processor, seed=0, batch_size=32)
    without = resident("VmRSS")
    stream: Iterator[Any] = iter(dataset)
    next(stream)
    _, encoding = _timed(lambda: sum(1 for _ in islice(stream, examples)))
    growth = (resident("VmHWM") - without) / MIB
    handles = sum(".tar" in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    stream.close()  # type: ignore[attr-defined]

    skipping = DataLoader(
        _Skipped(), batch_size=32, num_workers=2, collate_fn=StreamCollator(Collator(processor.tokenizer))
    )
    started = time.perf_counter()
    empty = sum(1 for batch in skipping if not batch)
    skipping_seconds = time.perf_counter() - started

    reader = Reader.of(len(catalogue), rank=0, ranks=1, worker=0, workers=1, batch_size=32)
    late = reader.count * 3 // 4 // 32 * 32

    def first(skip: int) -> float:
        before = _characters_read()
        _, seconds = _timed(lambda: next(epoch_pairs(catalogue, reader, seed=0, epoch=0, skip=skip)))
        return seconds, (_characters_read() - before) / MIB  # type: ignore[return-value]

    return {
        "pairs": pairs,
        "bytes_a_pair": round(total / pairs),
        "picture_bytes": round(read / pairs),
        "count_pairs_a_second": round(pairs / counting),
        "count_bytes_a_pair": round(header_bytes / pairs),
        "read_pairs_a_second": round(pairs / reading),
        "read_mib_a_second": round(total / MIB / reading),
        "ready_pairs_a_second": round(examples / encoding, 1),
        "open_shards_a_worker": handles,
        "skipped_batches_a_second": round(empty / skipping_seconds),
        "window_pairs": catalogue.window,
        "worker_growth_mib": round(growth),
        "first_pair_seconds_and_mib": first(0),
        "first_pair_when_going_on_seconds_and_mib": first(late),
    }


class _Skipped(IterableDataset[None]):
    """What a resumed epoch yields for batches that are trained already."""

    def __iter__(self) -> Iterator[None]:
        return repeat(None, 32 * 10_000)


def _at_full_size() -> dict[str, Any]:
    """The bookkeeping of the whole plan, without its files."""
    count = PAIRS // PAIRS_A_SHARD
    without = resident("VmRSS")
    shards = [
        Shard(f"/data/{place:05d}.tar", 500_000_000, place, PAIRS_A_SHARD, 0, array("q", range(_OFFSETS_A_SHARD)))
        for place in range(count)
    ]
    memory = (resident("VmRSS") - without) / MIB
    lines = [shard.line().encode() for shard in shards]
    _, parsing = _timed(lambda: [Shard.of_line(line) for line in lines])
    catalogue = Catalogue(tuple(shards), {}, frozenset(), ())
    reader, dealing = _timed(
        lambda: Reader.of(len(catalogue), rank=63, ranks=PROCESSES, worker=1, workers=2, batch_size=32)
    )
    return {
        "plan_shards": count,
        "plan_catalogue_mib": round(memory, 1),
        "plan_counts_file_mib": round(sum(map(len, lines)) / MIB, 1),
        "plan_parse_seconds": round(parsing, 2),
        "plan_deal_seconds": round(dealing, 3),
        "plan_pairs_a_worker": reader.count,
        "plan_steps_an_epoch": math.ceil(len(catalogue) // PROCESSES / 32),
    }


if __name__ == "__main__":
    raise SystemExit(main())
