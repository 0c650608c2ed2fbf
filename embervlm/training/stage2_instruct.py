"""Stage 2: the projector and the language model learn to follow instructions, from conversations about pictures."""

from __future__ import annotations

from typing import Any

from embervlm.training.engine import StageTrainer


class Stage2Trainer(StageTrainer):
    """Trains the projector and the language model; every answer of a conversation is supervised."""

    number = 2
    title = "Multimodal Instruction Tuning"

    @classmethod
    def frozen_parts(cls, model: Any) -> tuple[str, ...]:
        """The encoder, which stage 1 or its released weights have trained, and the robot head."""
        return ("vision", "robot_head")
