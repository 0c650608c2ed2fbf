"""Names that tell annotation files apart; readers make the ids of records without an id of their own from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def distinct_names(files: Sequence[Path]) -> dict[Path, str]:
    """Each file's name, with as many of its last folders before it as it takes to tell it from the others."""
    names = {file: file.name for file in files}
    for depth in range(2, 1 + max((len(file.parts) for file in names), default=0)):
        shared = {name for name, count in Counter(names.values()).items() if count > 1}
        if not shared:
            break
        names = {file: "/".join(file.parts[-depth:]) if name in shared else name for file, name in names.items()}
    return names
