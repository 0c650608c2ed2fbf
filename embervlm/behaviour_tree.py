"""A plan as a behaviour tree: XML of BehaviorTree.CPP 4 (https://www.behaviortree.dev), beside the plan as JSON.

Phases that depend on nothing in common become a ``Parallel``, phases after them the next part of the ``Sequence``.
Each phase is one leaf, ``SendRobot``, whose ports say whom to send and to do what.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from embervlm.selection import Phase

TREE_ID = "Plan"
LEAF = "SendRobot"
PORTS = {
    "step": ("int", "number of the phase in the plan"),
    "robot": ("std::string", "name of the robot in its fleet"),
    "subtask": ("std::string", "what the robot is to do"),
}


def plan_levels(plan: Sequence[Phase]) -> list[list[Phase]]:
    """The phases in the order of time: each stands one behind the last of those that it depends on.

    Raises:
        ValueError: a phase depends on one that is not before it.
    """
    level: dict[int, int] = {}
    for phase in plan:
        if missing := [step for step in phase.depends_on if step not in level]:
            raise ValueError(f"phase {phase.step} of the plan depends on {missing[0]}, which is not before it")
        level[phase.step] = 1 + max((level[step] for step in phase.depends_on), default=-1)
    return [
        [phase for phase in plan if level[phase.step] == number]
        for number in range(1 + max(level.values(), default=-1))
    ]


def behaviour_tree(plan: Sequence[Phase], task: str = "") -> str:
    """A plan as a document that BehaviorTree.CPP 4 and Groot 2 load.

    Args:
        plan: of a :class:`~embervlm.selection.Selection`.
        task: described in the tree, where given.

    Returns:
        XML with its declaration. A parallel part succeeds when all of its phases have, and fails with the first.
    """
    root = ElementTree.Element("root", {"BTCPP_format": "4", "main_tree_to_execute": TREE_ID})
    tree = ElementTree.SubElement(root, "BehaviorTree", {"ID": TREE_ID})
    if task:
        tree.set("_description", _printable(task))
    sequence = ElementTree.SubElement(tree, "Sequence", {"name": "plan"})
    for number, phases in enumerate(plan_levels(plan), 1):
        parent = sequence
        if len(phases) > 1:
            attributes = {"name": f"together {number}", "success_count": "-1", "failure_count": "1"}
            parent = ElementTree.SubElement(sequence, "Parallel", attributes)
        for phase in phases:
            values = {"step": str(phase.step), "robot": _value(phase.robot), "subtask": _value(phase.subtask)}
            ElementTree.SubElement(parent, LEAF, {"name": f"{phase.step} {_printable(phase.robot)}"} | values)
    model = ElementTree.SubElement(ElementTree.SubElement(root, "TreeNodesModel"), "Action", {"ID": LEAF})
    for name, (kind, about) in PORTS.items():
        ElementTree.SubElement(model, "input_port", {"name": name, "type": kind}).text = about
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _printable(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return "".join(each if each.isprintable() else " " for each in text)


def _value(text: str) -> str:
    """As a port's value: one in braces would name an entry of the blackboard instead."""
    text = _printable(text).strip()
    return f" {text}" if text.startswith(("{", "${")) and text.endswith("}") else text
