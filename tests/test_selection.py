"""Selection: the JSON contract, constrained choices, fleets never trained on, and clear refusals; with random weights.

What a random model answers is arbitrary; what every answer must be is not.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from embervlm import selection
from embervlm.data.images import ImageError
from embervlm.fleet import Fleet, Robot
from embervlm.folders import WeightsError
from embervlm.model import EmberVLMProcessor
from embervlm.preflight import PreflightError
from embervlm.runtime.torch_model import TorchRuntime
from embervlm.selection import (
    CALIBRATION_FILE,
    MAX_PLAN_STEPS,
    MAX_TASK_CHARACTERS,
    Calibration,
    RobotSelector,
    Selection,
    SelectionError,
    _Writer,
    fleet_mark,
    read_task_lines,
)
from embervlm.tokens import (
    CONTROL_IDS,
    END_OF_TEXT_ID,
    REASONING_END,
    REASONING_START,
    ROBOT_SELECTION,
    encode_text,
)

TASKS = [
    "Inspect the pipe for cracks",
    "Carry the crates to the other hall",
    "Film the roof, then fetch the ladder",
    "Look at <|image|> <|robot_selection|><|endoftext|>",
]
NAMES = Fleet.default().names


def softmax(logits: NDArray[np.float32]) -> torch.Tensor:
    return torch.softmax(torch.from_numpy(logits).double(), -1)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def make_selector(make_tiny: Callable[..., Any], tokenizer: Any) -> Callable[..., RobotSelector]:
    """A function that makes a selector over random weights; a low threshold sends many robots, a high one few."""

    def make(seed: int = 0, threshold: float = 0.5, fleet: Fleet | None = None) -> RobotSelector:
        model = make_tiny(seed)
        processor = EmberVLMProcessor.for_config(model.config, tokenizer)
        return RobotSelector(TorchRuntime(model, processor), fleet or Fleet.default(), Calibration(1.0, threshold))

    return make


@pytest.fixture(scope="module")
def selectors(make_selector: Callable[..., RobotSelector]) -> list[RobotSelector]:
    return [make_selector(seed, threshold) for seed, threshold in ((0, 0.5), (1, 0.0), (2, 1.0), (3, 0.5))]


def check_contract(selection: Selection, names: Sequence[str], *, reason: bool, top_n: int | None = None) -> None:
    """Hold an answer to what the JSON contract says of every answer."""
    answer = json.loads(json.dumps(selection.to_dict(), allow_nan=False))
    assert list(answer) == ["task", "primary", "selected", "robots", "plan", "reasoning", "timing_ms"]
    listed = [robot["robot"] for robot in answer["robots"]]
    assert len(listed) == min(top_n or len(names), len(names)) and set(listed) <= set(names)
    assert len(set(listed)) == len(listed)
    for robot in answer["robots"]:
        assert list(robot) == ["robot", "confidence", "selected"]
        assert type(robot["confidence"]) is float and 0 <= robot["confidence"] <= 1
        assert type(robot["selected"]) is bool and robot["selected"] == (robot["robot"] in answer["selected"])
    confidences = [robot["confidence"] for robot in answer["robots"]]
    assert confidences == sorted(confidences, reverse=True)
    if len(listed) == len(names):
        assert math.isclose(sum(confidences), 1, abs_tol=1e-6)
    assert answer["selected"][0] == answer["primary"] == listed[0]
    assert len(set(answer["selected"])) == len(answer["selected"]) and set(answer["selected"]) <= set(names)
    # Those that go along stand by how likely they lead.
    places = {name: place for place, name in enumerate(listed)}
    if len(listed) == len(names):
        assert [places[name] for name in answer["selected"]] == sorted(places[name] for name in answer["selected"])
    assert selection.confidence == confidences[0]

    plan = answer["plan"]
    assert 1 <= len(plan) <= max(MAX_PLAN_STEPS, len(answer["selected"]))
    assert [phase["step"] for phase in plan] == list(range(1, len(plan) + 1))
    assert {phase["robot"] for phase in plan} == set(answer["selected"])
    for phase in plan:
        assert list(phase) == ["step", "robot", "subtask", "depends_on"]
        assert phase["subtask"].strip() and "\n" not in phase["subtask"]
        assert all(type(step) is int and 1 <= step < phase["step"] for step in phase["depends_on"])
    assert plan[0]["depends_on"] == []

    assert all(type(step) is str for step in answer["reasoning"])
    assert len(answer["reasoning"]) == (4 if reason else 0)
    if reason:
        matched = answer["reasoning"][2].split(", ")
        assert answer["reasoning"][3].startswith(f"{answer['primary']} leads")
        assert matched and len(set(matched)) == len(matched) <= 3
    assert all(type(ms) is float and ms >= 0 for ms in answer["timing_ms"].values())
    assert "total" in answer["timing_ms"]


@pytest.mark.parametrize("reason", [True, False], ids=["reason", "no reason"])
@pytest.mark.parametrize("with_picture", [True, False], ids=["picture", "no picture"])
def test_every_answer_keeps_the_contract(
    selectors: list[RobotSelector], picture: Path, reason: bool, with_picture: bool
) -> None:
    sizes = set()
    for selector in selectors:
        for task in TASKS if reason else TASKS[2:]:
            selection = selector.select(task, picture if with_picture else None, reason=reason)
            assert selection.task == task
            check_contract(selection, NAMES, reason=reason)
            if reason:
                assert set(selection.reasoning[2].split(", ")) <= set(selector.fleet[selection.primary].capabilities)
                assert (selection.reasoning[1] == "no picture was given") == (not with_picture)
            sizes.add(len(selection.selected))
    assert 1 in sizes and 5 in sizes


def test_the_same_question_has_the_same_answer(selectors: list[RobotSelector], picture: Path) -> None:
    def answer(selector: RobotSelector) -> dict[str, Any]:
        found = selector.select(TASKS[0], picture).to_dict()
        found.pop("timing_ms")
        return found

    assert answer(selectors[0]) == answer(selectors[0])
    # And another picture has another one: the model is shown it.
    other = Image.new("RGB", (64, 64), (250, 20, 20))
    assert selectors[0].select(TASKS[0], other, reason=False).confidence != (
        selectors[0].select(TASKS[0], picture, reason=False).confidence
    )


def test_a_picture_may_be_a_path_bytes_or_an_image(selectors: list[RobotSelector], picture: Path) -> None:
    with Image.open(picture) as opened:
        opened.load()
    kinds = [picture, str(picture), picture.read_bytes(), opened]
    answers = [selectors[0].select(TASKS[0], kind, reason=False) for kind in kinds]  # type: ignore[arg-type]
    assert len({answer.confidence for answer in answers}) == 1


def test_top_n_cuts_the_list_alone(selectors: list[RobotSelector]) -> None:
    for selector in selectors[:2]:
        whole = selector.select(TASKS[1], reason=False)
        for top_n in (2, 9):
            cut = selector.select(TASKS[1], reason=False, top_n=top_n)
            check_contract(cut, NAMES, reason=False, top_n=top_n)
            assert cut.robots == whole.robots[:top_n]
            assert (cut.primary, cut.selected, cut.plan) == (whole.primary, whole.selected, whole.plan)
    with pytest.raises(SelectionError, match="top_n must be 1 or more, found 0"):
        selectors[0].select(TASKS[1], top_n=0)


@pytest.mark.parametrize("with_picture", [True, False], ids=["picture", "no picture"])
def test_select_and_score_agree(selectors: list[RobotSelector], picture: Path, with_picture: bool) -> None:
    images = [picture if with_picture else None] * len(TASKS)
    for selector in selectors[:2]:
        done: list[int] = []
        # Batches of 3 and 1, so that rows of different length are padded.
        leaders, members = selector.score(TASKS, images, batch_size=3, progress=done.append)
        assert done == [3, 4] and leaders.shape == members.shape == (4, 5)
        names = selector.selected_names(leaders, members, [with_picture] * len(TASKS))
        for task, image, row, selected in zip(TASKS, images, leaders, names, strict=True):
            selection = selector.select(task, image, reason=False)
            expected = dict(zip(selector.fleet.names, softmax(row).tolist(), strict=True))
            for robot in selection.robots:
                assert robot.confidence == pytest.approx(expected[robot.robot], abs=1e-5)
            assert selection.selected == selected


def test_calibration_tempers_the_confidence_and_sets_the_threshold(
    make_selector: Callable[..., RobotSelector],
) -> None:
    selector = make_selector(1)
    leaders, members = selector.score(TASKS[:1], [None])
    going = torch.sigmoid(torch.from_numpy(members).double())[0].tolist()
    leader = int(leaders[0].argmax())
    for temperature, threshold in ((0.5, sum(sorted(going)[1:3]) / 2), (3.0, 0.999)):
        selector.calibration = Calibration(temperature, threshold, 9)
        selection = selector.select(TASKS[0], reason=False)
        assert selection.confidence == pytest.approx(float(softmax(leaders[0] / temperature).max()), abs=1e-5)
        expected = {NAMES[leader]} | {name for name, p in zip(NAMES, going, strict=True) if p >= threshold}
        assert set(selection.selected) == expected


def thresholds(**at: float) -> tuple[float, ...]:
    """Thresholds of prediction sets: 0, and from each named percent (``p90``) on the given one."""
    levels = {int(name[1:]): threshold for name, threshold in at.items()}
    return tuple(max((t for percent, t in levels.items() if percent <= p), default=0.0) for p in range(50, 100))


@pytest.fixture
def vouching(make_selector: Callable[..., RobotSelector]) -> RobotSelector:
    """A selector whose sets hold one robot up to 79%, up to two thirds of the probability from 80%, all from 99%."""
    selector = make_selector(1)
    selector.calibration = Calibration(
        2.0, 0.5, 400, fleet_mark(selector.fleet), thresholds(p80=0.5, p90=2 / 3, p99=1.0)
    )
    return selector


def test_prediction_sets(vouching: RobotSelector) -> None:
    leading = [0.05, 0.15, 0.5, 0.2, 0.1]
    best_first = [NAMES[2], NAMES[3], NAMES[1], NAMES[4], NAMES[0]]
    # Before the second stands 0.5, before the third 0.7.
    for coverage, size in ((0.5, 1), (0.79, 1), (0.8, 2), (0.9, 2), (0.98, 2), (0.99, 5)):
        assert vouching.prediction_set(leading, coverage) == best_first[:size]
    # Between two whole percents the higher one counts.
    assert vouching.prediction_set(leading, 0.789) == best_first[:1]
    assert vouching.prediction_set(leading, 0.791) == best_first[:2]
    assert vouching.prediction_set(leading, 0.57) == best_first[:1]
    assert vouching.prediction_set([0.2] * 5, 0.5) == [NAMES[0]]
    assert vouching.prediction_set([0.0, 0.0, 0.0, 0.0, 1.0], 0.98) == [NAMES[4]]


def test_an_answer_names_its_prediction_set_if_it_is_asked(vouching: RobotSelector, picture: Path) -> None:
    for image in (None, picture):
        plain = vouching.select(TASKS[0], image, reason=False)
        check_contract(plain, NAMES, reason=False)
        assert plain.candidates is None
        for coverage in (0.5, 0.9, 0.99):
            asked = vouching.select(TASKS[0], image, reason=False, coverage=coverage, top_n=1)
            leading = {robot.robot: robot.confidence for robot in plain.robots}
            assert asked.candidates == vouching.prediction_set([leading[name] for name in NAMES], coverage)
            assert asked.candidates[0] == asked.primary == plain.primary
            answer = json.loads(json.dumps(asked.to_dict()))
            assert list(answer)[-3:] == ["timing_ms", "prediction_set", "ask_a_person"]
            assert answer["prediction_set"] == asked.candidates
            assert answer["ask_a_person"] is (len(asked.candidates) > 1)
        assert asked.candidates == [robot.robot for robot in plain.robots]


@pytest.mark.parametrize("coverage", [0.0, 0.49, 0.991, 1.0, -0.9, 90.0, math.nan, math.inf])
def test_a_coverage_out_of_range_is_refused(vouching: RobotSelector, coverage: float) -> None:
    expected = f"coverage must be from 0.5 to 0.99, found {coverage}"
    for ask in (
        lambda: vouching.select(TASKS[0], coverage=coverage),
        lambda: vouching.prediction_set([0.2] * 5, coverage),
    ):
        with pytest.raises(SelectionError) as caught:
            ask()
        assert str(caught.value) == expected


def test_coverage_is_refused_where_nothing_vouches_for_it(vouching: RobotSelector) -> None:
    fitted = vouching.calibration
    few = "the model was calibrated on 20 validation tasks, prediction sets need 100"
    for calibration, message in (
        (Calibration(2.0, 0.5, 20, fitted.fleet), few),
        (Calibration(), "calibrated on 0 validation tasks"),
        (Calibration(2.0, 0.5, 400), "calibration has no prediction sets; finish stage 3 again"),
    ):
        vouching.calibration = calibration
        with pytest.raises(SelectionError, match=message):
            vouching.select(TASKS[0], coverage=0.9)
        check_contract(vouching.select(TASKS[0], reason=False), NAMES, reason=False)


def test_coverage_is_refused_for_another_fleet(vouching: RobotSelector) -> None:
    robots = Fleet.default().robots
    vouching.select(TASKS[0], reason=False, coverage=0.9, fleet=Fleet(robots[::-1]))
    for fleet in (Fleet(robots[:4]), Fleet([*robots[:4], Robot("Crawler", ("pipes",))])):
        with pytest.raises(SelectionError) as caught:
            vouching.select(TASKS[0], reason=False, coverage=0.9, fleet=fleet)
        assert str(caught.value) == (
            f"no coverage can be promised for this fleet ({', '.join(fleet.names)}): the model's calibration was"
            " fitted for another; ask without coverage, or calibrate it for this fleet (embervlm calibrate)"
        )
    # A model folder whose fleet file was exchanged is another fleet, too.
    vouching.fleet = Fleet(robots[:4])
    with pytest.raises(SelectionError, match="fitted for another"):
        vouching.prediction_set([0.25] * 4, 0.9)


UNSEEN = """
robots:
  - {name: Drone, capabilities: [flying], limitations: [], environments: []}
  - {name: Drone XL, capabilities: [flying, heavy lifting], limitations: [], environments: []}
  - {name: Drone XL 2, capabilities: [flying, night vision, flying far], limitations: [wind], environments: [sea]}
  - {name: "Кран", capabilities: ["подъём, груз"], limitations: [], environments: [], payload_kg: 900}
"""


def test_a_fleet_never_trained_on(selectors: list[RobotSelector], tmp_path: Path, picture: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(UNSEEN, encoding="utf-8")
    fleet = Fleet.from_yaml(file)
    for selector in selectors:
        for task in TASKS[:2]:
            selection = selector.select(task, picture, fleet=fleet)
            # A capability here holds a comma, so the third step is not split.
            check_contract(selection, fleet.names, reason=True)
        # The selector's own fleet is in use again afterwards.
        check_contract(selector.select(TASKS[0], reason=False), NAMES, reason=False)


def test_a_fleet_of_one_and_one_of_many(selectors: list[RobotSelector]) -> None:
    one = Fleet([Robot("Crawler", ("pipes",))])
    selection = selectors[0].select(TASKS[0], fleet=one)
    check_contract(selection, one.names, reason=True)
    assert (selection.primary, selection.confidence) == ("Crawler", 1.0)
    many = Fleet([Robot(f"Robot {number}", (f"skill {number}",)) for number in range(12)])
    selection = selectors[1].select("Film it.", fleet=many)
    check_contract(selection, many.names, reason=True)
    # The threshold of this selector sends everybody, which is more than 512 positions have room to write about.
    assert len(selection.selected) == 12 and "Film it." in {phase.subtask for phase in selection.plan}


def test_the_fleet_s_order_changes_no_confidence(selectors: list[RobotSelector]) -> None:
    backwards = Fleet(reversed(Fleet.default().robots))
    given = selectors[0].select(TASKS[0], reason=False).robots
    turned = selectors[0].select(TASKS[0], reason=False, fleet=backwards).robots
    assert [robot.robot for robot in turned] == [robot.robot for robot in given]
    for one, other in zip(given, turned, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_the_fused_encoder_sees_what_the_model_sees(make_selector: Callable[..., RobotSelector], picture: Path) -> None:
    selector = make_selector()
    before = {name: tensor.clone() for name, tensor in selector.model.state_dict().items()}
    pixels = selector.pixels(picture)
    assert pixels is not None
    with torch.no_grad():
        expected = selector.model.get_image_features(torch.from_numpy(pixels)[None])[0]
    torch.testing.assert_close(selector.runtime.see([pixels])[0], expected, rtol=1e-4, atol=1e-5)
    after = selector.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


class Scripted(_Writer):
    """A writer whose model likes the tokens of ``wanted`` best, one after another, whatever it has read."""

    def __init__(self, selector: RobotSelector, wanted: Sequence[int]) -> None:
        super().__init__(selector.runtime, selector.runtime.reader(selector._fleet_state(selector.fleet)))
        self.wanted, self.written = list(wanted), 0
        self.taken: list[int] = []

    def read(self, ids: Sequence[int], features: Any = None) -> None:
        self.taken += ids

    def _logits(self) -> NDArray[np.float32]:
        logits = np.zeros(50262, np.float32)
        if len(self.taken) < len(self.wanted):
            logits[self.wanted[len(self.taken)]] = 9.0
        return logits


class Recorded:
    """A reader that notes what it is given to read."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.read_so_far = reader, list[tuple[list[int], int, bool]]()

    def read(self, ids: Sequence[int], position: int, features: Any = None) -> Any:
        self.read_so_far.append((list(ids), position, features is not None))
        return self.reader.read(ids, position, features)

    def logits(self, state: Any) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.reader.logits(state)
        return found


@pytest.mark.parametrize("reason", [False, True])
def test_what_is_taken_in_is_read_once_and_in_order(
    selectors: list[RobotSelector], picture: Path, reason: bool
) -> None:
    selector, readers = selectors[1], list[Recorded]()

    def reader(fleet: Any) -> Any:
        readers.append(Recorded(selector.runtime.reader(fleet)))
        return readers[-1]

    selector.select(TASKS[0], picture, reason=reason, reader=reader)
    found = readers[0].read_so_far
    # One after another without a gap, the picture with the prompt alone.
    assert [position for _, position, _ in found] == [
        sum(len(ids) for ids, _, _ in found[:number]) for number in range(len(found))
    ]
    assert [seen for _, _, seen in found] == [True, *[False] * (len(found) - 1)]
    prompt = selector._prompt(TASKS[0], True)
    assert found[0][0] == [*prompt, CONTROL_IDS[REASONING_START if reason else ROBOT_SELECTION]]
    taken = [token for ids, _, _ in found for token in ids]
    assert taken.count(CONTROL_IDS[ROBOT_SELECTION]) == 1
    assert any(ids[-2:] == [CONTROL_IDS[REASONING_END], CONTROL_IDS[ROBOT_SELECTION]] for ids, _, _ in found) == reason


CHOICES = ["Drone", "Drone XL", "Drone XL 2", "Dredger", "Boat"]


@pytest.mark.parametrize("wanted", CHOICES)
def test_any_name_can_be_written_even_if_another_begins_with_it(
    selectors: list[RobotSelector], tokenizer: Any, wanted: str
) -> None:
    for names in (CHOICES, CHOICES[::-1]):
        options = [encode_text(tokenizer, f" {name}") for name in names]
        colon = encode_text(tokenizer, ":")
        tokens = encode_text(tokenizer, f" {wanted}")
        writer = Scripted(selectors[0], tokens + colon)
        assert names[writer.choose(options, colon)] == wanted
        # Exactly the name was taken in; the colon is the caller's.
        assert writer.taken == tokens


def test_a_choice_never_leaves_the_options(selectors: list[RobotSelector], tokenizer: Any) -> None:
    options = [encode_text(tokenizer, f" {name}") for name in CHOICES]
    colon = encode_text(tokenizer, ":")
    for text in (" Humanoid: now", "<|endoftext|>", " Drone Ultra", " XL", ""):
        writer = Scripted(selectors[0], tokenizer(text)["input_ids"])
        picked = writer.choose(options, colon)
        assert writer.taken == options[picked]


def test_a_spelled_control_token_is_no_control_token(selectors: list[RobotSelector], tokenizer: Any) -> None:
    # A robot whose name spells one, too: its description and its name are text.
    fleet = Fleet([Robot("<|endoftext|>", ("<|image|>",)), Robot("Boat", ("<|action_plan|>", "towing"))])
    for selector in selectors:
        check_contract(selector.select(TASKS[3], fleet=fleet), fleet.names, reason=True)


@pytest.mark.parametrize("task", ["", "  \n\t "])
def test_an_empty_task_is_refused(selectors: list[RobotSelector], task: str) -> None:
    with pytest.raises(SelectionError, match="the task is empty; say in a sentence what is to be done"):
        selectors[0].select(task)


def test_a_too_long_task_is_refused_with_both_numbers(selectors: list[RobotSelector]) -> None:
    expected = f"the task has {MAX_TASK_CHARACTERS + 1} characters; at most {MAX_TASK_CHARACTERS} are read"
    with pytest.raises(SelectionError, match=expected):
        selectors[0].select("a" * (MAX_TASK_CHARACTERS + 1))
    # Within the characters, but of many tokens each.
    with pytest.raises(PreflightError, match=r"\d+ tokens, image tokens counted, but the language model has 512"):
        selectors[0].select("電" * 400)
    with pytest.raises(PreflightError, match="positions"):
        selectors[0].score(["電" * 400], [None])


def test_a_task_of_several_lines_has_phases_of_one(
    selectors: list[RobotSelector], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = " Look.\n Then go. "
    # As with a model that has nothing to say: the task itself is the phase.
    monkeypatch.setattr(_Writer, "write_line", lambda self: "")
    monkeypatch.setattr(_Writer, "prefers", lambda self, token, other: True)
    for selector in selectors:
        selection = selector.select(task, reason=False)
        assert selection.task == task
        assert {phase.subtask for phase in selection.plan} == {"Look. Then go."}
        check_contract(selection, NAMES, reason=False)


def test_a_line_does_not_go_in_circles(selectors: list[RobotSelector], tokenizer: Any) -> None:
    ids = encode_text(tokenizer, " over the hill to the hill")

    class Circling(Scripted):
        def _logits(self) -> torch.Tensor:
            logits = torch.zeros(50262)
            # What it likes best, over and over; and the line's end a little, once that is forbidden.
            logits[END_OF_TEXT_ID] = 1.0
            logits[self.wanted[len(self.taken) % len(self.wanted)]] = 9.0
            return logits

    over, the, hill, to, *_ = ids
    assert ids == [over, the, hill, to, the, hill]
    with torch.inference_mode():
        assert Circling(selectors[0], ids).write_line() == "over the hill to the"
        assert Circling(selectors[0], [the]).write_line() == "the"


def test_no_robot_has_more_than_two_phases(selectors: list[RobotSelector], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Writer, "write_line", lambda self: "go on")
    monkeypatch.setattr(_Writer, "prefers", lambda self, token, other: False)
    found = set()
    for selector in selectors:
        for task in TASKS:
            phases = Counter(phase.robot for phase in selector.select(task, reason=False).plan)
            found |= set(phases.values())
    assert found == {1, 2}


def test_the_longest_task_that_is_taken_is_answered(selectors: list[RobotSelector], picture: Path) -> None:
    task = "go " * 246  # with the picture and the room for the answer just within the 512 positions
    for selector in selectors:
        check_contract(selector.select(task, picture), NAMES, reason=True)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 40], ids=["empty", "text", "cut"])
def test_a_picture_that_is_none_is_refused(selectors: list[RobotSelector], tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "scene.png"
    file.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        selectors[0].select(TASKS[0], file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="cannot read the file"):
        selectors[0].select(TASKS[0], tmp_path / "missing.png")


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7)])
def test_a_picture_of_a_few_pixels_is_refused(
    selectors: list[RobotSelector], tmp_path: Path, size: tuple[int, int]
) -> None:
    file = tmp_path / "scene.png"
    Image.new("RGB", size).save(file)
    fault = f": {size[0]}x{size[1]} pixels show no scene; at least 8 a side are needed"
    for image, name in ((file, str(file)), (file.read_bytes(), "picture"), (Image.new("RGB", size), "picture")):
        with pytest.raises(ImageError) as caught:
            selectors[0].select(TASKS[0], image)
        assert str(caught.value) == name + fault
    Image.new("RGB", (8, 8)).save(file)
    check_contract(selectors[0].select(TASKS[0], file, reason=False), NAMES, reason=False)
    # Data of any size are scored, so that one odd picture does not stop a calibration.
    assert selectors[0].score(TASKS[:1], [Image.new("RGB", size)])[0].shape == (1, 5)


def test_a_robot_that_cannot_be_described_in_the_positions_is_refused(selectors: list[RobotSelector]) -> None:
    talker = Fleet([Robot("Talker", tuple(f"{'電' * 20} {number}" for number in range(20)))])
    with pytest.raises(PreflightError, match=r"the robot 'Talker': \d+ tokens"):
        selectors[0].select(TASKS[0], fleet=talker)


def test_tasks_with_a_picture_have_a_calibration_of_their_own(
    make_selector: Callable[..., RobotSelector], picture: Path
) -> None:
    selector = make_selector(1)
    mark = fleet_mark(selector.fleet)
    told = Calibration(3.0, 1.0, 400, mark, (0.0,) * 50)
    selector.calibration = dataclasses.replace(told, with_picture=Calibration(0.5, 0.0, 400, mark, (1.0,) * 50))
    for image, temperature, robots in ((None, 3.0, 1), (picture, 0.5, 5)):
        leaders, members = selector.score(TASKS[:1], [image])
        selection = selector.select(TASKS[0], image, reason=False, coverage=0.9)
        expected = softmax(leaders[0] / temperature)
        assert selection.confidence == pytest.approx(float(expected.max()), abs=1e-5)
        assert len(selection.selected) == robots and len(selection.candidates or ()) == robots
        assert selector.selected_names(leaders, members, [image is not None]) == [selection.selected]


def test_a_saved_folder_answers_like_what_was_saved(tiny_selector: RobotSelector, make_selector: Any) -> None:
    own = make_selector(0)
    for task in TASKS[:2]:
        one, other = own.select(task, reason=False), tiny_selector.select(task, reason=False)
        assert one.selected == other.selected
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_calibration_files(tmp_path: Path) -> None:
    assert Calibration.from_folder(tmp_path) == Calibration(1.0, 0.5, 0)
    file = tmp_path / CALIBRATION_FILE
    fitted = Calibration(1.7, 0.35, 40)
    file.write_text(json.dumps(fitted.to_dict()))
    assert Calibration.from_folder(tmp_path) == fitted
    whole = Calibration(1.7, 0.35, 400, "0123456789abcdef", thresholds(p70=0.25, p95=1.0))
    file.write_text(json.dumps(whole.to_dict()))
    assert Calibration.from_folder(tmp_path) == whole
    seen = Calibration(0.8, 0.6, 300, "0123456789abcdef", thresholds(p70=0.1, p95=0.9))
    both = dataclasses.replace(whole, with_picture=seen)
    file.write_text(json.dumps(both.to_dict()))
    assert Calibration.from_folder(tmp_path) == both
    assert both.of(True) == seen and both.of(False) == both and whole.of(True) == whole
    # As files were before there were prediction sets.
    file.write_text('{"temperature": 1.7, "member_threshold": 0.35, "samples": 40}')
    assert Calibration.from_folder(tmp_path) == fitted
    sets = '{"temperature": 1.7, "member_threshold": 0.35, "samples": 400, "fleet": "00", "set_thresholds": %s}'
    for content in (
        "{",
        "[]",
        "{}",
        '{"temperature": "hot", "member_threshold": 0.5, "samples": 1}',
        '{"temperature": 0, "member_threshold": 0.5, "samples": 1}',
        '{"temperature": NaN, "member_threshold": 0.5, "samples": 1}',
        '{"temperature": 1, "member_threshold": 1.5, "samples": 1}',
        '{"temperature": 1, "member_threshold": 0.5, "samples": Infinity}',
        '{"temperature": 1, "member_threshold": 0.5, "samples": 1, "count_weight": -1}',
        '{"temperature": 1, "member_threshold": 0.5, "samples": 1, "count_weight": NaN}',
        '{"temperature": 1, "member_threshold": 0.5, "samples": 1, "count_weight": 11}',
        sets % "3",
        sets % '["a"]',
        sets % ([0.5] * 49),
        sets % ([0.5] * 49 + [0.4]),
        sets % ([0.5] * 49 + [1.5]),
        sets % ([-0.5] * 50),
        sets % "[NaN%s]" % (", 0.5" * 49),
        '{"temperature": 1, "member_threshold": 0.5, "samples": 1, "with_picture": []}',
        '{"temperature": 1, "member_threshold": 0.5, "samples": 1, "with_picture": {"temperature": 1}}',
    ):
        file.write_text(content)
        with pytest.raises(WeightsError) as caught:
            Calibration.from_folder(tmp_path)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_task_lines(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"task": "Look.", "image": "a/b.jpg"}\n\n{"task": "Go.", "image": null}\n{"task": "Сядь."}\n')
    assert read_task_lines(file) == [("Look.", tmp_path / "a" / "b.jpg"), ("Go.", None), ("Сядь.", None)]
    # Within a text, what Unicode also counts as a line's end; between lines, as Windows ends them.
    file.write_bytes('{"task": "Look.\u2028Go."}\r\n{"task": "Sit."}\r\n'.encode())
    assert read_task_lines(file) == [("Look.\u2028Go.", None), ("Sit.", None)]


def test_task_lines_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"task": "Look."}\n' * 10)
    monkeypatch.setattr(selection, "MAX_TASKS_BYTES", 100)
    with pytest.raises(SelectionError, match=r"tasks\.jsonl: more than 100 bytes of tasks; split the file"):
        read_task_lines(file)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", ": no tasks"),
        ('{"task": "Look."}\nhello\n', ", line 2: not JSON ("),
        ('{"task": 3}', ', line 1: expected {"task": text} and optionally "image": a file name'),
        ('["Look."]', ', line 1: expected {"task": text}'),
        ('{"task": "Look.", "picture": "a.jpg"}', ', line 1: expected {"task": text}'),
        (
            '{"task": "Look.", "robot": "Drone", "by": 3}',
            ", line 1: expected {\"task\": text} and optionally \"image\": a file name; found also: 'by', 'robot'",
        ),
        ('{"task": "Look."}\n{"task": " "}', ", line 2: the task is empty; say in a sentence"),
        ('{"task": "%s"}' % ("a" * 100_000), ", line 1: the task has 100000 characters; at most 2000 are read"),
        ('{"task": "Look.", "task": "Go."}', ", line 1: not JSON (a key occurs twice in an object)"),
        ('{"task": "Look \\ud800."}', ", line 1: the task is not Unicode text: character 6 is none; write UTF-8"),
        ('{"task": "Look.", "image": 3}', ", line 1: image must be a file name, found 3"),
        ("[" * 50_000, ", line 1: not JSON ("),
    ],
)
def test_task_lines_that_are_none(tmp_path: Path, content: str, fault: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(content)
    with pytest.raises(SelectionError) as caught:
        read_task_lines(file)
    assert str(caught.value).startswith(f"{file}{fault}") and "\n" not in str(caught.value)
