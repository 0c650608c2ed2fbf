"""What files a data folder holds, listed once, and which picture of them a record's file name means.

The readers take their annotation files and pictures from here.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from embervlm.data.sample import DataError, PackedPicture, Picture, image_key, key_hash

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_FILES = 20_000_000
MAX_NAME_CHARACTERS = 1_000
_REMEMBERED_AT_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Listing:
    """The files below a folder, and what shows later whether that has changed.

    Attributes:
        root: the folder, links in its own path resolved.
        files: paths of the files below it that are no pictures, sorted.
        pictures: names of the pictures, by their folder's path; folders and names sorted.
        folders: when each folder below it, and the folder itself, was last changed, in nanoseconds.
        links_out: links that are not followed because they leave the folder or lead nowhere, sorted.
    """

    root: Path
    files: tuple[str, ...]
    pictures: dict[str, list[str]]
    folders: dict[str, int]
    links_out: tuple[str, ...] = ()

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """The files whose name ends so, in whatever case."""
        return [Path(file) for file in self.files if file.lower().endswith(suffixes)]


def list_folder(folder: Path) -> Listing:
    """List every file below ``folder``, each folder read once.

    Links to files inside the folder are listed under their own name. Links to folders inside it are not followed: what
    they lead to is listed where it lies. Links out of the folder are never followed.

    Raises:
        DataError: the folder is missing or cannot be read.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: expected a folder with data, found {found}")
    root = folder.resolve()
    files: list[str] = []
    pictures: dict[str, list[str]] = {}
    folders: dict[str, int] = {}
    links_out: list[str] = []
    pending = [str(root)]
    count = 0
    while pending:
        current = pending.pop()
        names: list[str] = []
        try:
            folders[current] = Path(current).stat().st_mtime_ns
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        target = _target(entry.path)
                        if target is None or not target.is_relative_to(root):
                            links_out.append(entry.path)
                            continue
                        is_file = target.is_file()
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                        continue
                    else:
                        is_file = entry.is_file(follow_symlinks=False)
                    if is_file:
                        count += 1
                        if entry.name.lower().endswith(PICTURE_SUFFIXES):
                            names.append(entry.name)
                        else:
                            files.append(entry.path)
        except OSError as error:
            raise DataError(f"{current}: cannot list the folder ({error.strerror or error})") from None
        if count > MAX_FILES:
            raise DataError(f"{root}: more than {MAX_FILES:,} files; give the folder of one data set")
        if names:
            pictures[current] = sorted(names)
    return Listing(root, tuple(sorted(files)), dict(sorted(pictures.items())), folders, tuple(sorted(links_out)))


def _target(link: str) -> Path | None:
    try:
        return Path(link).resolve(strict=True)
    except (OSError, RuntimeError):  # leads nowhere, or in a circle (RuntimeError before Python 3.13)
        return None


def relative_name(name: object, place: str) -> PurePosixPath:
    """Check a file name that an annotation file gives.

    Args:
        name: what the record holds.
        place: file and record, for the message.

    Returns:
        the name as a relative path without ``..``.

    Raises:
        DataError: no text, empty, too long, absolute, or with parts that leave the folder.
    """
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{place}: expected the name of a picture, found {name!r:.60}")
    if len(name) > MAX_NAME_CHARACTERS:
        raise DataError(f"{place}: the picture's name has {len(name)} characters; at most {MAX_NAME_CHARACTERS} can be")
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{place}: picture {name!r:.120} is an absolute path; it must be relative to the data folder")
    if ".." in path.parts:
        raise DataError(f"{place}: picture {name!r:.120} leaves the data folder; '..' is not allowed in names")
    if not path.parts or not name.isprintable():
        raise DataError(f"{place}: picture {name!r:.120} is not a file name")
    return path


class Pictures:
    """The pictures below one or more folders, by number, and which of them a record's picture name means.

    Pictures that lie inside other files are added by the readers. What is kept of a picture is its name and a few
    numbers, since there can be millions.
    """

    def __init__(self, listings: Iterable[Listing] = ()) -> None:
        #: folders of single files, and files that hold packed pictures
        self.places: list[str] = []
        self.place_of = array("i")
        self.names: list[str] = []  # of the single files only
        self.positions = array("q")  # of the packed ones, which come after the single files
        self.sizes = array("q")
        self.keys = array("Q")
        self._parts: list[tuple[str, ...]] = []  # of the folders' paths
        self._outside: set[str] = set()
        seen: set[str] = set()
        for listing in listings:
            for folder, names in listing.pictures.items():
                if folder in seen:  # one folder can be below two of those given
                    continue
                seen.add(folder)
                self.place_of.extend([len(self.places)] * len(names))
                self.places.append(folder)
                self._parts.append(PurePosixPath(folder).parts)
                self.names += names
                self.keys.extend(key_hash(image_key(name)) for name in names)
            self._outside.update(PurePosixPath(link).name for link in listing.links_out)
        keys = np.frombuffer(self.keys, np.uint64) if self.keys else np.empty(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        self._sorted_keys, self._order = array("Q", keys[order].tobytes()), array("q", order.tobytes())
        self._hints: tuple[str | None, Path | None] | None = None
        self._found: dict[str, int | None] = {}

    @classmethod
    def of(cls, *folders: Path) -> Pictures:
        """List ``folders`` and take their pictures.

        Raises:
            DataError: a folder is missing.
        """
        return cls(list_folder(folder) for folder in folders)

    def __len__(self) -> int:
        return len(self.place_of)

    def __getitem__(self, number: int) -> Picture:
        """Where picture ``number`` is."""
        place = self.places[self.place_of[number]]
        if number < len(self.names):
            return Path(place, self.names[number])
        packed = number - len(self.names)
        return PackedPicture(Path(place), self.positions[packed], self.sizes[packed])

    def add_packed(self, file: Path, position: int, size: int, key: str) -> int:
        """Add a picture that lies inside ``file`` (see :class:`PackedPicture`) and return its number.

        Args:
            file: the file that holds it.
            position, size: see :class:`PackedPicture`.
            key: what identifies the picture across data sets.
        """
        if not self.places or self.places[-1] != str(file):
            self.places.append(str(file))
        self.place_of.append(len(self.places) - 1)
        self.positions.append(position)
        self.sizes.append(size)
        self.keys.append(key_hash(key))
        return len(self.place_of) - 1

    def find(
        self,
        name: object,
        place: str,
        *,
        split_folder: str | None = None,
        near: Path | None = None,
        again: bool = True,
    ) -> int | None:
        """The number of the picture that ``name`` means, or None where there is none or it cannot be told which.

        The file whose path agrees with most of ``name``'s folders wins; then one below a folder called
        ``split_folder``; then the one nearest to ``near``. A name with folders needs at least its last folder to
        agree, so that ``kitchen/1.jpg`` is never answered with ``garage/1.jpg``. COCO's numbers are the same
        photograph everywhere: they are found in any folder, and under their 2014 as under their 2017 name.

        Args:
            name: as the record gives it.
            place: file and record, for the message.
            split_folder: for example ``train2017`` for records of ``captions_train2017.json``.
            near: the annotation file's folder.
            again: whether the name may come again; if not, what it means is not remembered.

        Raises:
            DataError: ``name`` is no relative file name (see :func:`relative_name`), or a link that leaves the folder.
        """
        if self._hints != (split_folder, near):
            self._hints, self._found = (split_folder, near), {}
        # Only names that passed the check are remembered, so a name found here needs no second one.
        if isinstance(name, str) and name in self._found:
            return self._found[name]
        parts = relative_name(name, place).parts
        found = self._find(parts, split_folder, near)
        if found is None and not self._outside.isdisjoint(parts):
            raise DataError(
                f"{place}: picture {name!r:.120} leaves the data folder by a link; put the file itself there"
            )
        if again:
            if len(self._found) >= _REMEMBERED_AT_MOST:
                self._found.clear()
            self._found[str(name)] = found
        return found

    def _find(self, name: tuple[str, ...], split_folder: str | None, near: Path | None) -> int | None:
        key = image_key(name[-1])
        is_coco = key.startswith("coco/")
        wanted = key_hash(key)
        fitting: list[int] = []
        at = bisect_left(self._sorted_keys, wanted)
        while at < len(self._sorted_keys) and self._sorted_keys[at] == wanted:
            number = self._order[at]
            if image_key(self.names[number]) == key:  # two keys could share their 64 bits
                fitting.append(number)
            at += 1
        if len(fitting) == 1 and (is_coco or len(name) == 1):
            return fitting[0]
        ranked = []
        for number in fitting:
            folders = self._parts[self.place_of[number]]
            agreeing = _common(reversed((*folders, self.names[number])), reversed(name))
            if not is_coco and agreeing < min(2, len(name)):
                continue
            closeness = _common(folders, near.parts) if near else 0
            ranked.append(((agreeing, split_folder in folders, closeness), number))
        if not ranked:
            return None
        best = max(rank for rank, _ in ranked)
        fitting = [number for rank, number in ranked if rank == best]
        return fitting[0] if is_coco or len(fitting) == 1 else None


def _common(first: Iterable[str], second: Iterable[str]) -> int:
    """How many parts agree before the first that does not."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
