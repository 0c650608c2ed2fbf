"""EmberVLM: looks at a scene, reads a task, and selects the robots of a fleet to send.

``RobotSelector`` answers, ``Fleet`` describes who can be sent. Importing the package registers the model with
transformers' Auto classes, and is quick: torch and transformers are loaded when they are first needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from embervlm.fleet import Fleet, Robot

if TYPE_CHECKING:
    from embervlm.selection import RobotSelector, Selection

__version__ = "0.1.0"
__all__ = ["Fleet", "Robot", "RobotSelector", "Selection", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("RobotSelector", "Selection"):
        from embervlm import selection

        return getattr(selection, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _RegisterWithTransformers:
    """Registers the Auto classes as soon as transformers is imported, so that importing us does not import it."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Let transformers be found as usual, and import our model right after it."""
        if name != "transformers":
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                importlib.import_module("embervlm.model")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if importlib.util.find_spec("torch") is not None:
    if "transformers" in sys.modules:
        importlib.import_module("embervlm.model")
    else:
        sys.meta_path.insert(0, _RegisterWithTransformers)
