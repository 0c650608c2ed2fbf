"""The messages on the page of troubles are the code's own, word for word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").partition("## Of other libraries")[0]
#: On a line of its own, or in the second column of the table.
QUOTED = re.findall(r"^`(.+)`$|^\| \d+ \| `([^`]+)` \|", PAGE, re.MULTILINE)
MESSAGES = [first or second for first, second in QUOTED]
HOLE = "\0"


def texts(node: ast.AST) -> Iterator[str]:
    """Every text of some code, a hole where a value is put in: f-strings, and the logger's %s and the like."""
    for each in ast.walk(node):
        if isinstance(each, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in each.values)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield re.sub(r"%[sd]", HOLE, each.value)


@pytest.fixture(scope="module")
def code() -> list[str]:
    files = sorted((ROOT / "embervlm").rglob("*.py"))
    return [text for file in files for text in texts(ast.parse(file.read_text(encoding="utf-8")))]


def says(text: str, message: str) -> bool:
    """Whether a text of the code reads like a message, whose holes may stand for what the code has there."""
    pattern = "".join(
        f"[^{HOLE}]*{HOLE}.*" if part == "…" else re.escape(part)
        for part in re.split("(…)", message.replace("%s", "…"))
    )
    return re.search(pattern, text, re.DOTALL) is not None


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_in_the_code(message: str, code: list[str]) -> None:
    # A leading hole may be another text, which the code puts before it.
    assert any(says(text, message.removeprefix("…: ").removeprefix("…. ")) for text in code), message


def test_the_check_sees_a_word_that_differs(code: list[str]) -> None:
    assert len(MESSAGES) >= 50
    assert any(says(text, "two robots of the fleet are called … (case") for text in code)
    assert not any(says(text, "two robots in the fleet are called … (case") for text in code)
    assert not any(says(text, "two robots of the fleet are called Drone (case") for text in code)
