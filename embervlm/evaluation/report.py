"""The report on an evaluation: one HTML page that needs nothing else, its figures as JSON, and its plots as files.

Last in the flow of an evaluation: samples, predictions, measures, the evaluation, its report. The page draws with HTML
and inline SVG, so that it follows the screen's width and colours; whatever comes from data is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path

from embervlm.data.html_page import FOOT, escaped, head, write_whole
from embervlm.evaluation.metrics import Bin, Figure, Measures
from embervlm.evaluation.report_cases import CASE_STYLE, cases_section
from embervlm.evaluation.report_plots import MODEL, PLOT_NAMES, Group, Row, comparison, plots
from embervlm.evaluation.run import Evaluation

PAGE_NAME = "report.html"
METRICS_NAME = "report.json"
CASES_NAME = "cases.jsonl"

_STYLE = """
:root { --model: color-mix(in srgb, var(--control-text) 50%, var(--page));
  --other: color-mix(in srgb, var(--soft) 45%, var(--page)); }
.headline { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(13.5rem, 1fr)); padding: 0;
  list-style: none; }
.headline li { border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem; background: var(--box); }
.headline li > b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.headline .soft { display: block; }
.bars { display: grid; grid-template-columns: 16rem minmax(0, 1fr) auto; gap: .35rem .75rem;
  align-items: center; margin: .5rem 0 1rem; }
.row { display: contents; } .row > span { overflow-wrap: anywhere; }
.row > .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: block; position: relative; height: 1.1rem; border-radius: 3px; background: var(--box);
  box-shadow: inset 0 0 0 1px var(--line); }
.bar > b { position: absolute; inset: 0 auto 0 0; border-radius: 3px 0 0 3px; background: var(--model); }
.bar.baseline > b { background: var(--other); }
.bar.bound > b { background: repeating-linear-gradient(135deg, var(--other) 0 2px, transparent 2px 7px);
  border-right: 2px solid var(--soft); }
.bar > i { position: absolute; top: 20%; bottom: 20%; border: solid var(--text); border-width: 0 2px;
  background: linear-gradient(var(--text), var(--text)) center / 100% 2px no-repeat; }
.headline .bar { height: .8rem; margin: .25rem 0 .35rem; background: var(--page); }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.key li { display: flex; align-items: center; gap: .5rem; } .key .bar { width: 2.5rem; }
.columns { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  align-items: start; }
.columns h3 { margin-top: .5rem; } .columns .bars { grid-template-columns: auto minmax(0, 1fr) auto; }
.part { background: linear-gradient(to right, var(--model) var(--part), transparent var(--part)) bottom / 100% 4px
  no-repeat; }
.interval { color: var(--soft); font-size: .8125rem; }
.confusion td, .confusion thead th { text-align: center; }
.confusion thead th, .confusion th.name { white-space: pre-line; min-width: 4.5rem; }
.confusion td { background: color-mix(in srgb, var(--bad) calc(var(--share) * 55%), transparent); }
.confusion td.hit { background: color-mix(in srgb, var(--good) calc(var(--share) * 55%), transparent); }
.confusion td.zero { color: var(--soft); }
svg { display: block; width: 100%; max-width: 25rem; height: auto; }
svg text { fill: var(--text); font: 12px system-ui, sans-serif; } svg .axis { stroke: var(--line); }
svg .ideal { stroke: var(--soft); stroke-dasharray: 4 4; } svg .over { stroke: var(--bad); stroke-width: 2; }
svg .under { stroke: var(--good); stroke-width: 2; } svg circle { fill: var(--model); stroke: var(--control-text); }
svg .count { fill: var(--other); }
details { border: 1px solid var(--line); border-radius: 8px; padding: .5rem .75rem; margin: .5rem 0; }
summary { cursor: pointer; }
@media (max-width: 40rem) { .bars, .columns .bars { grid-template-columns: minmax(0, 1fr); }
  .row { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .1rem .75rem; align-items: end; }
  .row > .bar { grid-column: 1 / -1; order: 1; }
  th.name { white-space: normal; min-width: 6.5rem; } .confusion thead th, .confusion th.name { min-width: 0; } }
"""


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write the page, ``report.json``, ``cases.jsonl`` (every case) and the plots into ``folder``, made if need be.

    Everything is made before the first file is written, and no file has its name before all are complete. Files of an
    earlier report are replaced; its plots that this evaluation has not are removed.

    Returns:
        the page's file.

    Raises:
        ReportError: matplotlib is not installed.
        OSError: the folder or a file cannot be written.
    """
    page_file = folder / PAGE_NAME
    metrics = json.dumps(evaluation.to_dict(), indent=2, allow_nan=False)
    cases = [f"{json.dumps(case.to_dict())}\n" for case in evaluation.cases]
    drawn = plots(evaluation)
    shown = "".join(page(evaluation))
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(
            {folder / name: content for name, content in drawn.items()}
            | {folder / METRICS_NAME: f"{metrics}\n".encode(), folder / CASES_NAME: cases, page_file: shown.encode()}
        )
    except BaseException:
        if is_new:
            folder.rmdir()
        raise
    for name in set(PLOT_NAMES) - set(drawn):
        (folder / name).unlink(missing_ok=True)
    return page_file


def page(evaluation: Evaluation) -> Iterator[str]:
    """The page's parts, in order."""
    title = "Evaluation of baselines" if evaluation.model_name is None else f"Evaluation of {evaluation.model_name}"
    pictures = f"{evaluation.pictures:,} pictures" if evaluation.pictures else "no pictures"
    yield head(title, _STYLE + CASE_STYLE)
    yield (
        f'<header>\n<h1>{escaped(title)}</h1>\n<p>{_tasks(evaluation.tasks)}, {pictures}, from <span class="path">'
        f"{escaped(evaluation.data)}</span>. Seed {evaluation.seed}.</p>\n"
        f"<p>Robots: {escaped(', '.join(evaluation.robots))}.</p>\n</header>\n<main>\n"
    )
    yield from _headline(evaluation)
    if evaluation.notes:
        yield "<section>\n<h2>Notes</h2>\n<ul>\n"
        yield from (f"<li>{escaped(note)}</li>\n" for note in evaluation.notes)
        yield "</ul>\n</section>\n"
    yield from _comparison(evaluation)
    if evaluation.model is not None:
        yield "<section>\n<h2>Robot by robot</h2>\n"
        yield from _robots(evaluation.model, evaluation.robots)
        yield "</section>\n"
        yield from _confidence(evaluation, evaluation.model)
    yield from _voices(evaluation)
    yield from _written(evaluation)
    yield from cases_section(evaluation)
    yield from _details(evaluation)
    yield from _explanations(evaluation)
    yield f"</main>\n{FOOT}"


def _headline(evaluation: Evaluation) -> Iterator[str]:
    model, written, coverage = evaluation.model, evaluation.written, evaluation.coverage
    if model is None:
        return
    cards = [
        _card("Leading robot right", model.leader_accuracy, "of the tasks"),
        _card("Exactly the right robots sent", model.exact_set, "of the tasks"),
        _card("Overlap with the right set", model.jaccard, "Jaccard: robots in both sets over robots in either", ""),
        _card("F1 of being sent", model.macro_f1, "macro-F1: the mean over the robots", ""),
    ]
    if written is not None and written.plan_accuracy is not None:
        cards.append(_card("Plan right", written.plan_accuracy, f"of {_tasks(written.plan_accuracy.tasks)} in phases"))
    cards.append(_card("Confidence off by", model.ece, "expected calibration error; 0 is best", ""))
    if coverage is not None:
        cards.append(_card("Right leader in the prediction set", coverage.covered, f"{coverage.level:.1%} asked for"))
    yield '<section>\n<h2>At a glance</h2>\n<ul class="headline">\n'
    yield from cards
    yield '</ul>\n<p class="soft">The marks on a bar are the ends of its 95% interval.</p>\n</section>\n'


def _card(title: str, figure: Figure, meaning: str, unit: str = "%") -> str:
    return (
        f"<li>{escaped(title)}<b>{_value(figure.value, unit)}</b>{_bar(figure)}"
        f'<span class="soft">{_interval(figure, unit)} {escaped(meaning)}</span></li>\n'
    )


def _comparison(evaluation: Evaluation) -> Iterator[str]:
    groups = comparison(evaluation)
    yield "<section>\n<h2>Compared</h2>\n<p>Tasks whose leading robot is right.</p>\n"
    kinds = {row.kind for group in groups for row in group.rows}
    meanings = {
        "model": "the model",
        "baseline": "a baseline",
        "bound": "a bound, counted from the labels of these very tasks",
    }
    yield '<ul class="key soft">'
    for kind, meaning in meanings.items():
        if kind in kinds:
            yield f'<li><span class="bar {kind}"><b style="width:80%"></b></span>{meaning}</li>'
    yield "</ul>\n"
    for group in groups:
        yield f"<h3>{escaped(group.title)}</h3>\n"
        yield from _bars([(row.name, row.leader_accuracy, row.kind) for row in group.rows])
    if evaluation.own_pictures is not None and evaluation.shuffled_pictures is not None:
        own, other = evaluation.own_pictures.leader_accuracy.value, evaluation.shuffled_pictures.leader_accuracy.value
        yield (
            "<p>With another task's picture instead of its own, the model loses "
            f"{100 * (own - other):.1f} percentage points: that much of what it gets right, it gets from looking.</p>\n"
            if own > other
            else "<p>With another task's picture the model is no worse: it does not look.</p>\n"
        )
    if evaluation.baselines:
        tasks = _tasks(evaluation.train_tasks or 0)
        yield (
            f'<p class="soft">The baselines were trained on {tasks}.</p>\n'
            if evaluation.folds is None
            else f'<p class="soft">Cross-validated in {evaluation.folds} folds: each is answered by baselines trained '
            f"on the others, at least {tasks}.</p>\n"
        )
    yield from _table_of_all(groups)
    yield "</section>\n"


def _table_of_all(groups: Sequence[Group]) -> Iterator[str]:
    headings = ("tasks", "leader", "exact set", "Jaccard", "macro-F1", "ECE")
    yield from _table_start("All figures", "answers", headings)
    for group in groups:
        for row in group.rows:
            if row.measures is not None:
                yield f'<tr><th class="name" scope="row">{escaped(_full_name(row))}</th>{_cells(row.measures)}</tr>\n'
    yield "</tbody>\n</table>\n</div>\n"


def _full_name(row: Row) -> str:
    """A row's name where its group's title does not stand above it."""
    return f"the model, {row.name}" if row.kind == "model" and row.name != MODEL else row.name


def _cells(measures: Measures) -> str:
    figures = [(measures.leader_accuracy, "%"), (measures.exact_set, "%")]
    figures += [(figure, "") for figure in (measures.jaccard, measures.macro_f1, measures.ece)]
    shown = "".join(
        f'<td>{_value(figure.value, unit)} <span class="interval">{_interval(figure, unit)}</span></td>'
        for figure, unit in figures
    )
    return f"<td>{measures.leader_accuracy.tasks:,}</td>{shown}"


def _robots(measures: Measures, robots: Sequence[str]) -> Iterator[str]:
    yield '<div class="columns">\n<div>\n<h3>Being sent, as leader or not</h3>\n'
    yield from _table_start("Robots", "robot", ("tasks", "precision", "recall", "F1"))
    for each in measures.robots:
        shares = "".join(
            f'<td class="part" style="--part:{100 * share:.1f}%">{share:.1%}</td>'
            for share in (each.precision, each.recall, each.f1)
        )
        yield f'<tr><th class="name" scope="row">{escaped(each.robot)}</th><td>{each.tasks:,}</td>{shares}</tr>\n'
    yield "</tbody>\n</table>\n</div>\n</div>\n<div>\n<h3>Who should lead, and who was picked</h3>\n"
    yield from _table_start("Confusion", "should ↓\npicked →", robots, "confusion")
    for robot, row, place in zip(robots, measures.confusion, range(len(robots)), strict=True):
        yield f'<tr><th class="name" scope="row">{escaped(robot)}</th>'
        whole = max(1, sum(row))
        for column, count in enumerate(row):
            mark = "hit" if column == place else "" if count else "zero"
            yield (
                f'<td class="{mark}" style="--share:{count / whole:.3f}" title="{count / whole:.1%} of the row">'
                f"{count:,}</td>"
            )
        yield "</tr>\n"
    yield "</tbody>\n</table>\n</div>\n</div>\n</div>\n"


def _confidence(evaluation: Evaluation, model: Measures) -> Iterator[str]:
    yield (
        '<section>\n<h2>Confidence</h2>\n<div class="columns">\n<figure>\n<h3>Is it right as often as it says?</h3>\n'
    )
    yield _reliability(model.reliability)
    yield (
        f"<figcaption>Below the line it is too sure of itself, above it not sure enough. A larger dot stands for more "
        f"tasks; the bars beneath count them. Expected calibration error {_value(model.ece.value, '')} "
        f"{_interval(model.ece, '')}.</figcaption>\n</figure>\n<div>\n"
    )
    coverage = evaluation.coverage
    if coverage is not None:
        yield (
            "<h3>When to ask a person</h3>\n<p>The prediction set is meant to hold a right leader in "
            f"{coverage.level:.1%} of the tasks. A set of one robot is an answer; of more, ask a person.</p>\n"
        )
        yield from _bars(
            [("a right leader in the set", coverage.covered, "model"), ("sets of one robot", coverage.single, "model")]
        )
        yield (
            f"<p>Robots in a set: {coverage.size.value:.2f} on average "
            f'<span class="interval">({coverage.size.low:.2f}–{coverage.size.high:.2f})</span>, over '
            f"{_tasks(coverage.covered.tasks)}.</p>\n"
        )
    yield "<details>\n<summary>The dots in numbers</summary>\n"
    yield from _bins(model.reliability)
    yield "</details>\n</div>\n</div>\n</section>\n"


def _reliability(bins: Sequence[Bin]) -> str:
    left, top, side, strip = 48, 10, 260, 36
    most = max(1, *(each.tasks for each in bins)) if bins else 1

    def x(share: float) -> float:
        return left + side * share

    def y(share: float) -> float:
        return top + side * (1 - share)

    parts = [
        f'<svg viewBox="0 0 {left + side + 20} {top + side + strip + 62}" role="img" '
        'aria-label="confidence against accuracy; the numbers stand in the table">'
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<path class="axis" d="M{x(tick):.1f} {top}V{y(0):.1f}M{left} {y(tick):.1f}H{x(1):.1f}"/>'
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>'
            f'<text x="{x(tick):.1f}" y="{y(0) + strip + 22:.1f}" text-anchor="middle">{tick:.0%}</text>'
        )
    parts.append(f'<path class="ideal" d="M{x(0):.1f} {y(0):.1f}L{x(1):.1f} {y(1):.1f}"/>')
    base = y(0) + strip + 6
    for each in bins:
        if each.tasks:
            height = strip * each.tasks / most
            parts.append(
                f'<rect class="count" x="{x(each.low) + 1:.1f}" y="{base - height:.1f}" '
                f'width="{max(1.0, x(each.high) - x(each.low) - 2):.1f}" height="{height:.1f}"/>'
            )
            side_of_line = "over" if each.confidence > each.accuracy else "under"
            at = x(each.confidence)
            parts.append(
                f'<path class="{side_of_line}" d="M{at:.1f} {y(each.confidence):.1f}V{y(each.accuracy):.1f}"/>'
            )
    # Dots last, over all lines.
    parts += [
        f'<circle cx="{x(each.confidence):.1f}" cy="{y(each.accuracy):.1f}" '
        f'r="{2.5 + 6 * sqrt(each.tasks / most):.1f}">'
        f"<title>{_tasks(each.tasks)}, confidence {each.confidence:.1%}, right {each.accuracy:.1%}</title></circle>"
        for each in bins
        if each.tasks
    ]
    parts.append(
        f'<text x="{x(0.5):.1f}" y="{base + 36:.1f}" text-anchor="middle">mean confidence</text>'
        f'<text x="12" y="{y(0.5):.1f}" text-anchor="middle" transform="rotate(-90 12 {y(0.5):.1f})">'
        "leading robot right</text></svg>\n"
    )
    return "".join(parts)


def _bins(bins: Sequence[Bin]) -> Iterator[str]:
    yield from _table_start("Confidence", "confidence", ("tasks", "mean confidence", "right"))
    for each in bins:
        shares = f"<td>{each.confidence:.1%}</td><td>{each.accuracy:.1%}</td>" if each.tasks else "<td>-</td><td>-</td>"
        name = f"{each.low:.1%}–{each.high:.1%}"
        yield f'<tr><th class="name" scope="row">{name}</th><td>{each.tasks:,}</td>{shares}</tr>\n'
    yield "</tbody>\n</table>\n</div>\n"


def _voices(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.by_voice:
        yield "<section>\n<h2>Voice by voice</h2>\n<p>Leading robot right, by the manner of the task's wording.</p>\n"
        worst_first = sorted(evaluation.by_voice.items(), key=lambda each: (each[1].value, each[0]))
        yield from _bars([(f"{name} ({figure.tasks:,})", figure, "model") for name, figure in worst_first])
        yield "</section>\n"


def _written(evaluation: Evaluation) -> Iterator[str]:
    written = evaluation.written
    if written is None:
        return
    yield (
        f"<section>\n<h2>Written answers</h2>\n<p>Of {_tasks(written.tasks)} the whole answer was written, with its "
        f"grounds and plan, in {written.milliseconds:,.0f} ms each on average.</p>\n"
    )
    rows: list[tuple[str, Figure | float, str]] = [
        ("leading robot right", written.leader_accuracy, "model"),
        ("exactly the right robots", written.exact_set, "model"),
    ]
    if written.plan_accuracy is not None:
        name = f"plan right ({_tasks(written.plan_accuracy.tasks)} in phases)"
        rows.append((name, written.plan_accuracy, "model"))
    rows += [
        ("grounds and plan agree with the fleet and each other", written.valid, "model"),
        ("the requirements it wrote lead to the same leader", written.agreement, "model"),
    ]
    yield from _bars(rows)
    if written.plan_accuracy is None:
        yield '<p class="soft">None of these tasks has a labelled plan of two or more phases.</p>\n'
    if written.faults:
        yield "<h3>What does not agree</h3>\n<ul>\n"
        yield from (f"<li>{escaped(fault)}</li>\n" for fault in written.faults)
        yield "</ul>\n"
    yield "</section>\n"


def _details(evaluation: Evaluation) -> Iterator[str]:
    """Robots and bins of everything that is not the model over all tasks."""
    rows = [
        (_full_name(row), row.measures)
        for group in comparison(evaluation)
        for row in group.rows
        if row.measures is not None and row.name != MODEL
    ]
    if not rows:
        return
    yield "<section>\n<h2>In detail</h2>\n<p>Robots and confidence of all that is compared.</p>\n"
    for name, measures in rows:
        yield f"<details>\n<summary>{escaped(name)}</summary>\n"
        yield from _robots(measures, evaluation.robots)
        yield "<h3>Confidence</h3>\n"
        yield from _bins(measures.reliability)
        yield "</details>\n"
    yield "</section>\n"


def _explanations(evaluation: Evaluation) -> Iterator[str]:
    yield (
        "<section>\n<h2>How it was measured</h2>\n<ul>\n"
        "<li>A leading robot is right if it is one of those that may lead the task.</li>\n"
        "<li>Intervals hold 95% of 2,000 bootstrap draws of whole pictures; of whole families of tasks where they "
        "have no picture, and of all tasks of one text where they have neither.</li>\n"
        "<li>Precision is the share of the tasks a robot was sent to where it should go; recall the share of the tasks "
        "where it should go that it was sent to.</li>\n"
    )
    if evaluation.picture_only_bound is not None:
        yield (
            "<li>The bounds are what one could reach at best who sees only the text, or only the picture, and knows "
            "the labels of these very tasks.</li>\n"
        )
    if evaluation.written is not None:
        yield (
            "<li>A plan is right if its phases have the labelled robots in the labelled order; phases side by side "
            "count as a set.</li>\n"
        )
    yield (
        f"<li>All figures are in <code>{METRICS_NAME}</code> beside this page, the cases in <code>{CASES_NAME}</code>, "
        "and the plots are there as PNG and SVG.</li>\n</ul>\n</section>\n"
    )


def _table_start(name: str, first: str, headings: Sequence[str], style: str = "") -> Iterator[str]:
    # Focusable, so that the keyboard can scroll it where it is wider than the screen.
    yield f'<div class="scroll" role="region" aria-label="{escaped(name)}" tabindex="0">\n<table class="{style}">\n'
    yield f'<thead>\n<tr><th class="name" scope="col">{escaped(first)}</th>'
    yield from (f'<th scope="col">{escaped(heading)}</th>' for heading in headings)
    yield "</tr>\n</thead>\n<tbody>\n"


def _bars(rows: Sequence[tuple[str, Figure | float, str]]) -> Iterator[str]:
    """Bars of shares with their intervals, one a row: name, figure or bare share, kind."""
    yield '<div class="bars">\n'
    for name, figure, kind in rows:
        number = (
            f'{_value(figure.value, "%")} <span class="interval">{_interval(figure, "%")}</span>'
            if isinstance(figure, Figure)
            else _value(figure, "%")
        )
        yield (
            f'<div class="row"><span>{escaped(name)}</span>{_bar(figure, kind)}<span class="number">{number}</span>'
            "</div>\n"
        )
    yield "</div>\n"


def _bar(figure: Figure | float, kind: str = "model") -> str:
    value = figure.value if isinstance(figure, Figure) else figure
    interval = (
        f'<i style="left:min({100 * figure.low:.2f}%,100% - 4px);width:{100 * (figure.high - figure.low):.2f}%"></i>'
        if isinstance(figure, Figure)
        else ""
    )
    return f'<span class="bar {kind}" aria-hidden="true"><b style="width:{100 * value:.2f}%"></b>{interval}</span>'


def _tasks(count: int) -> str:
    return f"{count:,} task{'' if count == 1 else 's'}"


def _value(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit else f"{value:.3f}"


def _interval(figure: Figure, unit: str) -> str:
    return f"({100 * figure.low:.1f}–{100 * figure.high:.1f}%)" if unit else f"({figure.low:.3f}–{figure.high:.3f})"
