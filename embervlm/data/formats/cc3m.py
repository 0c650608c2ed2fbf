"""Reader of CC3M in its four layouts: tar shards, ``datasets``' Arrow files, a TSV with a folder, NExT-GPT's list."""

from __future__ import annotations

import json
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np

from embervlm.data.arrow_pairs import ArrowPairs, columns_of, schema_of
from embervlm.data.files import Pictures
from embervlm.data.formats.names import distinct_names
from embervlm.data.formats.record import (
    MAX_TEXT_CHARACTERS,
    TEXT_TOO_LONG,
    Format,
    Ids,
    Ledger,
    Row,
    Tally,
    clean_line,
    split_of,
)
from embervlm.data.images import MAX_BYTES
from embervlm.data.json_files import BOM, LINES, Head, StrictDecoder, numbered_lines
from embervlm.data.json_stream import read_records
from embervlm.data.sample import DataError, Split, key_hash
from embervlm.data.tar_members import Member, TarDamage, TarFile, members

DATASET = "cc3m"
MAX_TEXT_BYTES = 1024**2
MAX_LINE_BYTES = 1024**2

_SHARDS, _ZIPPED = (".tar",), (".tar.gz", ".tgz")
_PICTURES = frozenset({"jpg", "jpeg", "png", "webp"})
_TEXTS = frozenset({"txt", "json"})
_LOOK_AT_MEMBERS = 64
_LOOK_AT_BYTES = 4 * 1024**2
_EMPTY = "empty caption"


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row a caption. Where a picture lies is kept, the picture itself is read when it is wanted.

    Tar shards in WebDataset's layout: members ``000000000.jpg`` and ``000000000.txt`` that follow one another (the
    ``caption`` of ``000000000.json`` where there is no text). The sample made of the first pair of a shard::

        Sample(id="cc3m/cc3m-train-0000.tar/000000000", dataset="cc3m", style="caption",
               image=PackedPicture(Path(".../cc3m-train-0000.tar"), position=512, size=15474),
               turns=(Turn("", "cricket player was named award category and runner - up behind person"),),
               split="train")

    Arrow files as ``datasets`` caches and saves them: a column ``image``, ``jpg`` or ``png`` (binary, or a struct with
    ``bytes``) and a column ``caption``, ``text`` or ``txt``. The sample made of the first row of a file::

        Sample(id="cc3m/cc3m-train.arrow[0]", dataset="cc3m", style="caption",
               image=PackedPicture(Path(".../cc3m-train.arrow"), position=0, size=-1), turns=..., split="train")

    A TSV without header, ``caption<TAB>url``, and perhaps the picture's file as a third column. Without one the picture
    is, in the TSV's own folder, a folder in it or a numbered folder in that, the one called after the row's number
    (``000000012.jpg``, then ``12.jpg``, from 0), else after the last part of the URL::

        a very typical bus station<TAB>http://example.com/42/bus.jpg

        Sample(id="cc3m/Train_GCC-training.tsv[12]", dataset="cc3m", style="caption",
               image=Path(".../images/000000012.jpg"), turns=(Turn("", "a very typical bus station"),), split="train")

    NExT-GPT's list::

        [{"caption": "players wait for a conversion", "id": "001319946", "image_name": "001319946.jpg"}]

        Sample(id="cc3m/cc3m.json[0]", dataset="cc3m", style="caption", image=Path(".../images/001319946.jpg"),
               turns=(Turn("", "players wait for a conversion"),), split="train")

    Raises:
        DataError: a file is damaged or cut off, compressed, has a pair or id twice, or a picture's name leaves the data
            folder.
    """
    tally = ledger[DATASET]
    for file, name in distinct_names(files).items():
        tally.files.append(file)
        lower = file.name.lower()
        if lower.endswith((*_SHARDS, *_ZIPPED)):
            yield from _read_shard(file, name, pictures, tally)
        elif lower.endswith(".arrow"):
            yield from _read_arrow(file, name, pictures, tally)
        elif lower.endswith(".tsv"):
            yield from _read_tsv(file, name, pictures, tally)
        else:
            yield from _read_list(file, name, pictures, tally)


# Tar shards


@dataclass(slots=True)
class _Pair:
    """Members of one shard that share their name up to its first dot."""

    key: str
    picture: Member | None = None
    texts: dict[str, Member] = field(default_factory=dict)
    refused: str | None = None


def _read_shard(file: Path, name: str, pictures: Pictures, tally: Tally) -> Iterator[Row]:
    split = split_of(file.name.split(".")[0])
    ids = Ids(file, "pairs", "a name, whose picture and text must follow one another,")
    before = tally.records
    with TarFile(file) as tar:
        if tar.read(0, 2) == b"\x1f\x8b":
            raise DataError(
                f"{file}: a compressed tar file, in which no picture can be found again. Cure: decompress it (gunzip)"
            )
        try:
            for number, pair in enumerate(_pairs(tar.members())):
                tally.records += 1
                ids.add(pair.key, number)
                reason = pair.refused
                text = None
                if reason is None:
                    text, reason = _caption(pair, tar)
                if reason is not None or text is None:
                    tally.rejected[reason or _EMPTY] += 1
                    continue
                tally.with_answer += 1
                if pair.picture is None:
                    tally.rejected["no picture beside the caption"] += 1
                    continue
                if not 0 < pair.picture.size <= MAX_BYTES:
                    tally.rejected["the picture is empty or larger than 64 MiB"] += 1
                    continue
                tally.with_image += 1
                place = pair.picture.position
                picture = pictures.add_packed(file, place, pair.picture.size, f"{name}/{pair.picture.name}")
                yield Row(DATASET, f"{name}/{pair.key}", "caption", split, picture, (("", text),))
        except TarDamage as error:
            raise DataError(
                f"{file}: {error}; {tally.records - before:,} records before it were read. Cure: fetch the shard again"
            ) from None
    ids.check()


def _pairs(found: Iterator[Member]) -> Iterator[_Pair]:
    """Group the members that belong to pairs, and those that must not be used, each with the ones of its name."""
    pair: _Pair | None = None
    try:
        for member in found:
            if member.is_folder and member.refused is None:
                continue
            folder, slash, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            suffix = suffix.lower()
            if member.refused is None and suffix not in _PICTURES and suffix not in _TEXTS:
                continue
            key = f"{folder}{slash}{stem}".removeprefix("./")
            if pair is None or pair.key != key:
                if pair is not None:
                    yield pair
                pair = _Pair(key)
            _add(pair, member, suffix)
    except TarDamage:
        if pair is not None:
            yield pair
        raise
    if pair is not None:
        yield pair


def _add(pair: _Pair, member: Member, suffix: str) -> None:
    if member.refused is not None:
        pair.refused = member.refused
    elif suffix in _TEXTS:
        if suffix in pair.texts:
            pair.refused = "two texts of one name"
        pair.texts[suffix] = member
    elif pair.picture is None:
        pair.picture = member
    else:
        pair.refused = "two pictures of one name"


def _caption(pair: _Pair, tar: TarFile) -> tuple[str | None, str | None]:
    """A pair's caption, or the reason why it has none."""
    member = pair.texts.get("txt") or pair.texts.get("json")
    if member is None:
        return None, "no caption beside the picture"
    if member.size > MAX_TEXT_BYTES:
        return None, TEXT_TOO_LONG
    try:
        value: Any = tar.read(member.position, member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        return None, "the caption is not UTF-8 text"
    if "txt" not in pair.texts:
        try:
            value, _ = StrictDecoder(tar.path).raw(value, 0)
        except ValueError:
            return None, "the JSON beside the picture cannot be read"
        value = value.get("caption") if isinstance(value, dict) else None
    return _checked(value)


def _checked(value: Any) -> tuple[str | None, str | None]:
    text = clean_line(value)
    if text is None:
        return None, _EMPTY
    return (None, TEXT_TOO_LONG) if len(text) > MAX_TEXT_CHARACTERS else (text, None)


# Arrow files


def _read_arrow(file: Path, name: str, pictures: Pictures, tally: Tally) -> Iterator[Row]:
    split = _split_of_arrow(file)
    for row, (given, has_picture) in enumerate(ArrowPairs(file).captions()):
        tally.records += 1
        text, reason = _checked(given)
        if text is None:
            tally.rejected[reason or _EMPTY] += 1
            continue
        tally.with_answer += 1
        if not has_picture:
            tally.rejected["the row holds no picture, at most a path"] += 1
            continue
        tally.with_image += 1
        picture = pictures.add_packed(file, row, -1, f"{name}/{row}")
        yield Row(DATASET, f"{name}[{row}]", "caption", split, picture, (("", text),))


def _split_of_arrow(file: Path) -> Split:
    """The split by the file's name, or by the ``state.json`` that ``datasets`` saves beside it."""
    try:
        with (file.parent / "state.json").open("rb") as state:
            saved = json.loads(state.read(MAX_TEXT_BYTES))
        names = [each["filename"] for each in saved["_data_files"]]
        if file.name in names and isinstance(saved["_split"], str):
            return split_of(saved["_split"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # not saved so
    return split_of(file.stem)


# A TSV and a folder of pictures


class _Folder:
    """The pictures that may belong to a TSV, by their names without suffix."""

    def __init__(self, tsv: Path, pictures: Pictures) -> None:
        self.pictures = pictures
        near = [_is_near(tsv.parent, Path(place)) for place in pictures.places]
        numbers = [number for number in range(len(pictures.names)) if near[pictures.place_of[number]]]
        #: whether any of them is called by something else than a number
        self.has_words = any(not _stem(pictures.names[number]).isdigit() for number in numbers)
        hashes = np.array([key_hash(_stem(pictures.names[number])) for number in numbers], np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._hashes = array("Q", hashes[order].tobytes())
        self._numbers = array("q", np.array(numbers, np.int64)[order].tobytes())

    def __len__(self) -> int:
        return len(self._numbers)

    def find(self, stem: str) -> int | None:
        """The number of the picture of that name, or None where there is none, or several."""
        wanted = key_hash(stem)
        at = bisect_left(self._hashes, wanted)
        if at == len(self._hashes) or self._hashes[at] != wanted:
            return None
        if at + 1 < len(self._hashes) and self._hashes[at + 1] == wanted:
            return None
        number = self._numbers[at]
        return number if _stem(self.pictures.names[number]) == stem else None


def _is_near(folder: Path, place: Path) -> bool:
    # Pictures called by numbers are in other data sets' folders too.
    if place == folder or place.parent == folder:
        return True
    return place.parent.parent == folder and place.name.isdigit()


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _read_tsv(file: Path, name: str, pictures: Pictures, tally: Tally) -> Iterator[Row]:
    split = split_of(file.stem)
    folder = _Folder(file, pictures)
    shared = _shared_names(file) if folder.has_words else frozenset()
    for row, columns in enumerate(_lines(file)):
        tally.records += 1
        if not 2 <= len(columns) <= 3:
            tally.rejected["not a caption and a URL with a tab between them"] += 1
            continue
        text, reason = _checked(columns[0])
        if text is None:
            tally.rejected[reason or _EMPTY] += 1
            continue
        tally.with_answer += 1
        given = columns[2].strip() if len(columns) == 3 else ""
        if given:
            picture = pictures.find(given, f"{file}: line {row + 1}", near=file.parent)
        else:
            picture = _by_row(folder, row, columns[1], shared) if len(folder) else None
        if picture is None:
            tally.missing_images += 1
            tally.first_missing = tally.first_missing or given or f"{row:09d}.jpg"
            continue
        tally.with_image += 1
        yield Row(DATASET, f"{name}[{row}]", "caption", split, picture, (("", text),))


def _by_row(folder: _Folder, row: int, url: str, shared: frozenset[int]) -> int | None:
    found = folder.find(f"{row:09d}")
    if found is None:
        found = folder.find(str(row))
    if found is None and folder.has_words:
        stem = _url_stem(url)
        if stem and key_hash(stem) not in shared:
            found = folder.find(stem)
    return found


def _url_stem(url: str) -> str:
    try:
        base = PurePosixPath(unquote(urlsplit(url.strip()).path)).name
    except ValueError:  # no address
        return ""
    stem = _stem(base) or base
    # A picture called by a number belongs to that row, whatever another row's URL ends with.
    return "" if stem.isdigit() else stem


def _shared_names(file: Path) -> frozenset[int]:
    """Hashes of the names with which more than one URL ends, such as ``image``: they do not tell which row is meant."""
    hashes = array("Q", (key_hash(_url_stem(columns[1])) for columns in _lines(file) if len(columns) > 1))
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    return frozenset(values[counts > 1].tolist())


def _lines(file: Path) -> Iterator[list[str]]:
    for number, line in numbered_lines(file, MAX_LINE_BYTES):
        try:
            yield line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: line {number}: not UTF-8 text (byte {error.start})") from None


# NExT-GPT's list


class _Record(msgspec.Struct):
    id: Any = None
    caption: Any = None
    image_name: Any = None


def _read_list(file: Path, name: str, pictures: Pictures, tally: Tally) -> Iterator[Row]:
    split = split_of(file.stem)
    ids = Ids(file, "records", "id")
    for block in read_records(file, _Record):
        for number, record in enumerate(block.records, block.start):
            tally.records += 1
            ids.add(record.id, number)
            text, reason = _checked(record.caption)
            if text is None:
                tally.rejected[reason or _EMPTY] += 1
                continue
            tally.with_answer += 1
            if record.image_name is None:
                tally.rejected["no picture is named"] += 1
                continue
            place = f"{file}: records[{number}]"
            picture = tally.picture(pictures, record.image_name, place, split_folder=None, near=file.parent)
            if picture is not None:
                yield Row(DATASET, f"{name}[{number}]", "caption", split, picture, (("", text),))
    ids.check()


# What is of this format


def _recognise(head: Head) -> bool:
    return head.key in ("", LINES) and {"caption", "image_name"} <= head.first.keys()


def recognise_file(file: Path) -> bool:
    """Whether a tar, Arrow or TSV file is one of captions and pictures, by a look at its beginning."""
    name = file.name.lower()
    if name.endswith(".arrow"):
        schema = schema_of(file)
        return schema is not None and columns_of(schema) is not None
    try:
        with file.open("rb") as opened:
            return _is_tsv(opened) if name.endswith(".tsv") else _is_shard(opened)
    except OSError as error:
        raise DataError(f"{file}: cannot read the file ({error.strerror or error})") from None


def _is_tsv(file: BinaryIO) -> bool:
    columns = file.readline(MAX_LINE_BYTES).removeprefix(BOM).split(b"\t")
    return len(columns) in (2, 3) and columns[1].strip().lower().startswith((b"http://", b"https://"))


def _is_shard(file: BinaryIO) -> bool:
    start = file.read(_LOOK_AT_BYTES)
    if start[:2] == b"\x1f\x8b":
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, _LOOK_AT_BYTES)
        except zlib.error:
            return False
        return _has_pair(lambda position, count: start[position : position + count], 2**62)

    def read_at(position: int, count: int) -> bytes:
        file.seek(position)
        return file.read(count)

    return _has_pair(read_at, file.seek(0, 2))


def _has_pair(read_at: Callable[[int, int], bytes], size: int) -> bool:
    """Whether a picture and its text are among the first members, or a picture in front of a damage."""
    has_picture = False
    try:
        for number, pair in enumerate(_pairs(members(read_at, size))):
            has_picture = has_picture or pair.picture is not None
            if pair.picture is not None and pair.texts:
                return True
            if number == _LOOK_AT_MEMBERS:
                return False
    except TarDamage:
        return has_picture
    return False


FORMAT = Format(
    "CC3M",
    (DATASET,),
    1,
    "tar shards of .jpg and .txt, Arrow files with an image and a caption column, a TSV of caption and URL, or a list "
    "of objects with 'caption' and 'image_name'",
    _recognise,
    read,
    suffixes=(*_SHARDS, *_ZIPPED, ".arrow", ".tsv"),
    recognise_file=recognise_file,
)
