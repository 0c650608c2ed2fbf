"""The model card as a hub reads it: its head is parsed, its figures are the measured ones, it names no place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from embervlm.evaluation.card import model_card

ROOT = Path(__file__).resolve().parents[2]
METRICS = {
    "stage1": {"train_samples": 10, "validation_samples": 0, "steps": 3},
    "stage3": {"train_samples": 20, "validation_samples": 4, "steps": 5, "validation_loss": 1.25},
    "validation": {"tasks": 40, "leader_accuracy": 0.8187390542, "exact_set": 0.725},
    "other_fleets": {"tasks": 8, "robots": 6, "leader_accuracy": 0.5},
}


def test_the_head_holds_what_a_hub_needs(make_tiny: Callable[..., Any]) -> None:
    card = ModelCard(model_card(make_tiny(), METRICS))
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "image-text-to-text")
    assert "robotics" in data.tags and data.language == "en" and data.metrics == ["accuracy", "exact_match"]
    results = [(each.dataset_name, each.metric_type, each.metric_value) for each in data.eval_results]
    assert sorted(results) == sorted(
        [
            ("40 validation tasks of the training run", "accuracy", 0.8187),
            ("8 validation tasks of the training run, of other fleets", "accuracy", 0.5),
            ("40 validation tasks of the training run", "exact_match", 0.725),
        ]
    )
    assert "81.9%" in card.text and "| 3 | 20 | 4 | 5 | 1.250 |" in card.text and "| 1 | 10 | 0 | 3 | - |" in card.text
    assert "from nothing" in card.text


def test_without_figures_there_is_no_index(make_tiny: Callable[..., Any]) -> None:
    card = ModelCard(model_card(make_tiny(), {"other_fleets": {"tasks": 0}}))
    assert card.data.eval_results is None and card.data.metrics is None and "Measured" not in card.text


@pytest.mark.parametrize("name", ["docs/spark.md", "embervlm/box/spark/README.md"])
def test_the_card_of_the_model_in_the_box_is_read(name: str) -> None:
    data = ModelCard.load(ROOT / name).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "image-text-to-text")


def test_the_card_in_the_box_is_the_one_that_is_shown() -> None:
    of_box = (ROOT / "embervlm/box/spark/README.md").read_text(encoding="utf-8")
    assert of_box == (ROOT / "docs/spark.md").read_text(encoding="utf-8")
