"""Measures the data side at full size: indexing, memory over epochs, and whether pictures come as fast as they train.

``make`` writes synthetic files in the official formats; ``index``, ``memory`` and ``feed`` measure, in fresh processes
one after another. Run as ``python benchmarks/data.py``; results are a table and, with ``--json``, a file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import HERE, MIB, BenchmarkError, Watched, finish, machine, say, show, table, verdict, watch, worker
from official_files import LLAVA, write_all, write_photo_captions, write_text_only

CACHE_VARIABLE = "EMBERVLM_CACHE"

#: What the measurements are held against.
MAX_INDEX_MIB = 300
LEAST_SPEEDUP = 2.0
MAX_REOPEN_SECONDS = 0.5
MAX_GROWTH_PERCENT = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; 0 when it has measured, whatever the figures, 1 when it could not."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (BenchmarkError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        if name != "make":
            added.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
            added.add_argument("--work", type=Path, metavar="DIR", help="where temporary files go, up to some 2 GB")
        return added

    make = command("make", _make, "write full-size synthetic files in the official formats, some 1.7 GB")
    make.add_argument("--out", type=Path, required=True, metavar="DIR")
    make.add_argument("--scale", type=float, default=1.0, help="share of the official numbers of records")
    make.add_argument("--seed", type=int, default=0)

    index = command("index", _index, "time and memory of indexing, against json.load of the same files")
    index.add_argument("--data", type=Path, required=True, metavar="DIR", help="what 'make' wrote")
    index.add_argument("--repeats", type=int, default=1, help="of each time the median is given, of memory the highest")
    index.add_argument("--only", choices=("plain", "ours"), help="measure one side alone")

    memory = command("memory", _memory, "total proportional memory of ranks and workers over three epochs")
    memory.add_argument("--records", type=int, default=1_000_000)
    memory.add_argument("--epochs", type=int, default=3)
    memory.add_argument("--ranks", type=int, default=2)
    memory.add_argument("--workers", type=int, default=2, help="of each rank")
    memory.add_argument("--batch_size", type=int, default=64)

    feed = command("feed", _feed, "samples a second: loader alone, model alone, both together")
    feed.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 32])
    feed.add_argument("--workers", type=int, default=2)
    feed.add_argument("--photos", type=int, default=512, help="pictures of 640x480 pixels, with five captions each")
    feed.add_argument("--seconds", type=float, default=40.0, help="of each measurement")
    feed.add_argument("--encoders", nargs="+", choices=("frozen", "trained"), default=["frozen", "trained"])
    feed.add_argument("--preset", choices=("ember", "spark"), default="ember")
    return parser


def _make(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    sizes = write_all(options.out, scale=options.scale, seed=options.seed)
    pictures = sizes.pop("pictures")
    listed = table(f"Written to {options.out} in {time.perf_counter() - started:.0f} s", "file", "MB")
    for name, size in sizes.items():
        listed.add_row(name, f"{size / 1e6:,.1f}")
    listed.add_row(f"{pictures:,} pictures", "")
    show(listed)
    return 0


def _index(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine(), "stages": {}}
    _read_once(options.data)
    python = sys.executable
    bare = watch([python, "-c", "import time; time.sleep(0.3)"])
    program = [python, str(HERE / "indexing.py")]
    environment = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    found["interpreter"] = {"anonymous_mib": bare.anonymous / MIB, "resident_mib": bare.resident / MIB}
    if options.only != "plain":
        imported = watch([*program, "imports"], environment)
        found["imports_alone"] = _above(imported, bare)

    for stage in (1, 2):
        rows: dict[str, list[Watched]] = {"plain": [], "ours": [], "reopened": []}
        for _ in range(options.repeats):
            say(f"index: stage {stage}")
            if options.only != "ours":
                rows["plain"].append(watch([*program, "plain", str(options.data), str(stage)]))
            if options.only != "plain":
                with tempfile.TemporaryDirectory(dir=options.work) as cache:
                    own = {**environment, CACHE_VARIABLE: cache}
                    for name in ("ours", "reopened"):
                        rows[name].append(watch([*program, "ours", str(options.data), str(stage)], own))
        found["stages"][stage] = {name: _summary(runs, bare) for name, runs in rows.items() if runs}
    found["verdicts"] = _index_verdicts(found["stages"])

    listed = table(
        "Indexing",
        "stage",
        "way",
        "records",
        "seconds",
        "of processor",
        "anonymous MiB above the interpreter",
        "resident MiB above it",
    )
    for stage, ways in found["stages"].items():
        for name, row in ways.items():
            listed.add_row(
                str(stage),
                {"plain": "json.load, list of dicts", "ours": "load_base", "reopened": "load_base, cached"}[name],
                f"{row['records']:,}",
                f"{row['seconds']:.2f}",
                f"{row['cpu_seconds']:.2f}",
                f"{row['anonymous_mib']:,.0f}",
                f"{row['resident_mib']:,.0f}",
            )
            for dataset, part in row["parts"].items():
                seconds = f"{part['seconds']:.2f}" if "seconds" in part else ""
                listed.add_row("", f"  {dataset}", f"{part['records']:,}", seconds, "", "", "")
    if "imports_alone" in found:
        alone = found["imports_alone"]
        listed.add_row(
            "", "imports alone", "", "", "", f"{alone['anonymous_mib']:,.0f}", f"{alone['resident_mib']:,.0f}"
        )
    return finish(found, [listed], options.json)


def _above(run: Watched, bare: Watched) -> dict[str, float]:
    return {
        "anonymous_mib": (run.anonymous - bare.anonymous) / MIB,
        "resident_mib": (run.resident - bare.resident) / MIB,
    }


def _summary(runs: list[Watched], bare: Watched) -> dict[str, Any]:
    """The median run by time, with the highest memory of all."""
    middle = sorted(runs, key=lambda run: run.result["seconds"])[len(runs) // 2]
    above = [_above(run, bare) for run in runs]
    return {
        **middle.result,
        "process_seconds": middle.seconds,
        **{name: max(each[name] for each in above) for name in ("anonymous_mib", "resident_mib")},
        "all_seconds": [run.result["seconds"] for run in runs],
    }


def _index_verdicts(stages: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    verdicts = []
    for stage, ways in stages.items():
        plain, ours, reopened = (ways.get(name) for name in ("plain", "ours", "reopened"))
        if ours:
            verdicts.append(
                verdict(f"stage {stage}: MiB above the interpreter", ours["anonymous_mib"], "<=", MAX_INDEX_MIB)
            )
        if reopened:
            verdicts.append(verdict(f"stage {stage}: seconds to reopen", reopened["seconds"], "<=", MAX_REOPEN_SECONDS))
        if plain and ours:
            verdicts.append(
                verdict(f"stage {stage}: times as fast", plain["seconds"] / ours["seconds"], ">=", LEAST_SPEEDUP)
            )
            verdicts.append(verdict(f"stage {stage}: records", ours["records"], "==", plain["records"]))
    return verdicts


def _read_once(folder: Path) -> None:
    """Bring the files into the page cache, so that no way of reading them waits for the disk and the next does not."""
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise BenchmarkError(f"{folder}: no annotation files; expected what 'make --out {folder}' writes")
    for path in files:
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass


def _memory(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine()}
    work = Path(tempfile.mkdtemp(dir=options.work))
    try:
        path = work / "data" / LLAVA
        path.parent.mkdir(parents=True)
        with path.open("w", encoding="ascii") as file:
            # A fiftieth is split off for validation, at most 2,000 of it kept.
            write_text_only(file, count=round(options.records / 0.98))
        settings = {name: getattr(options, name) for name in ("epochs", "ranks", "workers", "batch_size")} | {
            "data": str(work / "data"),
            "out": str(work),
        }
        found |= _feeding("memory", settings, work)
    finally:
        shutil.rmtree(work)
    ends = [point["pss_mib"] for point in found["points"] if point["share"] == 1.0]
    after = [point["pss_mib"] for point in found["points"] if point["epoch"] > 1]
    found["growth_percent"] = [100 * (end / ends[0] - 1) for end in ends]
    found["highest_growth_percent"] = 100 * (max(after) / ends[0] - 1) if after else 0.0
    found["verdicts"] = [
        verdict("percent grown after the first epoch", found["highest_growth_percent"], "<=", MAX_GROWTH_PERCENT),
    ]
    listed = table(
        f"{options.ranks} ranks, {options.workers} workers each, {found['records']:,} records",
        "epoch",
        "share of it",
        "processes",
        "proportional MiB",
        "of it anonymous",
        "against the end of epoch 1",
        "seconds",
    )
    for point in found["points"]:
        listed.add_row(
            str(point["epoch"]),
            f"{point['share']:.0%}",
            str(point["processes"]),
            f"{point['pss_mib']:,.1f}",
            f"{point['anonymous_mib']:,.1f}",
            f"{100 * (point['pss_mib'] / ends[0] - 1):+.2f}%",
            f"{point['seconds']:.0f}",
        )
    return finish(found, [listed], options.json)


def _feed(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine(), "rows": []}
    work = Path(tempfile.mkdtemp(dir=options.work))
    try:
        found["pictures"] = write_photo_captions(work / "data", photos=options.photos)
        for batch_size in options.batch_sizes:
            settings = {
                "data": str(work / "data"),
                "out": str(work),
                "batch_size": batch_size,
                "workers": options.workers,
                "seconds": options.seconds,
                "preset": options.preset,
            }
            loader = _feeding("loader", settings, work)
            for encoder in options.encoders:
                row = {"batch_size": batch_size, "encoder": encoder, "loader": loader}
                for task in ("model", "together"):
                    row[task] = _feeding(task, settings | {"encoder": encoder}, work)
                row["factor"] = loader["samples_per_second"] / row["model"]["samples_per_second"]
                found["rows"].append(row)
    finally:
        shutil.rmtree(work)
    found["verdicts"] = [
        verdict(
            f"batch {row['batch_size']}, encoder {row['encoder']}: loader's speed over the model's",
            row["factor"],
            ">=",
            1.0,
        )
        for row in found["rows"]
    ]
    listed = table(
        f"Samples a second, {options.preset}, bf16, {options.workers} workers, pictures of "
        f"{found['pictures']['mean_bytes'] / 1000:.0f} kB",
        "batch",
        "encoder",
        "loader alone",
        "model alone",
        "factor",
        "together",
        "waiting for data",
    )
    for row in found["rows"]:
        listed.add_row(
            str(row["batch_size"]),
            row["encoder"],
            *(f"{row[name]['samples_per_second']:.1f}" for name in ("loader", "model")),
            f"{row['factor']:.1f}",
            f"{row['together']['samples_per_second']:.1f}",
            f"{row['together']['waiting_share']:.1%}",
        )
    return finish(found, [listed], options.json)


def _feeding(task: str, settings: dict[str, Any], work: Path) -> dict[str, Any]:
    """Run a task of ``feeding.py`` in a process of its own."""
    say(f"{task}: " + ", ".join(f"{name} {value}" for name, value in settings.items() if name not in ("data", "out")))
    return worker("feeding.py", task, settings, {CACHE_VARIABLE: str(work / "cache")}).result


if __name__ == "__main__":
    sys.exit(main())
