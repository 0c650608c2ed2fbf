"""What every reader of a format shares: how it is declared, what it counts, and how it cleans text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from embervlm.data.files import ImageFolder
from embervlm.data.json_files import Head
from embervlm.data.sample import Sample, Split

MAX_TEXT_CHARACTERS = 50_000
_HELD_OUT = re.compile(r"(?:^|[^a-z])(?:mini)?(?:val|test)(?:idation|dev|std)?(?![a-z])")
TEXT_TOO_LONG = f"text longer than {MAX_TEXT_CHARACTERS:,} characters"


@dataclass(slots=True)
class Tally:
    """What a reader saw of one data set.

    Attributes:
        files: annotation files in the order read.
        records: records seen.
        with_answer: records that have something to learn to say.
        with_image: usable records whose picture was found.
        rejected: records left out, by reason.
        missing_images: usable records left out because their picture was not found.
        first_missing: the first such picture's name.
        notes: what else a reader wants said, a line each.
    """

    files: list[Path] = field(default_factory=list)
    records: int = 0
    with_answer: int = 0
    with_image: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    missing_images: int = 0
    first_missing: str | None = None
    notes: list[str] = field(default_factory=list)

    def picture(
        self, images: ImageFolder, name: object, place: str, *, split_folder: str | None, near: Path
    ) -> Path | None:
        """Find a usable record's picture and count the outcome; see :meth:`ImageFolder.find`."""
        found = images.find(name, place, split_folder=split_folder, near=near)
        if found is None:
            self.missing_images += 1
            self.first_missing = self.first_missing or str(name)
        else:
            self.with_image += 1
        return found


class Ledger(defaultdict[str, Tally]):
    """A tally for each data set, made when it is first asked for."""

    def __init__(self) -> None:
        super().__init__(Tally)


Read = Callable[[Sequence[Path], ImageFolder, Ledger], Iterator[Sample]]


@dataclass(frozen=True, slots=True)
class Format:
    """One publisher's format.

    Attributes:
        name: what messages call it.
        stage: the training stage that takes it.
        layout: what its files look like, for messages.
        recognise: whether a file, by its first record, is one of this format.
        read: yields the samples of all files of this format and counts what it leaves out.
    """

    name: str
    stage: Literal[1, 2]
    layout: str
    recognise: Callable[[Head], bool]
    read: Read


def split_of(name: str) -> Split:
    """``validation`` for the name of a publisher's validation or test file, such as ``captions_val2017``."""
    return "validation" if _HELD_OUT.search(name.lower()) else "train"


def split_folder_of(name: str) -> str | None:
    """The image folder that an annotation file's name speaks of: ``train2017`` for ``captions_train2017.json``."""
    found = re.search(r"(?:train|val|test)20\d\d", name)
    return found.group() if found else None


def clean_line(value: object) -> str | None:
    """Text as one line without extra blanks; None where it is no text, empty, or not valid Unicode."""
    text = clean_text(value)
    return None if text is None else " ".join(text.split())


def clean_text(value: object) -> str | None:
    """Text without blanks around it, line breaks kept; None where it is no text, empty, or not valid Unicode."""
    if not isinstance(value, str):
        return None
    text = value.strip()
    # Half of a surrogate pair can be written in JSON, but no tokenizer or log file takes it.
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return None
    return text or None
