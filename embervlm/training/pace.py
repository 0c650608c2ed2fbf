"""How fast a stage trains: samples and seconds at each line of the log. The engine keeps it, checkpoints carry it, the
report shows it. It stands in a file of its own, so that all else in a checkpoint is a function of the run's flags.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

PACE_FILE = "pace.json"


class Pace(TrainerCallback):  # type: ignore[misc]
    """Counts a stage's samples and seconds of training, over all processes that have worked on it one after another.

    Attributes:
        points: at each line of the log the step, and the samples and seconds from the stage's beginning.
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, int, float]] = []
        self._begun: tuple[int, int, float] = (0, 0, 0.0)  # as in the checkpoint that this process goes on from
        self._clock = time.monotonic()
        self._samples_a_step = 0
        self._step = 0

    @property
    def now(self) -> tuple[int, int, float]:
        """Step, samples and seconds up to here."""
        step, samples, seconds = self._begun
        return (
            self._step,
            samples + (self._step - step) * self._samples_a_step,
            round(seconds + time.monotonic() - self._clock, 3),
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._step = state.global_step
        self._samples_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._begun = (self._step, *self._begun[1:])
        self._clock = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        self._step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep where the stage is at a line of the log."""
        if logs and "loss" in logs:
            self.points.append(self.now)

    def write(self, checkpoint: Path) -> None:
        """Put what was counted into a checkpoint."""
        content = {"now": self.now, "points": self.points}
        (checkpoint / PACE_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def go_on(self, checkpoint: Path) -> None:
        """Take over what a checkpoint has; one without it (of an earlier version) leaves the beginning uncounted."""
        try:
            content = json.loads((checkpoint / PACE_FILE).read_text(encoding="utf-8"))
            step, samples, seconds = content["now"]
            points = [(int(at), int(count), float(passed)) for at, count, passed in content["points"]]
            self._begun, self.points = (int(step), int(samples), float(seconds)), points
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return
