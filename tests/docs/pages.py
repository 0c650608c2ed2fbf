"""The documents as tests read them: their blocks of code, and the commands in these.

What stands in an ``sh`` or ``python`` block of a page is run, in order, in an empty folder that holds links to the
repository's and the files that titled blocks show. What stands in other blocks (indented, or without a language) is
held against the programs' own flags, files and targets, and is not run: it needs a hub, hours or another machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PROGRAMS = (
    "embervlm",
    "torchrun",
    "python",
    "make",
    "pip",
    "curl",
    "pytest",
    "hf",
    "tensorboard",
    "jupyter",
    "lmms-eval",
)

_FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$|^((?: {4}\S[^\n]*\n)+)', re.MULTILINE | re.DOTALL)
_SET = re.compile(r"^(?:[A-Z][A-Z_0-9]*=\S+ +)+")


@dataclass(frozen=True)
class Block:
    """A block of code: its language (empty for an indented one, or without), the file that it shows, its text."""

    language: str
    title: str
    text: str

    @property
    def is_run(self) -> bool:
        return self.language in ("sh", "python")

    @property
    def commands(self) -> Iterator[str]:
        """The commands in it, each in one line, without a prompt, comments and variables that are set for it."""
        for line in self.text.replace("\\\n", " ").splitlines():
            command = _SET.sub("", re.sub(r"\s+# .*$", "", line.strip().removeprefix("$ ")))
            if command.split(" ")[0] in PROGRAMS:
                yield command


def blocks(page: Path) -> list[Block]:
    """A page's blocks, in order."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, title, fenced or indented) for language, title, fenced, indented in found]
