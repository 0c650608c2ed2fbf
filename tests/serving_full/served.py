"""What the long checks know of the server that they ask."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import requests

SLOTS, QUEUE = 8, 4


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
