"""The model card: what a trained model is, what it was trained on and what was measured, as a model hub reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

#: What hubs list the model under; the licence is the package's.
_TAGS = ["embervlm", "robotics", "robot-selection", "vision-language", "task-planning"]
_CALIBRATION = "## Calibration"
#: What is told of a calibration: in words, the field of ``recalibration.Held``, and whether it is a share.
CALIBRATION_ROWS = (
    ("leading robot right", "leader_accuracy", True),
    ("exactly the right robots", "exact_set", True),
    ("calibration error (ECE)", "ece", False),
    ("prediction sets for 90% that have a right leader", "covered", True),
    ("mean robots in such a set", "robots", False),
)
_VALIDATION = "validation tasks of the training run"


def model_card(model: Any, metrics: Mapping[str, Any]) -> str:
    """The ``README.md`` of a model folder. It names no file or folder of the machine that trained.

    Args:
        model: the trained model.
        metrics: the run's ``metrics.json``: an entry for each stage, ``validation`` and ``other_fleets``.
    """
    text, vision = model.config.text_config, model.config.vision_config
    measured, others = metrics.get("validation"), metrics.get("other_fleets") or {}
    lines = [
        "---",
        _head(metrics),
        "---",
        "",
        "# EmberVLM",
        "",
        f"A vision-language model of {model.num_parameters() / 1e6:.1f}M parameters that looks at a scene,",
        "reads a task and selects the robots of a fleet to send.",
        "",
        f"- Vision: RepViT, {vision.image_size} px, {vision.image_tokens} visual tokens; {_start(model, 'vision')}",
        f"- Language: GPT-2 style, {text.n_layer} layers, width {text.n_embd}, {text.n_positions} positions;"
        f" {_start(model, 'language')}",
        "- Robot head: chooses among the descriptions of whatever fleet it is given",
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
        if "leader_accuracy" in others:
            lines.append(
                f"Of {others['tasks']} validation tasks of other fleets, among at most {others['robots']} robots, the"
                f" leading robot is right in {others['leader_accuracy']:.1%}."
            )
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
        "After `import embervlm` it also loads with transformers' `AutoModelForImageTextToText` and `AutoProcessor`.",
        "`fleet.yaml` has the robots that it was trained for; others can be given with each question.",
        "",
        "## Limits",
        "",
        "It knows the kinds of scenes and tasks that it was trained on.",
        "Where a wrong robot does harm, a person decides.",
        "",
    ]
    return "\n".join(lines)


def with_calibration(card: str, found: Mapping[str, Any]) -> str:
    """A model's card with a section on its calibration, in place of one that it has.

    Args:
        card: the card.
        found: as ``Recalibration.to_dict`` gives it.
    """
    before, after = found["before"], found["after"]

    def cell(figure: Mapping[str, Any] | None, share: bool) -> str:
        return "-" if figure is None else f"{figure['value']:.1%}" if share else f"{figure['value']:.3f}"

    lines = [
        _CALIBRATION,
        "",
        f"Fitted anew, after training, on {found['tasks']} tasks that were not trained on, {found['pictured']} of them"
        " with a picture; that is what",
        "confidences, thresholds and prediction sets stand on. Of these tasks, each by a calibration of the others:",
        "",
        "| | as trained | fitted anew |",
        "|---|---|---|",
        *(
            f"| {name} | {cell(before[key], share)} | {cell(after[key], share)} |"
            for name, key, share in CALIBRATION_ROWS
        ),
        "",
    ]
    kept, _, former = card.partition(f"\n{_CALIBRATION}\n")
    _, heading, rest = former.partition("\n## ")
    return f"{kept.rstrip()}\n\n" + "\n".join(lines) + heading + rest


def _start(model: Any, part: str) -> str:
    return "from trained weights" if getattr(model.config, f"{part}_pretrained") else "from nothing"


def _head(metrics: Mapping[str, Any]) -> str:
    """The card's metadata in YAML, the measured figures as a model index."""
    results = []
    # A model index tells data sets apart by their type alone.
    for key, name, kind_of_data in (
        ("validation", _VALIDATION, "robot-selection"),
        ("other_fleets", f"{_VALIDATION}, of other fleets", "robot-selection-other-fleets"),
    ):
        measured = metrics.get(key) or {}
        for figure, kind, meaning in (
            ("leader_accuracy", "accuracy", "leading robot right"),
            ("exact_set", "exact_match", "exactly the right robots"),
        ):
            if figure in measured:
                results.append(
                    EvalResult(
                        task_type="image-text-to-text",
                        task_name="robot selection",
                        dataset_type=kind_of_data,
                        dataset_name=f"{measured['tasks']} {name}",
                        metric_type=kind,
                        metric_name=meaning,
                        metric_value=round(float(measured[figure]), 4),
                    )
                )
    data = ModelCardData(
        language="en",
        license="mit",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=list(_TAGS),
        # An index without a result would be refused.
        model_name="EmberVLM" if results else None,
        eval_results=results or None,
        metrics=sorted({result.metric_type for result in results}) or None,
    )
    return str(data.to_yaml())
