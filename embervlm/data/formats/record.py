"""What every reader of a format shares: how it is declared, what it yields and counts, and how it cleans text."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from embervlm.data.files import Pictures
from embervlm.data.json_files import Head
from embervlm.data.sample import DataError, Split, Style

MAX_TEXT_CHARACTERS = 50_000
_HELD_OUT = re.compile(r"(?:^|[^a-z])(?:mini)?(?:val|test)(?:idation|dev|std)?(?![a-z])")
TEXT_TOO_LONG = f"text longer than {MAX_TEXT_CHARACTERS:,} characters"


NO_PICTURE = -1


class Row(NamedTuple):
    """A usable record, as the index keeps it; see :class:`embervlm.data.sample.Sample`.

    Attributes:
        dataset: the data set.
        id: the record's own id.
        style: how it reads.
        split: ``validation`` where the publisher says so.
        picture: its picture's number in :class:`Pictures`, or ``NO_PICTURE``.
        turns: question and answer of each exchange.
    """

    dataset: str
    id: str | int
    style: Style
    split: Split
    picture: int
    turns: Sequence[tuple[str, str]]


class Ids:
    """The ids of one list of records, which must differ. Each takes sixteen bytes until the check."""

    def __init__(self, file: Path, list_name: str, key: str) -> None:
        self.file, self.list_name, self.key = file, list_name, key
        self._hashes, self._places = array("q"), array("q")

    def add(self, value: object, place: int) -> bool:
        """Note the id of the record at ``place``; False where it is no id, neither a whole number nor text."""
        if type(value) is not int and type(value) is not str:
            return False
        self._hashes.append(value if type(value) is int and abs(value) < 2**62 else hash(value))
        self._places.append(place)
        return True

    def add_texts(self, ids: Sequence[str], start: int) -> None:
        """Note the ids, texts all, of the records from number ``start`` on."""
        self._hashes.extend(map(hash, ids))
        self._places.extend(range(start, start + len(ids)))

    def check(self) -> None:
        """Raise if an id was given to two records.

        Raises:
            DataError: names the file and the second record's place.
        """
        # Two different ids share their 64 bits once in 10^7 files of a million records.
        found = np.frombuffer(self._hashes, np.int64) if self._hashes else np.empty(0, np.int64)
        order = np.argsort(found, kind="stable")
        same = np.flatnonzero(found[order][1:] == found[order][:-1])
        if len(same):
            second = self._places[int(order[same + 1].min())]
            raise DataError(f"{self.file}: {self.list_name}[{second}]: {self.key} occurs twice")


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
        self, pictures: Pictures, name: object, place: str, *, split_folder: str | None, near: Path
    ) -> int | None:
        """Find a usable record's picture and count the outcome; see :meth:`Pictures.find`."""
        return self.count_picture(pictures.find(name, place, split_folder=split_folder, near=near), name)

    def count_picture(self, found: int | None, name: object) -> int | None:
        """Count whether a usable record's picture called ``name`` was found."""
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


Read = Callable[[Sequence[Path], Pictures, Ledger], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Format:
    """One publisher's format.

    Attributes:
        name: what messages call it.
        datasets: the data sets that its files hold, by the names that ``--datasets`` takes.
        stage: the training stage that takes it.
        layout: what its files look like, for messages.
        recognise: whether a JSON file, by its first record, is one of this format.
        read: yields the usable records of all files of this format and counts what it leaves out.
        suffixes: of files other than JSON that may be of this format.
        recognise_file: whether a file with such a suffix is.
        few_files: only some of its training files are read, as :class:`embervlm.data.loaders.Caps` says.
    """

    name: str
    datasets: tuple[str, ...]
    stage: Literal[1, 2]
    layout: str
    recognise: Callable[[Head], bool]
    read: Read
    suffixes: tuple[str, ...] = ()
    recognise_file: Callable[[Path], bool] = lambda file: False
    few_files: bool = False


def split_of(name: str) -> Split:
    """``validation`` for the name of a publisher's validation or test file, such as ``captions_val2017``."""
    return "validation" if _HELD_OUT.search(name.lower()) else "train"


def split_folder_of(name: str) -> str | None:
    """The image folder that an annotation file's name speaks of: ``train2017`` for ``captions_train2017.json``."""
    found = re.search(r"(?:train|val|test)20\d\d", name)
    return found.group() if found else None


def coco_number(image_id: object) -> int | None:
    """A COCO picture's number, given as a number or in digits; None where it is neither."""
    if isinstance(image_id, str) and re.fullmatch("[0-9]{1,12}", image_id):
        return int(image_id)
    return image_id if type(image_id) is int and 0 <= image_id < 10**12 else None


def clean_line(value: object) -> str | None:
    """Text as one line without extra blanks; None where it is no text, empty, or not valid Unicode."""
    if not isinstance(value, str):
        return None
    text = " ".join(value.split())
    return text if text and _is_unicode(text) else None


def clean_text(value: object) -> str | None:
    """Text without blanks around it, line breaks kept; None where it is no text, empty, or not valid Unicode."""
    if not isinstance(value, str):
        return None
    text = value.strip()
    return text if text and _is_unicode(text) else None


def _is_unicode(text: str) -> bool:
    # Half of a surrogate pair can be written in JSON, but no tokenizer or log file takes it.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


def majority(answers: Any) -> str | None:
    """The answer most given in a list of texts or of objects with ``answer``; among equals the first."""
    if not isinstance(answers, list):
        return None
    texts = (clean_line(given.get("answer") if isinstance(given, dict) else given) for given in answers)
    # A Counter keeps the order in which it saw them.
    most = Counter(text for text in texts if text is not None).most_common(1)
    return most[0][0] if most else None
