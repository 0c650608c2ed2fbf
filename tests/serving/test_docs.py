"""The calls to a server in the documents, executed: each answers as it is written there (`scripts/refresh_docs.py`)."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

import uvicorn

from embervlm.cli import _parser
from embervlm.selection import RobotSelector
from embervlm.serving.app import create_app
from embervlm.serving.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with the model in the box."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(Settings(slots=1), RobotSelector.from_pretrained("spark"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    for _ in range(600):
        if app.state.engine.ready:
            break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def rounded(answer: Any) -> Any:
    """Without times, and probabilities to three places: the rest depends on the order of additions."""
    answer.pop("timing_ms", None)
    for robot in answer["robots"]:
        robot["confidence"] = round(robot["confidence"], 3)
    return answer


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("name", "count"), [("docs/serving.md", 2), ("README.md", 1)])
def test_each_call_answers_as_written(address: str, name: str, count: int) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    calls = re.findall(r"```\n\$ (curl [^`]*?[^\\])\n((?:[{<])[^`]*?)```", text)
    assert len(calls) == count
    for command, expected in calls:
        words = shlex.split(command.replace("\\\n", " ").replace("http://127.0.0.1:8000", address))
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
        if expected.startswith("{"):
            assert rounded(json.loads(done.stdout)) == rounded(json.loads(expected))
        else:
            assert done.stdout.strip() == expected.strip()


def test_the_configuration_of_agents_is_one() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    configuration = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])["mcpServers"]["embervlm"]
    assert configuration["command"] == "embervlm" and _parser().parse_args(configuration["args"]).model == "spark"
