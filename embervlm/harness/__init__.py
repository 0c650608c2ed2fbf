"""The plug-in for ``lmms-eval``, which finds :func:`manifest` by the entry point ``lmms_eval.models``.

With both installed, ``lmms-eval --model embervlm --model_args pretrained=DIR --tasks ...`` scores a model. Nothing here
is imported otherwise, and lmms-eval is not a dependency.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What the harness registers: the model's name and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="embervlm", simple_class_path="embervlm.harness.model.EmberVLM")
