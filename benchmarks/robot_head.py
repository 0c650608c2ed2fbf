"""Measures the two matches of the robot head apart: what words alone decide, what the state alone does, and their sum.

The model is asked the tasks of ``--data`` without their pictures or with them, as the data have it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from embervlm.data.robot_loader import read_robot_tasks
from embervlm.evaluation.metrics import exact_set, leader_accuracy
from embervlm.selection import RobotSelector

#: By the place in ``RobotHead.parts``; None adds the two, as the model does.
MATCHES: dict[str, int | None] = {"state alone": 0, "words alone": 1, "both": None}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="spark", metavar="DIR")
    parser.add_argument("--data", type=Path, default=Path("collection/test"), metavar="PATH")
    options = parser.parse_args(arguments)
    selector = RobotSelector.from_pretrained(options.model)
    samples = read_robot_tasks(options.data, selector.fleet)
    for name, match in MATCHES.items():
        head = selector.model.robot_head
        if match is not None:
            _keep(head, match)
        else:
            head.__dict__.pop("forward", None)
        logits = selector.score([sample.task for sample in samples], [sample.image for sample in samples])
        sent = selector.selected_names(*logits, [sample.image is not None for sample in samples])
        leader = leader_accuracy([names[0] for names in sent], [sample.leaders for sample in samples])
        exact = exact_set(sent, [sample.selected for sample in samples])
        sys.stdout.write(f"{name:<12} leader {leader:.1%}, exact set {exact:.1%} of {len(samples)} tasks\n")
    return 0


def _keep(head: Any, match: int) -> None:
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        leader, member = head.parts(*inputs)[match]
        return leader, member

    head.forward = forward


if __name__ == "__main__":
    sys.exit(main())
