"""The report on data as text for a terminal or a file: tables, reasons, refused files and verdicts."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from embervlm.data.report import NO_IMAGE, Report, SetRow
from embervlm.data.report_tokens import DRAWN, LONGEST
from embervlm.data.report_verdict import rules_of_thumb
from embervlm.data.shards import printable

#: Of the lines where the output is no terminal.
WIDTH = 110
_WIDEST = Console(width=1_000)

#: Heading, what it means, and the number of a row; the total is the sum.
RECORD_COLUMNS: tuple[tuple[str, str, Callable[[SetRow], int]], ...] = (
    ("files", "annotation files, or shards", lambda row: len(row.files)),
    ("records", "in these files", lambda row: row.records),
    ("with\nanswer", "something to learn to say", lambda row: row.with_answer),
    ("with\nimage", "usable, and the picture was found", lambda row: row.with_image),
    ("rejected", "cannot be used, a missing picture included", lambda row: row.rejected),
    ("dupli-\ncates", "another record says the same", lambda row: row.duplicates),
    ("held\nout", "the picture is kept for validation", lambda row: row.held_out),
    ("over\ncap", "left out by a cap", lambda row: row.over_cap),
    ("train", "kept for training", lambda row: row.train),
    ("valid-\nation", "kept for validation", lambda row: row.validation),
)
SUM_RULE = "records = rejected + duplicates + held out + over cap + train + validation"
TOKEN_HEADINGS = ("encoded", "median", "p95", "longest", "cut", "taught", "pictures")


def sampling_note(report: Report) -> str:
    """How the tokens were counted."""
    return (
        f"Tokens of whole prompts, {report.model.image_tokens} for a picture, counted over at most {DRAWN:,} samples a"
        f" set, drawn with seed {report.seed}; longest and cut also over the {LONGEST:,} with the most bytes. ~ is"
        f" computed from these. cut: longer than {report.model.positions:,} positions. taught: tokens that an epoch's"
        " training samples teach. pictures: of the training samples."
    )


def total(rows: Sequence[SetRow]) -> list[int]:
    """The sums of ``RECORD_COLUMNS``."""
    return [sum(number(row) for row in rows) for _, _, number in RECORD_COLUMNS]


def token_cells(row: SetRow) -> list[str]:
    """What stands under ``TOKEN_HEADINGS``."""
    tokens = row.tokens
    if tokens is None:
        return ["0", "-", "-", "-", "-", "-", "0"]
    return [
        f"{tokens.encoded:,}",
        f"{tokens.median:,}",
        f"{tokens.p95:,}",
        f"{tokens.longest:,}",
        f"{'' if tokens.cut_exact else '~'}{tokens.cut:,}",
        f"{'' if tokens.supervised_exact else '~'}{tokens.supervised:,}",
        f"{row.pictures:,}",
    ]


def token_totals(rows: Sequence[SetRow]) -> list[str]:
    """The last row under ``TOKEN_HEADINGS``; nothing where a sum would say nothing: sets may share pictures."""
    counts = [row.tokens for row in rows if row.tokens is not None]
    about_cut = "" if all(count.cut_exact for count in counts) else "~"
    about_taught = "" if all(count.supervised_exact for count in counts) else "~"
    return [
        f"{sum(count.encoded for count in counts):,}",
        "",
        "",
        f"{max((count.longest for count in counts), default=0):,}",
        f"{about_cut}{sum(count.cut for count in counts):,}",
        f"{about_taught}{sum(count.supervised for count in counts):,}",
        "",
    ]


def reasons_of(row: SetRow) -> str:
    """Why a set's records were rejected, in one line; empty where none were."""
    parts = []
    for reason, count in row.reasons.items():
        first = f" (first: {printable(row.first_missing)})" if reason == NO_IMAGE and row.first_missing else ""
        parts.append(f"{count:,} {reason}{first}")
    return ", ".join(parts)


def print_report(report: Report, file: TextIO | None = None) -> None:
    """Print the whole report."""
    file = file or sys.stdout
    if file.isatty():
        _print(report, Console(file=file, highlight=False, markup=False, emoji=False))
        return
    buffer = io.StringIO()
    _print(report, Console(file=buffer, width=WIDTH, highlight=False, markup=False, emoji=False))
    file.writelines(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def _print(report: Report, console: Console) -> None:
    def line(text: str | Text, style: str = "", indent: int = 0) -> None:
        console.print(Padding(Text(text, style) if isinstance(text, str) else text, (0, 0, 0, indent)))

    line(f"Data for {report.model}", "bold")
    several = len(report.paths) > 1
    for number, path in enumerate(report.paths, 1):
        line(f"path {number}: {path}" if several else str(path))
    if report.rows:
        width = console.width
        for table, below in ((_records(report), SUM_RULE), (_tokens(report), sampling_note(report))):
            # Wider than a narrow terminal if need be: numbers cut short could not be read.
            console.width = max(width, _WIDEST.measure(table).maximum)
            console.print(table, crop=False)
            console.width = width
            line(below, "dim")
    left_out = [row for row in report.rows if row.rejected]
    if left_out:
        line("\nRejected, and why", "bold")
        for row in left_out:
            place = f" (path {report.paths.index(row.path) + 1})" if several else ""
            line(f"{row.dataset}{place}: {reasons_of(row)}", indent=2)
    if report.refused:
        line("\nRefused: training would stop at them", "bold")
        for refused in report.refused:
            line(str(refused), indent=2)
    if report.notes:
        line("\nNotes", "bold")
        for note in report.notes:
            line(note, indent=2)
    line("\nVerdict", "bold")
    for verdict in report.verdicts:
        line(Text.assemble(f"{verdict.title}: ", (verdict.word, "bold"), f". {verdict.reason}"), indent=2)
    line("\nRules of thumb that it follows", "dim")
    for rule in rules_of_thumb(report.model.preset):
        line(rule, "dim", indent=2)


def _records(report: Report) -> Table:
    cells = [[f"{number(row):,}" for _, _, number in RECORD_COLUMNS] for row in report.rows]
    return _table(report, [each for each, _, _ in RECORD_COLUMNS], cells, [f"{n:,}" for n in total(report.rows)])


def _tokens(report: Report) -> Table:
    cells = [token_cells(row) for row in report.rows]
    return _table(report, TOKEN_HEADINGS, cells, token_totals(report.rows))


def _table(report: Report, headings: Sequence[str], cells: Sequence[Sequence[str]], last: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    several = len(report.paths) > 1
    if several:
        table.add_column("path")
    table.add_column("stage")
    table.add_column("set", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, of_row in zip(report.rows, cells, strict=True):
        path = [str(report.paths.index(row.path) + 1)] if several else []
        table.add_row(*path, str(row.stage), row.dataset, *of_row)
    table.add_section()
    table.add_row(*([""] if several else []), "", "total", *last, style="bold")
    return table
