"""The script that takes the documents' answers anew replaces answers alone, and finds every call."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def refresh() -> Any:
    spec = importlib.util.spec_from_file_location("refresh_docs", ROOT / "scripts" / "refresh_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_answers_are_replaced_and_nothing_else(refresh: Any) -> None:
    text = (
        'Before.\n\n```\n$ embervlm select --task "a b" \\\n    --json\nold\nanswer\n```\nBetween.\n'
        "```\n$ curl -s x\nkept\n```\n```\n$ make demo\nnot a call\n```\n"
    )
    asked: list[list[str]] = []

    def answer(words: list[str]) -> str | None:
        asked.append(words)
        return None if words[0] == "curl" else "new\n\n"

    assert refresh.refreshed(text, answer) == text.replace("old\nanswer", "new")
    assert asked == [["embervlm", "select", "--task", "a b", "--json"], ["curl", "-s", "x"]]


def test_every_call_in_the_documents_is_found(refresh: Any) -> None:
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = file.read_text(encoding="utf-8")
        asked: list[list[str]] = []
        assert refresh.refreshed(text, asked.append) == text
        assert len(asked) == len(re.findall(r"^\$ (?:embervlm|curl) ", text, re.MULTILINE)), file.name


def test_a_call_about_what_is_not_there_is_left(refresh: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert refresh.made(["embervlm", "select", "--model", "nothing/here", "--task", "Look."], "") is None
    assert "left as it is, for nothing/here is not there" in capsys.readouterr().err
