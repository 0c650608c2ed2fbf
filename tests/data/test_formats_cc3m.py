"""CC3M's four layouts: real pairs and their pictures, what is left out, and files that were made to do harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embervlm.data import arrow_pairs
from embervlm.data.files import Pictures
from embervlm.data.formats import cc3m
from embervlm.data.formats.record import Ledger, Row, Tally
from embervlm.data.images import ImageError, decode_image, read_picture
from embervlm.data.sample import DataError, PackedPicture
from embervlm.data.tar_members import TarDamage, TarFile, members


def _read(root: Path, *files: Path) -> tuple[list[Row], Tally, Pictures]:
    ledger, pictures = Ledger(), Pictures.of(root)
    return list(cc3m.read(files, pictures, ledger)), ledger["cc3m"], pictures


def _counts(tally: Tally) -> tuple[int, int, int, int, dict[str, int]]:
    return tally.records, tally.with_answer, tally.with_image, tally.missing_images, dict(tally.rejected)


def _loose(shared: Path) -> dict[str, Path]:
    """The fixture's 20 loose pictures by their captions."""
    folder = shared / "fixtures/cc3m/nextgpt"
    records = json.loads((folder / "cc3m.json").read_text())
    return {" ".join(each["caption"].split()): folder / "images" / each["image_name"] for each in records}


def _same_pixels(rows: Sequence[Row], pictures: Pictures, loose: dict[str, Path]) -> bool:
    return all(
        np.array_equal(
            np.asarray(read_picture(pictures[row.picture])), np.asarray(decode_image(loose[row.turns[0][1]]))
        )
        for row in rows
    )


# Tar shards


def _tar(path: Path, *found: tuple[str, bytes] | tarfile.TarInfo, kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for each in found:
            if isinstance(each, tarfile.TarInfo):
                tar.addfile(each)
            else:
                info = tarfile.TarInfo(each[0])
                info.size = len(each[1])
                tar.addfile(info, io.BytesIO(each[1]))
    return path


def _header(name: str, size: int = 0, kind: bytes = b"0", change: Callable[[bytearray], None] | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    octal = 0 <= size < 8**11
    block[124:136] = b"%011o\0" % size if octal else (size % 256**12 | (size >= 0) << 95).to_bytes(12)
    if change is not None:
        change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


PAIR = (("0.jpg", b"picture"), ("0.txt", b"A door."))


def test_the_shard_of_the_fixture(shared: Path) -> None:
    file = shared / "fixtures/cc3m/cc3m-train-0000.tar"
    rows, tally, pictures = _read(shared / "fixtures/cc3m", file)
    assert _counts(tally) == (20, 20, 20, 0, {})
    assert (rows[0].dataset, rows[0].id, rows[0].style, rows[0].split, rows[0].turns) == (
        "cc3m",
        "cc3m-train-0000.tar/000000000",
        "caption",
        "train",
        (("", "cricket player was named award category and runner - up behind person"),),
    )
    assert pictures[rows[0].picture] == PackedPicture(file, 512, 15474)
    assert _same_pixels(rows, pictures, _loose(shared))
    packed = pickle.loads(pickle.dumps(pictures[rows[3].picture]))  # noqa: S301 - as a worker gets it
    assert read_picture(packed).size == decode_image(_loose(shared)[rows[3].turns[0][1]]).size


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_of_every_kind_of_tar(tmp_path: Path, kind: int) -> None:
    long = "d/" * 40 + "n" * 90 if kind == tarfile.USTAR_FORMAT else "d/" * 100 + "n\u00e9" * 60
    folder = tarfile.TarInfo("d")
    folder.type = tarfile.DIRTYPE
    found = (folder, *PAIR, (f"{long}.PNG", b"p" * 600), (f"{long}.json", b'{"caption": "A pump."}'), ("x.npy", b"1"))
    file = _tar(tmp_path / "cc3m-validation-0000.tar", *found, kind=kind)
    with TarFile(file) as tar, tarfile.open(file) as expected:
        assert [(each.name.rstrip("/"), each.position, each.size) for each in tar.members()] == [
            (each.name, each.offset_data, each.size) for each in expected
        ]
    rows, tally, pictures = _read(tmp_path, file)
    assert [(row.id, row.split, row.turns[0][1]) for row in rows] == [
        ("cc3m-validation-0000.tar/0", "validation", "A door."),
        (f"cc3m-validation-0000.tar/{long}", "validation", "A pump."),
    ]
    assert _counts(tally) == (2, 2, 2, 0, {})
    place = pictures[rows[1].picture]
    assert isinstance(place, PackedPicture)
    assert file.read_bytes()[place.position : place.position + place.size] == b"p" * 600


def test_shards_of_one_name_do_not_share_ids_or_pictures(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    files = [_tar(tmp_path / name / "0.tar", *PAIR) for name in ("x", "y")]
    rows, _, pictures = _read(tmp_path, *files)
    assert [row.id for row in rows] == ["x/0.tar/0", "y/0.tar/0"]
    assert pictures.keys[rows[0].picture] != pictures.keys[rows[1].picture]


def test_pairs_left_out(tmp_path: Path) -> None:
    file = _tar(
        tmp_path / "a.tar",
        ("0.jpg", b"p"),
        ("1.txt", b"A door."),
        *[("2.jpg", b"p"), ("2.txt", b" ")],
        *[("3.jpg", b"p"), ("3.txt", b"\xff\xfe")],
        *[("4.jpg", b"p"), ("4.txt", b"w" * 50_001)],
        *[("5.jpg", b"p"), ("5.txt", b"w" * 1_100_000)],
        *[("6.jpg", b"p"), ("6.json", b'{"caption": ')],
        *[("7.jpg", b"p"), ("7.json", b'["A door."]')],
        *[("8.jpg", b""), ("8.txt", b"A door.")],
        *[("9.jpg", b"p"), ("9.png", b"p"), ("9.txt", b"A door.")],
        *[("10.jpg", b"p"), ("10.txt", b"A door."), ("10.txt", b"A cat.")],
        *[("11.jpg", b"p"), ("11.txt", b"A door.")],
    )
    rows, tally, _ = _read(tmp_path, file)
    assert [row.id for row in rows] == ["a.tar/11"]
    assert _counts(tally) == (
        *(12, 3, 1, 0),
        {
            "no caption beside the picture": 1,
            "no picture beside the caption": 1,
            "empty caption": 2,
            "the caption is not UTF-8 text": 1,
            "text longer than 50,000 characters": 2,
            "the JSON beside the picture cannot be read": 1,
            "the picture is empty or larger than 64 MiB": 1,
            "two pictures of one name": 1,
            "two texts of one name": 1,
        },
    )


def test_hostile_members_are_counted_and_never_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    link, hard, device, pipe = (tarfile.TarInfo(name) for name in ("1.txt", "2.txt", "3.jpg", "4.jpg"))
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    hard.type, hard.linkname = tarfile.LNKTYPE, "../secret.txt"
    device.type, pipe.type = tarfile.CHRTYPE, tarfile.FIFOTYPE
    names = ("../5", "/6", "a/../7", "c:8", "a\\9", "1\x1b[2J0")
    file = _tar(
        tmp_path / "a.tar",
        *[("1.jpg", b"p"), link, ("2.jpg", b"p"), hard, device, ("3.txt", b"A door."), pipe, ("4.txt", b"A door.")],
        *[(f"{name}{suffix}", b"data") for name in names for suffix in (".jpg", ".txt")],
        *PAIR,
    )
    rows, tally, _ = _read(tmp_path, file)
    assert [row.id for row in rows] == ["a.tar/0"]
    assert dict(tally.rejected) == {
        "a link, a device or a member of unknown kind": 4,
        "a member's name leaves the folder": 5,
        "a member's name is empty, too long or not printable": 1,
    }
    assert tally.records == 11


def test_sparse_and_negative_members_are_counted(tmp_path: Path) -> None:
    def extended(block: bytearray) -> None:
        block[482] = 1

    pair = _header("9.jpg", 4) + _padded(b"data") + _header("9.txt", 7) + _padded(b"A door.")
    pax = b"22 GNU.sparse.major=1\n"
    file = tmp_path / "a.tar"
    file.write_bytes(
        pair
        + _header("1.jpg", 4, b"S", extended)
        + bytes(512)
        + _padded(b"data")
        + _header("x", len(pax), b"x")
        + _padded(pax)
        + _header("2.jpg", 4)
        + _padded(b"data")
        + _header("3.jpg", -512)
        + _header("4.jpg", -(2**62))
        + bytes(1024)
    )
    rows, tally, _ = _read(tmp_path, file)
    assert [row.id for row in rows] == ["a.tar/9"]
    assert (tally.records, dict(tally.rejected)) == (5, {"a sparse member": 2, "a member of negative size": 2})


GOOD = _header("9.jpg", 4) + _padded(b"data") + _header("9.txt", 7) + _padded(b"A door.")
RECORD = b"30 path=" + b"n" * 21 + b"\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD + _header("1.jpg", 2**40), "byte 2,048: '1.jpg' states 1,099,511,627,776 bytes, 0 follow; 1 records"),
        (GOOD + _header("1.jpg", 2**80), "byte 2,048: '1.jpg' states"),
        (GOOD + GOOD.replace(b"9.", b"8.")[:1000], "byte 2,048: no member's header (its check sum is wrong)"),
        (GOOD + _header("1.jpg", 4) + b"da", "byte 2,048: '1.jpg' states 4 bytes, 2 follow"),
        (GOOD + _header("1.jpg", 4)[:300], "byte 2,048: cut off in a header"),
        (GOOD + b"x" * 512, "byte 2,048: no member's header (its check sum is wrong)"),
        (GOOD + _header("1.jpg", change=lambda b: b.__setitem__(slice(124, 130), b"zzzzzz")), "byte 2,048: a size"),
        (GOOD + _header("x", 2**30, b"x"), "byte 2,048: an extended header of 1,073,741,824 bytes, or too many"),
        (GOOD + _header("x", -5, b"L"), "byte 2,048: an extended header of -5 bytes, or too many"),
        (GOOD + (_header("x", 30, b"x") + _padded(RECORD)) * 5, "byte 6,144: an extended header of 30 bytes, or too"),
        (GOOD + _header("x", 30, b"x") + _padded(RECORD), "byte 3,072: cut off in a header"),
        (GOOD + _header("x", 30, b"x") + b"30 path", "byte 2,048: cut off in an extended header"),
        (GOOD + _header("x", 30, b"x") + _padded(b"99" + RECORD[2:]), "byte 2,048: an extended header that cannot"),
        (GOOD + _header("x", 30, b"x") + _padded(b"30 size=" + b"n" * 21 + b"\n"), "byte 2,048: a size that is no"),
        (GOOD + _header("1.jpg", 4, b"S", lambda b: b.__setitem__(482, 1)), "byte 2,560: cut off in a sparse"),
    ],
)
def test_damaged_shards_are_refused_with_the_place(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "a.tar"
    data = data.replace(GOOD + GOOD.replace(b"9.", b"8.")[:1000], GOOD + b"y" * 1000)
    file.write_bytes(data)
    assert cc3m.recognise_file(file)
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    text = str(error.value)
    assert text.startswith(f"{file}: {message}")
    assert text.endswith("records before it were read. Cure: fetch the shard again")


def test_what_was_read_before_a_damage_is_said(tmp_path: Path) -> None:
    file = _tar(tmp_path / "a.tar", *[(f"{n}.{end}", b"text") for n in range(5) for end in ("jpg", "txt")])
    file.write_bytes(file.read_bytes()[: 9 * 1024] + b"x" * 512)
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    assert str(error.value) == (
        f"{file}: byte 9,216: no member's header (its check sum is wrong); 5 records before it were read. "
        "Cure: fetch the shard again"
    )


def test_names_that_occur_twice_are_refused(tmp_path: Path) -> None:
    file = _tar(tmp_path / "a.tar", *PAIR, ("1.jpg", b"p"), ("1.txt", b"A cat."), *PAIR)
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    assert str(error.value) == f"{file}: pairs[2]: a name, whose picture and text must follow one another, occurs twice"


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    plain = _tar(tmp_path / "a.tar", *PAIR).read_bytes()
    for name in ("b.tar.gz", "c.tgz", "d.tar"):
        file = tmp_path / name
        file.write_bytes(gzip.compress(plain))
        assert cc3m.recognise_file(file)
        with pytest.raises(DataError) as error:
            _read(tmp_path, file)
        assert str(error.value) == (
            f"{file}: a compressed tar file, in which no picture can be found again. Cure: decompress it (gunzip)"
        )


def test_other_tar_files_are_not_taken(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"x" * 2048, bytes(10240), b"\x1f\x8b" + bytes(600), gzip.compress(b"text"))):
        file = tmp_path / f"{number}.tar"
        file.write_bytes(data)
        assert not cc3m.recognise_file(file)
    assert not cc3m.recognise_file(_tar(tmp_path / "a.tar", ("a.jpg", b"p"), ("b.jpg", b"p")))
    assert not cc3m.recognise_file(_tar(tmp_path / "b.tar", ("a.json", b"{}"), ("b.txt", b"x")))
    with pytest.raises(TarDamage):
        list(members(lambda position, count: b"x" * count, 2**20))


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DataError, match="expected a tar file, found something that is no file"):
        TarFile(tmp_path / "a.tar")
    with pytest.raises(ImageError, match="expected a tar file, found something that is no file"):
        read_picture(PackedPicture(tmp_path / "a.tar", 0, 5))


def test_pictures_of_a_changed_shard(tmp_path: Path) -> None:
    file = _tar(tmp_path / "a.tar", *PAIR)
    rows, _, pictures = _read(tmp_path, file)
    place = pictures[rows[0].picture]
    for change, reason in (
        (PackedPicture(file, 512, 7), "not a picture that can be read"),
        (PackedPicture(file, file.stat().st_size - 3, 7), "the file ends after 3 of the picture's 7 bytes"),
        (PackedPicture(file, 512, 2**40), "1,099,511,627,776 bytes; at most 67,108,864 are read"),
        (PackedPicture(tmp_path / "b.tar", 512, 7), "cannot read the file (No such file or directory)"),
    ):
        with pytest.raises(ImageError) as error:
            read_picture(change)
        assert str(error.value).startswith(f"{change.file}[{change.position}]: {reason}")
    assert place == PackedPicture(file, 512, 7)


# Arrow files

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _arrow(
    path: Path,
    pictures: Sequence[Any],
    captions: Sequence[Any],
    *,
    kind: pa.DataType = STRUCT,
    rows: int = 8,
    **names: Any,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        [
            ("url", pa.string()),
            (names.get("caption", "caption"), names.get("text", pa.string())),
            (names.get("image", "image"), kind),
        ]
    )
    new = pa.ipc.new_file if names.get("as_file") else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, schema, options=names.get("options")) as writer:
        for start in range(0, len(pictures), rows):
            part = slice(start, start + rows)
            columns = [[None] * len(pictures[part]), captions[part], pictures[part]]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return path


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"as_file": True},
        {"kind": pa.binary(), "image": "jpg", "caption": "txt"},
        {"kind": pa.large_binary(), "text": pa.large_string(), "caption": "text"},
        {"options": pa.ipc.IpcWriteOptions(compression="zstd")},
    ],
)
def test_real_pictures_in_an_arrow_file(shared: Path, tmp_path: Path, layout: dict[str, Any]) -> None:
    loose = _loose(shared)
    data = [path.read_bytes() for path in loose.values()]
    given = data if "kind" in layout else [{"bytes": each, "path": "x.jpg"} for each in data]
    file = _arrow(tmp_path / "cc3m-train-00000-of-00001.arrow", given, list(loose), **layout)
    assert cc3m.recognise_file(file)
    rows, tally, pictures = _read(tmp_path, file)
    assert _counts(tally) == (20, 20, 20, 0, {})
    assert rows[19]._replace(picture=0) == (
        *("cc3m", "cc3m-train-00000-of-00001.arrow[19]", "caption", "train", 0),
        (("", list(loose)[19]),),
    )
    assert pictures[rows[19].picture] == PackedPicture(file, 19, -1)
    assert _same_pixels(rows, pictures, loose)


def test_compressed_arrow_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_pairs, "MAX_COPIED_BYTES", 100_000)
    given, captions = [{"bytes": bytes(50_000)}] * 20, ["A door."] * 20
    assert len(_read(tmp_path, _arrow(tmp_path / "a.arrow", given, captions))[0]) == 20
    file = _arrow(tmp_path / "b.arrow", given, captions, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    assert str(error.value) == f"{file}: a compressed Arrow file. Cure: save it without compression"


def test_the_split_of_an_arrow_file(tmp_path: Path) -> None:
    def split(name: str) -> str:
        return _read(tmp_path, _arrow(tmp_path / name, [{"bytes": b"p"}], ["A door."]))[0][0].split

    assert split("cc3m-validation.arrow") == "validation"
    saved = tmp_path / "any/data-00000-of-00001.arrow"
    assert split(str(saved)) == "train"
    state = {"_data_files": [{"filename": saved.name}], "_split": "validation"}
    (saved.parent / "state.json").write_text(json.dumps(state))
    assert split(str(saved)) == "validation"
    (saved.parent / "state.json").write_text("[" * 100_000)
    assert split(str(saved)) == "train"


def test_rows_left_out(tmp_path: Path) -> None:
    given = [{"bytes": b"p"}, {"bytes": b"p"}, {"bytes": None, "path": "/etc/passwd"}, None, {"bytes": b""}]
    captions = [None, "w" * 50_001, "A door.", "A cat.", "A pump."]
    file = _arrow(tmp_path / "a.arrow", [*given, {"bytes": b"p"}], [*captions, " A \n dog."], rows=2)
    rows, tally, _ = _read(tmp_path, file)
    assert [(row.id, row.turns) for row in rows] == [("a.arrow[5]", (("", "A dog."),))]
    assert _counts(tally) == (
        *(6, 4, 1, 0),
        {
            "empty caption": 1,
            "text longer than 50,000 characters": 1,
            "the row holds no picture, at most a path": 3,
        },
    )


def test_pictures_of_an_arrow_file_that_cannot_be_read(tmp_path: Path) -> None:
    file = _arrow(tmp_path / "a.arrow", [{"bytes": b"p"}, {"bytes": None, "path": "/etc/passwd"}], ["A door."] * 2)
    damaged = _arrow(tmp_path / "b.arrow", [{"bytes": b"p" * 999}], ["A door."])
    damaged.write_bytes(damaged.read_bytes()[:-800])
    for place, reason in (
        (PackedPicture(file, 0, -1), "not a picture that can be read"),
        (PackedPicture(file, 1, -1), "the row holds no picture, at most a path, which is not followed"),
        (PackedPicture(file, 2, -1), "the file has no such row"),
        (PackedPicture(file, -1, -1), "the file has no such row"),
        (PackedPicture(tmp_path / "c.arrow", 0, -1), f"{tmp_path / 'c.arrow'}: cannot open the file"),
        (PackedPicture(damaged, 0, -1), f"{damaged}: damaged or cut off behind row 0"),
    ):
        with pytest.raises(ImageError) as error:
            read_picture(place)
        assert str(error.value).startswith(f"{place}: {reason}")


def test_an_arrow_file_that_has_changed_is_opened_again(shared: Path, tmp_path: Path) -> None:
    first, second = list(_loose(shared).values())[:2]
    file = tmp_path / "a.arrow"
    for path in (first, second):
        _arrow(file, [{"bytes": path.read_bytes()}], ["A door."])
        found = np.asarray(read_picture(PackedPicture(file, 0, -1)))
        assert np.array_equal(found, np.asarray(decode_image(path)))
        assert arrow_pairs.open_pairs(file) is arrow_pairs.open_pairs(file)


@pytest.mark.parametrize(
    "layout",
    [
        {"caption": "title"},
        {"image": "picture"},
        {"kind": pa.string()},
        {"kind": pa.struct([("path", pa.string())])},
        {"kind": pa.struct([("bytes", pa.string())])},
        {"text": pa.int64()},
        {"text": pa.list_(pa.string())},
        {"text": pa.dictionary(pa.int32(), pa.string())},
    ],
)
def test_other_arrow_files_are_not_taken(tmp_path: Path, layout: dict[str, Any]) -> None:
    file = _arrow(tmp_path / "a.arrow", [], [], **layout)
    assert not cc3m.recognise_file(file)
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    assert str(error.value).startswith(f"{file}: expected an Arrow file with a column image or jpg or png (binary, or")


@pytest.mark.parametrize("data", [b"", b"ARROW1", b"ARROW1\0\0" + b"\xff" * 99, b"x" * 4000, b"\xff" * 4000])
def test_files_that_are_no_arrow_files(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "a.arrow"
    file.write_bytes(data)
    assert not cc3m.recognise_file(file)
    with pytest.raises(DataError, match="found no Arrow file"):
        _read(tmp_path, file)


@pytest.mark.parametrize("as_file", [False, True])
def test_arrow_files_that_are_cut_off_are_refused(tmp_path: Path, as_file: bool) -> None:
    whole = _arrow(tmp_path / "a.arrow", [{"bytes": b"p" * 900}] * 6, ["A door."] * 6, rows=2, as_file=as_file)
    data = whole.read_bytes()
    for share in (0.5, 0.7, 0.9):
        file = tmp_path / "b.arrow"
        file.write_bytes(data[: int(share * len(data))])
        assert cc3m.recognise_file(file)
        with pytest.raises(DataError) as error:
            _read(tmp_path, file)
        assert str(error.value).startswith(f"{file}: damaged or cut off behind row ")
        assert str(error.value).endswith("Cure: fetch the file again")


def test_arrow_files_whose_places_lie_outside_are_refused(tmp_path: Path) -> None:
    """Places of captions and pictures that point outside of the file's data would be followed into other memory."""
    file = _arrow(tmp_path / "a.arrow", [{"bytes": b"p" * 900}] * 2, ["A door."] * 2)
    data = file.read_bytes()
    for places in ((0, 7, 14), (0, 900, 1800)):
        assert data.count(struct.pack("<3i", *places)) == 1
        for wrong in ((0, 7, 2**30), (0, -5, 14), (2**30, 7, 14)):
            file.write_bytes(data.replace(struct.pack("<3i", *places), struct.pack("<3i", *wrong)))
            with pytest.raises(DataError, match="damaged or cut off behind row 0"):
                _read(tmp_path, file)
            with pytest.raises(ImageError, match="damaged or cut off behind row 0"):
                read_picture(PackedPicture(file, 0, -1))


def test_arrow_files_with_any_byte_changed_do_no_harm(tmp_path: Path) -> None:
    """Read or refused, but nothing else: no crash, no other error."""
    file = _arrow(tmp_path / "a.arrow", [{"bytes": b"p" * 50}] * 3, ["A door."] * 3, rows=2)
    data = file.read_bytes()
    outcomes = set()
    for place in range(0, len(data), 3):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            rows, _, pictures = _read(tmp_path, file)
            outcomes.add("read")
        except DataError:
            outcomes.add("refused")
            continue
        for row in rows:
            with pytest.raises(ImageError):
                read_picture(pictures[row.picture])
    assert outcomes == {"read", "refused"}


def test_an_extension_type_in_a_schema_runs_nothing(tmp_path: Path) -> None:
    # The name under which old versions of pyarrow unpickled what a file holds.
    about = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": "cos\nsystem\n(S'false'\ntR.",
    }
    fields = [pa.field("image", pa.binary(), metadata=about), pa.field("caption", pa.string(), metadata=about)]
    file = tmp_path / "a.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, pa.schema(fields)) as writer:
        writer.write_batch(pa.record_batch([pa.array([b"p"]), pa.array(["A door."])], schema=pa.schema(fields)))
    assert cc3m.recognise_file(file)
    assert [row.turns for row in _read(tmp_path, file)[0]] == [(("", "A door."),)]


# A TSV and a folder of pictures


def _tsv(file: Path, *rows: str) -> Path:
    file.write_text("".join(f"{row}\n" for row in rows))
    return file


def test_the_tsv_of_the_fixture_without_pictures(shared: Path) -> None:
    folder = shared / "fixtures/cc3m"
    file = folder / "Validation_GCC-1.1.0-Validation.tsv"
    assert cc3m.recognise_file(file)
    rows, tally, _ = _read(folder, file)
    assert (rows, _counts(tally)) == ([], (1000, 1000, 0, 1000, {}))
    assert tally.first_missing == "000000000.jpg"


def test_the_tsv_of_the_fixture_with_its_pictures_names(shared: Path, tmp_path: Path) -> None:
    file = tmp_path / "Validation_GCC-1.1.0-Validation.tsv"
    file.write_bytes((shared / "fixtures/cc3m" / file.name).read_bytes())
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("000000000.png", "1.jpg", "Clearwater-Crossing-Shopping-Center-sign-Indianapolis-Indiana.jpg"):
        (folder / name).write_bytes(b"")
    rows, tally, pictures = _read(tmp_path, file)
    assert [(row.id, row.split, row.turns[0][1]) for row in rows] == [
        (f"{file.name}[0]", "validation", "author : a life in photography -- in pictures"),
        (f"{file.name}[1]", "validation", "an angler fishes river on a snowy day ."),
        (f"{file.name}[2]", "validation", "photograph of the sign being repaired by brave person"),
    ]
    assert [Path(str(pictures[row.picture])).name for row in rows] == [
        "000000000.png",
        "1.jpg",
        "Clearwater-Crossing-Shopping-Center-sign-Indianapolis-Indiana.jpg",
    ]
    assert _counts(tally) == (1000, 1000, 3, 997, {})


def test_which_picture_a_row_means(tmp_path: Path) -> None:
    for name in (
        *("tsv/00000/000000000.jpg", "tsv/images/0.jpg", "tsv/bus.jpg"),  # row 0: the long number
        *("tsv/images/1.jpg", "tsv/images/station.png"),  # row 1: the number
        "tsv/images/a b.webp",  # row 2: the URL
        "tsv/images/image.jpg",  # rows 3 and 4 both end so
        "tsv/deeper/images/5.jpg",  # another set's
        "other/6.jpg",
        *("tsv/images/7.jpg", "tsv/more/7.jpg"),  # which of them?
        *("tsv/kept/named.jpg", "tsv/images/8.jpg"),  # row 8: the third column
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    file = _tsv(
        tmp_path / "tsv/Train_GCC-training.tsv",
        "row 0\thttp://example.com/bus.jpg",
        "row 1\thttp://example.com/station.jpg",
        "row 2\thttps://example.com/x/a%20b.jpg?size=1",
        "row 3\thttp://example.com/3/image.jpg",
        "row 4\thttp://example.com/4/image.jpg",
        "row 5\thttp://example.com/8.jpg",
        "row 6\thttp://[example.com/6.jpg",
        "row 7\thttp://example.com/",
        "row 8\thttp://example.com/8.jpg\tkept/named.jpg",
        "row 9\thttp://example.com/9.jpg\t",
    )
    rows, tally, pictures = _read(tmp_path, file)
    assert [(row.turns[0][1], str(Path(str(pictures[row.picture])).relative_to(tmp_path))) for row in rows] == [
        ("row 0", "tsv/00000/000000000.jpg"),
        ("row 1", "tsv/images/1.jpg"),
        ("row 2", "tsv/images/a b.webp"),
        ("row 8", "tsv/kept/named.jpg"),
    ]
    assert ({row.split for row in rows}, _counts(tally)) == ({"train"}, (10, 10, 4, 6, {}))
    assert tally.first_missing == "000000003.jpg"


def test_tsv_rows_left_out(tmp_path: Path) -> None:
    url = "http://example.com/a.jpg"
    file = _tsv(
        tmp_path / "a.tsv", f"x\t{url}", "no tab", f"a\t{url}\tc\td", f" \t{url}", "w" * 50_001 + f"\t{url}", ""
    )
    _, tally, _ = _read(tmp_path, file)
    assert _counts(tally) == (
        *(6, 1, 0, 1),
        {
            "not a caption and a URL with a tab between them": 3,
            "empty caption": 1,
            "text longer than 50,000 characters": 1,
        },
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xef\xbb\xbfa\thttp://x/a.jpg\n", "line 1: the file begins with a byte order mark"),
        (b"a\thttp://x/a.jpg\nb\xff\thttp://x/b.jpg\n", "line 2: not UTF-8 text (byte 1)"),
        (b"a\thttp://x/a.jpg\n" + b"b" * 1_100_000, "line 2: longer than 1,048,576 bytes"),
        (b"a\thttp://x/a.jpg\t../a.jpg\n", "line 1: picture '../a.jpg' leaves the data folder"),
        (b"a\thttp://x/a.jpg\t/a.jpg\n", "line 1: picture '/a.jpg' is an absolute path"),
    ],
)
def test_damaged_tsv_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "a.tsv"
    file.write_bytes(data)
    assert cc3m.recognise_file(file)
    with pytest.raises(DataError) as error:
        _read(tmp_path, file)
    assert str(error.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize("line", ["", "one column", "a\tb", "a\tb\tc", "caption\turl", "a\thttp://x/1\tc\td"])
def test_other_tsv_files_are_not_taken(tmp_path: Path, line: str) -> None:
    assert not cc3m.recognise_file(_tsv(tmp_path / "a.tsv", line))


# NExT-GPT's list


def test_the_list_of_the_fixture(shared: Path) -> None:
    folder = shared / "fixtures/cc3m/nextgpt"
    rows, tally, pictures = _read(folder, folder / "cc3m.json")
    assert _counts(tally) == (20, 20, 20, 0, {})
    assert (rows[1].id, rows[1].split, rows[1].turns) == (
        "cc3m.json[1]",
        "train",
        (("", "players wait for a conversion"),),
    )
    assert pictures[rows[1].picture] == (folder / "images/001319946.jpg").resolve()
    assert _same_pixels(rows, pictures, _loose(shared))


def test_the_list_left_out_and_refused(tmp_path: Path) -> None:
    file = tmp_path / "cc3m.json"
    good = {"caption": "A door.", "image_name": "a.jpg"}
    file.write_text(json.dumps([good, good | {"caption": ""}, good | {"caption": "w" * 50_001}, {"caption": "A cat."}]))
    _, tally, _ = _read(tmp_path, file)
    assert _counts(tally) == (
        *(4, 2, 0, 1),
        {"empty caption": 1, "text longer than 50,000 characters": 1, "no picture is named": 1},
    )
    for records, message in (
        ([good | {"id": 1}, good, good | {"id": 1}], "records[2]: id occurs twice"),
        ([good, good | {"image_name": "../a.jpg"}], "records[1]: picture '../a.jpg' leaves the data folder"),
    ):
        file.write_text(json.dumps(records))
        with pytest.raises(DataError) as error:
            _read(tmp_path, file)
        assert str(error.value).startswith(f"{file}: {message}")
