"""What files a data folder holds, listed once, and which picture of them a record's file name means.

The readers take their annotation files and pictures from here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embervlm.data.sample import DataError, image_key

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
MAX_FILES = 20_000_000
MAX_NAME_CHARACTERS = 1_000


@dataclass(frozen=True, slots=True)
class Listing:
    """The files below a folder.

    Attributes:
        root: the folder, links in its own path resolved.
        files: paths of the files below it, sorted.
        links_out: links that are not followed because they leave the folder or lead nowhere, sorted.
    """

    root: Path
    files: tuple[str, ...]
    links_out: tuple[str, ...] = ()

    def with_suffix(self, suffix: str) -> list[Path]:
        """The files whose name ends so, in whatever case."""
        return [Path(file) for file in self.files if file.lower().endswith(suffix)]


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
    links_out: list[str] = []
    pending = [str(root)]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        target = _target(entry.path)
                        if target is None or not target.is_relative_to(root):
                            links_out.append(entry.path)
                        elif target.is_file():
                            files.append(entry.path)
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        files.append(entry.path)
        except OSError as error:
            raise DataError(f"{current}: cannot list the folder ({error.strerror or error})") from None
        if len(files) > MAX_FILES:
            raise DataError(f"{root}: more than {MAX_FILES:,} files; give the folder of one data set")
    return Listing(root=root, files=tuple(sorted(files)), links_out=tuple(sorted(links_out)))


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


class ImageFolder:
    """The pictures below one or more folders, and which of them a record's picture name means."""

    def __init__(self, listings: Iterable[Listing]) -> None:
        by_key: dict[str, set[str]] = {}
        for listing in listings:
            for file in listing.files:
                name = PurePosixPath(file)
                if name.suffix.lower() in PICTURE_SUFFIXES:
                    by_key.setdefault(image_key(Path(name)), set()).add(file)
        self._by_key = {key: tuple(sorted(files)) for key, files in by_key.items()}
        self._found: dict[tuple[str | None, Path | None], dict[str, Path | None]] = {}

    @classmethod
    def of(cls, *folders: Path) -> ImageFolder:
        """List ``folders`` and take their pictures.

        Raises:
            DataError: a folder is missing.
        """
        return cls(list_folder(folder) for folder in folders)

    def __len__(self) -> int:
        return sum(len(files) for files in self._by_key.values())

    def find(
        self, name: object, place: str, *, split_folder: str | None = None, near: Path | None = None
    ) -> Path | None:
        """The picture that ``name`` means, or None where there is none or it cannot be told which.

        The file whose path agrees with most of ``name``'s folders wins; then one below a folder called
        ``split_folder``; then the one nearest to ``near``. A name with folders needs at least its last folder to
        agree, so that ``kitchen/1.jpg`` is never answered with ``garage/1.jpg``. COCO's numbers are the same
        photograph everywhere: they are found in any folder, and under their 2014 as under their 2017 name.

        Args:
            name: as the record gives it.
            place: file and record, for the message.
            split_folder: for example ``train2017`` for records of ``captions_train2017.json``.
            near: the annotation file's folder.

        Raises:
            DataError: ``name`` is no relative file name (see :func:`relative_name`).
        """
        # Only names that passed the check are remembered, so a name found here needs no second one.
        remembered = self._found.setdefault((split_folder, near), {})
        if not isinstance(name, str) or name not in remembered:
            path = relative_name(name, place)
            remembered[str(name)] = self._find(path, split_folder, near)
        return remembered[str(name)]

    def _find(self, name: PurePosixPath, split_folder: str | None, near: Path | None) -> Path | None:
        key = image_key(Path(name))
        is_coco = key.startswith("coco/")
        files = self._by_key.get(key, ())
        if len(files) == 1 and (is_coco or len(name.parts) == 1):
            return Path(files[0])
        ranked = []
        for file in files:
            parts = PurePosixPath(file).parts
            agreeing = _common(reversed(parts), reversed(name.parts))
            if not is_coco and agreeing < min(2, len(name.parts)):
                continue
            closeness = _common(parts, near.parts) if near else 0
            ranked.append(((agreeing, split_folder in parts[:-1], closeness), file))
        if not ranked:
            return None
        best = max(rank for rank, _ in ranked)
        fitting = [file for rank, file in ranked if rank == best]
        return Path(fitting[0]) if is_coco or len(fitting) == 1 else None


def _common(first: Iterable[str], second: Iterable[str]) -> int:
    """How many parts agree before the first that does not."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
