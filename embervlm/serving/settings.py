"""What a server is told when it starts: limits, times, where it listens. The lowest file of the server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

#: The environment's variable that holds the bearer key; a key on the command line would stand in the list of processes.
KEY_VARIABLE = "EMBERVLM_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServingError(ValueError):
    """A server that cannot be started as asked."""


def key_from_environment() -> str | None:
    """The bearer key that requests must show; None where none is set.

    Raises:
        ServingError: it is set, but to nothing that a header could carry.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return None
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise ServingError(
            f"{KEY_VARIABLE} must be at least 8 printable ASCII characters without blanks, found {len(key)};"
            " set another, or unset it to ask for no key"
        )
    return key


@dataclass(frozen=True)
class Settings:
    """A server's settings.

    Attributes:
        model: a model folder, or the name of the model in the box.
        host, port: where it listens; port 0 takes a free one.
        slots: answers written at the same time, in one batch.
        queue: further requests that may wait; the next is refused with 429.
        timeout_s: seconds from a request's arrival to its answer; 503 after that.
        body_timeout_s: seconds for a request's body to arrive; 408 after that.
        drain_s: seconds that answers in work have to end once the server is told to stop.
        max_body_bytes: of one request; 413 above.
        max_buffered_bytes: of all requests' bodies together; 429 above.
        max_pixels: of a picture; decoding takes three bytes each.
        max_robots: of a request's own fleet.
        key: the bearer key; None asks for none.
    """

    model: str = "spark"
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 6
    queue: int = 2
    timeout_s: float = 30.0
    body_timeout_s: float = 10.0
    drain_s: float = 20.0
    max_body_bytes: int = 8 * 1024**2
    max_buffered_bytes: int = 64 * 1024**2
    max_pixels: int = 16_000_000
    max_robots: int = 32
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("slots", 1, 64),
            ("queue", 0, 1_000),
            ("port", 0, 65_535),
            ("timeout_s", 0.1, 3_600),
            ("drain_s", 0, 3_600),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ServingError(f"--{name.removesuffix('_s')} must be from {low} to {high}, found {value}")
