"""Measures the two matches of the robot head apart: what words alone decide, what the state alone does, and their sum.

The model is asked the tasks of ``--data`` without their pictures or with them, as the data have it. The last row reads
the fleet as a large one is read (``prompts.MOST_READ_WHOLE``): the last token of each description.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
    both = head.forward
    ways: dict[str, Callable[[Tensor, Tensor, FleetState], tuple[Tensor, Tensor]]] = {
        "state alone": lambda state, words, fleet: head.match_state(state, fleet),
        "words alone": lambda state, words, fleet: head.match_words(words, fleet),
        "both": both,
    }
    for name, way in ways.items():
        head.forward = way
        _measure(name, selector, samples)
    prompts.MOST_READ_WHOLE = 0
    _measure("both, last tokens", RobotSelector.from_pretrained(options.model), samples)
    return 0


def _measure(name: str, selector: RobotSelector, samples: Sequence[RobotSample]) -> None:
    logits = selector.score([sample.task for sample in samples], [sample.image for sample in samples])
    sent = selector.selected_names(*logits, [sample.image is not None for sample in samples])
    leader = leader_accuracy([names[0] for names in sent], [sample.leaders for sample in samples])
    exact = exact_set(sent, [sample.selected for sample in samples])
    sys.stdout.write(f"{name:<18} leader {leader:.1%}, exact set {exact:.1%} of {len(samples)} tasks\n")


if __name__ == "__main__":
    sys.exit(main())
