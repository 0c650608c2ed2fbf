"""The model card: what a trained model is, what it was trained on and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(model: Any, metrics: Mapping[str, Any]) -> str:
    """The ``README.md`` of a model folder.

    Args:
        model: the trained model.
        metrics: the run's ``metrics.json``: an entry for each stage, and ``validation``.
    """
    text, vision = model.config.text_config, model.config.vision_config
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "license: mit",
        "---",
        "",
        "# EmberVLM",
        "",
        f"A vision-language model of {model.num_parameters() / 1e6:.1f}M parameters that looks at a scene,",
        "reads a task and selects the robots of a fleet to send.",
        "",
        f"- Vision: RepViT, {vision.image_size} px, {vision.image_tokens} visual tokens",
        f"- Language: GPT-2 style, {text.n_layer} layers, width {text.n_embd}, {text.n_positions} positions",
        "",
        "## Training",
        "",
        "| stage | training samples | validation samples | steps | validation loss |",
        "|---|---|---|---|---|",
    ]
    for stage in (1, 2, 3):
        entry = metrics.get(f"stage{stage}")
        if entry is not None:
            loss = entry.get("validation_loss")
            lines.append(
                f"| {stage} | {entry['train_samples']} | {entry['validation_samples']} | {entry['steps']} | "
                f"{'-' if loss is None else format(loss, '.3f')} |"
            )
    measured = metrics.get("validation")
    if measured is not None:
        lines += [
            "",
            "## Measured",
            "",
            f"On {measured['tasks']} validation tasks whose texts were not trained on, and on which the calibration",
            "was fitted too:",
            f"the leading robot is right in {measured['leader_accuracy']:.1%}, the whole set in "
            f"{measured['exact_set']:.1%}.",
        ]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from embervlm import RobotSelector",
        "",
        'selector = RobotSelector.from_pretrained("path/to/this/folder")',
        'print(selector.select("Inspect the pipe for cracks", image="scene.jpg").to_dict())',
        "```",
        "",
        "## Limits",
        "",
        "It knows the kinds of scenes and tasks that it was trained on.",
        "Where a wrong robot does harm, a person decides.",
        "",
    ]
    return "\n".join(lines)
