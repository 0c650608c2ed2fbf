"""What selection asks of a model, whatever runs it: numbers in, numbers out, no decision.

Fleets, features and states are the runtime's own and are only handed back to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]


class Match(NamedTuple):
    """What the robot head says of tasks.

    Attributes:
        leaders, members: logits of leading and of going along, (tasks, robots) each.
        counts: of how many go, (tasks, most counted): 1, 2 ... or so many and more.
    """

    leaders: Floats
    members: Floats
    counts: Floats


class Reader(Protocol):
    """Reads one text behind a fleet, with a key-value cache."""

    def read(self, ids: Sequence[int], position: int, features: Any = None) -> Any:
        """Take in tokens that stand at ``position`` and after it; returns the state at the last of them.

        Args:
            ids: the tokens.
            position: of the first.
            features: of the picture (:meth:`Runtime.see`) whose places are among them.
        """

    def logits(self, state: Any) -> Floats:
        """What may come after a state: (vocabulary,); the caller's own to change."""


class Runtime(Protocol):
    """A loaded model."""

    @property
    def tokenizer(self) -> Any:
        """What :func:`embervlm.tokens.encode_text` takes."""

    @property
    def positions(self) -> int:
        """Positions of the language model."""

    @property
    def image_tokens(self) -> int:
        """Places of a prompt that a picture takes."""

    def pixels(self, picture: Image.Image) -> Floats:
        """A picture as the encoder reads it, (3, size, size)."""

    def see(self, pixels: Sequence[Floats]) -> list[Any]:
        """The features of pictures."""

    def encode_fleet(self, texts: Sequence[Sequence[int]]) -> Any:
        """Encode a fleet's descriptions, given as token ids, each on its own."""

    def states(self, prompts: Sequence[Sequence[int]], features: Sequence[Any | None], fleet: Any) -> Any:
        """The states at the ends of prompts that are read together; ``features`` has each one's picture, or None."""

    def match(self, states: Any, tasks: Sequence[str], fleet: Any) -> Match:
        """Who leads, who goes along and how many go.

        Args:
            states: at ``<|robot_selection|>``, one a task.
            tasks: the tasks' texts.
            fleet: in use.
        """

    def reader(self, fleet: Any) -> Reader:
        """What reads one text behind a fleet."""
