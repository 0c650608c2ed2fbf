"""EmberVLM: looks at a scene, reads a task, and selects the robots of a fleet to send.

``RobotSelector`` answers, ``Fleet`` describes who can be sent. Importing the package is quick; torch and transformers
are loaded when a model is first needed.
"""

from __future__ import annotations

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
