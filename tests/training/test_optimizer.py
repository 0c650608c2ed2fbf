"""How fast the parts of a model learn, and which of them decay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from embervlm.training.engine import optimizer_for
from embervlm.training.pipeline import STUDIED_RATES


def test_parts_learn_at_their_shares_of_the_rate(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    model = make_tiny()
    model.projector.requires_grad_(False)
    arguments = TrainingArguments(output_dir=str(tmp_path), learning_rate=1e-2, weight_decay=0.1, use_cpu=True)

    optimizer = optimizer_for(model, arguments, STUDIED_RATES)

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert set(found) == {name for name in names.values() if not name.startswith("projector.")}
    assert {name for name, (_, decay) in found.items() if not decay} >= {
        "language_model.transformer.wte.weight",
        "language_model.transformer.ln_f.weight",
    }
    assert found["language_model.transformer.h.0.mlp.c_fc.weight"][1] == 0.1
    for name, (rate, _) in found.items():
        studied = name.startswith(("robot_head.text_encoder.", "robot_head.by_meaning."))
        assert rate == 1e-2 * (0.5 if ".wte." in name else 0.2 if studied else 1.0), name
    # The log tells the rate of the first group.
    assert optimizer.param_groups[0]["lr"] == 1e-2
