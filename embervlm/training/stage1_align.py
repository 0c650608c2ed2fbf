"""Stage 1: the projector and the language model learn to speak about pictures, from captions and answered questions."""

from __future__ import annotations

from typing import Any

from embervlm.training.engine import StageTrainer


class Stage1Trainer(StageTrainer):
    """Trains the projector and the language model, and the encoder too when it starts from nothing."""

    number = 1
    title = "Visual-Language Alignment"

    @classmethod
    def frozen_parts(cls, model: Any) -> tuple[str, ...]:
        """The robot head; the encoder only if its weights were trained before."""
        return ("vision", "robot_head") if model.config.vision_pretrained else ("robot_head",)
