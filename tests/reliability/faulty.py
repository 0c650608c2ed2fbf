"""The training command with a fault in one of its processes, for tests: FAULT is ``rank/step/loss|gradient|stall``."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from embervlm.cli import main
from embervlm.training.engine import StageTrainer

RANK, STEP, KIND = os.environ["FAULT"].split("/")
compute = StageTrainer.compute_loss


def spoiled(self: Any, *args: Any, **kwargs: Any) -> Any:
    loss = compute(self, *args, **kwargs)
    if os.environ.get("RANK") != RANK or self.state.global_step != int(STEP) or not self.model.training:
        return loss
    if KIND == "stall":
        os.kill(os.getpid(), signal.SIGSTOP)
    if KIND == "gradient":
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss
    return loss * float("nan")


StageTrainer.compute_loss = spoiled  # type: ignore[method-assign]
sys.exit(main(["train", *sys.argv[1:]]))
