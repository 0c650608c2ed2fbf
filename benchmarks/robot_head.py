"""Measures the matches of the robot head apart: what state, meaning and words decide alone, by twos, and their sum.

The model is asked the tasks of ``--data`` without their pictures or with them, as the data have it. The last row reads
the fleet as a large one is read (``prompts.MOST_READ_WHOLE``): the last token of each description.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embervlm import prompts
from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample import RobotSample
from embervlm.evaluation.metrics import exact_set, leader_accuracy
from embervlm.model.modeling_embervlm import FleetState
from embervlm.selection import RobotSelector


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="spark", metavar="DIR")
    parser.add_argument("--data", type=Path, default=Path("collection/test"), metavar="PATH")
    options = parser.parse_args(arguments)
    selector = RobotSelector.from_pretrained(options.model)
    samples = read_robot_tasks(options.data, selector.fleet)
    head = selector.model.robot_head
    matches = ("state", "meaning", "words")
    for count in (1, 2, 3):
        for some in itertools.combinations(matches, count):
            head.forward = partial(_added, head, some)
            _measure(" + ".join(some), selector, samples)
    prompts.MOST_READ_WHOLE = 0
    _measure("all, last tokens", RobotSelector.from_pretrained(options.model), samples)
    return 0


def _added(
    head: Any, matches: Sequence[str], state: Tensor, meanings: Tensor, words: Tensor, fleet: FleetState
) -> tuple[Tensor, ...]:
    """What the robot head would say by some of its matches."""
    given = {"state": state, "meaning": meanings, "words": words}
    logits = [getattr(head, f"match_{name}")(given[name], fleet) for name in matches]
    return tuple(torch.stack(each).sum(0) for each in zip(*logits, strict=True))


def _measure(name: str, selector: RobotSelector, samples: Sequence[RobotSample]) -> None:
    logits = selector.score([sample.task for sample in samples], [sample.image for sample in samples])
    sent = selector.selected_names(*logits, [sample.image is not None for sample in samples])
    leader = leader_accuracy([names[0] for names in sent], [sample.leaders for sample in samples])
    exact = exact_set(sent, [sample.selected for sample in samples])
    sys.stdout.write(f"{name:<24} leader {leader:.1%}, exact set {exact:.1%} of {len(samples)} tasks\n")


if __name__ == "__main__":
    sys.exit(main())
