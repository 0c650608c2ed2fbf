"""The report on data: rows whose sums are right, tokens as `encode` counts them, refused files, and the page."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embervlm.cli import main
from embervlm.data import report_tokens
from embervlm.data.loaders import load_base
from embervlm.data.report import Report, SetRow, make_report, shown_prompt
from embervlm.data.report_page import page, shown_tokens, write_page
from embervlm.data.report_tokens import count_tokens, draw, prompt_sizes
from embervlm.data.report_verdict import StageSize, judge
from embervlm.data.sample import DataError, PlanStep, Reasoning, RobotSample, Sample, Turn
from embervlm.prompts import IGNORED, Piece, encode
from embervlm.tokens import CONTROL_IDS, IMAGE

POSITIONS, IMAGE_TOKENS = 1024, 49


@dataclass
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """A function that runs `embervlm data report` in this process."""
    logger = logging.getLogger("embervlm")
    before = (logger.handlers[:], logger.propagate, logger.level)
    logger.handlers.clear()

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            code = main(["data", "report", *map(str, arguments)])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    yield call
    logger.handlers[:], logger.propagate, logger.level = before


@pytest.fixture(scope="module")
def fixtures_report(shared: Path) -> Report:
    return make_report([shared / "fixtures", shared / "robot-selection-dataset"])


def picture(file: Path, colour: tuple[int, int, int] = (200, 30, 30)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), colour).save(file)
    return file


def captions(folder: Path, name: str = "pairs.jsonl", count: int = 20, **more: str) -> Path:
    """A folder with one's own captions, a picture each."""
    lines = []
    for number in range(count):
        picture(folder / f"{name}-{number}.png", (number * 10, 5, len(name)))
        lines.append(json.dumps({"image": f"{name}-{number}.png", "caption": f"Picture {number} of {name}."} | more))
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def check_sums(row: SetRow) -> None:
    left_out = sum(row.unusable.values()) + row.missing_images
    assert row.rejected == left_out == sum(row.reasons.values())
    assert row.kept == row.train + row.validation
    assert row.records == left_out + row.duplicates + row.held_out + row.over_cap + row.train + row.validation


def test_the_rows_of_the_fixtures(fixtures_report: Report) -> None:
    found = [
        (
            *(row.stage, row.dataset, len(row.files), row.records, row.with_answer, row.with_image),
            *(row.rejected, row.duplicates, row.held_out, row.over_cap, row.train, row.validation, row.pictures),
        )
        for row in fixtures_report.rows
    ]
    assert found == [
        (1, "coco_captions", 2, 1966, 1966, 150, 1816, 0, 0, 0, 70, 80, 14),
        (1, "ok_vqa", 4, 406, 2, 0, 406, 0, 0, 0, 0, 0, 0),
        (1, "vqa_v2", 4, 703, 703, 71, 632, 0, 0, 0, 71, 0, 22),
        (1, "a_okvqa", 2, 2, 2, 0, 2, 0, 0, 0, 0, 0, 0),
        (1, "gqa", 3, 802, 802, 17, 785, 0, 2, 0, 0, 15, 0),
        (1, "cc3m", 3, 1040, 1040, 40, 1000, 0, 0, 0, 39, 1, 39),
        (1, "refcoco", 1, 100, 86, 0, 100, 0, 0, 0, 0, 0, 0),
        (2, "llava", 2, 22, 22, 20, 2, 0, 0, 0, 19, 1, 19),
        (2, "llava_qa", 1, 90, 90, 0, 90, 0, 0, 0, 0, 0, 0),
        (3, "robot_tasks", 2, 416, 416, 0, 0, 213, 0, 0, 183, 20, 0),
    ]
    for row in fixtures_report.rows:
        check_sums(row)
    assert fixtures_report.rows[1].reasons == {"question without annotation": 404, "image not found": 2}
    assert not fixtures_report.refused
    assert [verdict.word for verdict in fixtures_report.verdicts] == ["too little"] * 3


def test_the_tokens_of_the_fixtures(fixtures_report: Report) -> None:
    found = {
        row.dataset: (row.tokens.encoded, row.tokens.median, row.tokens.p95, row.tokens.longest, row.tokens.supervised)
        for row in fixtures_report.rows
        if row.tokens is not None
    }
    assert found == {
        "coco_captions": (150, 72, 77, 86, 920),
        "vqa_v2": (71, 70, 74, 78, 164),
        "gqa": (15, 71, 76, 77, 0),
        "cc3m": (40, 69, 82, 82, 455),
        "llava": (20, 73, 85, 86, 216),
        "robot_tasks": (203, 33, 66, 76, 3666),
    }
    counts = [row.tokens for row in fixtures_report.rows if row.tokens is not None]
    assert all(count.cut == 0 and count.cut_exact and count.supervised_exact for count in counts)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_rows_are_what_training_loads(shared: Path, fixtures_report: Report, stage: Any) -> None:
    loaded = load_base(shared / "fixtures", stage)
    rows = [row for row in fixtures_report.rows if row.stage == stage]
    names = ("dataset", "files", "records", "with_answer", "with_image", "missing_images", "first_missing")
    for name in (*names, "duplicates", "held_out", "over_cap", "train", "validation"):
        assert [getattr(row, name) for row in rows] == [getattr(row, name) for row in loaded.report]
    # The counted samples are those that are trained on.
    of_set = [sample for sample in loaded.train if sample.dataset == rows[0].dataset]
    assert rows[0].train == len(of_set)


def test_json_holds_the_rows_and_nothing_else(shared: Path, run: Callable[..., Ran]) -> None:
    ran = run(shared / "fixtures", shared / "robot-selection-dataset", "--json")
    rows = json.loads(ran.out)
    assert ran.code == 0 and len(rows) == 10
    for row in rows:
        first = ["stage", "dataset", "files", "records", "with_answer", "with_image", "rejected", "kept"]
        assert list(row)[:8] == first
        assert all(type(row[name]) is int for name in ("files", "records", "with_answer", "with_image", "kept"))
        left = row["rejected"] + row["duplicates"] + row["held_out"] + row["over_cap"]
        assert row["records"] == left + row["kept"] and row["kept"] == row["train"] + row["validation"]
        assert row["files"] == len(row["file_names"]) and row["refused"] is None
        assert row["rejected"] == sum(row["reasons"].values())
    assert rows[0]["first_missing"] == "000000084533.jpg"


def test_the_table_has_the_totals(shared: Path, run: Callable[..., Ran]) -> None:
    ran = run(shared / "fixtures", shared / "robot-selection-dataset", "--preset", "spark")
    assert ran.code == 0
    (records, tokens) = (line.split() for line in ran.out.splitlines() if line.split()[:1] == ["total"])
    assert records == ["total", "24", "5,547", "5,129", "298", "4,833", "213", "2", "0", "382", "117"]
    assert tokens == ["total", "499", "76", "0", "5,421"]
    assert "Data for spark: 9.1M parameters, 1,024 positions, 16 of them for a picture" in ran.out
    assert "ok_vqa (path 1): 404 question without annotation, 2 image not found (first: COCO_train2014_" in ran.out
    assert all(line == line.rstrip() and len(line) <= 110 for line in ran.out.splitlines())


def test_chosen_sets_and_pictures_in_another_path(tmp_path: Path) -> None:
    captions(tmp_path / "first")
    chats = tmp_path / "second"
    chats.mkdir()
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."}]
    records = [{"id": str(n), "image": f"pairs.jsonl-{n}.png", "conversations": turns} for n in range(10)]
    (chats / "chats.json").write_text(json.dumps(records))
    report = make_report([tmp_path / "first", chats])
    assert [(row.stage, row.dataset, row.with_image, row.train) for row in report.rows] == [
        (1, "own", 20, 19),
        (2, "llava", 10, 9),
    ]
    (only,) = make_report([tmp_path / "first", chats], datasets=["llava"]).rows
    assert (only.dataset, only.kept) == ("llava", 10)
    assert [verdict.word for verdict in report.verdicts] == ["too little", "too little", "no data"]


def test_pictures_of_captions_are_not_looked_for_elsewhere(tmp_path: Path) -> None:
    captions(tmp_path / "first")
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first" / "pairs.jsonl", tmp_path / "second")
    report = make_report([tmp_path / "first", tmp_path / "second"])
    assert [(row.with_image, row.missing_images) for row in report.rows] == [(20, 0), (0, 20)]
    with pytest.raises(DataError, match="no usable record"):
        load_base(tmp_path / "second", 1)


def test_a_path_in_another_is_counted_once(tmp_path: Path) -> None:
    captions(tmp_path / "all" / "inner")
    report = make_report([tmp_path / "all" / "inner", tmp_path / "all", tmp_path / "all"])
    assert [(row.path, row.records) for row in report.rows] == [(tmp_path / "all", 20)]
    assert report.notes == (f"{tmp_path / 'all' / 'inner'} lies in {tmp_path / 'all'} and is counted there",)


def test_a_file_that_two_sets_take_is_named(tmp_path: Path) -> None:
    lines = [
        {"instruction": "Robots: ...", "input": f"Task: Look at {name}.", "output": "Drone", "image": "a.png"}
        for name in ("it", "them", "us")
    ]
    picture(tmp_path / "a.png")
    (tmp_path / "single.json").write_text(json.dumps(lines))
    report = make_report([tmp_path])
    of_stages = {row.stage: row.dataset for row in report.rows}
    expected = [f"{tmp_path / 'single.json'}: read as llava_qa (stage 2) and as robot_tasks (stage 3)"]
    assert list(report.notes) == (expected if 2 in of_stages else [])
    assert of_stages[3] == "robot_tasks"


def test_what_cannot_be_trained_on_has_rows_too(tmp_path: Path) -> None:
    captions(tmp_path / "a", count=5)
    for file in (tmp_path / "a").glob("*.png"):
        file.unlink()
    captions(tmp_path / "b", count=5, split="validation")
    lost, held = (make_report([tmp_path / name]) for name in "ab")
    (row,) = lost.rows
    assert (row.records, row.missing_images, row.kept, row.tokens) == (5, 5, 0, None)
    assert lost.verdicts[0].word == "cannot train"
    assert "no training sample is left of 5 records, 100% of them for want of their picture" in lost.verdicts[0].reason
    (row,) = held.rows
    assert (row.records, row.train, row.validation) == (5, 0, 5) and held.verdicts[0].word == "cannot train"
    for row in (*lost.rows, *held.rows):
        check_sums(row)


def test_robot_tasks_without_their_pictures(tmp_path: Path) -> None:
    task = {"task": "Look.", "robots": ["Drone"], "leader": "Drone", "image": "gone.jpg"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    (row,) = make_report([tmp_path]).rows
    assert (row.records, row.rejected, row.kept) == (1, 1, 0)
    assert row.first_missing is not None and row.first_missing.endswith("gone.jpg")


def test_damaged_files_are_listed_and_the_rest_is_counted(tmp_path: Path, run: Callable[..., Ran]) -> None:
    folder = captions(tmp_path / "data")
    (folder / "broken.json").write_text('{"a": 1')
    (folder / "twice.json").write_text('{"a": 1, "a": 2}')
    (folder / "pairs2.jsonl").write_text(
        '{"image": "x.png", "caption": "fine"}\n{"image": "../x.png", "caption": "no"}\n'
    )
    robots = tmp_path / "robots"
    robots.mkdir()
    (robots / "tasks.jsonl").write_text('{"task": "Look.", "robots": ["Submarine"], "leader": "Submarine"}\n')
    ran = run(folder, robots, tmp_path / "nowhere", "--json")
    rows = json.loads(ran.out)
    assert ran.code == 1
    assert [(row["dataset"], row["records"], row["kept"]) for row in rows if row["refused"] is None] == [
        ("own", 20, 20)
    ]
    refused = {Path(row["file_names"][0]).name: (row["stage"], row["refused"]) for row in rows if row["refused"]}
    assert refused.keys() == {"broken.json", "twice.json", "pairs2.jsonl", "tasks.jsonl", "nowhere"}
    assert refused["broken.json"] == (None, "line 1 column 8: not valid JSON (ends too early)")
    assert refused["pairs2.jsonl"][0] == 1 and refused["pairs2.jsonl"][1].startswith("line 2")
    assert refused["tasks.jsonl"][0] == 3 and refused["tasks.jsonl"][1].startswith("line 1")
    assert refused["nowhere"][1] == "no such file or folder"
    told = [line for line in ran.err.splitlines() if line.startswith("embervlm data: ")]
    assert len(told) == 5 and f"embervlm data: {folder / 'broken.json'}: line 1 column 8: not valid" in ran.err
    shown = run(folder)
    assert shown.code == 1 and "Refused: training would stop at them" in shown.out and " own " in shown.out


def test_a_damaged_file_of_a_joined_set(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "fixtures" / "coco_captions", tmp_path / "coco")
    whole = make_report([tmp_path / "coco"]).rows
    file = tmp_path / "coco" / "captions_val2017.json"
    file.write_bytes(file.read_bytes()[:-100])
    report = make_report([tmp_path / "coco"])
    assert [refused.file for refused in report.refused] == [file] and "line" in report.refused[0].reason
    assert [(row.dataset, len(row.files), row.records) for row in whole] == [("coco_captions", 2, 1966)]
    assert [(row.dataset, len(row.files), row.records) for row in report.rows] == [("coco_captions", 1, 400)]
    check_sums(report.rows[0])


def test_all_hostile_json_is_refused(shared: Path) -> None:
    report = make_report([shared / "hostile" / "json"])
    found = {refused.file.name for refused in report.refused}
    names = {file.name for file in (shared / "hostile" / "json").rglob("*.json")}
    assert {name for name in names if name.startswith("n_")} <= found
    sound = {name for name in names if name.startswith("y_")} - {"y_object_duplicated_key.json"}
    assert not (sound - {"y_object_duplicated_key_and_value.json"}) & found


def test_nothing_there(tmp_path: Path, run: Callable[..., Ran]) -> None:
    ran = run(tmp_path, "--json")
    assert (ran.code, ran.out) == (1, "")
    (line,) = ran.err.strip().splitlines()
    assert line.startswith(f"embervlm data: {tmp_path}: no data for stage 1, stage 2 or robot tasks")


@pytest.mark.parametrize(
    "arguments", [[], [".", "--preset", "giant"], [".", "--seed", "-1"], [".", "--datasets", "vqa_v2,imagenet"]]
)
def test_bad_usage(arguments: list[str], run: Callable[..., Ran]) -> None:
    assert run(*arguments).code == 2


def test_a_page_that_cannot_be_written_is_told_first(tmp_path: Path, run: Callable[..., Ran]) -> None:
    ran = run(captions(tmp_path / "data"), "--html", tmp_path / "none" / "page.html")
    assert (ran.code, ran.out) == (1, "") and "cannot be written" in ran.err and "counting tokens" not in ran.err


def test_shards(shared: Path) -> None:
    pytest.importorskip("webdataset")
    pattern = shared / "fixtures" / "cc3m" / "cc3m-train-{0000..0000}.tar"
    (row,) = make_report([pattern]).rows
    assert (row.dataset, row.records, row.with_image, row.train, row.validation) == ("shards", 20, 20, 19, 1)
    check_sums(row)
    assert row.tokens is not None and row.tokens.encoded == 19


def test_the_documented_report_is_what_is_printed(
    shared: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "data.md").read_text(encoding="utf-8")
    block = re.search(r"```\n\$ embervlm data report (.+)\n((?:.*\n)*?)```", text)
    assert block is not None
    monkeypatch.chdir(root)
    assert run(*block[1].split()).out == block[2]


# ---- tokens ----


def chat(number: int, words: int) -> Sample:
    turns = tuple(Turn(f"Question {number}?", " ".join(["word"] * words)) for _ in range(2))
    return Sample(f"chat/{number}", "chat", "chat", Path("a.jpg") if number % 2 else None, turns)


def sizes(sample: Sample, tokenizer: Any) -> tuple[int, int]:
    encoded = encode(shown_prompt(sample), tokenizer, IMAGE_TOKENS)
    return len(encoded.input_ids), sum(label != IGNORED for label in encoded.labels[:POSITIONS])


def test_sizes_are_those_of_the_encoded_prompts(tokenizer: Any) -> None:
    samples = [chat(number, words) for number, words in enumerate((1, 3, 40, 450, 600, 700, 1500))]
    prompts = [shown_prompt(sample) for sample in samples]
    expected = [sizes(sample, tokenizer) for sample in samples]
    assert list(prompt_sizes(prompts, tokenizer, IMAGE_TOKENS, POSITIONS)) == expected
    assert [total > POSITIONS for total, _ in expected] == [False] * 4 + [True] * 3


def test_counts_over_a_draw_and_the_longest(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_tokens, "DRAWN", 20)
    monkeypatch.setattr(report_tokens, "LONGEST", 10)
    samples = [chat(number, 2 + number % 5) for number in range(100)]
    for place in (3, 50, 97):
        samples[place] = chat(place, 900)
    all_sizes = np.array([sizes(sample, tokenizer) for sample in samples])
    lengths = np.array([sum(len(turn.question) + len(turn.answer) for turn in sample.turns) for sample in samples])
    is_train = np.arange(100) < 90

    def count(single_turns: bool) -> Any:
        return count_tokens(
            lambda place: shown_prompt(samples[place]),
            lengths,
            is_train,
            tokenizer,
            image_tokens=IMAGE_TOKENS,
            positions=POSITIONS,
            seed="s",
            single_turns=single_turns,
        )

    drawn = draw(100, 20, "s")
    found = count(False)
    assert (found.encoded, found.longest, found.cut) == (20, all_sizes[:, 0].max(), 3)
    assert found.median == sorted(all_sizes[drawn, 0])[9]
    assert not found.cut_exact and not found.supervised_exact
    assert found.supervised == round(float(all_sizes[drawn[drawn < 90], 1].mean()) * 90)
    # The next longest cannot have more tokens than bytes, image and wording together.
    assert count(True).cut_exact and count(True).cut == 3


def test_a_draw_is_seeded_and_in_order() -> None:
    assert draw(3, 5, "a").tolist() == [0, 1, 2]
    first = draw(1000, 10, "a").tolist()
    assert first == draw(1000, 10, "a").tolist() == sorted(set(first)) and len(first) == 10
    assert first != draw(1000, 10, "b").tolist()


# ---- verdicts ----


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, "enough"),
        ({"samples": 557_999}, "thin"),
        ({"pictures": 11_800}, "thin"),
        ({"pictures": 11_799}, "too little"),
        ({"missing_pictures": 60_000}, "thin"),
        ({"missing_pictures": 40_000}, "enough"),
        ({"cut": 60_000}, "thin"),
        ({"supervised": 0}, "cannot train"),
        ({"samples": 0}, "cannot train"),
        ({"records": 0}, "no data"),
    ],
)
def test_verdicts(change: dict[str, int], word: str) -> None:
    size = {"records": 1_000_000, "samples": 558_000, "pictures": 118_000, "supervised": 9_000_000}
    size |= {"missing_pictures": 0, "cut": 0, "kept": 600_000}
    assert judge(StageSize(1, **size | change), "ember", 36_834_400).word == word


# ---- the page ----


class Prompts(HTMLParser):
    """Reads a page back: every prompt's token ids, which of them are marked, and every tag and address."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[list[tuple[int, bool]]] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.in_prompt = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "p":
            self.in_prompt = values.get("class") == "prompt"
            if self.in_prompt:
                self.prompts.append([])
        if "data-ids" in values:
            taught = "mark" in self.open
            times = int(values.get("data-times") or 1)
            self.prompts[-1] += [(int(each), taught) for each in (values["data-ids"] or "").split()] * times

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.in_prompt = self.in_prompt and tag != "p"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read_page(report: Report) -> Prompts:
    reader = Prompts()
    reader.feed("".join(page(report)))
    assert not reader.open
    return reader


def expected(sample: Sample | RobotSample, tokenizer: Any) -> list[tuple[int, bool]]:
    encoded = encode(shown_prompt(sample), tokenizer, IMAGE_TOKENS)
    taught = [label != IGNORED and place < POSITIONS for place, label in enumerate(encoded.labels)]
    return list(zip(encoded.input_ids, taught, strict=True))


def test_the_page_marks_exactly_the_supervised_tokens(fixtures_report: Report, tokenizer: Any) -> None:
    read = read_page(fixtures_report)
    samples = [sample for row in fixtures_report.rows for sample in row.samples]
    assert len(samples) == 6 * 6
    assert read.prompts == [expected(sample, tokenizer) for sample in samples]
    assert all(address.startswith("data:image/jpeg;base64,") for address in read.addresses)
    assert len(read.addresses) == 30  # the robot tasks have no pictures
    assert not read.tags & {"script", "link", "iframe", "object", "form"}


def test_the_page_shows_hostile_data_as_text(tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "data"
    picture(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no picture")
    long = " ".join(["word"] * 1200)
    texts = [
        '<script>alert("1")</script>',
        "</p></main><img src=x onerror=y>",
        "\u202eeman 日本 🤖 é",
        long,
        "<|image|>",
    ]
    lines = [{"image": f"{'bad' if n == 1 else 'good'}.png", "caption": text} for n, text in enumerate(texts)]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = make_report([folder])
    assert len(report.rows[0].samples) == 5 and report.rows[0].tokens and report.rows[0].tokens.cut == 1
    read = read_page(report)
    assert "script" not in read.tags
    assert read.prompts == [expected(sample, tokenizer) for sample in report.rows[0].samples]
    text = "".join(read.texts)
    assert '<script>alert("1")</script>' in text and "\\u202eeman 日本 🤖 é" in text and "\u202e" not in text
    assert "cannot be read: not a picture that can be read; expected JPEG, PNG, WEBP, GIF, BMP" in text
    assert f"<|image|> × {IMAGE_TOKENS}" in text and "cut after 1,024" in text
    # A control token that the data spell is text, several tokens, and none of them the real one.
    spelled = next(
        ids for ids, sample in zip(read.prompts, report.rows[0].samples, strict=True) if has(sample, "<|image|>")
    )
    assert sum(token == CONTROL_IDS[IMAGE] for token, _ in spelled) == IMAGE_TOKENS


def has(sample: Sample | RobotSample, text: str) -> bool:
    return isinstance(sample, Sample) and sample.turns[0].answer == text


def test_characters_of_several_tokens_are_shown_whole(tokenizer: Any) -> None:
    text = "a 🤖\ufffd日 \x07é"
    tokens = list(shown_tokens([Piece(text, supervised=True)], tokenizer, IMAGE_TOKENS))
    ids = encode([Piece(text)], tokenizer, IMAGE_TOKENS).input_ids
    assert [each for token in tokens for each in token.ids] == ids
    assert "".join(token.text for token in tokens) == text
    assert "🤖" in [token.text.strip() for token in tokens]


def test_a_robot_task_shows_its_reasoning_and_plan(tokenizer: Any) -> None:
    sample = RobotSample(
        "t",
        "Look, then lift.",
        ("Drone",),
        ("Drone", "Humanoid"),
        plan=(PlanStep(1, "Drone", "Look"), PlanStep(2, "Humanoid", "Lift")),
        reasoning=Reasoning("a view from above", "a dam", ("fastest",)),
    )
    shown = "".join(token.text for token in shown_tokens(shown_prompt(sample), tokenizer, IMAGE_TOKENS))
    assert shown == (
        "Task: Look, then lift.\n<|reasoning_start|>a view from above\nno picture was given<|reasoning_end|>"
        "<|robot_selection|> Drone, Humanoid\nBecause: fastest<|action_plan|> 1 Drone: Look\n 2 Humanoid: Lift\n"
        "<|endoftext|>"
    )


def test_the_page_is_written_whole_or_not_at_all(
    tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = captions(tmp_path / "data"), tmp_path / "page.html"
    assert run(folder, "--html", file).code == 0
    written = file.read_text(encoding="utf-8")
    assert written.startswith("<!DOCTYPE html>") and written.endswith("</html>\n")
    assert re.search(r'<html lang="en">', written) and "default-src 'none'" in written
    report = make_report([folder])

    def stops(report: Report) -> Iterator[str]:
        yield "<!DOCTYPE html>"
        raise DataError("stopped")

    monkeypatch.setattr("embervlm.data.report_page.page", stops)
    with pytest.raises(DataError, match="stopped"):
        write_page(file, report)
    assert file.read_text(encoding="utf-8") == written
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data", "page.html"]
