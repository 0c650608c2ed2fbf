"""The ``embervlm`` command: a table of subcommands. Each imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embervlm import __version__

EXIT_FAILED = 1
EXIT_USAGE = 2
# As `model.configuration_embervlm.PRESETS`, which takes seconds to import.
_PRESETS = ("ember", "spark")
# As `folders.BOX_MODEL`.
_BOX_MODEL = "spark"
_EXPORT_FORMATS = ("compact", "onnx")
# As `export.write.QUANTIZE`.
_QUANTIZE = ("none", "int8")
_MODEL_HELP = "a trained model's folder; without it spark, the one that comes with the package"


class UsageError(Exception):
    """Flags that do not go together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0 on success, 1 on a failed check or run, 2 on bad usage.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(next((word for word in given if not word.startswith("-")), None))
    arguments = parser.parse_args(given)
    _set_up_logging()
    # Read when these libraries are first imported: their own bars and lines would stand between ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return int(arguments.run(arguments))
    except UsageError as error:
        parser.error(str(error))
    except (ValueError, OSError, RuntimeError) as error:
        if arguments.debug:
            raise
        _wait_for_the_first_process()
        print(f"embervlm {arguments.command}: {_one_line(error)}", file=sys.stderr)
        # A run that was stopped by a signal says with what it ends: 128 and the signal's number.
        return int(getattr(error, "exit_code", EXIT_FAILED))
    except ModuleNotFoundError as error:
        if arguments.debug or (error.name or "embervlm").partition(".")[0] == "embervlm":
            raise
        cure = f'{error.name} is not installed; run: pip install "embervlm[train]"'
        print(f"embervlm {arguments.command}: {cure}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"embervlm {arguments.command}: interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """A parser, and those of its subcommands, for which the beginning of a flag is not the flag but a mistyped one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)


def _parser(asked: str | None = None) -> argparse.ArgumentParser:
    """The parser; of a subcommand that is asked for, its flags alone, since those of others take imports."""
    parser = _Parser(prog="embervlm", description="Select the robots of a fleet for a scene and a task.")
    parser.add_argument("--version", action="version", version=f"embervlm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (help_text, add_flags, run) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if asked is None or asked == name:
            add_flags(command)
        command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
        command.set_defaults(run=run, command=name)
    return parser


def _train_flags(parser: argparse.ArgumentParser) -> None:
    from embervlm.training.arguments import add_training_flags

    add_training_flags(parser)


def _train(arguments: argparse.Namespace) -> int:
    from embervlm.training.arguments import settings_from

    settings = settings_from(arguments)
    settings.check()
    from embervlm.training.pipeline import run

    run(settings)
    return 0


def _select_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=_BOX_MODEL, metavar="DIR", help=_MODEL_HELP)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", metavar="TEXT", help="what is to be done")
    what.add_argument("--tasks", type=Path, metavar="FILE", help="JSON lines with 'task' and optionally 'image'")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture of the scene")
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="who can be sent; the model's own fleet without it")
    parser.add_argument("--top-n", type=int, metavar="N", help="list only the N likeliest robots")
    parser.add_argument("--reason", action=argparse.BooleanOptionalAction, default=True, help="write the grounds")
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="C",
        help="name all robots that may be the right leader, so that it is among them this often (0.5 to 0.99);"
        " more than one means: ask a person",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plan-format",
        choices=("json", "behaviortree"),
        help="print the answer as JSON, or its plan as a behaviour tree: XML of BehaviorTree.CPP 4",
    )


def _select(arguments: argparse.Namespace) -> int:
    if arguments.tasks is not None and (arguments.image is not None or not arguments.json):
        raise UsageError("--tasks goes with --json, and names its pictures itself")
    if arguments.plan_format == "behaviortree" and (arguments.tasks is not None or arguments.json):
        raise UsageError("--plan-format behaviortree goes with --task and without --json: it prints one document")
    if arguments.top_n is not None and arguments.top_n < 1:
        raise UsageError(f"--top-n must be 1 or more, found {arguments.top_n}")
    from embervlm.fleet import Fleet
    from embervlm.selection import RobotSelector, check_coverage, read_task_lines

    if arguments.coverage is not None:
        check_coverage(arguments.coverage)
    fleet = Fleet.from_yaml(arguments.fleet) if arguments.fleet is not None else None
    tasks = read_task_lines(arguments.tasks) if arguments.tasks is not None else [(arguments.task, arguments.image)]
    selector = RobotSelector.from_pretrained(arguments.model)
    for task, image in tasks:
        selection = selector.select(
            task,
            image,
            top_n=arguments.top_n,
            reason=arguments.reason,
            fleet=fleet,
            coverage=arguments.coverage,
        )
        if arguments.plan_format == "behaviortree":
            from embervlm.behaviour_tree import behaviour_tree

            print(behaviour_tree(selection.plan, selection.task), end="")
        elif arguments.json or arguments.plan_format == "json":
            print(json.dumps(selection.to_dict(), ensure_ascii=False), flush=True)
        else:
            print(_for_people(selection, arguments.coverage))
    return 0


def _for_people(selection: Any, coverage: float | None = None) -> str:
    confidence = f"{selection.confidence:.0%}"
    if len(selection.selected) == 1:
        lines = [f"Selected Robot: {selection.primary} (confidence: {confidence})"]
    else:
        lines = [
            f"Primary Robot: {selection.primary} ({confidence})",
            f"Additional Robots: {', '.join(selection.selected[1:])}",
        ]
    if coverage is not None:
        *others, last = selection.candidates
        asked = f"({100 * coverage:.10g}% coverage)"
        if others:
            lines.append(f"Not sure enough {asked}: {', '.join(others)} or {last}. Ask a person.")
        else:
            lines.append(f"Sure enough {asked}: {last}.")
    if selection.reasoning:
        lines += ["Reasoning:"] + [f"  {number}. {step}" for number, step in enumerate(selection.reasoning, 1)]
    if len(selection.selected) > 1 or len(selection.plan) > 1:
        lines.append("Plan:")
        for phase in selection.plan:
            after = f" (after {', '.join(map(str, phase.depends_on))})" if phase.depends_on else ""
            lines.append(f"  {phase.step}. {phase.robot}: {phase.subtask}{after}")
    return "\n".join(lines)


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default=_BOX_MODEL, metavar="DIR", help=_MODEL_HELP)
    what.add_argument("--folds", type=int, metavar="K", help="measure the baselines alone, by K-fold cross-validation")
    parser.add_argument("--data", required=True, type=Path, metavar="PATH", help="robot files that were not trained on")
    parser.add_argument(
        "--train", type=Path, metavar="PATH", help="measure baselines too, trained on these robot files"
    )
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="who can be sent; the model's own fleet without it")
    parser.add_argument(
        "--fleet_size", type=int, metavar="N", help="ask each task of N robots: its own and others of its fleet by lot"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write a page, plots, report.json and cases.jsonl there"
    )
    parser.add_argument(
        "--coverage", type=float, default=0.9, metavar="C", help="of the prediction sets, 0.5 to 0.99 (default 0.9)"
    )
    parser.add_argument(
        "--written", type=int, default=200, metavar="N", help="write whole answers to N tasks (default 200; 0 for none)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of shuffling, draws, folds and intervals")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.seed < 0 or arguments.written < 0:
        raise UsageError("--seed and --written must be 0 or more")
    if arguments.fleet_size is not None and arguments.fleet_size < 2:
        raise UsageError(f"--fleet_size must be 2 or more, found {arguments.fleet_size}")
    if arguments.folds is not None and arguments.folds < 2:
        raise UsageError(f"--folds must be 2 or more, found {arguments.folds}")
    if arguments.report is not None and arguments.report.exists() and not arguments.report.is_dir():
        raise ValueError(f"{arguments.report}: is no folder; expected the name of one for the report")
    from embervlm.evaluation.report import write_report
    from embervlm.evaluation.report_plots import check_plots
    from embervlm.evaluation.run import cross_validate, evaluate
    from embervlm.fleet import Fleet
    from embervlm.selection import RobotSelector, check_coverage

    check_coverage(arguments.coverage)
    if arguments.report is not None:
        check_plots()
    fleet = Fleet.from_yaml(arguments.fleet) if arguments.fleet is not None else None
    common: dict[str, Any] = {"train": arguments.train, "seed": arguments.seed, "progress": _progress_line()}
    if arguments.folds is not None:
        found = cross_validate(arguments.data, fleet or Fleet.default(), arguments.folds, **common)
    else:
        selector = RobotSelector.from_pretrained(arguments.model)
        selector.fleet = fleet or selector.fleet
        found = evaluate(
            selector,
            arguments.data,
            name=arguments.model,
            written=arguments.written,
            coverage=arguments.coverage,
            fleet_size=arguments.fleet_size,
            **common,
        )
    page = None
    if arguments.report is not None:
        page = write_report(found, arguments.report)
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(_evaluation_for_people(found))
    if page is not None and not arguments.json:
        print(f"report: {page}")
    return 0


def _evaluation_for_people(found: Any) -> str:
    def share(figure: Any) -> str:
        return f"{figure.value:6.1%}  ({figure.low:.1%} to {figure.high:.1%})"

    def row(name: str, figure: Any) -> str:
        return f"  {name:<36} {share(figure)}"

    def number(name: str, figure: Any) -> str:
        return f"  {name:<36} {figure.value:6.3f}  ({figure.low:.3f} to {figure.high:.3f})"

    lines = [f"{found.tasks} tasks about {found.pictures} pictures; 95% intervals in brackets"]
    if found.model is not None:
        lines += [
            row("leading robot right", found.model.leader_accuracy),
            row("exactly the right robots", found.model.exact_set),
            number("Jaccard of the robots sent", found.model.jaccard),
            number("macro-F1 of being sent", found.model.macro_f1),
            number("calibration error (ECE)", found.model.ece),
        ]
    if found.coverage is not None:
        lines.append(f"Prediction sets asked to hold the right leader in {found.coverage.level:.10g} of the tasks")
        lines.append(row("they do", found.coverage.covered))
        lines.append(number("mean robots in a set", found.coverage.size))
        lines.append(row("sets of one robot", found.coverage.single))
    if found.own_pictures is not None:
        lines.append(f"Leading robot right in the {found.own_pictures.leader_accuracy.tasks} tasks with pictures")
        for name, measures in (
            ("own pictures", found.own_pictures),
            ("pictures shuffled", found.shuffled_pictures),
            ("blank pictures", found.blank_picture),
            ("no picture", found.no_picture),
        ):
            if measures is not None:
                lines.append(row(name, measures.leader_accuracy))
    lines.append("What could be reached at best on these tasks")
    lines.append(f"  {'by the text alone':<36} {found.text_only_bound:6.1%}")
    if found.picture_only_bound is not None:
        lines.append(f"  {'by the picture alone':<36} {found.picture_only_bound:6.1%}")
    lines.append(f"  {'always the same robot':<36} {found.majority:6.1%}")
    if found.baselines:
        how = f", {found.folds} folds" if found.folds else ""
        lines.append(f"Baselines, trained on {found.train_tasks} tasks{how}: leader, exact set, Jaccard, macro-F1")
        for name, measures in found.baselines.items():
            lines.append(
                f"  {name:<36} {measures.leader_accuracy.value:6.1%} {measures.exact_set.value:6.1%}"
                f"  {measures.jaccard.value:.3f}  {measures.macro_f1.value:.3f}"
            )
    if found.written is not None:
        written = found.written
        lines.append(f"Whole answers to {written.tasks} tasks, {written.milliseconds:.0f} ms each")
        lines.append(row("leading robot right", written.leader_accuracy))
        lines.append(row("exactly the right robots", written.exact_set))
        if written.plan_accuracy is not None:
            lines.append(row(f"plan right, of {written.plan_accuracy.tasks} with phases", written.plan_accuracy))
        lines.append(row("without contradiction", written.valid))
        lines.append(row("requirements lead to the same robot", written.agreement))
        lines += [f"  contradiction in {fault}" for fault in written.faults[:3]]
    if found.by_voice:
        lines.append("Leading robot right, by voice")
        lines += [row(voice, figure) for voice, figure in found.by_voice.items()]
    return "\n".join([*lines, *found.notes])


def _calibrate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=_BOX_MODEL, metavar="DIR", help=_MODEL_HELP)
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="PATH",
        help="robot files that were not trained on: 100 tasks or more",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder, for the calibrated model")
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="who can be sent; the model's own fleet without it")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the folds and intervals")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _calibrate(arguments: argparse.Namespace) -> int:
    if arguments.seed < 0:
        raise UsageError("--seed must be 0 or more")
    from embervlm.evaluation.recalibration import check_folders, recalibrate, write_calibrated
    from embervlm.fleet import Fleet
    from embervlm.folders import model_folder
    from embervlm.selection import RobotSelector

    source = model_folder(arguments.model)
    check_folders(arguments.out, source)
    fleet = Fleet.from_yaml(arguments.fleet) if arguments.fleet is not None else None
    selector = RobotSelector.from_pretrained(arguments.model)
    selector.fleet = fleet or selector.fleet
    found = recalibrate(selector, arguments.data, seed=arguments.seed, progress=_progress_line())
    write_calibrated(arguments.out, source, selector, found)
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(_calibration_for_people(found))
        print(f"calibrated model: {arguments.out}")
    return 0


def _calibration_for_people(found: Any) -> str:
    def cell(figure: Any, share: bool) -> str:
        if figure is None:
            return f"{'-':>24}"
        told = "{:.1%} ({:.1%} to {:.1%})" if share else "{:.3f} ({:.3f} to {:.3f})"
        return f"{told.format(figure.value, figure.low, figure.high):>24}"

    from embervlm.evaluation.card import CALIBRATION_ROWS

    return "\n".join(
        [
            f"{found.tasks} tasks, {found.pictured} with a picture; each by a calibration of the others; 95% intervals",
            f"  {'':<48}{'as it was':>24}{'fitted anew':>24}",
            *(
                f"  {name:<48}{cell(getattr(found.before, key), share)}{cell(getattr(found.after, key), share)}"
                for name, key, share in CALIBRATION_ROWS
            ),
        ]
    )


def _data_flags(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="WHAT")
    sample = commands.add_parser("sample", help="write rendered scenes and tasks, in the publishers' layouts")
    sample.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder that is not there yet")
    sample.add_argument("--scenes", type=int, default=1600, metavar="N", help="pictures for training")
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="of the scenes and tasks")
    sample.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    robots = commands.add_parser("robots", help="write robot tasks in the one format, JSON lines")
    robots.add_argument("--in", required=True, type=Path, dest="source", metavar="PATH", help="robot files to read")
    robots.add_argument("--out", required=True, type=Path, metavar="FILE", help="a new file, above the tasks' pictures")
    robots.add_argument("--fleet", type=Path, metavar="FILE", help="whose names they use; the default five without it")
    robots.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    report = commands.add_parser(
        "report", help="say what data hold, what is left out and why, and whether it is enough"
    )
    report.add_argument("paths", nargs="+", metavar="PATH", help="folders or files of any stage, patterns of shards")
    report.add_argument("--json", action="store_true", help="print the rows as JSON and nothing else")
    report.add_argument("--html", type=Path, metavar="FILE", help="write a page with sample records and their prompts")
    report.add_argument("--preset", choices=_PRESETS, default="ember", help="the model that the data are judged for")
    report.add_argument("--seed", type=int, default=0, metavar="S", help="of the split and the draws, as in training")
    report.add_argument("--datasets", metavar="A,B", help="look at these sets only")
    report.add_argument("--fleet", type=Path, metavar="FILE", help="of the robot tasks; the default five without it")
    report.add_argument("--debug", action="store_true", help="show the whole traceback of an error")


def _convert_robots(arguments: argparse.Namespace) -> int:
    from embervlm.data.robot_format import write_robot_lines
    from embervlm.data.robot_loader import read_robot_tasks
    from embervlm.fleet import Fleet

    if arguments.out.exists():
        raise ValueError(f"{arguments.out}: is there already; expected the name of a new file")
    fleet = Fleet.from_yaml(arguments.fleet) if arguments.fleet is not None else Fleet.default()
    count = write_robot_lines(arguments.out, read_robot_tasks(arguments.source, fleet))
    print(f"{count} robot tasks written to {arguments.out}")
    return 0


def _report_data(arguments: argparse.Namespace) -> int:
    if arguments.seed < 0:
        raise UsageError("--seed must be 0 or more")
    if arguments.html is not None and (arguments.html.is_dir() or not arguments.html.absolute().parent.is_dir()):
        raise ValueError(f"{arguments.html}: cannot be written; expected the name of a file in a folder that is there")
    from embervlm.data.report import make_report, report_datasets
    from embervlm.fleet import Fleet

    datasets = None if arguments.datasets is None else [name.strip() for name in arguments.datasets.split(",")]
    if unknown := [name for name in datasets or () if name not in report_datasets()]:
        raise UsageError(f"--datasets: {unknown[0]!r:.60} is not known; there are: {', '.join(report_datasets())}")
    fleet = Fleet.from_yaml(arguments.fleet) if arguments.fleet is not None else Fleet.default()
    report = make_report(arguments.paths, preset=arguments.preset, seed=arguments.seed, datasets=datasets, fleet=fleet)
    if arguments.html is not None:
        from embervlm.data.report_page import write_page

        write_page(arguments.html, report)
    if arguments.json:
        print(json.dumps(report.to_list(), ensure_ascii=False))
    else:
        from embervlm.data.report_table import print_report

        print_report(report)
    for refused in report.refused:
        print(f"embervlm data: {_one_line(refused)}", file=sys.stderr)
    return EXIT_FAILED if report.refused else 0


def _data(arguments: argparse.Namespace) -> int:
    if arguments.data_command == "robots":
        return _convert_robots(arguments)
    if arguments.data_command == "report":
        return _report_data(arguments)
    if arguments.scenes < 1 or arguments.seed < 0:
        raise UsageError("--scenes must be 1 or more and --seed 0 or more")
    from embervlm.data.sample_data.write import write_sample_data

    summary = write_sample_data(arguments.out, scenes=arguments.scenes, seed=arguments.seed)
    print(summary)
    return 0


def _doctor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="check this model's folder too; spark comes with the package")
    parser.add_argument("--stage1_data", type=Path, metavar="DIR", help="check this data of stage 1 too")
    parser.add_argument("--stage2_data", type=Path, metavar="DIR", help="check this data of stage 2 too")
    parser.add_argument("--robot_data", type=Path, metavar="DIR", help="check these robot tasks too")
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="check this fleet file too")


def _doctor(arguments: argparse.Namespace) -> int:
    from embervlm.doctor import examine

    checks = examine(
        arguments.model, arguments.stage1_data, arguments.stage2_data, arguments.robot_data, arguments.fleet
    )
    for number, check in enumerate(checks, 1):
        print(f"{number:2}. {'ok    ' if check.passed else 'FAILED'} {check.name}: {check.found}")
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} checks passed")
    return EXIT_FAILED if failed else 0


def _serve_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=_BOX_MODEL, metavar="DIR", help=_MODEL_HELP)
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="who can be sent; the model's own fleet without it")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; this machine alone unless told otherwise")
    parser.add_argument("--port", type=int, default=8000, metavar="P", help="0 takes a free one (default 8000)")
    parser.add_argument("--slots", type=int, default=6, metavar="N", help="answers written at a time, as one batch")
    parser.add_argument("--queue", type=int, default=2, metavar="N", help="further requests that may wait; then 429")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds for an answer; then 503")
    parser.add_argument(
        "--drain", type=float, default=20.0, metavar="S", help="seconds to end what is in work at SIGTERM"
    )


def _serve(arguments: argparse.Namespace) -> int:
    _need_extra("serve", "fastapi", "uvicorn", "prometheus_client", "python_multipart")
    from embervlm.serving.settings import Settings, key_from_environment

    settings = Settings(
        model=arguments.model,
        host=arguments.host,
        port=arguments.port,
        slots=arguments.slots,
        queue=arguments.queue,
        timeout_s=arguments.timeout,
        drain_s=arguments.drain,
        key=key_from_environment(),
    )
    from embervlm.serving.run import serve

    serve(settings, arguments.fleet)
    return 0


def _mcp_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=_BOX_MODEL, metavar="DIR", help=_MODEL_HELP)
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="who can be sent; the model's own fleet without it")


def _mcp(arguments: argparse.Namespace) -> int:
    _need_extra("mcp", "mcp")
    from embervlm.serving.mcp import run

    run(arguments.model, arguments.fleet)
    return 0


def _need_extra(extra: str, *modules: str) -> None:
    """Make sure that what an extra installs is there.

    Raises:
        ValueError: names the extra.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise ValueError(f'{missing[0]} is not installed; run: pip install "embervlm[{extra}]"')


def _export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        required=True,
        choices=_EXPORT_FORMATS,
        help="compact: a model folder of a quarter of the size, the tables in bytes, the rest in half precision;"
        " onnx: graphs that answer without torch",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a trained model's folder")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder, or one of the format")
    parser.add_argument("--card", type=Path, metavar="FILE", help="compact: the card to go with it, for the model's")
    parser.add_argument(
        "--quantize",
        choices=_QUANTIZE,
        help="onnx: smaller and faster, unless it costs more than a point of leader accuracy",
    )
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="onnx: robot tasks to check that on; rendered scenes without it"
    )


def _export(arguments: argparse.Namespace) -> int:
    from embervlm.folders import load_fleet, model_folder

    source, out, found = model_folder(arguments.model), arguments.out, None
    if arguments.format == "compact":
        if arguments.quantize is not None or arguments.data is not None:
            raise UsageError("--quantize and --data go with --format onnx")
        from embervlm.model.weights import save_compact

        save_compact(out, source, arguments.card)
    else:
        quantize = arguments.quantize or "none"
        if arguments.card is not None:
            raise UsageError("--card goes with --format compact")
        if arguments.data is not None and quantize == "none":
            raise UsageError("--data goes with --quantize, whose loss is measured on it")
        _need_extra("export", "onnx", "onnxruntime")
        from embervlm.export.check import questions_of
        from embervlm.export.write import save_onnx

        questions = None if arguments.data is None else questions_of(arguments.data, load_fleet(source))
        found = save_onnx(out, source, quantize, questions)
    print(f"{out}: {_megabytes(out)}, from {source} of {_megabytes(source)}")
    if found is not None:
        print(f"checked: {found}")
    return 0


def _megabytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "train": ("Run the training pipeline.", _train_flags, _train),
    "select": ("Select the robots for a task.", _select_flags, _select),
    "evaluate": ("Measure a model on robot tasks.", _evaluate_flags, _evaluate),
    "calibrate": ("Fit a trained model's confidences on your own tasks and fleet.", _calibrate_flags, _calibrate),
    "data": ("Make sample data, convert robot tasks, report on data.", _data_flags, _data),
    "serve": ("Answer over HTTP, with a page.", _serve_flags, _serve),
    "mcp": ("Answer agents over the Model Context Protocol, on standard input and output.", _mcp_flags, _mcp),
    "export": ("Write a trained model in another format.", _export_flags, _export),
    "doctor": ("Check this machine, a model and data.", _doctor_flags, _doctor),
}


def _set_up_logging() -> None:
    logger = logging.getLogger("embervlm")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    # The first process speaks for all.
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


def _wait_for_the_first_process() -> None:
    """Let the first process say what most likely stopped all of them, once; torchrun then ends this one."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(5)


def _progress_line() -> Callable[[str, int, int], None]:
    """Progress on one line of a terminal; a line at each end where standard error is no terminal."""
    on_terminal = sys.stderr.isatty()

    def show(what: str, done: int, total: int) -> None:
        if on_terminal:
            end = "\n" if done == total else ""
            print(f"\r{what}: {done}/{total} tasks", end=end, file=sys.stderr, flush=True)
        elif done == total:
            print(f"{what}: {total} tasks", file=sys.stderr, flush=True)

    return show


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
