"""Shards as a stream: which pair is read where and when, what a damaged or hostile shard does, and the real command."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from embervlm.data import shards as tar
from embervlm.data import stream
from embervlm.data.collate import FAILURES, Collator, Example
from embervlm.data.sample import DataError, PackedPicture
from embervlm.data.shards import caption_of, expand, find, names_shards, read_pairs, scan
from embervlm.data.stream import (
    Catalogue,
    Reader,
    StreamCollator,
    StreamedDataset,
    epoch_pairs,
    open_catalogue,
    picture_digest,
    without_traceback,
)

pytest.importorskip("webdataset")


def picture(number: int, size: int = 24) -> bytes:
    """A small JPEG, another for each number."""
    out = io.BytesIO()
    Image.new("RGB", (size, size), (number % 256, number // 256 % 256, 99)).save(out, "JPEG")
    return out.getvalue() + number.to_bytes(4, "big")


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def pair(number: int, key: str | None = None, caption: str | None = None) -> list[tuple[tarfile.TarInfo, bytes]]:
    key = f"{number:09d}" if key is None else key
    caption = f"caption {number}" if caption is None else caption
    return [member(f"{key}.jpg", picture(number)), member(f"{key}.txt", caption.encode())]


def write(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return str(path)


def write_shards(folder: Path, counts: Iterable[int]) -> list[str]:
    """Shards with so many pairs each, numbered through."""
    numbers = itertools.count()
    return [
        write(folder / f"{place:05d}.tar", itertools.chain.from_iterable(pair(next(numbers)) for _ in range(count)))
        for place, count in enumerate(counts)
    ]


def no_validation(files: list[str]) -> Catalogue:
    return Catalogue(tuple(scan(file) for file in files), {}, frozenset(), ())


def epoch(catalogue: Catalogue, ranks: int, workers: int, batch: int, *, epoch: int = 0) -> dict[tuple[int, int], list]:
    """Captions that each worker of each process reads."""
    return {
        (rank, worker): [
            caption_of(pair.text, pair.is_json)
            for pair, _ in epoch_pairs(
                catalogue,
                Reader.of(len(catalogue), rank=rank, ranks=ranks, worker=worker, workers=workers, batch_size=batch),
                seed=5,
                epoch=epoch,
            )
        ]
        for rank in range(ranks)
        for worker in range(workers)
    }


# ---- patterns ----


def test_patterns_expand_in_order() -> None:
    assert expand("a/{000..003}.tar") == ["a/000.tar", "a/001.tar", "a/002.tar", "a/003.tar"]
    assert expand("{8..10}.tar") == ["8.tar", "9.tar", "10.tar"]
    assert expand("/m/{a,b}-{1..2}.tar") == ["/m/a-1.tar", "/m/a-2.tar", "/m/b-1.tar", "/m/b-2.tar"]
    assert expand("{00..01,07..08}.tar") == ["00.tar", "01.tar", "07.tar", "08.tar"]
    assert expand(Path("one.tar")) == ["one.tar"]
    assert len(expand("shards/{00000..00575}.tar")) == 576


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("https://host/{0..3}.tar", "no URLs and no commands"),
        ("pipe:curl -s host/{0..3}.tar", "no URLs and no commands"),
        ("s3://bucket/a.tar", "no URLs"),
        ("file:///a.tar", "no URLs"),
        ("{0..999999999999999999}.tar", "names 1,000,000,000,000,000,000 shards; at most 1,000,000"),
        ("{0..999}{0..9999}.tar", "names 10,000,000 shards"),
        ("{0..3.tar", "braces that do not close"),
        ("{a,{0..3}}.tar", "braces that do not close or stand in one another"),
        ("{1,2,1}.tar", "names 1.tar more than once"),
    ],
)
def test_patterns_that_name_no_local_files_are_refused(pattern: str, words: str, one_line: Any) -> None:
    assert names_shards(pattern)
    with pytest.raises(DataError) as error:
        expand(pattern)
    assert words in one_line(error.value)


def test_missing_shards_are_counted_and_the_first_is_named(tmp_path: Path, one_line: Any) -> None:
    write_shards(tmp_path, [1, 1])
    with pytest.raises(DataError, match=r"2 of 4 shards are missing; first: \S+/00002\.tar") as error:
        find(tmp_path / "{00000..00003}.tar")
    one_line(error.value)
    assert find(tmp_path / "{00000..00001}.tar") == [str(tmp_path / "00000.tar"), str(tmp_path / "00001.tar")]


def test_a_folder_is_no_pattern_even_with_braces_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "{a}").mkdir()
    assert not names_shards(tmp_path / "{a}") and not names_shards(tmp_path)
    assert names_shards(tmp_path / "a.tar") and names_shards(tmp_path / "{0..1}")


# ---- reading ----


def test_the_real_shard_is_read_whole(shared: Path) -> None:
    file = str(shared / "fixtures" / "cc3m" / "cc3m-train-0000.tar")
    shard = scan(file)
    assert (shard.pairs, shard.incomplete, shard.damage) == (20, 0, None)
    with tarfile.open(file) as tar:
        expected = [
            (name[:-4], tar.extractfile(name).read(), tar.extractfile(f"{name[:-4]}.txt").read())  # type: ignore[union-attr]
            for name in tar.getnames()
            if name.endswith(".jpg")
        ]
    read = list(read_pairs(shard, 0, 20))
    assert [(pair.key, pair.picture, pair.text) for pair in read] == expected
    assert read[3].id == "shards/cc3m-train-0000/000000003"
    assert [pair.key for pair in read_pairs(shard, 5, 7)] == ["000000005", "000000006"]


def test_reading_begins_in_the_middle_without_reading_what_is_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "_STRIDE", 4)
    (file,) = write_shards(tmp_path, [20])
    shard = scan(file)
    assert len(shard.offsets) == 5
    # Everything before the eighth pair is overwritten: reading from there must not notice.
    status = Path(file).stat()
    with Path(file).open("r+b") as out:
        out.write(b"\xff" * shard.offsets[2])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [pair.key for pair in read_pairs(shard, 9, 12)] == [f"{number:09d}" for number in (9, 10, 11)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_length_and_alphabet_are_read(tmp_path: Path, form: int) -> None:
    keys = [f"deep/{'folder' * 20}/key", "./plain", "UPPER", "snow-\u96ea"]
    if form != tarfile.USTAR_FORMAT:
        keys.append("x" * 300)
    members = [item for number, key in enumerate(keys) for item in pair(number, key)]
    members[4] = member("UPPER.JPG", picture(2))
    shard = scan(write(tmp_path / "a.tar", members, form))
    assert (shard.pairs, shard.damage) == (len(keys), None)
    assert [pair.key for pair in read_pairs(shard, 0, len(keys))] == keys


def test_what_has_no_text_or_no_picture_is_counted_and_json_captions_serve(tmp_path: Path) -> None:
    members = [
        *pair(0),
        member("1.jpg", picture(1)),
        member("2.txt", b"no picture"),
        member("3.json", json.dumps({"caption": "from  the\nJSON"}).encode()),
        member("3.png", picture(3)),
        *pair(4),
        member("000000004.json", b'{"caption": "not this one"}'),
        member("5.webp", picture(5)),
        member("5.cls", b"7"),
        member("5.txt", b"beside others"),
    ]
    shard = scan(write(tmp_path / "a.tar", members))
    assert (shard.pairs, shard.incomplete, shard.damage) == (4, 2, None)
    captions = [pair.sample().turns[0].answer for pair in read_pairs(shard, 0, 4)]
    assert captions == ["caption 0", "from the JSON", "caption 4", "beside others"]


@pytest.mark.parametrize(
    ("text", "is_json", "words"),
    [
        (b" \n ", False, "no caption"),
        (b"\xff\xfe", False, "not UTF-8"),
        (b"a" * 50_001, False, "50,001 characters"),
        (b"{", True, "cannot be read"),
        (b"[" * 100_000, True, "cannot be read"),
        (b'{"caption": 7}', True, "no caption"),
        (b'["caption"]', True, "no caption"),
    ],
)
def test_what_is_no_caption(text: bytes, is_json: bool, words: str) -> None:
    with pytest.raises(DataError, match=words):
        caption_of(text, is_json)


# ---- order ----


def test_two_processes_with_two_workers_read_exactly_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WINDOW", 16)
    catalogue = no_validation(write_shards(tmp_path, [5, 9, 4, 7]))
    read = epoch(catalogue, 2, 2, 3)
    order = [0, 1, 2, 3]
    random.Random("5/0/shards").shuffle(order)
    first = [0, 5, 14, 18, 25]
    line = [f"caption {number}" for place in order for number in range(first[place], first[place + 1])]
    expected = {}
    # 25 pairs: 12 for each process in 4 batches of 3; each worker takes two of them; one pair is left over.
    for (rank, worker), start in {(0, 0): 0, (0, 1): 6, (1, 0): 12, (1, 1): 18}.items():
        part = line[start : start + 6]
        random.Random(f"5/0/{start}").shuffle(part)
        expected[rank, worker] = part
    assert read == expected
    assert read == epoch(catalogue, 2, 2, 3)
    assert epoch(catalogue, 2, 2, 3, epoch=1) != read


@pytest.mark.parametrize("counts", [[40], [3, 30, 1, 11], [1] * 17, [64, 0, 64]])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 2), (3, 4), (5, 3)])
def test_no_pair_is_lost_or_read_twice_but_for_the_remainder(
    tmp_path: Path, counts: list[int], ranks: int, workers: int
) -> None:
    catalogue = no_validation(write_shards(tmp_path, counts))
    total = sum(counts)
    for number in range(2):
        read = epoch(catalogue, ranks, workers, 4, epoch=number)
        shares = [sum(len(read[rank, worker]) for worker in range(workers)) for rank in range(ranks)]
        assert shares == [total // ranks] * ranks
        seen = Counter(itertools.chain.from_iterable(read.values()))
        assert len(seen) == total - total % ranks and set(seen.values()) == {1}
        # Only a process's last batch may be short, so that all take the same number of steps.
        for rank in range(ranks):
            steps = sum(-(-len(read[rank, worker]) // 4) for worker in range(workers))
            assert steps == -(-(total // ranks) // 4)


def test_a_window_is_shuffled_and_small_where_pictures_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = no_validation(write_shards(tmp_path, [200]))
    assert catalogue.window == stream.WINDOW
    read = epoch(catalogue, 1, 1, 8)[0, 0]
    assert sorted(read) == sorted(f"caption {number}" for number in range(200)) and read[:5] != sorted(read)[:5]
    monkeypatch.setattr(stream, "WINDOW_BYTES", 64 * 2048)
    assert 16 <= no_validation([shard.path for shard in catalogue.shards]).window < 128


def test_large_pictures_among_small_ones_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [item for number in range(30) for item in pair(number)]
    members[40] = member("000000020.jpg", bytes(300_000))
    catalogue = no_validation([write(tmp_path / "a.tar", members)])
    monkeypatch.setattr(stream, "WINDOW_BYTES", 70_000)
    reader = Reader(0, 30)
    pairs = [pair for pair, _ in epoch_pairs(catalogue, reader, seed=0, epoch=0)]
    refused = [pair for pair in pairs if pair.refused]
    assert [pair.number for pair in refused] == [20] and refused[0].picture == b""
    with pytest.raises(DataError, match="300,000 bytes"):
        refused[0].sample()


# ---- validation ----


def test_validation_goes_by_the_pictures_bytes_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "VALIDATION_PICKS", 100)
    files = write_shards(tmp_path / "shards", [30, 30, 30])
    copies = [item for number in range(30) for item in pair(number, f"copy{number}", f"again {number}")]
    files.append(write(tmp_path / "shards" / "copies.tar", copies))
    catalogue = open_catalogue(files, tmp_path / "cache", seed=3, share=0.1)
    held = catalogue.validation
    assert len(held) == 12 and len({kept.id for kept in held}) == 12
    assert len(catalogue) == 120 - sum(len(numbers) for numbers in catalogue.held_out.values())
    samples = catalogue.validation_samples()
    assert {sample.split for sample in samples} == {"validation"}
    for kept, sample in zip(held, samples, strict=True):
        assert isinstance(sample.image, PackedPicture)
        with sample.image.file.open("rb") as file:
            file.seek(sample.image.position)
            assert picture_digest(file.read(sample.image.size)) in catalogue.pictures
        assert sample.turns[0].answer == kept.caption
    trained = {
        picture_digest(read.picture) for place in range(4) for read in catalogue.read(place, 0, catalogue.counts[place])
    }
    assert not trained & catalogue.pictures


def test_the_choice_does_not_depend_on_order_or_place_and_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_shards(tmp_path / "shards", [10, 40, 25])
    ids = {pair.id for pair in open_catalogue(files, tmp_path / "one", seed=0).validation}
    assert len(ids) == 2  # 2% of 75
    assert {pair.id for pair in open_catalogue(files[::-1], tmp_path / "two", seed=0).validation} == ids
    assert {pair.id for pair in open_catalogue(files, tmp_path / "one", seed=1).validation} != ids
    monkeypatch.setattr(stream, "MAX_VALIDATION", 3)
    assert len(open_catalogue(files, tmp_path / "three", seed=0, share=0.5).validation) == 3
    assert open_catalogue(files, tmp_path / "four", seed=0, share=0).validation == ()


def test_counts_are_kept_and_a_changed_shard_is_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_shards(tmp_path / "shards", [6, 6])
    first = open_catalogue(files, tmp_path / "cache", seed=0)
    counted = []
    monkeypatch.setattr(stream, "scan", lambda path: counted.append(path) or scan(path))
    assert open_catalogue(files, tmp_path / "cache", seed=0) == first and counted == []
    write(Path(files[1]), [item for number in range(8) for item in pair(number)])
    assert len(open_catalogue(files, tmp_path / "cache", seed=0).shards[1].offsets) == 1
    assert counted == [files[1]]
    # A process that was killed while it wrote leaves half a line.
    with (tmp_path / "cache" / "counts-00000.jsonl").open("ab") as out:
        out.write(b'["half')
    write(Path(files[0]), [item for number in range(9) for item in pair(number)])
    assert [shard.pairs for shard in open_catalogue(files, tmp_path / "cache", seed=0).shards] == [9, 8]
    assert [shard.pairs for shard in open_catalogue(files, tmp_path / "cache", seed=0).shards] == [9, 8]
    assert counted == [files[1], files[0]]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, one_line: Any) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"cannot be kept there .*Cure: set EMBERVLM_CACHE") as error:
        open_catalogue(write_shards(tmp_path / "shards", [3]), tmp_path / "cache", seed=0)
    one_line(error.value)


def test_processes_share_the_counting(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    files = write_shards(tmp_path / "shards", [4, 5, 6, 7, 8])
    with ThreadPoolExecutor(3) as pool:
        opened = list(
            pool.map(lambda rank: open_catalogue(files, tmp_path / "cache", seed=0, rank=rank, ranks=3), range(3))
        )
    assert opened[0] == opened[1] == opened[2] and [shard.pairs for shard in opened[0].shards] == [4, 5, 6, 7, 8]
    lines = {path.name: len(path.read_bytes().split()) for path in (tmp_path / "cache").glob("counts-*")}
    assert sorted(lines) == ["counts-00000.jsonl", "counts-00001.jsonl", "counts-00002.jsonl"]


# ---- damaged and hostile shards ----


def test_a_cut_off_shard_gives_the_pairs_before_the_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, one_line: Any
) -> None:
    files = write_shards(tmp_path / "shards", [10] * 21)
    with Path(files[4]).open("r+b") as file:
        file.truncate(scan(files[4]).size // 2)
    shard = scan(files[4])
    assert 2 <= shard.pairs <= 5 and "cut off" in one_line(shard.damage)
    assert [pair.key for pair in read_pairs(shard, 0, shard.pairs)] == [f"{40 + n:09d}" for n in range(shard.pairs)]
    catalogue = open_catalogue(files, tmp_path / "cache", seed=0)
    assert len(catalogue) + len(catalogue.validation) == 200 + shard.pairs
    assert f"{files[4]}: cut off" in caplog.text
    with Path(files[5]).open("r+b") as file:
        file.truncate(700)
    with pytest.raises(DataError, match=r"2 of 21 shards are damaged; expected at most 5%.*00004\.tar: cut off"):
        open_catalogue(files, tmp_path / "cache", seed=0)


def test_every_cut_ends_in_pairs_that_can_be_read(tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "a.tar", [item for number in range(3) for item in pair(number)])).read_bytes()
    for end in range(0, len(whole), 173):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        shard = scan(str(tmp_path / "cut.tar"))
        assert [pair.number for pair in read_pairs(shard, 0, shard.pairs)] == list(range(shard.pairs))
        assert shard.damage or shard.pairs == 3


def test_every_changed_byte_ends_in_pairs_that_can_be_read(tmp_path: Path) -> None:
    members = [item for number in range(2) for item in pair(number, "k" * 120 + str(number))]
    whole = Path(write(tmp_path / "a.tar", members, tarfile.PAX_FORMAT)).read_bytes()
    rng = random.Random(0)
    for _ in range(400):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        (tmp_path / "b.tar").write_bytes(changed)
        shard = scan(str(tmp_path / "b.tar"))
        assert len(list(read_pairs(shard, 0, shard.pairs))) == shard.pairs <= 2


def _patched(member_bytes: bytes, at: int, value: bytes) -> bytes:
    """A header block with a field replaced and its checksum set right."""
    block = bytearray(member_bytes)
    block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def _hostile(kind: str) -> bytes:
    """Two sound pairs followed by something hostile, as a tar's bytes."""
    sound = [item for number in range(2) for item in pair(number)]
    out = io.BytesIO()
    more: list[tuple[tarfile.TarInfo, bytes]] = []
    if kind in ("giant", "negative", "sparse"):
        more = [member("000000002.jpg", b"x")]
    elif kind == "extended":
        more = [member("000000002.jpg", b"x", kind=tarfile.GNUTYPE_LONGNAME)]
    elif kind == "global":
        more = [member("g", b"14 path=a.jpg\n", kind=tarfile.XGLTYPE)]
    elif kind == "chain":
        more = [member("x", b"12 a=bcdefg\n", kind=tarfile.XHDTYPE)] * 1_000
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in sound:
            tar.addfile(info, io.BytesIO(data))
        place = tar.offset
        for info, data in more:
            tar.fileobj.write(info.tobuf(tarfile.USTAR_FORMAT) + data.ljust(512, b"\0"))  # type: ignore[union-attr]
    whole = out.getvalue()
    header, rest = whole[place : place + 512], whole[place + 512 :]
    if kind == "giant":
        header = _patched(header, 124, b"77777777777\0")
    elif kind == "negative":
        header = _patched(header, 124, b"\xff" * 12)
    elif kind == "sparse":
        header = _patched(_patched(header, 156, b"S"), 483, b"77777777777\0")
    elif kind == "extended":
        header = _patched(header, 124, b"77777777777\0")
    elif kind == "gzip":
        import gzip

        header, rest = gzip.compress(bytes(100_000)).ljust(1024, b"\0"), b""
    return whole[:place] + header + rest


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("giant", "cut off"),
        ("negative", "negative size"),
        ("sparse", "sparse"),
        ("extended", "an extended header of 8,589,934,591 bytes"),
        ("global", "a name for all of them"),
        ("chain", "an extended header of"),
        ("gzip", "compressed data"),
    ],
)
def test_hostile_headers_end_a_shard_and_harm_nothing(tmp_path: Path, kind: str, words: str, one_line: Any) -> None:
    (tmp_path / "a.tar").write_bytes(_hostile(kind))
    shard = scan(str(tmp_path / "a.tar"))
    assert words in one_line(shard.damage)
    assert 1 <= shard.pairs <= 2 and len(list(read_pairs(shard, 0, shard.pairs))) == shard.pairs


def test_names_that_leave_the_folder_links_and_devices_are_names_and_nothing_else(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    members = [
        *pair(0, "../../escape"),
        *pair(1, "/etc/absolute"),
        member("link.jpg", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link.txt", kind=tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("device.jpg", kind=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("pipe.txt", kind=tarfile.FIFOTYPE),
        member("folder.jpg", kind=tarfile.DIRTYPE),
        *pair(2, "a\nb"),
        *pair(3, "\x1b[31mred"),
        *pair(4, "__meta__/4"),
        *pair(5, "twice"),
        *pair(6, "twice"),
        member("7.pkl", b"cos\nsystem\n(S'touch /tmp/x'\ntR."),
        *pair(7, "7"),
    ]
    shard = scan(write(inside / "a.tar", members))
    read = list(read_pairs(shard, 0, shard.pairs))
    assert [pair.key for pair in read] == [*("../../escape", "/etc/absolute", "a\nb", "\x1b[31mred", "twice", "7")]
    assert shard.damage is None and read[4].picture == picture(5)
    assert all(pair.id.isprintable() and pair.picture_name.isprintable() for pair in read)
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "a.tar"]


def test_members_are_limited_in_number_name_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.tar", [*pair(0), *pair(1), *[member(f"{n}.cls") for n in range(100)]])
    monkeypatch.setattr(tar, "MAX_MEMBERS", 50)
    assert scan(file).damage == "more than 50 members" and scan(file).pairs == 1
    long = write(tmp_path / "b.tar", [*pair(0), *pair(1), member("n" * 1_001 + ".jpg")], tarfile.PAX_FORMAT)
    assert "name of 1,005 characters" in str(scan(long).damage)
    monkeypatch.setattr(tar, "MAX_BYTES", 5_000)
    large = write(tmp_path / "c.tar", [*pair(0), *pair(1), member("2.jpg", bytes(5_001)), member("2.txt", b"x")])
    assert "'2.jpg' has 5,001 bytes; at most 5,000 are read" in str(scan(large).damage)
    # What is neither picture nor text may have any size: it is not read.
    other = write(tmp_path / "d.tar", [*pair(0), member("0.npy", bytes(50_000)), *pair(1)])
    assert (scan(other).pairs, scan(other).damage) == (2, None)


def test_what_is_no_shard_is_refused(tmp_path: Path, one_line: Any) -> None:
    import gzip

    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match="expected a tar file, found something that is no file"):
        scan(str(tmp_path / "pipe.tar"))
    with pytest.raises(DataError, match="cannot open the shard"):
        scan(str(tmp_path / "none.tar"))
    (tmp_path / "text.tar").write_text("hello " * 200)
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "zip.tar").write_bytes(gzip.compress(b"0" * 9_999))
    assert "no member's header at byte 0" in str(scan(str(tmp_path / "text.tar")).damage)
    assert scan(str(tmp_path / "empty.tar")).damage == "the file is empty"
    assert "compressed data at byte 0; expected a plain tar file" in str(scan(str(tmp_path / "zip.tar")).damage)
    only = write(tmp_path / "only.tar", [member("1.txt", b"text"), member("2.txt", b"text")])
    with pytest.raises(DataError, match="0 pairs of a picture and a text, 2 incomplete records") as error:
        open_catalogue([only], tmp_path / "cache", seed=0)
    one_line(error.value)


def test_a_shard_that_changes_under_a_run_is_named(tmp_path: Path) -> None:
    (file,) = write_shards(tmp_path, [5])
    shard = scan(file)
    write(Path(file), [item for number in range(6) for item in pair(number)])
    with pytest.raises(DataError, match=r"00000\.tar: the shard has changed since its pairs were counted"):
        list(read_pairs(shard, 0, 5))


def test_an_error_in_a_worker_is_one_line_too(tmp_path: Path, processor: Any) -> None:
    (file,) = write_shards(tmp_path, [5])
    catalogue = no_validation([file])
    Path(file).unlink()
    with pytest.raises(DataError) as error:
        next(iter(loader(catalogue, processor, workers=1)))
    assert without_traceback(error.value) == f"{file}: cannot open the shard (No such file or directory)"
    assert without_traceback(DataError("plain")) == "plain"


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar.library.cache_clear()
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(DataError, match=r'pip install "embervlm\[shards\]"'):
        open_catalogue(write_shards(tmp_path, [3]), tmp_path / "cache", seed=0)


# ---- the data set ----


@pytest.fixture(scope="module")
def processor(make_tiny: Any) -> Any:
    from embervlm.model import EmberVLMProcessor

    return EmberVLMProcessor.for_config(make_tiny().config)


def loader(
    catalogue: Catalogue,
    processor: Any,
    *,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
    batch: int = 4,
    at: tuple[int, int] = (0, 0),
) -> DataLoader[Any]:
    dataset = StreamedDataset(catalogue, processor, seed=5, batch_size=batch, rank=rank, ranks=ranks)
    dataset.start_at(*at)
    return DataLoader(
        dataset, batch_size=batch, num_workers=workers, collate_fn=StreamCollator(Collator(processor.tokenizer))
    )


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[key] == other[key] if key == FAILURES else one[key].equal(other[key]) for key in one
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_gives_the_batches_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: Any, workers: int
) -> None:
    monkeypatch.setattr(stream, "WINDOW", 16)
    monkeypatch.setattr(tar, "_STRIDE", 4)
    catalogue = no_validation(write_shards(tmp_path, [30, 7, 50, 12]))
    for rank in range(2):
        whole = list(loader(catalogue, processor, workers=workers, rank=rank, ranks=2, at=(1, 0)))
        assert len(whole) == len(loader(catalogue, processor, ranks=2)) == 13
        assert [len(batch["input_ids"]) for batch in whole] == [4] * 12 + [1]
        for skipped in (1, 5, 8, 12):
            resumed = list(loader(catalogue, processor, workers=workers, rank=rank, ranks=2, at=(1, skipped)))
            assert len(resumed) == 13 and resumed[:skipped] == [{}] * skipped
            assert all(same(*both) for both in zip(whole[skipped:], resumed[skipped:], strict=True))
        other = list(loader(catalogue, processor, workers=workers, rank=rank, ranks=2, at=(2, 0)))
        assert not any(same(*both) for both in zip(whole, other, strict=True))


def test_what_a_resume_skips_is_not_decoded_and_what_lies_before_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: Any
) -> None:
    monkeypatch.setattr(stream, "WINDOW", 16)
    catalogue = no_validation(write_shards(tmp_path, [25] * 4))
    read, decoded = [], []
    real = stream.read_pairs

    def counted(*arguments: Any) -> Iterator[Any]:
        for found in real(*arguments):
            read.append(found)
            yield found

    monkeypatch.setattr(stream, "read_pairs", counted)
    dataset = StreamedDataset(catalogue, processor, seed=5, batch_size=4)
    example = dataset.encoder.example
    monkeypatch.setattr(dataset.encoder, "example", lambda *given: decoded.append(0) or example(*given))
    dataset.start_at(0, 22)
    assert [type(item) for item in dataset] == [type(None)] * 88 + [Example] * 12
    # 88 places are skipped: the window of 16 that holds the next one begins at place 80.
    assert len(decoded) == 12 and len(read) == 20


def test_what_cannot_be_used_is_replaced_by_a_pair_of_its_window_and_named(tmp_path: Path, processor: Any) -> None:
    members = [item for number in range(20) for item in pair(number)]
    members[2] = member("000000001.jpg", picture(1)[:200])
    members[5] = member("000000002.txt", b" ")
    catalogue = no_validation([write(tmp_path / "a.tar", members)])
    batches = list(loader(catalogue, processor, batch=20))
    assert [len(batch["input_ids"]) for batch in batches] == [20]
    failures = sorted(batches[0][FAILURES], key=lambda failure: failure.sample)
    assert [(failure.sample, failure.split, failure.replaced) for failure in failures] == [
        ("shards/a/000000001", "train", True),
        ("shards/a/000000002", "train", True),
    ]
    assert failures[0].picture == f"{tmp_path}/a.tar/000000001" and failures[0].reason.startswith("damaged picture")
    assert failures[1].reason == "no caption"
    texts = Counter(tuple(row.tolist()) for row in batches[0]["input_ids"])
    assert sorted(texts.values()) == [1] * 16 + [2] * 2
    assert same(batches[0], next(iter(loader(catalogue, processor, batch=20, workers=1))))


def test_where_nothing_can_be_used_the_batch_says_so(tmp_path: Path, processor: Any) -> None:
    members = [item for n in range(30) for item in (member(f"{n}.jpg", b"no picture"), member(f"{n}.txt", b"text"))]
    batch = next(iter(loader(no_validation([write(tmp_path / "a.tar", members)]), processor)))
    assert [failure.replaced for failure in batch[FAILURES]].count(False) == 4
    assert "pixel_values" not in batch


def test_a_copy_in_a_shard_that_was_not_looked_at_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: Any
) -> None:
    monkeypatch.setattr(stream, "VALIDATION_SHARDS", 1)
    files = write_shards(tmp_path / "shards", [20])
    files.append(write(tmp_path / "shards" / "x.tar", [item for n in range(20) for item in pair(n, f"c{n}")]))
    catalogue = open_catalogue(files, tmp_path / "cache", seed=0, share=0.1)
    assert len(catalogue.validation) == len(catalogue.pictures) == 4 and len(catalogue) == 36
    trained = []
    dataset = StreamedDataset(catalogue, processor, seed=5, batch_size=4)
    example = dataset.encoder.example
    monkeypatch.setattr(
        dataset.encoder,
        "example",
        lambda sample, data, *more: trained.append(picture_digest(data)) or example(sample, data, *more),
    )
    examples = list(dataset)
    assert len(examples) == len(trained) == 36 and not set(trained) & catalogue.pictures
    # Nothing is wrong with such a copy: it does not count as unreadable.
    assert all(example is not None and not example.failures for example in examples)
    assert len(set(trained)) == 16


def test_more_processes_than_pairs_are_refused(tmp_path: Path, processor: Any, one_line: Any) -> None:
    catalogue = no_validation(write_shards(tmp_path, [3]))
    with pytest.raises(DataError, match="3 pairs to train on for 4 processes") as error:
        StreamedDataset(catalogue, processor, seed=0, batch_size=2, ranks=4)
    one_line(error.value)


# ---- the real command ----


def _train(output: Path, pattern: str, cache: Path, *more: str, processes: int = 2) -> str:
    repository = Path(__file__).resolve().parents[2]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"),
        *(str(repository / "scripts" / "train_all.py"), "--distributed", "--stage", "1", "--stage1_data", pattern),
        *("--output_dir", str(output), "--preset", "spark", "--batch_size", "2", "--num_workers", "1"),
        *("--stage1_epochs", "2", "--save_steps", "3", "--log_steps", "1", *more),
    ]
    environment = os.environ | {"EMBERVLM_CACHE": str(cache), "PYTHONPATH": str(repository)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_the_training_command_streams_shards_and_resumes_in_mid_epoch_to_the_same_weights(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [5, 9, 4])
    pattern = f"{tmp_path}/shards/{{00000..00002}}.tar"
    whole, resumed, cache = tmp_path / "whole", tmp_path / "resumed", tmp_path / "cache"
    # 18 pairs, 1 of them for validation: 8 for each process, 4 steps an epoch.
    log = _train(whole, pattern, cache)
    assert "3 shards: 17 pairs to train on, 1 for validation" in log and "Stage 1: step 8/8" in log
    metrics = json.loads((whole / "stage1" / "final" / "metrics.json").read_text())
    assert (metrics["train_samples"], metrics["validation_samples"], metrics["steps"]) == (17, 1, 8)
    assert math.isfinite(metrics["validation_loss"]) and metrics["replaced_samples"] == 0
    shutil.copytree(whole, resumed)
    for gone in ("final", "checkpoint-8"):
        shutil.rmtree(resumed / "stage1" / gone)
    log = _train(resumed, pattern, cache, "--resume", "auto")
    assert "goes on from" in log and "checkpoint-6" in log
    assert "Stage 1: step 7/8" in log and "Stage 1: step 6/8" not in log and "order of the pairs" not in log
    weights = [(folder / "stage1" / "final" / "model.safetensors").read_bytes() for folder in (whole, resumed)]
    assert weights[0] == weights[1]


def test_the_training_command_refuses_what_is_not_there(tmp_path: Path) -> None:
    from embervlm.training.arguments import RunSettings, SettingsError

    write_shards(tmp_path, [1, 1])
    settings = RunSettings(tmp_path / "out", stages=(1,), stage1_data=tmp_path / "{00000..00004}.tar")
    with pytest.raises(SettingsError, match=r"--stage1_data .*: 3 of 5 shards are missing; first: \S+00002\.tar"):
        settings.check()
    with pytest.raises(SettingsError, match=r"--stage1_data pipe:cat a\.tar: shards are read from local"):
        RunSettings(tmp_path / "out", stages=(1,), stage1_data=Path("pipe:cat a.tar")).check()
    with pytest.raises(SettingsError, match="no URLs and no commands"):
        RunSettings(tmp_path / "out", stages=(1,), stage1_data=Path("https://host/{0..9}.tar")).check()


def test_a_resume_with_other_settings_says_that_the_order_has_changed(
    tmp_path: Path, processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = no_validation(write_shards(tmp_path, [9]))
    dataset = StreamedDataset(catalogue, processor, seed=5, batch_size=2)
    dataset.check_order(tmp_path / "order.json", 2, write=True)
    dataset.check_order(tmp_path / "order.json", 2, write=True)
    assert caplog.text == ""
    StreamedDataset(catalogue, processor, seed=5, batch_size=3).check_order(tmp_path / "order.json", 4, write=True)
    assert "(workers 2 -> 4; batch size 2 -> 3)" in caplog.text
