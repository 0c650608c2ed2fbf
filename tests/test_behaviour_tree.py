"""Behaviour trees: what BehaviorTree.CPP 4 asks of a document, and what a plan must become."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from embervlm.behaviour_tree import LEAF, PORTS, behaviour_tree, plan_levels
from embervlm.selection import Phase

#: Children that the library's nodes may have: at least one for controls, exactly one for decorators and the tree.
CONTROLS = {"Sequence", "Parallel"}
ATTRIBUTES = {"Sequence": {"name"}, "Parallel": {"name", "success_count", "failure_count"}}


def check_tree(text: str) -> ElementTree.Element:
    """Hold a document to the rules of BehaviorTree.CPP 4's XML parser; returns the tree's one child."""
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "root" and root.get("BTCPP_format") == "4"
    trees = {tree.get("ID"): tree for tree in root.findall("BehaviorTree")}
    assert root.get("main_tree_to_execute") in trees and None not in trees
    (model,) = root.findall("TreeNodesModel")
    leaves = {action.get("ID"): {port.get("name") for port in action} for action in model.findall("Action")}
    assert {child.tag for child in root} == {"BehaviorTree", "TreeNodesModel"}

    def check(node: ElementTree.Element) -> None:
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", node.tag)
        if node.tag in CONTROLS:
            assert len(node) >= 1 and set(node.attrib) <= ATTRIBUTES[node.tag]
        else:
            assert node.tag in leaves and len(node) == 0
            ports = set(node.attrib) - {"name", "ID"}
            assert ports == leaves[node.tag]
            # What stands in braces is no text but the name of a blackboard's entry.
            assert not any(re.fullmatch(r"\$?\{.*\}", node.get(port, "")) for port in ports)
        if node.tag == "Parallel":
            assert node.get("success_count") == "-1" and int(node.get("failure_count", "")) >= 1
        for child in node:
            check(child)

    for tree in trees.values():
        assert len(tree) == 1
        check(tree[0])
    return trees[root.get("main_tree_to_execute")][0]


def test_phases_side_by_side_are_parallel_and_the_rest_a_sequence() -> None:
    plan = [
        Phase(1, "Drone", "look", []),
        Phase(2, "Legs", "climb", [1]),
        Phase(3, "Wheels", "wait", [1]),
        Phase(4, "Drone", "film", [2, 3]),
    ]
    top = check_tree(behaviour_tree(plan, "Look & climb"))
    assert [child.tag for child in top] == [LEAF, "Parallel", LEAF]
    assert [leaf.get("robot") for leaf in top[1]] == ["Legs", "Wheels"]
    assert {name: top[0].get(name) for name in PORTS} == {"step": "1", "robot": "Drone", "subtask": "look"}
    assert [[phase.step for phase in level] for level in plan_levels(plan)] == [[1], [2, 3], [4]]


@pytest.mark.parametrize(
    "text", ['<a href="x">&amp;</a>', 'it\'s "so"', "{blackboard}", "${x}", "tab\there \x00 \u202e end", "日本 🤖"]
)
def test_any_words_are_text_and_nothing_else(text: str) -> None:
    top = check_tree(behaviour_tree([Phase(1, text, text, [])], text))
    assert (top[0].get("subtask") or "").strip() == "".join(
        each if each.isprintable() else " " for each in text
    ).strip()


def test_the_validator_sees_what_is_wrong() -> None:
    good = behaviour_tree([Phase(1, "Drone", "look", [])])
    for wrong in (
        good.replace('BTCPP_format="4"', 'BTCPP_format="3"'),
        good.replace('main_tree_to_execute="Plan"', 'main_tree_to_execute="Other"'),
        good.replace('subtask="look"', 'subtask="{look}"'),
        good.replace('subtask="look"', ""),
    ):
        assert wrong != good
        with pytest.raises(AssertionError):
            check_tree(wrong)


def test_a_plan_that_depends_on_what_comes_later_is_refused() -> None:
    with pytest.raises(ValueError, match="phase 1 of the plan depends on 2, which is not before it"):
        plan_levels([Phase(1, "Drone", "look", [2]), Phase(2, "Drone", "go", [])])
