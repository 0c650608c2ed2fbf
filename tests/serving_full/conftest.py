"""A real server with the model in the box, for the long checks of `make test-serve`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
import requests
from served import QUEUE, SLOTS, Served


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    command = [
        sys.executable,
        "-m",
        "embervlm.cli",
        "serve",
        "--port",
        "0",
        "--slots",
        str(SLOTS),
        "--queue",
        str(QUEUE),
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={"OMP_NUM_THREADS": "1"} | os.environ)
    try:
        assert server.stderr is not None
        url = next(line for line in server.stderr if "listening on" in line).split("listening on ")[1].strip()
        for _ in range(600):
            if requests.get(f"{url}/readyz", timeout=10).ok:
                break
            time.sleep(0.05)
        yield Served(url, psutil.Process(server.pid))
        assert server.poll() is None, "the server has died"
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
