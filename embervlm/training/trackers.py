"""What ``--report_to`` needs beside transformers' own callbacks: where Weights & Biases writes, one run a stage.

TensorBoard and CodeCarbon write into each stage's folder (``runs/``, ``emissions.csv``) without further ado.
"""

from __future__ import annotations

import os

from embervlm.training.arguments import RunSettings


def prepare(settings: RunSettings) -> None:
    """Before the first stage: let Weights & Biases write below the run's folder, unless its variables say otherwise."""
    if "wandb" in settings.report_to:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DIR", str(settings.output_dir.resolve()))
        os.environ.setdefault("WANDB_PROJECT", "embervlm")


def end_stage(settings: RunSettings) -> None:
    """After a stage, whose steps begin at 1 again: end its run at Weights & Biases, so that the next has its own."""
    if "wandb" in settings.report_to:
        import wandb

        wandb.finish()
