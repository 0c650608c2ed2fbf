"""Answers in step: the same as one by one whoever shares the batch, and one that fails or leaves harms no other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from embervlm.fleet import Fleet, Robot
from embervlm.selection import RobotSelector
from embervlm.serving.lockstep import Lockstep

OTHER = Fleet([Robot("Crane", ("lifting", "heavy loads")), Robot("Mast Camera", ("watching a yard", "night video"))])


def answered(selector: RobotSelector, batch: Lockstep | None, number: int, **others: Any) -> dict[str, Any]:
    """One answer, of which everything differs with the number, rounded to what the order of additions leaves."""
    places = []

    def reader(fleet: Any) -> Any:
        assert batch is not None
        places.append(batch.join(fleet))
        return places[-1]

    picture = Image.new("RGB", (40, 30), (20 * number % 256, 90, 30)) if number % 2 else None
    task = f"Carry {number} crates to the gate" + ", then film the roof" * (number % 3)
    try:
        fleet = OTHER if number % 4 == 3 else None
        extra = {} if batch is None else {"reader": reader}
        found = selector.select(task, picture, reason=number % 3 != 0, fleet=fleet, **extra, **others).to_dict()
    finally:
        for place in places:
            place.leave()
    found.pop("timing_ms")
    for robot in found["robots"]:
        robot["confidence"] = round(robot["confidence"], 4)
    return found


def test_answers_are_the_same_as_one_by_one(tiny_selector: RobotSelector) -> None:
    alone = [answered(tiny_selector, None, number) for number in range(12)]
    batch = Lockstep(tiny_selector.model, 4)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda number: answered(tiny_selector, batch, number), range(12)))
    assert together == alone
    assert batch.rows > batch.steps > 0
    assert not batch._active and sorted(batch._free) == [0, 1, 2, 3] and batch._keys == []


def test_one_that_is_stopped_leaves_the_others_alone(tiny_selector: RobotSelector) -> None:
    batch, steps = Lockstep(tiny_selector.model, 3), []

    def stop(part: str, text: str) -> None:
        steps.append(part)
        if len(steps) > 5:
            raise InterruptedError("enough")

    with ThreadPoolExecutor(3) as threads:
        stopped = threads.submit(answered, tiny_selector, batch, 1, on_step=stop)
        others = [threads.submit(answered, tiny_selector, batch, number) for number in (2, 4)]
        with pytest.raises(InterruptedError, match="enough"):
            stopped.result()
        assert [each.result() for each in others] == [answered(tiny_selector, None, number) for number in (2, 4)]
    assert not batch._active


def test_a_fault_of_a_step_reaches_those_that_took_part(
    tiny_selector: RobotSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Lockstep(tiny_selector.model, 2)

    def fail(requests: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(batch, "_logits", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            answered(tiny_selector, batch, 1)
    assert answered(tiny_selector, batch, 1) == answered(tiny_selector, None, 1)


def test_no_more_join_than_there_are_places(tiny_selector: RobotSelector) -> None:
    batch = Lockstep(tiny_selector.model, 1)
    tiny_selector.select("Film the roof", reason=False)
    (state, *_) = tiny_selector._kept_fleets.values()
    place = batch.join(state)
    with pytest.raises(RuntimeError, match="all 1 places"):
        batch.join(state)
    place.leave()
    batch.join(state).leave()


def test_the_writing_can_be_followed(tiny_selector: RobotSelector) -> None:
    seen: list[tuple[str, str]] = []
    found = tiny_selector.select("Film the roof", on_step=lambda part, text: seen.append((part, text)))
    parts = list(dict.fromkeys(part for part, _ in seen if part))
    assert parts == ["requirements", "environment", "selection", "capabilities", "plan"]
    last = [text for part, text in seen if part == "requirements"][-1]
    assert found.reasoning[0].startswith(last)
