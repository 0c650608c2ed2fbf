"""The fit of the match by words: against scikit-learn, in the form of keys and tables, weighed by validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from embervlm.data.robot_clauses import CLAUSE
from embervlm.data.sample import RobotSample
from embervlm.fleet import Fleet, Robot
from embervlm.model import EmberVLMProcessor
from embervlm.runtime.torch_model import TorchRuntime
from embervlm.selection import Calibration, RobotSelector
from embervlm.training import words_fit
from embervlm.training.words_fit import _factored, _features, _regressed, fit_words
from embervlm.words import MOST_COUNTED, hashed_words, padded, rarity

FLEET = Fleet(
    [Robot("Drone", ("aerial navigation",)), Robot("Boat", ("towing", "diving")), Robot("Cart", ("heavy crates",))]
)
JOBS = {"film the roof": "Drone", "fly to the mast": "Drone", "tow the raft": "Boat", "dive to the reef": "Boat"} | {
    "haul the crates": "Cart",
    "cart the bricks": "Cart",
}
PLACES = ("harbour", "forest", "tunnel", "market", "island", "quarry", "museum", "desert")
TASKS = [
    RobotSample(f"{job}/{place}", f"Please {job} at the {place}.", (robot,), (robot,))
    for job, robot in JOBS.items()
    for place in PLACES
]


@pytest.fixture
def selector(make_tiny: Callable[..., Any], tokenizer: Any) -> RobotSelector:
    model = make_tiny()
    return RobotSelector(
        TorchRuntime(model, EmberVLMProcessor.for_config(model.config, tokenizer)), FLEET, Calibration()
    )


def by_words(selector: RobotSelector, tasks: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    head = selector.model.robot_head
    hashes, weights = map(torch.from_numpy, padded([hashed_words(task) for task in tasks]))
    with torch.inference_mode():
        state = selector._fleet_state(FLEET)
        leader, member = head.match_words(head.by_words.vectors(hashes, weights), state)
    return leader, member


def test_the_fit_is_a_regression_of_the_words(selector: RobotSelector) -> None:
    fit_words(selector, TASKS, [])
    match = selector.model.robot_head.by_words
    assert match.rarity.tolist() == pytest.approx(rarity([task.task for task in TASKS], 1024).tolist())
    new = ["Would you film the reeds?", "Dive at once, to the pipe", "The bricks: cart them off"]
    leader, member = by_words(selector, new)
    assert leader.argmax(-1).tolist() == [0, 1, 2] and member.argmax(-1).tolist() == [0, 1, 2]
    # What comes out of table and keys is what was regressed.
    texts = [task.task for task in TASKS]
    features = _features(texts, match)
    leaders = torch.tensor([[float(name in s.leaders) for name in FLEET.names] for s in TASKS])
    alone = F.one_hot(torch.zeros(len(TASKS), dtype=torch.long), MOST_COUNTED).float()
    weights, biases = _regressed(features, leaders, alone, leaders)
    logits = features.to_dense() @ weights + biases
    leader, member = by_words(selector, texts)
    counts = match.counts(match.vectors(*map(torch.from_numpy, padded([hashed_words(text) for text in texts]))))
    torch.testing.assert_close(torch.cat([leader, counts, member], 1), logits, rtol=0.02, atol=0.05)
    assert (counts.softmax(-1)[:, 0] > 0.9).all()


def test_clauses_are_passed_over(selector: RobotSelector) -> None:
    fit_words(selector, TASKS, [])
    match = selector.model.robot_head.by_words
    whole = {name: numbers.clone() for name, numbers in match.named_buffers()}
    clauses = [replace(task, id=f"{task.id}{CLAUSE}1", leaders=("Boat",), selected=("Boat",)) for task in TASKS]
    fit_words(selector, [*TASKS, *clauses], [])
    assert all(torch.equal(numbers, whole[name]) for name, numbers in match.named_buffers())


def test_words_tell_how_many_go(selector: RobotSelector) -> None:
    both = [
        RobotSample(f"b{n}", f"{s.task}, then see to it together", s.leaders, FLEET.names[:2])
        for n, s in enumerate(TASKS)
    ]
    every = [RobotSample(f"e{n}", f"{s.task}, all of you", s.leaders, FLEET.names) for n, s in enumerate(TASKS)]
    fit_words(selector, [*TASKS, *both, *every], [])
    match = selector.model.robot_head.by_words
    new = ["Mend the roof", "Mend the roof, then see to it together", "Mend the roof, all of you"]
    counts = match.counts(match.vectors(*map(torch.from_numpy, padded([hashed_words(text) for text in new]))))
    assert counts.argmax(-1).tolist() == [0, 1, 2] and (counts.softmax(-1)[:, 3] < 0.05).all()


def test_the_regression_is_scikit_learn_s() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    features = rng.random((80, 30)).astype(np.float32) * (rng.random((80, 30)) < 0.3)
    classes = rng.integers(0, 3, 80)
    goes = rng.integers(0, 2, (80, 3))
    weights, biases = _regressed(
        torch.from_numpy(features).to_sparse_coo(),
        torch.eye(3)[classes],
        torch.eye(2)[goes[:, 0]],
        torch.from_numpy(goes).float(),
    )
    count = linear_model.LogisticRegression(C=2 * words_fit.C, max_iter=5000, tol=1e-8)
    expected = count.fit(features, goes[:, 0]).predict_proba(features)
    settings = {"C": words_fit.C, "max_iter": 5000, "tol": 1e-8}
    softmax = linear_model.LogisticRegression(**settings).fit(features, classes)
    ours = torch.softmax(torch.from_numpy(features) @ weights[:, :3] + biases[:3], -1)
    np.testing.assert_allclose(ours, softmax.predict_proba(features), atol=5e-3)
    ours = torch.softmax(torch.from_numpy(features) @ weights[:, 3:5] + biases[3:5], -1)
    np.testing.assert_allclose(ours, expected, atol=5e-3)
    for robot in range(3):
        sigmoid = linear_model.LogisticRegression(**settings).fit(features, goes[:, robot])
        ours = torch.sigmoid(torch.from_numpy(features) @ weights[:, 5 + robot] + biases[5 + robot])
        np.testing.assert_allclose(ours, sigmoid.predict_proba(features)[:, 1], atol=5e-3)


def test_weights_of_more_outputs_than_columns_are_the_nearest() -> None:
    torch.manual_seed(0)
    weights = torch.randn(50, 6)
    table, keys = _factored(weights, 8)
    assert table.shape == (50, 8) and keys.shape == (6, 8) and torch.equal(table @ keys.T, weights)
    left, values, right = torch.linalg.svd(weights, full_matrices=False)
    table, keys = _factored(weights, 4)
    nearest = (left[:, :4] * values[:4]) @ right[:4]
    torch.testing.assert_close(table @ keys.T, nearest, rtol=1e-4, atol=1e-4)


def test_a_robot_that_does_the_same_gets_the_same_weights(make_tiny: Callable[..., Any], tokenizer: Any) -> None:
    twin = Robot("Copter", ("aerial navigation", "aerial"), same_as="Drone")
    other = Robot("Baker", ("bread", "rolls", "cakes"))
    others = RobotSample("o", "Bake bread.", ("Baker",), ("Baker",), fleet=Fleet([twin, other]))
    model = make_tiny()
    selector = RobotSelector(
        TorchRuntime(model, EmberVLMProcessor.for_config(model.config, tokenizer)), FLEET, Calibration()
    )
    fit_words(selector, [*TASKS, others], [])
    head = selector.model.robot_head
    hashes, weights = map(torch.from_numpy, padded([hashed_words("Film the roof from above")]))
    with torch.inference_mode():
        state = selector._fleet_state(Fleet([*FLEET, twin, other]))
        leader, _ = head.match_words(head.by_words.vectors(hashes, weights), state)
    drone, _, _, copter, baker = leader[0].tolist()
    assert copter == pytest.approx(drone, abs=0.4) and abs(baker) < 0.1 * abs(drone)


def test_validation_weighs_the_words(selector: RobotSelector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_fit, "MIN_TASKS", 10)
    right = TASKS[::2]
    fit_words(selector, TASKS[1::2], right)
    leader, _ = by_words(selector, [task.task for task in right])
    assert float(leader.std()) > 1
    # Where words mislead they are not heard: the state alone, however little it knows, is better.
    wrong = [replace(task, leaders=(FLEET.names[FLEET.index(task.leaders[0]) - 1],)) for task in right]
    fit_words(selector, TASKS[1::2], wrong)
    leader, _ = by_words(selector, [task.task for task in right])
    assert not leader.any()


def test_without_tasks_of_the_fleet_words_stay_silent(selector: RobotSelector) -> None:
    fit_words(selector, [replace(TASKS[0], fleet=FLEET)], [])
    leader, member = by_words(selector, ["Film the roof"])
    assert not leader.any() and not member.any()
