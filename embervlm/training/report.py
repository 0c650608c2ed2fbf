"""The training report: what each stage trained, on what, how fast and with which losses, as one HTML page.

Last in the flow of a run. Each stage leaves a record in its result folder, so that a run that was resumed, or whose
stages ran one by one, is reported whole. The page is one file that needs nothing else; a report that cannot be made is
a line in the log and loses nothing.
"""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from embervlm import __version__
from embervlm.data.html_page import FOOT, escaped, head, write_whole
from embervlm.data.loaders import SourceReport
from embervlm.data.robot_loader import DATASET, RobotReport
from embervlm.data.shards import DATASET as SHARDS
from embervlm.data.stream import Catalogue
from embervlm.folders import METRICS_FILE, is_complete
from embervlm.training.arguments import RunSettings
from embervlm.training.engine import PARTS, StageTrainer

logger = logging.getLogger(__name__)

#: The page, in the run's folder; and a stage's record, in the stage's result folder.
PAGE_NAME = "report.html"
RECORD_NAME = "training.json"

_WORDS = {
    "loss": "loss in all",
    "language_loss": "words",
    "image_loss": "picture and caption matched",
    "task_loss": "task and requirements matched",
    "leader_loss": "who leads",
    "member_loss": "who goes along",
    "vision": "vision encoder",
    "language_model": "language model",
    "robot_head": "robot head",
}
_LOSSES = ("loss", "language_loss", "image_loss", "task_loss", "leader_loss", "member_loss")
#: Points of a line at most; of more, every so-manieth is drawn.
_POINTS = 600
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 260, 64, 14, 12, 44
_STYLE = """
:root { --c0: #1c1b1a; --c1: #1d5fbf; --c2: #b3261e; --c3: #1b7f3b; --c4: #8a4fbf; --c5: #b36b00; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #ebe8e3; --c1: #8ab8ff; --c2: #ff8a80; --c3: #5fd283; --c4: #cfa3ff; --c5: #f0b84a; } }
.headline { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); padding: 0;
  list-style: none; }
.headline li { border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem; background: var(--box); }
.headline b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.plots { display: grid; gap: 1rem 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); fill: none; } polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); }
.s1 { stroke-dasharray: 7 3; } .s2 { stroke-dasharray: 2 3; } .s3 { stroke-dasharray: 9 3 2 3; }
.s4 { stroke-dasharray: 12 4; } .s5 { stroke-dasharray: 4 2; }
.key { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; padding: 0; list-style: none; }
.key li { display: flex; align-items: center; gap: .45rem; } .key svg { width: 2rem; } .key line { stroke-width: 2.5; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
th.name { white-space: normal; overflow-wrap: anywhere; }
.trained { color: var(--good); font-weight: 600; }
details { border: 1px solid var(--line); border-radius: 8px; padding: .5rem .75rem; margin: .75rem 0; }
summary { cursor: pointer; }
"""


def stage_record(
    trainer: StageTrainer, settings: RunSettings, data_report: Any, metrics: Mapping[str, Any]
) -> dict[str, str]:
    """The file that a stage's result folder gets for the report: its name and content; none where that fails.

    Args:
        trainer: after training.
        settings: the run's.
        data_report: what the stage's data were found to hold, as :func:`data_used` takes it.
        metrics: the stage's.
    """
    try:
        frozen = trainer.frozen_parts(trainer.model)
        state = trainer.args.distributed_state
        step, samples, seconds = trainer.pace.now
        record = {
            "stage": trainer.number,
            "title": trainer.title,
            "parts": [
                {
                    "name": name,
                    "parameters": sum(each.numel() for each in getattr(trainer.model, name).parameters()),
                    "trained": name not in frozen,
                }
                for name in PARTS
            ],
            "data": data_used(data_report),
            "metrics": dict(metrics),
            "settings": _flags(settings),
            "processes": state.num_processes,
            "device": torch.cuda.get_device_name() if state.device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
            "versions": {
                "embervlm": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
            "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "step": step,
            "samples": samples,
            "seconds": seconds,
            "pace": trainer.pace.points,
            "log": trainer.state.log_history,
        }
        return {RECORD_NAME: json.dumps(_without_nan(record)) + "\n"}
    except Exception as error:
        logger.warning("Stage %d: nothing is noted for the training report (%r)", trainer.number, error)
        return {}


def data_used(report: Catalogue | RobotReport | Iterable[SourceReport]) -> list[dict[str, Any]]:
    """What a stage's data hold, one entry a data set: files, records, samples, and what is passed over and why."""
    if isinstance(report, Catalogue):
        incomplete = sum(shard.incomplete for shard in report.shards)
        pairs = sum(shard.pairs for shard in report.shards)
        kept = len(report.validation)
        return [
            {
                "dataset": SHARDS,
                "files": [Path(shard.path).name for shard in report.shards],
                "records": pairs + incomplete,
                "train": len(report),
                "validation": kept,
                "passed_over": _some(
                    {
                        "no picture or no text beside it": incomplete,
                        "held out with their picture": pairs - len(report) - kept,
                    }
                ),
            }
        ]
    if isinstance(report, RobotReport):
        return [
            {
                "dataset": DATASET,
                "files": [path.name for path in report.files],
                "records": report.records,
                "train": report.train,
                "reworded": report.reworded,
                "validation": report.validation,
                "passed_over": _some({"image not found": report.missing_images, "joined with another": report.merged}),
            }
        ]
    return [
        {
            "dataset": found.dataset,
            "files": [path.name for path in found.files],
            "records": found.records,
            "train": found.train,
            "validation": found.validation,
            "passed_over": _some(
                {
                    **found.rejected,
                    "image not found": found.missing_images,
                    "repeated": found.duplicates,
                    "held out with their picture": found.held_out,
                    "over a cap": found.over_cap,
                }
            ),
        }
        for found in report
    ]


def write_training_report(settings: RunSettings) -> Path | None:
    """Write the page on all stages that are complete in the run's folder.

    Returns:
        the page; None where it could not be made, which a line in the log then says.
    """
    file = settings.output_dir / PAGE_NAME
    try:
        records = [record for stage in (1, 2, 3) if (record := _read(settings.stage_result(stage))) is not None]
        measured = _read_json(settings.result / METRICS_FILE) if is_complete(settings.result) else None
        write_whole({file: page(records, settings.output_dir.resolve().name, measured or {})})
    except Exception as error:  # a run that is done is not lost for its report
        logger.warning("%s: the training report could not be written (%s); the model is whole", file, error)
        return None
    logger.info("The training report is %s", file)
    return file


def page(records: Sequence[Mapping[str, Any]], name: str, measured: Mapping[str, Any]) -> Iterator[str]:
    """The page's parts, in order.

    Args:
        records: of the stages, as :func:`stage_record` makes them.
        name: of the run.
        measured: the trained model's ``metrics.json``; empty where stage 3 has not ended.
    """
    yield head(f"Training report: {name}", _STYLE)
    yield f"<header>\n<h1>Training report: {escaped(name)}</h1>\n"
    if records:
        last = records[-1]
        total = sum(part["parameters"] for part in last["parts"])
        stages = ", ".join(str(record["stage"]) for record in records)
        yield (
            f"<p>{total / 1e6:.1f}M parameters; stage{'s' * (len(records) > 1)} {stages}, "
            f"ended {escaped(last['finished'])} UTC.</p>\n"
        )
    yield "</header>\n<main>\n"
    yield from _headline(records, measured)
    for record in records:
        yield from _stage(record)
    yield from _settings(records)
    yield f"</main>\n{FOOT}"


def _headline(records: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> Iterator[str]:
    samples = sum(record["samples"] for record in records)
    seconds = sum(record["seconds"] for record in records)
    cards = [
        ("time in training steps", _duration(seconds), "of the steps that are in the model"),
        ("samples trained on", f"{samples:,}", f"{_pace(samples, seconds)} samples a second"),
    ]
    validation = measured.get("validation") or {}
    if "leader_accuracy" in validation:
        tasks = f"of {validation['tasks']:,} validation tasks"
        cards.append(("leading robot right", f"{validation['leader_accuracy']:.1%}", tasks))
        cards.append(("exactly the right robots", f"{validation['exact_set']:.1%}", tasks))
    others = measured.get("other_fleets") or {}
    if "leader_accuracy" in others:
        meaning = f"of {others['tasks']:,} validation tasks, at most {others['robots']} robots"
        cards.append(("right among other fleets", f"{others['leader_accuracy']:.1%}", meaning))
    yield '<section>\n<h2>At a glance</h2>\n<ul class="headline">\n'
    for title, value, meaning in cards:
        yield f'<li>{escaped(title)}<b>{escaped(value)}</b><span class="soft">{escaped(meaning)}</span></li>\n'
    yield "</ul>\n"
    if validation:
        yield (
            '<p class="soft">The calibration was fitted on the same validation tasks; <code>embervlm evaluate</code> '
            "measures on others.</p>\n"
        )
    yield "</section>\n"


def _stage(record: Mapping[str, Any]) -> Iterator[str]:
    metrics, samples, seconds = record["metrics"], record["samples"], record["seconds"]
    yield f"<section>\n<h2>Stage {record['stage']}: {escaped(record['title'])}</h2>\n"
    loss, processes, threads = metrics.get("validation_loss"), record["processes"], record["threads"]
    yield (
        f"<p>{metrics['steps']:,} steps, {samples:,} samples in {_duration(seconds)}: {_pace(samples, seconds)} samples"
        f" a second with {processes} process{'es' * (processes != 1)} on {escaped(record['device'])}"
        f" ({threads} thread{'s' * (threads != 1)} each). A pass is {metrics['train_samples']:,} samples; "
        f"validation has {metrics['validation_samples']:,}"
        f"{'' if loss is None else f', and its loss at the end is {loss:.4g}'}.</p>\n"
    )
    yield from _plots(record)
    yield from _parts(record["parts"])
    yield from _data(record["data"], metrics.get("replaced_samples", 0))
    yield "</section>\n"


def _plots(record: Mapping[str, Any]) -> Iterator[str]:
    log = [entry for entry in record["log"] if "loss" in entry and "step" in entry]
    losses = {_WORDS[name]: _line(log, name) for name in _LOSSES}
    yield '<div class="plots">\n'
    yield from _plot(f"Losses of stage {record['stage']}", losses)
    if accuracy := _line(log, "leader_accuracy"):
        yield from _plot("Leading robot right in training batches", {"share": accuracy}, top=1.0)
    yield from _plot("Learning rate", {"learning rate": _line(log, "learning_rate")})
    paces, before = [], (0, 0, 0.0)
    for step, samples, seconds in record["pace"]:
        if step > before[0] and seconds > before[2]:
            paces.append((step, (samples - before[1]) / (seconds - before[2])))
        before = (step, samples, seconds)
    yield from _plot("Samples a second", {"samples a second": paces})
    yield "</div>\n"


def _line(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in log if isinstance(entry.get(name), int | float)]


def _plot(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], top: float | None = None) -> Iterator[str]:
    """One plot over the steps, from 0; its lines stand in a list with their first and last values."""
    drawn = {name: points for name, points in lines.items() if points}
    if not drawn:
        return
    first = min(points[0][0] for points in drawn.values())
    last = max(max(points[-1][0] for points in drawn.values()), first + 1)
    ticks = _ticks(top or max(value for points in drawn.values() for _, value in points))
    highest = top or ticks[-1]

    def place(step: float, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first) / (last - first)
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - min(max(value, 0.0), highest) / highest)
        return f"{x:.1f},{y:.1f}"

    yield f'<figure>\n<h3>{escaped(title)}</h3>\n<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
    ends = "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in drawn.items())
    yield f'aria-label="{escaped(f"{title} over the steps: {ends}")}">\n'
    for tick in ticks:
        _, y = place(first, tick).split(",")
        yield f'<path class="axis" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:g}</text>\n'
    for step in dict.fromkeys((round(first), round((first + last) / 2), round(last))):
        x, _ = place(step, 0).split(",")
        yield f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{step:,}</text>\n'
    yield f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">step</text>\n'
    for number, points in enumerate(drawn.values()):
        every = math.ceil(len(points) / _POINTS)
        shown = [*points[:-1:every], points[-1]]
        # One point would be no line.
        shown = shown if len(shown) > 1 else [(first, shown[0][1]), (last, shown[0][1])]
        yield f'<polyline class="s{number % 6}" points="{" ".join(place(*point) for point in shown)}"/>\n'
    yield '</svg>\n<figcaption>\n<ul class="key">\n'
    for number, (name, points) in enumerate(drawn.items()):
        yield (
            f'<li><svg viewBox="0 0 32 6" aria-hidden="true"><line class="s{number % 6}" x2="32" y1="3" y2="3"/></svg>'
            f"{escaped(name)}: {points[0][1]:.3g} to {points[-1][1]:.3g}</li>\n"
        )
    yield "</ul>\n</figcaption>\n</figure>\n"


def _ticks(highest: float) -> list[float]:
    """Round numbers from 0 to at least ``highest``, some five of them."""
    if not (math.isfinite(highest) and highest > 0):
        return [0.0, 1.0]
    size = 10 ** math.floor(math.log10(highest / 4))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10, 20) if factor * size * 5 >= highest)
    return [number * step for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _parts(parts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "<h3>What trained</h3>\n"
    yield from _table_start("Parts of the model", "part", ("", "parameters"))
    for part in parts:
        mark = '<td class="trained">trained</td>' if part["trained"] else "<td>frozen</td>"
        name = _WORDS.get(part["name"], part["name"])
        yield f'<tr><th class="name" scope="row">{escaped(name)}</th>{mark}<td>{part["parameters"]:,}</td></tr>\n'
    trained = sum(part["parameters"] for part in parts if part["trained"])
    total = sum(part["parameters"] for part in parts)
    yield (
        f'</tbody>\n<tfoot>\n<tr><th class="name" scope="row">trained, of {total:,}</th>'
        f"<td>{trained / max(1, total):.1%}</td><td>{trained:,}</td></tr>\n</tfoot>\n</table>\n</div>\n"
    )


def _data(sets: Sequence[Mapping[str, Any]], replaced: int) -> Iterator[str]:
    yield "<h3>Data</h3>\n"
    yield from _table_start("Data", "set", ("files", "records", "train", "validation"), ("passed over, and why",))
    for each in sets:
        reasons = sorted(each["passed_over"].items(), key=lambda item: -item[1])
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons) or "none"
        reworded = f" and {each['reworded']:,} rewordings" if each.get("reworded") else ""
        yield (
            f'<tr><th class="name" scope="row">{escaped(each["dataset"])}</th><td>{len(each["files"]):,}</td>'
            f"<td>{each['records']:,}</td><td>{each['train']:,}{reworded}</td><td>{each['validation']:,}</td>"
            f'<td class="text">{escaped(why)}</td></tr>\n'
        )
    yield "</tbody>\n</table>\n</div>\n"
    if replaced:
        yield f"<p>{replaced:,} draws could not be read and were replaced; <code>quarantine.jsonl</code> has them.</p>"
    yield "<details>\n<summary>The files</summary>\n<ul>\n"
    for each in sets:
        named = escaped(", ".join(each["files"][:20]))
        more = f" and {len(each['files']) - 20:,} more" if len(each["files"]) > 20 else ""
        yield f'<li>{escaped(each["dataset"])}: <span class="path">{named}</span>{more}</li>\n'
    yield "</ul>\n</details>\n"


def _settings(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not records:
        return
    yield "<section>\n<h2>Settings</h2>\n"
    yield from _table_start("Settings", "flag", (), [f"stage {record['stage']}" for record in records])
    for flag in records[-1]["settings"]:
        values = [record["settings"].get(flag) for record in records]
        cells = "".join(f'<td class="text">{escaped("-" if value is None else value)}</td>' for value in values)
        yield f'<tr><th class="name" scope="row"><code>--{escaped(flag)}</code></th>{cells}</tr>\n'
    yield "</tbody>\n</table>\n</div>\n"
    versions = [", ".join(f"{name} {version}" for name, version in record["versions"].items()) for record in records]
    yield f'<p class="soft">{escaped("; ".join(dict.fromkeys(versions)))}</p>\n</section>\n'


def _table_start(name: str, first: str, headings: Sequence[str], texts: Sequence[str] = ()) -> Iterator[str]:
    """A table up to its rows: a name, numbers under ``headings``, words under ``texts``."""
    # Focusable, so that the keyboard can scroll it where it is wider than the screen.
    yield f'<div class="scroll" role="region" aria-label="{escaped(name)}" tabindex="0">\n<table>\n<thead>\n<tr>'
    yield f'<th class="name" scope="col">{escaped(first)}</th>'
    yield from (f'<th scope="col">{escaped(heading)}</th>' for heading in headings)
    yield from (f'<th scope="col" class="text">{escaped(heading)}</th>' for heading in texts)
    yield "</tr>\n</thead>\n<tbody>\n"


def _read(result: Path) -> dict[str, Any] | None:
    """A stage's record; None where the stage is not complete, or was trained by a version that made none."""
    return _read_json(result / RECORD_NAME) if is_complete(result) else None


def _read_json(file: Path) -> dict[str, Any] | None:
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return content if isinstance(content, dict) else None


def _flags(settings: RunSettings) -> dict[str, str | None]:
    """The settings as the command line has them; of a path its last name alone, as results are handed on."""
    values: dict[str, str | None] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute()):
            value = Path(value).name
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        values[{"stages": "stage"}.get(each.name, each.name)] = None if shown is None else str(shown)
    return values


def _without_nan(value: Any) -> Any:
    """A copy for JSON, in which numbers that are none are None."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _some(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _pace(samples: int, seconds: float) -> str:
    return f"{samples / seconds:,.1f}" if seconds > 0 else "-"
