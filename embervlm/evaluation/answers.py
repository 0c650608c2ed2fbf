"""Written answers, checked: whether a selection's parts agree with each other, and its plan with the labelled one."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

from embervlm.data.sample import PlanStep
from embervlm.fleet import Fleet
from embervlm.prompts import decision_sentence
from embervlm.selection import Phase, Selection

#: The robots of a plan, one entry for all that runs side by side, in order.
Stages = list[set[str]]


def labelled_stages(plan: Sequence[PlanStep]) -> Stages:
    """The stages of a labelled plan."""
    stages: dict[int, set[str]] = defaultdict(set)
    for step in plan:
        stages[step.order].add(step.robot)
    return [stages[order] for order in sorted(stages)]


def written_stages(plan: Sequence[Phase]) -> Stages:
    """The stages of a written plan: a phase stands one behind the last of those that it depends on."""
    depth: dict[int, int] = {}
    stages: dict[int, set[str]] = defaultdict(set)
    for phase in plan:
        depth[phase.step] = 1 + max((depth.get(step, 0) for step in phase.depends_on), default=0)
        stages[depth[phase.step]].add(phase.robot)
    return [stages[order] for order in sorted(stages)]


def answer_fault(selection: Selection, fleet: Fleet) -> str | None:
    """What contradicts itself in a whole answer, grounds and plan included, over a fleet; None where nothing does.

    Whether the answer is right is another question, and so is what the first two steps say.
    """
    selected, robots = selection.selected, [score.robot for score in selection.robots]
    if sorted(robots) != sorted(fleet.names):
        return f"the scores are of {robots}, the fleet is {list(fleet.names)}"
    if any(before.confidence < after.confidence for before, after in itertools.pairwise(selection.robots)):
        return "the scores do not fall"
    if abs(sum(score.confidence for score in selection.robots) - 1) > 1e-6:
        return "the confidences do not sum to 1"
    if not selected or selection.primary != selected[0] or selection.primary != robots[0]:
        return f"{selection.primary} leads, the head's likeliest is {robots[0]}, the selected are {selected}"
    if sorted(selected) != sorted(score.robot for score in selection.robots if score.selected):
        return f"{selected} are selected, the scores say otherwise"
    return _grounds_fault(selection, fleet) or _plan_fault(selection)


def _grounds_fault(selection: Selection, fleet: Fleet) -> str | None:
    if len(selection.reasoning) != 4:
        return f"{len(selection.reasoning)} steps of reasoning, not 4"
    _, _, matched, decision = selection.reasoning
    if not _are_phrases(matched, fleet[selection.primary].capabilities):
        return f"{matched!r:.80} are not capabilities of {selection.primary}"
    if decision != decision_sentence(selection.primary, selection.selected[1:]):
        return f"the decision {decision!r:.80} is not the selection"
    return None


def _plan_fault(selection: Selection) -> str | None:
    plan = selection.plan
    if [phase.step for phase in plan] != list(range(1, len(plan) + 1)):
        return "the plan's steps are not numbered 1, 2, 3 ..."
    if {phase.robot for phase in plan} != set(selection.selected):
        return f"the plan is for {sorted({phase.robot for phase in plan})}, selected are {selection.selected}"
    for phase in plan:
        if not phase.subtask.strip():
            return f"step {phase.step} says nothing"
        if any(not 1 <= step < phase.step for step in phase.depends_on):
            return f"step {phase.step} depends on {phase.depends_on}"
    return None


def _are_phrases(text: str, phrases: Sequence[str]) -> bool:
    """Whether the text is one or more of the phrases, each once, with commas between; phrases may hold commas."""
    if text in phrases:
        return True
    return any(
        text.startswith(f"{phrase}, ")
        and _are_phrases(text[len(phrase) + 2 :], [other for other in phrases if other != phrase])
        for phrase in phrases
    )
