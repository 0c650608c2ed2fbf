"""Hostile requests to a real server: every operation fuzzed, pictures that are none, bodies and numbers too large."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests
from made_pictures import bomb, picture
from served import Served

schemathesis = pytest.importorskip("schemathesis", reason="install the extra 'test-serve'")
EXAMPLES = 500


def test_every_operation_survives_whatever_its_document_allows_and_forbids(served: Served) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"{served.url}/openapi.json", "--checks", "not_a_server_error", "--mode", "all"),
            *("--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing", "--seed", "0", "--no-color"),
            *("--request-timeout", "60"),
        ],
        capture_output=True,
        text=True,
        timeout=3_000,
    )
    assert done.returncode == 0, done.stdout[-6_000:]


def test_hostile_pictures_one_after_another(served: Served, shared: Path) -> None:
    files = sorted(
        path for path in (shared / "hostile" / "images").rglob("*") if path.is_file() and path.suffix != ".json"
    )
    assert len(files) > 400
    seen = set()
    for file in files:
        data = {"task": (None, "Film the roof"), "reason": (None, "false"), "image": (file.name, file.read_bytes())}
        seen.add(requests.post(f"{served.url}/v1/select", files=data, timeout=60).status_code)
    assert seen == {200, 422}
    assert requests.get(f"{served.url}/healthz", timeout=10).ok


def test_what_is_too_much_is_refused_at_once_and_costs_no_memory(served: Served) -> None:
    def post(**files: object) -> requests.Response:
        return requests.post(f"{served.url}/v1/select", files={"task": (None, "x"), **files}, timeout=60)

    huge = bomb(9_000, 9_000)
    chat = {"model": "spark", "messages": [{"role": "user", "content": "x"}]}
    tries = {
        "81 megapixels": lambda: post(image=("x", huge)),
        "10 MB": lambda: requests.post(f"{served.url}/v1/select", data=bytes(10_000_000), timeout=60),
        "1x1": lambda: post(image=("x", picture(1, 1))),
        "1x10000": lambda: post(image=("x", picture(1, 10_000))),
        "-1 tokens": lambda: requests.post(
            f"{served.url}/v1/chat/completions", json=chat | {"max_tokens": -1}, timeout=60
        ),
        "huge tokens": lambda: requests.post(
            f"{served.url}/v1/chat/completions", json=chat | {"max_tokens": 10**18}, timeout=60
        ),
    }
    post(image=("x", picture()))
    before = served.process.memory_info().rss
    for name, attempt in tries.items():
        times = []
        for _ in range(5):
            started = time.perf_counter()
            response = attempt()
            times.append(time.perf_counter() - started)
            assert 400 <= response.status_code < 500, (name, response.status_code)
        print(f"{name}: {response.status_code} in {1000 * sorted(times)[2]:.0f} ms")
    grown = served.process.memory_info().rss - before
    print(f"memory grew by {grown / 1e6:.0f} MB")
    assert grown <= 50_000_000
