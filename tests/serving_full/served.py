"""What the long checks know of the server that they ask."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import requests

#: Of the server that is asked; with less room than eight clients need, the test of those is for another server.
SLOTS, QUEUE = int(os.environ.get("SERVE_SLOTS", "6")), int(os.environ.get("SERVE_QUEUE", "2"))


@dataclass
class Served:
    """A running server."""

    url: str
    process: psutil.Process

    def metric(self, name: str) -> float:
        text = requests.get(f"{self.url}/metrics", timeout=10).text
        return sum(
            float(line.rpartition(" ")[2]) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name
        )
