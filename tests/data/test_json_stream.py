"""Streaming of annotation files: the same records as Python's parser gives, wherever the blocks end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from embervlm.data import json_stream
from embervlm.data.json_stream import Block, read_keyed, read_lines, read_list, read_lists
from embervlm.data.sample import DataError


class Record(msgspec.Struct):
    id: Any = None
    text: Any = None
    source: Any = msgspec.field(default=None, name="from")


class Kept(msgspec.Struct):
    id: Any = None
    parts: msgspec.Raw = msgspec.Raw(b"null")


TEXTS = [  # what could be taken for the end of a record
    'a }, {"id": 1}',
    'quote " and \\ slash',
    "}]",
    '"',
    "\\",
    "ü€😀",
    "",
    "x" * 50,
    '{"id"',
    "\\u0069d",
    "[{",
    "line\nbreak",
]


def make_records(rng: random.Random, count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": rng.randrange(10**9),
            "other": [{"id": 3, "text": rng.choice(TEXTS)}] * rng.randrange(3),
            "text": "".join(rng.choices(TEXTS, k=rng.randrange(4))),
            "from": rng.choice([None, True, 1.5, {"a": [1, {"b": rng.choice(TEXTS)}]}]),
        }
        for _ in range(count)
    ]


def write(path: Path, value: Any, rng: random.Random) -> Path:
    style = rng.choice([{}, {"indent": 1}, {"separators": (",", ":")}, {"indent": 2, "ensure_ascii": True}])
    style.setdefault("ensure_ascii", False)
    path.write_text(rng.choice(["", "\n "]) + json.dumps(value, **style) + rng.choice(["", "\n"]), encoding="utf-8")
    return path


def flat(blocks: Any) -> list[tuple[Any, Any, Any]]:
    found = []
    for block in blocks:
        assert block.start == len(found)
        found += [(record.id, record.text, record.source) for record in block.records]
    return found


def expected(records: list[dict[str, Any]]) -> list[tuple[Any, Any, Any]]:
    return [(record["id"], record["text"], record["from"]) for record in records]


@pytest.fixture(params=[32, 100, 777, 4 * 1024**2])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(json_stream, "BLOCK_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("seed", range(12))
def test_every_layout_gives_what_pythons_parser_gives(tmp_path: Path, block_bytes: int, seed: int) -> None:
    rng = random.Random(seed)
    records = make_records(rng, rng.choice([0, 1, 2, 30]))
    assert flat(read_list(write(tmp_path / "a.json", records, rng), Record)) == expected(records)

    keyed = {f"n{number}": record for number, record in enumerate(records)}
    blocks = list(read_keyed(write(tmp_path / "b.json", keyed, rng), Record))
    assert flat(blocks) == expected(records)
    assert [name for block in blocks for name in block.names] == list(keyed)

    others = make_records(rng, rng.randrange(1, 5))
    document = {"info": {"url": "a"}, "pictures": others, "ids": [1, 2], "records": records, "year": 2017, "empty": []}
    items = list(document.items())
    rng.shuffle(items)
    values: dict[str, Any] = {}
    found = list(read_lists(write(tmp_path / "c.json", dict(items), rng), {"records": Record}, values))
    assert flat(found) == expected(records)
    assert values == {"info": {"url": "a"}, "ids": [1, 2], "year": 2017, "empty": []}

    lines = tmp_path / "d.jsonl"
    lines.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records), encoding="utf-8")
    assert flat(read_lines(lines, Record)) == expected(records)


def test_two_lists_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"b": [{"id": 1}], "a": [{"id": 2}, {"id": 3}]}')
    found = read_lists(path, {"a": Record, "b": Record})
    assert [(block.key, [record.id for record in block.records]) for block in found] == [("b", [1]), ("a", [2, 3])]


def test_a_field_can_stay_unparsed_until_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"id": 1, "parts": [{"x": "}"}]}, {"id": 2}]')
    (block,) = list(read_list(path, Kept))
    assert json_stream.plain(block.records[0].parts) == [{"x": "}"}]
    assert json_stream.plain(block.records[1].parts) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1}, {"id": 2', r"line 1 column 21: not valid JSON \(ends too early\)"),
        ('[\n{"id": 1},\n{"id": 2, "id": 3}]', r"line 3 column 1: .*key 'id' occurs twice in one object"),
        ('[{"id": 1},\n{"x": NaN}]', r"line 2 column 1: .*NaN is not a JSON number"),
        ('[{"id": 1},\n{"\\u0069d": 2, "id": 1}]', r"line 2 column 1: .*key 'id' occurs twice"),
        ('[{"id": 1},]', r"line 1 column 12: "),
        ('[{"id": 1} {"id": 2}]', r"line 1 column 12: "),
        ('[{"id": 1}] x', r"line 1 column 13: text after the end"),
        ('[{"id": 1}}', r"line 1 column 11: "),
        ('{"id": 1}', r"line 1 column 1: expected a list of records"),
        ("", r"line 1 column 1: ends too early"),
        ('[{"id": 01}]', r"line 1 column 10: "),
        ('[{"id": "\t"}]', r"line 1 column 10: "),
        ('[{"id": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path: Path, block_bytes: int, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_list(path, Record))


def test_a_byte_order_mark_and_bytes_that_are_no_text_are_refused(tmp_path: Path, block_bytes: int) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf[{"id": 1}]')
    with pytest.raises(DataError, match=r"line 1: the file begins with a byte order mark; save it as UTF-8 without"):
        list(read_list(path, Record))
    path.write_bytes(b'[{"id": 1},\n {"unwanted": "\xff"}]')
    with pytest.raises(DataError, match=r"line 2 column 16: not UTF-8 text"):
        list(read_list(path, Record))


def test_keys_of_objects_and_of_nested_ones_may_occur_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"7": {"id": 1},\n "7": {"id": 2}}')
    assert [name for block in read_keyed(path, Record) for name in block.names] == ["7", "7"]
    path.write_text('{"records": [], "records": []}')
    with pytest.raises(DataError, match="'records' occurs twice"):
        list(read_lists(path, {"records": Record}))
    path.write_text('[{"id": 1, "text": [{"a": 1, "a": 2}]}]')
    with pytest.raises(DataError, match="key 'a' occurs twice"):
        list(read_list(path, Record, nested=(("a",), lambda record: len(record.text))))


def test_records_that_are_no_objects_have_no_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[1, {"id": 2}, null]')
    assert [record.id for block in read_list(path, Record) for record in block.records] == [None, 2, None]


def test_a_missing_list_is_named_with_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"info": {}, "images": [{"id": 1}]}')
    with pytest.raises(DataError, match=r"no list 'annotations' in the object; found images, info"):
        list(read_lists(path, {"annotations": Record}))
    path.write_text('{"annotations": {"id": 1}}')
    with pytest.raises(DataError, match=r"'annotations' must be a list, found \{'id': 1\}"):
        list(read_lists(path, {"annotations": Record}))


def test_a_line_that_holds_no_single_object_is_named(tmp_path: Path, block_bytes: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n\n{"id": 2}\n')
    assert flat(read_lines(path, Record)) == [(1, None, None), (2, None, None)]
    path.write_text('{"id": 1}\n{"id": 2\n"text": 3}\n')
    with pytest.raises(DataError, match=r"line 2 column"):
        list(read_lines(path, Record))
    path.write_text('{"id": 1},{"id": 2}\n')
    with pytest.raises(DataError, match=r"line 1 column 10: .*Extra data"):
        list(read_lines(path, Record))


def test_the_public_suite_of_hostile_json(shared: Path, tmp_path: Path, block_bytes: int) -> None:
    """JSONTestSuite's texts as a record's field: n_ refused, y_ read; i_ may be either but must not break."""
    read = refused = 0
    for case in sorted((shared / "hostile" / "json" / "test_parsing").iterdir()):
        path = tmp_path / "a.json"
        for before, after in ((b'[{"unwanted": ', b"}]"), (b'[{"id": 1}, {"id": ', b"}]")):
            text = case.read_bytes()
            if text.startswith(b"\xef\xbb\xbf") and case.name[0] == "n":
                continue
            path.write_bytes(before + text + after)
            if case.name == "n_structure_open_array_object.json" and block_bytes < 1000:
                continue
            try:
                blocks: list[Block[Record]] = list(read_list(path, Record))
            except DataError as error:
                refused += 1
                assert case.name[0] in "ni" or "duplicated_key" in case.name, (case.name, error)
                assert str(path) in str(error)
            else:
                read += 1
                assert case.name[0] in "yi", case.name
                assert sum(len(block.records) for block in blocks) == (1 if b"unwanted" in before else 2)
    assert read > 180 and refused > 350
