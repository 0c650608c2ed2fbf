"""Strict JSON: what is refused, with which place, and what a look at a file's head shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embervlm.data.json_files import peek_json, read_json
from embervlm.data.sample import DataError

DUPLICATE_KEYS = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}


def _write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_json_test_suite(shared: Path) -> None:
    files = sorted((shared / "hostile/json/test_parsing").glob("*.json"))
    accepted, refused = set(), set()
    for file in files:
        try:
            read_json(file)
        except DataError as error:
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
            refused.add(file.name)
        else:
            accepted.add(file.name)
    assert {name for name in accepted if name.startswith("n_")} == set()
    assert {name for name in refused if name.startswith("y_")} == DUPLICATE_KEYS
    assert len(files) == 318


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 column 1: not valid JSON (ends too early)"),
        (b'[\n  {"a": 1},\n  {"a": ', "line 3 column 9: not valid JSON (ends too early)"),
        (b"[1,\n 2 3]", "line 2 column 4: not valid JSON (Expecting ',' delimiter)"),
        (b"[1] []", "line 1 column 5: not valid JSON (Extra data)"),
        (b"[1, NaN]", "line 1 column 1: not valid JSON (NaN is not a JSON number)"),
        (b"[-Infinity]", "line 1 column 1: not valid JSON (-Infinity is not a JSON number)"),
        (b"[1e999]", "line 1 column 1: not valid JSON (number 1e999 is too large)"),
        (
            b'{"a": {"b": 1, "c": 2, "b": 1}}',
            "line 1 column 1: not valid JSON (key 'b' occurs twice in one object; expected once)",
        ),
        (b'["a",\n"\xff"]', "line 2: not UTF-8 text (byte 7)"),
        (b"[" * 100_000, "line 1 column 1: not valid JSON (lists or objects are nested too deeply)"),
        (b"\xef\xbb\xbf[]", "line 1: the file begins with a byte order mark; save it as UTF-8 without one"),
    ],
)
def test_refused_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    file = _write(tmp_path / "x.json", content)
    with pytest.raises(DataError) as error:
        read_json(file)
    assert str(error.value) == f"{file}: {message}"


def test_size_limit_and_missing_file(tmp_path: Path) -> None:
    file = _write(tmp_path / "x.json", b'{"a": [1, 2.5, "\xc3\xa9"]}')
    assert read_json(file) == {"a": [1, 2.5, "é"]}
    with pytest.raises(DataError, match=r"x\.json: 21 bytes; at most 10 are read"):
        read_json(file, max_bytes=10)
    with pytest.raises(DataError, match=r"y\.json: cannot read the file \(No such file or directory\)"):
        read_json(tmp_path / "y.json")
    with pytest.raises(DataError, match=r"cannot read the file \(Is a directory\)"):
        read_json(tmp_path)


def test_shrink_replaces_objects_innermost_first(tmp_path: Path) -> None:
    file = _write(tmp_path / "x.json", '{"inner": {"n": 1}, "list": [{"n": 2}]}')
    assert read_json(file, shrink=lambda found: found.get("n") or found) == {"inner": 1, "list": [2]}


def test_peek_finds_the_first_record_behind_a_long_list(tmp_path: Path) -> None:
    # 'annotations' opens at various distances from the 4 MiB block border, and its name also stands inside a text.
    for padding in (0, 4 * 1024**2 - 200, 4 * 1024**2, 4 * 1024**2 + 200):
        document = {"images": [{"x": ' "annotations": [{"no": 1}]' + "y" * padding}], "annotations": [{"caption": "c"}]}
        head = peek_json(_write(tmp_path / "x.json", json.dumps(document)))
        assert head is not None and (head.key, head.first) == ("annotations", {"caption": "c"})


@pytest.mark.parametrize(
    "content", ["", "[]", "[1, 2]", "3", '{"annotations": []}', '[{"a": ', '{"a": {"b": ', '\ufeff[{"a": 1}]']
)
def test_peek_finds_nothing(tmp_path: Path, content: str) -> None:
    assert peek_json(_write(tmp_path / "x.json", content)) is None


def test_peek_tells_the_layouts_apart(tmp_path: Path) -> None:
    for content, key in (
        (' \n[ {"a": [1]}, {"b": 2}, broken', ""),
        ('{"q1": {"a": [1]}, "q2": ', "*"),
        ('{"a": [1]}\n{"b": 2}\n', "lines"),
    ):
        head = peek_json(_write(tmp_path / "x.json", content))
        assert head is not None and (head.key, head.first) == (key, {"a": [1]})
    head = peek_json(_write(tmp_path / "x.jsonl", '{"a": {"b": 1}}\n'))
    assert head is not None and (head.key, head.first) == ("lines", {"a": {"b": 1}})
