"""The report on data as one HTML page that needs nothing else: the tables, and sample records as training sees them.

Whatever comes from the data is escaped; the page has no script and loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from embervlm.data.html_page import FOOT, escaped, head, picture_figure, write_whole
from embervlm.data.report import Report, SetRow, shown_prompt
from embervlm.data.report_table import (
    RECORD_COLUMNS,
    SUM_RULE,
    TOKEN_HEADINGS,
    reasons_of,
    sampling_note,
    token_cells,
    token_totals,
    total,
)
from embervlm.data.report_verdict import STAGE_NAMES, rules_of_thumb
from embervlm.data.sample import RobotSample, Sample
from embervlm.prompts import Piece, encode
from embervlm.tokens import IMAGE, encode_text, load_tokenizer

#: Longest side of a sample's picture on the page, in pixels.
THUMBNAIL = 192

_STYLE = """
.refused { border: 1px solid var(--bad); border-radius: 8px; padding: 1rem; margin-top: 2rem; }
.refused h2 { margin-top: 0; }
.prompt { margin: 0 0 .5rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .875rem/1.9 ui-monospace, monospace; }
.prompt span { border-left: 1px solid transparent; }
.prompt:hover span { border-left-color: var(--line); }
.prompt span:hover { outline: 1px solid currentColor; border-radius: 2px; }
mark { background: var(--taught); color: inherit; text-decoration: underline 2px var(--taught-line);
  text-underline-offset: .25em; }
.control { background: var(--control); color: var(--control-text); border-radius: 4px; padding: 0 .3em; }
.end { color: var(--soft); user-select: none; }
.cut { opacity: .5; text-decoration: line-through; }
"""
_TONES = {"enough": "good", "thin": "warn", "too little": "bad", "cannot train": "bad", "no data": "none"}


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A stretch of a prompt that is shown as one.

    Attributes:
        text: what is shown.
        ids: its token ids: one, unless a character takes several; a picture's places are one id, ``times`` over.
        supervised: whether training teaches it.
        control: whether it is a special token.
        times: how often it stands there.
    """

    text: str
    ids: tuple[int, ...]
    supervised: bool
    control: bool = False
    times: int = 1


def write_page(file: Path, report: Report) -> None:
    """Write the page; the file is there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_whole({file: page(report)})


def page(report: Report) -> Iterator[str]:
    """The page's parts, in order."""
    yield head("Report on data", _STYLE)
    yield f"<header>\n<h1>Report on data</h1>\n<p>For {escaped(report.model)}. Seed {report.seed}.</p>\n"
    yield "<ol>" if len(report.paths) > 1 else "<ul>"
    yield from (f'<li class="path">{escaped(path)}</li>' for path in report.paths)
    yield "</ol>\n" if len(report.paths) > 1 else "</ul>\n"
    yield "</header>\n<main>\n"
    yield from _verdicts(report)
    if report.refused:
        yield '<section class="refused">\n<h2>Refused</h2>\n<p>Training would stop at these files.</p>\n<ul>\n'
        yield from (
            f'<li><span class="path">{escaped(each.file)}</span>: {escaped(each.reason)}</li>\n'
            for each in report.refused
        )
        yield "</ul>\n</section>\n"
    if report.rows:
        yield from _tables(report)
        yield from _reasons(report)
        yield from _samples(report)
    yield "<section>\n<h2>The rules of thumb</h2>\n<ul>\n"
    yield from (f"<li>{escaped(rule)}</li>\n" for rule in rules_of_thumb(report.model.preset))
    yield f"</ul>\n</section>\n</main>\n{FOOT}"


def shown_tokens(pieces: Iterable[Piece], tokenizer: Any, image_tokens: int) -> Iterator[ShownToken]:
    """A prompt token by token, as :func:`embervlm.prompts.encode` encodes it."""
    for piece in pieces:
        if piece.control is not None:
            ids = encode([piece], tokenizer, 1).input_ids
            times = image_tokens if piece.control == IMAGE else 1
            yield ShownToken(piece.control, tuple(ids), piece.supervised, control=True, times=times)
            continue
        waiting: list[int] = []
        data = b""
        ids = encode_text(tokenizer, piece.text)
        for token, name in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
            waiting.append(token)
            data += bytes(_BYTES[character] for character in name)
            # A token may end within a character, which is then shown with the next ones.
            try:
                yield ShownToken(data.decode(), tuple(waiting), piece.supervised)
            except UnicodeDecodeError:
                continue
            waiting, data = [], b""


def _byte_characters() -> dict[str, int]:
    """The byte that each character of a token's name stands for: GPT-2 names bytes that cannot be printed 256 on."""
    named = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(named))
    return {chr(byte): byte for byte in named} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_characters()


def _verdicts(report: Report) -> Iterator[str]:
    yield '<section>\n<h2>Verdict</h2>\n<ul class="verdicts">\n'
    for verdict in report.verdicts:
        yield (
            f'<li class="{_TONES[verdict.word]}">{escaped(verdict.title)}<b>{escaped(verdict.word)}</b>'
            f"<span>{escaped(verdict.reason)}</span></li>\n"
        )
    yield "</ul>\n</section>\n"


def _tables(report: Report) -> Iterator[str]:
    headings = [(heading.replace("-\n", "").replace("\n", " "), meaning) for heading, meaning, _ in RECORD_COLUMNS]
    cells = [[f"{number(row):,}" for _, _, number in RECORD_COLUMNS] for row in report.rows]
    yield "<section>\n<h2>Records</h2>\n"
    yield from _table(report, "Records", headings, cells, [f"{number:,}" for number in total(report.rows)])
    yield f'<p class="soft">{escaped(SUM_RULE)}</p>\n</section>\n<section>\n<h2>Tokens</h2>\n'
    yield from _table(
        report,
        "Tokens",
        [(heading, "") for heading in TOKEN_HEADINGS],
        [token_cells(row) for row in report.rows],
        token_totals(report.rows),
    )
    yield f'<p class="soft">{escaped(sampling_note(report))}</p>\n</section>\n'


def _table(
    report: Report,
    name: str,
    headings: Sequence[tuple[str, str]],
    cells: Sequence[Sequence[str]],
    last: Sequence[str],
) -> Iterator[str]:
    several = len(report.paths) > 1
    # Focusable, so that the keyboard can scroll it where it is wider than the screen.
    yield f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">\n<table>\n<thead>\n<tr>'
    yield '<th class="name" scope="col">set</th><th scope="col">stage</th>'
    yield '<th scope="col">path</th>' if several else ""
    for heading, meaning in headings:
        title = f' title="{escape(meaning)}"' if meaning else ""
        yield f'<th scope="col"{title}>{escaped(heading)}</th>'
    yield "</tr>\n</thead>\n<tbody>\n"
    for row, of_row in zip(report.rows, cells, strict=True):
        yield f'<tr><th class="name" scope="row">{escaped(row.dataset)}</th><td>{row.stage}</td>'
        yield f"<td>{report.paths.index(row.path) + 1}</td>" if several else ""
        yield f"{''.join(f'<td>{escaped(cell)}</td>' for cell in of_row)}</tr>\n"
    yield '</tbody>\n<tfoot>\n<tr><th class="name" scope="row">total</th><td></td>'
    yield "<td></td>" if several else ""
    yield f"{''.join(f'<td>{escaped(cell)}</td>' for cell in last)}</tr>\n</tfoot>\n</table>\n</div>\n"


def _reasons(report: Report) -> Iterator[str]:
    left_out = [row for row in report.rows if row.rejected]
    if left_out:
        yield "<section>\n<h2>Rejected, and why</h2>\n<ul>\n"
        for row in left_out:
            yield f"<li><b>{escaped(row.dataset)}</b>{_path_number(report, row)}: {escaped(reasons_of(row))}</li>\n"
        yield "</ul>\n</section>\n"
    if report.notes:
        yield "<section>\n<h2>Notes</h2>\n<ul>\n"
        yield from (f"<li>{escaped(note)}</li>\n" for note in report.notes)
        yield "</ul>\n</section>\n"


def _path_number(report: Report, row: SetRow) -> str:
    return f" (path {report.paths.index(row.path) + 1})" if len(report.paths) > 1 else ""


def _samples(report: Report) -> Iterator[str]:
    tokenizer = load_tokenizer(max_length=report.model.positions)
    yield (
        "<section>\n<h2>Sample records</h2>\n<p>The exact prompts. <mark>Underlined</mark> is what training teaches;"
        ' <span class="control">special tokens</span> stand with their names. Point at a text to see where its tokens'
        " begin and which they are. Of a robot task all that is written is shown; in training some of it is left out"
        " by chance.</p>\n"
    )
    stage = 0
    for row in report.rows:
        if not row.samples:
            continue
        if row.stage != stage:
            stage = row.stage
            yield f"<h3>{escaped(STAGE_NAMES[stage].capitalize())}</h3>\n"
        yield f"<h4>{escaped(row.dataset)}{_path_number(report, row)}</h4>\n"
        for sample in row.samples:
            yield from _sample(report, row, sample, tokenizer)
    yield "</section>\n"


def _sample(report: Report, row: SetRow, sample: Sample | RobotSample, tokenizer: Any) -> Iterator[str]:
    pieces = shown_prompt(sample)
    size, positions = len(encode(pieces, tokenizer, report.model.image_tokens).input_ids), report.model.positions
    tokens = list(shown_tokens(pieces, tokenizer, report.model.image_tokens))
    taught = sum(_taught(tokens, positions))
    yield f'<article>\n{picture_figure(sample.image, row.path, THUMBNAIL)}<div>\n<p class="prompt">'
    place = 0
    within_mark = within_cut = False
    for token in tokens:
        is_cut = place >= positions
        if within_mark and (is_cut or not token.supervised):
            yield "</mark>"
            within_mark = False
        if is_cut and not within_cut:
            yield '<s class="cut">'
            within_cut = True
        if token.supervised and not is_cut and not within_mark:
            yield "<mark>"
            within_mark = True
        yield _token(token)
        place += len(token.ids) * token.times
    yield f"{'</mark>' if within_mark else ''}{'</s>' if within_cut else ''}</p>\n"
    cut = f"; cut after {positions:,}" if size > positions else ""
    yield f'<p class="soft">{escaped(sample.id)}: {size:,} tokens, {taught:,} of them taught{cut}</p>\n'
    yield "</div>\n</article>\n"


def _taught(tokens: Sequence[ShownToken], positions: int) -> Iterator[int]:
    place = 0
    for token in tokens:
        count = len(token.ids) * token.times
        if token.supervised:
            yield max(0, min(count, positions - place))
        place += count


def _token(token: ShownToken) -> str:
    ids = " ".join(map(str, token.ids))
    if token.control:
        times = f" × {token.times}" if token.times > 1 else ""
        return (
            f'<span class="control" data-ids="{ids}" data-times="{token.times}" title="token {ids}">'
            f"{escaped(token.text)}{times}</span>"
        )
    shown = escaped(token.text).replace("\n", '<i class="end" aria-hidden="true">⏎</i>\n')
    return f'<span data-ids="{ids}" title="token{"s" if len(token.ids) > 1 else ""} {ids}">{shown}</span>'
