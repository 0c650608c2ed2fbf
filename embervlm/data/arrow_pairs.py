"""Arrow files of pictures and captions, as the ``datasets`` library caches them, opened without loading pictures.

The CC3M reader takes the captions from here, ``images.read_picture`` the pictures. Nothing in a file is trusted: its
schema must be one of plain columns, and what points into its data is checked before it is followed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embervlm.data.sample import DataError

PICTURE_COLUMNS = ("image", "jpg", "png")
CAPTION_COLUMNS = ("caption", "text", "txt")
#: Files that one process keeps open.
OPEN_FILES = 64
#: What opening a file may take of memory beyond its own pages; compressed files take all their pictures.
MAX_COPIED_BYTES = 64 * 1024**2

_MAGIC = b"ARROW1"
_BINARY = (pa.binary(), pa.large_binary())
_TEXT = (pa.string(), pa.large_string())


def columns_of(schema: pa.Schema) -> tuple[str, str] | None:
    """Names of the columns of pictures and captions, or None where a schema has not got them.

    A picture is binary, or a struct with binary ``bytes``; a caption is a string.
    """
    picture = next((name for name in PICTURE_COLUMNS if schema.get_field_index(name) >= 0), None)
    caption = next((name for name in CAPTION_COLUMNS if schema.get_field_index(name) >= 0), None)
    if picture is None or caption is None or schema.field(caption).type not in _TEXT:
        return None
    kind = schema.field(picture).type
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        kind = kind.field(place).type if place >= 0 else None
    return (picture, caption) if kind in _BINARY else None


def schema_of(path: Path) -> pa.Schema | None:
    """An Arrow file's schema from its first bytes, be it a stream or a file; None where it is neither."""
    try:
        with pa.memory_map(str(path)) as source:
            # A file is a stream with a frame around it.
            source.seek(8 if source.read(len(_MAGIC)) == _MAGIC else 0)
            schema = pa.ipc.open_stream(source).schema
            _ = schema.names  # of which one may be no text
            return schema
    except (pa.ArrowException, OSError, ValueError):
        return None


class _CompressedError(Exception):
    """A file whose pictures do not stay in the file."""


class ArrowPairs:
    """An Arrow file of pictures and captions, mapped into memory.

    Args:
        path: the file.

    Raises:
        DataError: it cannot be opened, is cut off or damaged, or lacks the two columns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        schema = schema_of(path)
        found = None if schema is None else columns_of(schema)
        if schema is None or found is None:
            names = "no Arrow file" if schema is None else ", ".join(schema.names)[:200]
            raise DataError(
                f"{path}: expected an Arrow file with a column {' or '.join(PICTURE_COLUMNS)} (binary, or a struct "
                f"with bytes) and a column {' or '.join(CAPTION_COLUMNS)} (string); found {names}"
            )
        # Captions and pictures of each batch. Read in this thread, since a pool's threads do not survive a fork.
        self._batches: list[tuple[pa.Array, pa.Array]] = []
        fields = [schema.get_field_index(name) for name in found]
        before = pa.total_allocated_bytes()
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        try:
            with pa.memory_map(str(path)) as source:
                for batch in _batches(source, options):
                    picture, caption = (batch.column(name) for name in found)
                    # Bytes of pictures are not looked at, but what says where they lie is.
                    picture.validate(full=True)
                    caption.validate(full=True)
                    if pa.types.is_struct(picture.type):
                        picture = pc.struct_field(picture, ["bytes"])
                    self._batches.append((caption, picture))
                    if pa.total_allocated_bytes() - before > MAX_COPIED_BYTES:
                        raise _CompressedError
        except _CompressedError:
            raise DataError(f"{path}: a compressed Arrow file. Cure: save it without compression") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{path}: damaged or cut off behind row {sum(len(each) for each, _ in self._batches):,} "
                f"({' '.join(str(error).split())[:200]}). Cure: fetch the file again"
            ) from None
        self._starts = [0, *accumulate(len(caption) for caption, _ in self._batches)]

    def __len__(self) -> int:
        return self._starts[-1]

    def captions(self) -> Iterator[tuple[str | None, bool]]:
        """Each row's caption, and whether it holds a picture."""
        for caption, picture in self._batches:
            held = pc.greater(pc.binary_length(picture), 0).fill_null(False)
            yield from zip(caption.to_pylist(), held.to_pylist(), strict=True)

    def picture(self, row: int) -> pa.Buffer | None:
        """A row's encoded picture, still in the file; None where the row holds none.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"no row {row}")
        number = bisect_right(self._starts, row) - 1
        found: pa.Buffer | None = self._batches[number][1][row - self._starts[number]].as_buffer()
        return found


def _batches(source: Any, options: pa.ipc.IpcReadOptions) -> Iterator[pa.RecordBatch]:
    is_file = source.read(len(_MAGIC)) == _MAGIC
    source.seek(0)
    if is_file:
        reader = pa.ipc.open_file(source, options=options)
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(source, options=options)


def open_pairs(path: Path) -> ArrowPairs:
    """Open an Arrow file, or have it from before, in this process or its parent, if it has not changed since.

    Raises:
        DataError: as :class:`ArrowPairs`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot open the file ({error.strerror or error})") from None
    return _open_pairs(path, status.st_size, status.st_mtime_ns)


@lru_cache(OPEN_FILES)
def _open_pairs(path: Path, size: int, changed: int) -> ArrowPairs:
    return ArrowPairs(path)
