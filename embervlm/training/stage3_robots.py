"""Stage 3: the whole model learns to select robots, give its grounds and lay out a plan."""

from __future__ import annotations

from typing import Any

from embervlm.training.engine import StageTrainer


class Stage3Trainer(StageTrainer):
    """Trains everything: the head on who leads and who goes along, the language model on grounds, names and plan."""

    number = 3
    title = "Robot Fleet Selection Training"

    @classmethod
    def frozen_parts(cls, model: Any) -> tuple[str, ...]:
        """Nothing; until a teacher has taught it, the robot head's text encoder."""
        return () if model.config.text_encoder_taught else ("robot_head.text_encoder", "robot_head.by_meaning")
