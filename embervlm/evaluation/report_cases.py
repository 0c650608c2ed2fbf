"""The tasks that a report shows one by one: the worst mistakes first, then some that are right, with their pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from embervlm.data.html_page import escaped, picture_figure
from embervlm.evaluation.run import Case, Evaluation

MISTAKES = 60
RIGHT = 12
#: Longest side of a scene on the page, in pixels.
THUMBNAIL = 320
#: So many characters of a text are shown, and so many robots with their confidences.
LONGEST_TEXT = 2000
MOST_ROBOTS = 8

CASE_STYLE = """
.case .task { font-size: 1.0625rem; margin: .25rem 0 .75rem; overflow-wrap: anywhere; white-space: pre-line; }
.case figure img { width: 100%; }
.case .id { overflow-wrap: anywhere; }
.tag { color: var(--tone); border: 1px solid currentColor; border-radius: 999px; padding: .05rem .6rem;
  font-size: .875rem; font-weight: 600; margin-right: .5rem; white-space: nowrap; }
.case dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem .75rem; margin: .5rem 0; }
.case dd { margin: 0; overflow-wrap: anywhere; } .case dt { padding-top: .1rem; }
.case .bars { max-width: 38rem; gap: .2rem .75rem; font-size: .9375rem; }
.case .bar { height: .8rem; background: var(--page); }
.case .bar.passed > b { background: var(--other); }
.case h4 { margin: .75rem 0 .25rem; font-size: .875rem; color: var(--soft); font-weight: 600; }
.case ol { margin: .25rem 0; padding-left: 1.4rem; overflow-wrap: anywhere; }
.plans { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); }
.case.bare { grid-template-columns: minmax(0, 1fr); }
@media (min-width: 40.01rem) { .case .bars { grid-template-columns: 12rem minmax(0, 1fr) 3.5rem; }
  .case:not(.bare) { grid-template-columns: 17rem minmax(0, 1fr); } }
"""


def shown_cases(evaluation: Evaluation) -> tuple[list[Case], list[Case]]:
    """The cases that a report shows.

    Returns:
        mistakes: those with a wrong leader first, then those with the right one but other robots wrong, each the most
        confident first; and right answers drawn at random by the evaluation's seed.
    """
    wrong = [case for case in evaluation.cases if not (case.leader_right and case.set_right)]
    wrong.sort(key=lambda case: (case.leader_right, -case.confidence, case.id))
    right = [case for case in evaluation.cases if case.leader_right and case.set_right]
    return wrong[:MISTAKES], random.Random(evaluation.seed).sample(right, min(RIGHT, len(right)))


def cases_section(evaluation: Evaluation) -> Iterator[str]:
    """The parts of the page about single tasks; none where there are no cases."""
    if not evaluation.cases:
        return
    mistakes, right = shown_cases(evaluation)
    all_wrong = sum(not (case.leader_right and case.set_right) for case in evaluation.cases)
    leaders = sum(not case.leader_right for case in evaluation.cases)
    all_right = len(evaluation.cases) - all_wrong
    yield "<section>\n<h2>Mistakes</h2>\n"
    if mistakes:
        which = "All" if len(mistakes) == all_wrong else f"The worst {len(mistakes):,} of"
        yield (
            f"<p>{which} {all_wrong:,}: first those with a wrong leader ({leaders:,} in all), then those with the "
            "right leader and other robots wrong; the most confident first.</p>\n"
        )
    else:
        yield "<p>None.</p>\n"
    yield _key(any(case.prediction_set for case in evaluation.cases))
    for case in mistakes:
        yield from _case(evaluation, case)
    if right:
        which = "All" if len(right) == all_right else f"{len(right):,} of"
        drawn = "" if len(right) == all_right else ", drawn at random"
        yield f"</section>\n<section>\n<h2>Right answers</h2>\n<p>{which} {all_right:,}{drawn}.</p>\n"
        for case in right:
            yield from _case(evaluation, case)
    yield "</section>\n"


def _key(has_sets: bool) -> str:
    in_set = ", ◦ one in the prediction set" if has_sets else ""
    return (
        '<p class="soft">Bars: the probability that each robot leads, in colour where it was sent. '
        f"✓ marks a robot that may lead{in_set}.</p>\n"
    )


def _case(evaluation: Evaluation, case: Case) -> Iterator[str]:
    tone, word = ("bad", "wrong leader") if not case.leader_right else ("warn", "wrong set")
    if case.leader_right and case.set_right:
        tone, word = "good", "right"
    bare = " bare" if not evaluation.pictures else ""
    yield f'<article class="case{bare}">\n'
    if evaluation.pictures:
        data = Path(evaluation.data)
        yield picture_figure(case.image, data if data.is_dir() else data.parent, THUMBNAIL)
    voice = f", voice {escaped(case.voice)}" if case.voice is not None else ""
    yield (
        f'<div>\n<span class="tag {tone}">{word}</span><span class="soft id">{escaped(case.id)}{voice}</span>\n'
        f'<p class="task">{_cut(case.task)}</p>\n<dl>\n'
        f"<dt>should lead</dt><dd>{escaped(' or '.join(case.leaders))}</dd>\n"
        f"<dt>should go</dt><dd>{escaped(', '.join(case.expected))}</dd>\n"
        f"<dt>sent</dt><dd><b>{escaped(case.picked[0])}</b>{escaped(''.join(f', {name}' for name in case.picked[1:]))}"
        "</dd>\n</dl>\n"
    )
    yield from _confidences(case)
    yield from _answer(case)
    yield "</div>\n</article>\n"


def _confidences(case: Case) -> Iterator[str]:
    shown = [
        (name, share)
        for place, (name, share) in enumerate(case.confidences)
        if place < MOST_ROBOTS or name in case.leaders or name in case.picked
    ]
    yield '<div class="bars">\n'
    for name, share in shown:
        marks = f"{' ✓' if name in case.leaders else ''}{' ◦' if name in case.prediction_set else ''}"
        kind = "" if name in case.picked else " passed"
        yield (
            f'<div class="row"><span>{escaped(name)}{marks}</span><span class="bar{kind}" aria-hidden="true">'
            f'<b style="width:{100 * share:.2f}%"></b></span><span class="number">{share:.1%}</span></div>\n'
        )
    yield "</div>\n"
    if left := len(case.confidences) - len(shown):
        yield f'<p class="soft">and {left:,} more robots</p>\n'


def _answer(case: Case) -> Iterator[str]:
    written = case.written
    if written is not None and written.reasoning:
        yield "<h4>Its reasoning</h4>\n<ol>\n"
        yield from (f"<li>{_cut(step)}</li>\n" for step in written.reasoning)
        yield "</ol>\n"
    if written is not None and set(written.selected) != set(case.picked):
        yield f'<p class="soft">Having written that, it sends {escaped(", ".join(written.selected))}.</p>\n'
    if not case.plan and (written is None or not written.plan):
        return
    yield '<div class="plans">\n'
    if case.plan:
        yield "<div>\n<h4>Plan expected</h4>\n<ol>\n"
        before = 0
        for step in case.plan:
            beside = ' <span class="soft">at the same time</span>' if step.order == before else ""
            yield f'<li value="{step.order}"><b>{escaped(step.robot)}</b>: {_cut(step.subtask)}{beside}</li>\n'
            before = step.order
        yield "</ol>\n</div>\n"
    if written is not None and written.plan:
        yield "<div>\n<h4>Plan written</h4>\n<ol>\n"
        for phase in written.plan:
            steps = ", ".join(map(str, phase.depends_on))
            after = f' <span class="soft">after {steps}</span>' if steps else ""
            yield f'<li value="{phase.step}"><b>{escaped(phase.robot)}</b>: {_cut(phase.subtask)}{after}</li>\n'
        yield "</ol>\n</div>\n"
    yield "</div>\n"


def _cut(text: str) -> str:
    """A text, escaped, its end left out where it is very long."""
    if len(text) <= LONGEST_TEXT:
        return escaped(text)
    return f'{escaped(text[:LONGEST_TEXT])}… <span class="soft">({len(text) - LONGEST_TEXT:,} more characters)</span>'
