"""What a teacher knows of many texts and robots: made once, kept in one file, read by every process and on a resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from embervlm.fleet import Robot
from embervlm.folders import one_line

logger = logging.getLogger(__name__)

_FORMAT = "embervlm-lessons/1"
_TENSORS = ("vectors", "robot_vectors", "leading", "going")


@dataclass(frozen=True)
class Lessons:
    """A teacher's vectors and judgements, in half precision, so that who made them and who reads them have the same.

    Attributes:
        texts: tasks of training as they are written, and altered ones.
        vectors: the encoder's, (texts, encoder's width).
        robots: of the run's fleet first, then those of other fleets.
        robot_vectors: of their descriptions, (robots, encoder's width).
        leading, going: the logits of each robot, (texts, robots).
        made_of: a hash of what all of it depends on.
    """

    texts: list[str]
    vectors: Tensor
    robots: tuple[Robot, ...]
    robot_vectors: Tensor
    leading: Tensor
    going: Tensor
    made_of: str = ""

    def write(self, path: Path) -> None:
        """Write them as safetensors, whole or not at all."""
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        tensors["texts"] = torch.frombuffer(bytearray(json.dumps(self.texts).encode()), dtype=torch.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(save(tensors, {_FORMAT: self.made_of}))
        temporary.rename(path)

    @classmethod
    def read(cls, path: Path, made_of: str, robots: Sequence[Robot]) -> Lessons | None:
        """Those of a file that was made of the same; None where there is none, or it is damaged.

        Args:
            path: the file.
            made_of: what they must depend on.
            robots: whom they are about.
        """
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                # One entry, since the library writes several in any order.
                if (file.metadata() or {}).get(_FORMAT) != made_of:
                    logger.info("teacher: %s was made of other tasks, texts or another encoder; it is made anew", path)
                    return None
                tensors = {name: file.get_tensor(name) for name in (*_TENSORS, "texts")}
            texts = json.loads(tensors.pop("texts").numpy().tobytes())
            found = cls(texts, **tensors, robots=tuple(robots), made_of=made_of)
            found._check()
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning(
                "teacher: %s is damaged (%s: %s); it is made anew", path, type(error).__name__, one_line(error)
            )
            return None
        return found

    def _check(self) -> None:
        texts, robots, width = len(self.texts), len(self.robots), self.vectors.shape[-1]
        shapes = {name: tuple(getattr(self, name).shape) for name in _TENSORS}
        expected = {
            "vectors": (texts, width),
            "robot_vectors": (robots, width),
            "leading": (texts, robots),
            "going": (texts, robots),
        }
        if shapes != expected:
            raise ValueError(f"{texts} texts and {robots} robots, but shapes {shapes}")
