"""The report on an evaluation: every figure stands in it, it needs nothing else, it is whole or not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from embervlm.data.html_page import write_whole
from embervlm.data.sample import PlanStep
from embervlm.evaluation.metrics import Bin, Figure, Measures, RobotMeasures
from embervlm.evaluation.report import page, write_report
from embervlm.evaluation.report_cases import shown_cases
from embervlm.evaluation.report_plots import PLOT_NAMES, ReportError, comparison
from embervlm.evaluation.run import Case, Coverage, Evaluation, Written
from embervlm.selection import Phase, RobotScore, Selection

ROBOTS = ("Drone", "Humanoid", "Robot with Legs")
SCRIPT = "<script>alert(1)</script>"


class Numbers:
    """Numbers no two of which are alike as the page writes them, so that none stands in for another."""

    def __init__(self) -> None:
        self._shares = iter(range(1, 1000))
        self._counts = count(2001)

    def share(self) -> float:
        """Differs from all others at one decimal of a percent; in no order, as measured ones are."""
        return (next(self._shares) * 577 % 1000) / 1000

    def tasks(self) -> int:
        return next(self._counts)

    def figure(self, tasks: int | None = None) -> Figure:
        return Figure(self.share(), self.share(), self.share(), self.tasks() if tasks is None else tasks)

    def measures(self) -> Measures:
        tasks = self.tasks()
        robots = [RobotMeasures(name, self.share(), self.share(), self.share(), self.tasks()) for name in ROBOTS]
        bins = [Bin(place / 15, (place + 1) / 15, self.share(), self.share(), self.tasks()) for place in range(2)]
        return Measures(
            *(self.figure(tasks) for _ in range(4)),
            robots,
            [[self.tasks() for _ in ROBOTS] for _ in ROBOTS],
            self.figure(tasks),
            bins,
        )


def make_case(number: int, **changes: Any) -> Case:
    case = Case(
        id=f"tasks.jsonl[{number}]",
        task=f"Task number {number}",
        image=None,
        voice=None,
        plan=(),
        leaders=("Drone",),
        expected=("Drone",),
        picked=("Drone",),
        confidences=(("Drone", 0.5), ("Humanoid", 0.3), ("Robot with Legs", 0.2)),
        leader_right=True,
        set_right=True,
    )
    return replace(case, **changes)


def wrong_case(number: int, confidence: float, **changes: Any) -> Case:
    confidences = (("Humanoid", confidence), ("Drone", 1 - confidence), ("Robot with Legs", 0.0))
    return make_case(
        number,
        **{"picked": ("Humanoid",), "confidences": confidences, "leader_right": False, "set_right": False} | changes,
    )


def small(**changes: Any) -> Evaluation:
    """Without pictures, baselines, written answers, sets, voices and cases."""
    evaluation = Evaluation(
        model_name="a model",
        data="tasks.jsonl",
        tasks=12,
        pictures=0,
        robots=ROBOTS,
        seed=3,
        model=Numbers().measures(),
        own_pictures=None,
        no_picture=None,
        blank_picture=None,
        shuffled_pictures=None,
        text_only_bound=0.75,
        picture_only_bound=None,
        majority=0.25,
        baselines={},
        train_tasks=None,
        folds=None,
        written=None,
        coverage=None,
        by_voice={},
        notes=(),
        cases=(),
    )
    return replace(evaluation, **changes)


def full(**changes: Any) -> Evaluation:
    """With all that can be measured."""
    n = Numbers()
    covered = n.tasks()
    answers = n.tasks()
    filled: dict[str, Any] = {
        "tasks": n.tasks(),
        "pictures": n.tasks(),
        "seed": n.tasks(),
        **{
            name: n.measures() for name in ("model", "own_pictures", "no_picture", "blank_picture", "shuffled_pictures")
        },
        "text_only_bound": n.share(),
        "picture_only_bound": n.share(),
        "majority": n.share(),
        "baselines": {"key words": n.measures(), "n-grams": n.measures()},
        "train_tasks": n.tasks(),
        "folds": 17,
        "written": Written(
            answers,
            *(n.figure(answers) for _ in range(2)),
            n.figure(),
            n.figure(answers),
            n.figure(answers),
            4321.0,
            ["?"],
        ),
        "coverage": Coverage(n.share(), n.figure(covered), Figure(1.37, 1.21, 1.58, covered), n.figure(covered)),
        "by_voice": {"radio": n.figure(), "letter": n.figure()},
        "notes": ("MiniLM is not installed",),
    }
    return small(**filled | changes)


class Page(HTMLParser):
    """A page's text, its elements, and the addresses that it names."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")
        ]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.words.append(data)


def shown(evaluation: Evaluation) -> Page:
    return Page("".join(page(evaluation)))


def test_every_figure_of_the_json_stands_on_the_page(tmp_path: Path) -> None:
    file = write_report(full(), tmp_path)
    assert file == tmp_path / "report.html"
    values = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert values == json.loads(json.dumps(full().to_dict()))
    text = Page(file.read_text(encoding="utf-8")).text
    expected = list(wordings("", values))
    assert len(expected) > 250
    assert [
        each for each in expected if not any(re.search(rf"(?<![\d.,]){re.escape(way)}", text) for way in each)
    ] == []


def wordings(name: str, value: Any) -> Iterator[tuple[str, ...]]:
    """The ways in which a page may write each number and text of the JSON."""
    if isinstance(value, dict) and set(value) == {"value", "low", "high", "tasks"}:
        low, high = value["low"], value["high"]
        yield (
            f"{value['value']:.1%} ({100 * low:.1f}–{100 * high:.1f}%)",
            f"{value['value']:.3f} ({low:.3f}–{high:.3f})",
            f"{value['value']:.2f} on average ({low:.2f}–{high:.2f})",
        )
        yield (f"{value['tasks']:,}",)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from wordings(key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from wordings(name, inner)
    elif isinstance(value, int):
        yield (str(value),) if name == "seed" else (f"{value:,}",)
    elif isinstance(value, float):
        # A bin's ends stand in one range.
        yield (f"–{value:.1%}",) if name == "high" else (f"{value:.1%}", f"{value:,.0f} ms")
    elif value is not None:
        yield (str(value),)


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    scene = tmp_path / "scene.png"
    Image.new("RGB", (900, 450), "navy").save(scene)
    source = "".join(page(full(data=str(tmp_path), cases=(wrong_case(1, 0.9, image=scene),))))
    read = Page(source)
    assert len(read.addresses) == 1 and read.addresses[0].startswith("data:image/jpeg;base64,")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    assert "http:" not in source and "https:" not in source and "url(" not in source and "@import" not in source
    assert "default-src 'none'" in source
    # The picture is made small, and named within its data.
    assert 'width="320" height="160" alt="scene.png"' in source and "scene.png, 900 × 450" in read.text
    assert str(scene) not in source


def test_what_strangers_wrote_is_escaped() -> None:
    sneaky = make_case(
        1,
        id=SCRIPT,
        task=SCRIPT,
        voice=SCRIPT,
        plan=(PlanStep(1, SCRIPT, SCRIPT), PlanStep(2, "Drone", SCRIPT)),
        leaders=(SCRIPT,),
        expected=(SCRIPT,),
        picked=(SCRIPT,),
        confidences=((SCRIPT, 1.0),),
        written=Selection(
            SCRIPT, SCRIPT, [SCRIPT], [RobotScore(SCRIPT, 1.0, True)], [Phase(1, SCRIPT, SCRIPT, [])], [SCRIPT] * 4
        ),
    )
    n = Numbers()
    evaluation = full(
        model_name=SCRIPT,
        data=SCRIPT,
        robots=(SCRIPT, "a", "b"),
        baselines={SCRIPT: n.measures()},
        by_voice={SCRIPT: n.figure()},
        notes=(SCRIPT,),
        cases=(sneaky, replace(sneaky, leader_right=False, set_right=False)),
    )
    source = "".join(page(evaluation))
    assert "<script" not in source and source.count("&lt;script&gt;") > 30
    assert "script" not in Page(source).tags


def test_the_worst_mistakes_come_first() -> None:
    cases = (
        make_case(0),
        wrong_case(1, 0.6),
        make_case(2, picked=("Drone", "Humanoid"), set_right=False),
        wrong_case(3, 0.9),
        make_case(4, confidences=(("Drone", 0.99), ("Humanoid", 0.01)), picked=("Drone", "Humanoid"), set_right=False),
        wrong_case(5, 0.7),
    )
    mistakes, right = shown_cases(small(cases=cases))
    assert [case.task[-1] for case in mistakes] == ["3", "5", "1", "4", "2"]
    assert [case.task[-1] for case in right] == ["0"]
    text = shown(small(cases=cases)).text
    places = [text.index(f"Task number {number}") for number in (3, 5, 1, 4, 2, 0)]
    assert places == sorted(places)
    assert "All 5: first those with a wrong leader (3 in all)" in text


def test_so_many_cases_are_shown_and_the_right_ones_are_drawn_by_the_seed() -> None:
    cases = tuple(wrong_case(number, 0.5 + number / 1000) for number in range(100))
    cases += tuple(make_case(number) for number in range(100, 150))
    mistakes, right = shown_cases(small(cases=cases))
    assert [case.id for case in mistakes] == [f"tasks.jsonl[{number}]" for number in range(99, 39, -1)]
    assert len(right) == 12 and all(case.leader_right for case in right)
    assert shown_cases(small(cases=cases))[1] == right
    assert shown_cases(small(cases=cases, seed=4))[1] != right
    read = shown(small(cases=cases))
    assert read.tags.count("article") == 72
    assert "The worst 60 of 100" in read.text and "12 of 50, drawn at random" in read.text


def test_a_case_shows_its_answer() -> None:
    case = wrong_case(
        1,
        0.625,
        plan=(PlanStep(1, "Drone", "look"), PlanStep(2, "Humanoid", "lift"), PlanStep(2, "Drone", "light")),
        leaders=("Drone", "Robot with Legs"),
        prediction_set=("Humanoid", "Drone"),
        written=Selection(
            "",
            "Drone",
            ["Drone"],
            [],
            [Phase(1, "Drone", "fly", []), Phase(2, "Drone", "land", [1])],
            ["a view", "a dam"],
        ),
    )
    text = shown(small(cases=(case,))).text
    assert "wrong leader tasks.jsonl[1] Task number 1 should lead Drone or Robot with Legs" in text
    assert "Humanoid ◦ 62.5% Drone ✓ ◦ 37.5% Robot with Legs ✓ 0.0%" in text
    assert "Its reasoning a view a dam Having written that, it sends Drone." in text
    assert "Plan expected Drone : look Humanoid : lift Drone : light at the same time" in text
    assert "Plan written Drone : fly Drone : land after 1" in text


def test_without_pictures_baselines_and_plans_nothing_is_said_of_them(tmp_path: Path) -> None:
    cases = (wrong_case(1, 0.9), make_case(2))
    source = write_report(small(cases=cases), tmp_path).read_text(encoding="utf-8")
    text = Page(source).text
    for absent in ("picture alone", "another task's picture", "baseline", "Plan", "Voice", "Written", "None"):
        assert absent not in text, absent
    assert "12 tasks, no pictures" in text and "best from the text alone 75.0%" in text
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        [*PLOT_NAMES, "cases.jsonl", "report.json", "report.html"]
    )
    lines = (tmp_path / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(json.dumps(case.to_dict())) for case in cases]


def test_a_task_without_its_picture_and_one_whose_picture_is_damaged(tmp_path: Path) -> None:
    damaged = tmp_path / "scene.jpg"
    damaged.write_bytes(b"no picture")
    cases = (wrong_case(1, 0.9, image=damaged), wrong_case(2, 0.8))
    read = shown(full(data=str(tmp_path), cases=cases))
    assert "cannot be read:" in read.text and "scene.jpg" in read.text
    assert "img" not in read.tags
    assert re.search(r"no picture wrong leader tasks\.jsonl\[2\]", read.text)


def test_baselines_alone_have_a_report(tmp_path: Path) -> None:
    evaluation = small(
        model_name=None, model=None, baselines={"key words": Numbers().measures()}, train_tasks=9, folds=3
    )
    write_report(small(), tmp_path)
    text = Page(write_report(evaluation, tmp_path).read_text(encoding="utf-8")).text
    assert "Evaluation of baselines" in text and "in 3 folds" in text and "at least 9 tasks" in text
    # The plots of the model that was there before are gone.
    plots = {"comparison.png", "comparison.svg"}
    assert {each.name for each in tmp_path.iterdir()} == {*plots, "cases.jsonl", "report.json", "report.html"}


def test_only_what_was_measured_over_the_same_tasks_is_compared() -> None:
    everything, pictured = comparison(full())
    assert [row.name for row in everything.rows] == ["the model", "key words", "n-grams", "always the commonest leader"]
    assert [row.name for row in pictured.rows] == [
        "its own picture",
        "no picture",
        "a blank picture",
        "another task's picture",
        "best from the text alone",
        "best from the picture alone",
    ]
    (only,) = comparison(small())
    assert [row.name for row in only.rows] == ["the model", "always the commonest leader", "best from the text alone"]


def test_the_plots_are_pictures_of_names_as_they_are(tmp_path: Path) -> None:
    # Not a formula, and not one that is broken.
    write_report(small(robots=("$x", r"a $\frac$ b", "_" * 80)), tmp_path)
    for name in PLOT_NAMES:
        if name.endswith("png"):
            with Image.open(tmp_path / name) as picture:
                assert picture.format == "PNG" and min(picture.size) > 400
        else:
            assert (tmp_path / name).read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_without_matplotlib_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embervlm.evaluation.report_plots.find_spec", lambda name: None)
    with pytest.raises(ReportError, match=r"needs matplotlib.*pip install 'embervlm\[evaluate\]'"):
        write_report(small(), tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_very_long_texts_are_cut() -> None:
    source = "".join(page(small(cases=(wrong_case(1, 0.9, task="a" * 100_000),))))
    assert "a" * 2000 + "…" in source and "a" * 2001 not in source
    assert "(98,000 more characters)" in source


def test_a_report_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fresh = tmp_path / "report", tmp_path / "fresh"
    write_report(small(), folder)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    # Neither JSON nor a plot can show it.
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(small(majority=float("nan")), fresh)
    assert not fresh.exists()

    def full_disk(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full_disk)
    for target in (folder, fresh):
        with pytest.raises(OSError, match="no space left"):
            write_report(full(), target)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before
    assert not fresh.exists()


def test_files_that_belong_together_appear_only_when_all_are_complete(tmp_path: Path) -> None:
    def breaks() -> Iterator[str]:
        yield "half"
        assert [each.name for each in tmp_path.iterdir() if not each.name.startswith(".")] == ["b"]
        raise ValueError("stopped")

    (tmp_path / "b").write_text("before")
    with pytest.raises(ValueError, match="stopped"):
        write_whole({tmp_path / "a": b"whole", tmp_path / "b": breaks()})
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("b", "before")]
    write_whole({tmp_path / "a": b"whole", tmp_path / "b": ["one ", "two"]})
    assert sorted((each.name, each.read_text()) for each in tmp_path.iterdir()) == [("a", "whole"), ("b", "one two")]
