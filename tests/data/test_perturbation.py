"""Altered training tasks: exact for a seed, made of what the tasks and the given neighbours have, kept words left."""

from __future__ import annotations

import re

from embervlm.data.sample import RobotSample, normalise_task
from embervlm.training.perturbation import _KEPT, perturbed_tasks, replaceable_words

TASKS = [
    "Film the roof from above. Then fetch the ladder.",
    "Carry two crates to the hall; do not drop them.",
    "Dive.",
    "Pull the Cable through the pipe!",
]
SAMPLES = [RobotSample(f"t/{n}", task, ("Drone",), ("Drone",)) for n, task in enumerate(TASKS)]
NEIGHBOURS = {"film": ["shoot"], "roof": ["attic", "tile"], "cable": ["wire"], "hall": ["room"], "crates": ["boxes"]}


EXPECTED = [
    ("Film the roof from above. Then fetch the ladder.", "t/0"),
    ("Carry two crates to the hall;", "t/1"),
    ("Then fetch the ladder.", "t/0"),
    ("Pull the Cable through the pipe!", "t/3"),
    ("do not drop them.", "t/1"),
    ("Pull the Wire through the pipe!", "t/3"),
]


def test_the_words_that_may_be_replaced() -> None:
    assert replaceable_words(SAMPLES) == [
        *(
            "above",
            "cable",
            "carry",
            "crates",
            "dive",
            "drop",
            "fetch",
            "film",
            "hall",
            "ladder",
            "pipe",
            "pull",
            "roof",
        )
    ]
    assert not set(replaceable_words(SAMPLES)) & _KEPT
    assert {"the", "not", "without", "under", "before"} <= _KEPT
    assert replaceable_words([RobotSample("a", "電車を見て。", ("Drone",), ("Drone",))]) == []


def test_the_texts_of_a_seed() -> None:
    made = perturbed_tasks(SAMPLES, NEIGHBOURS, 6, seed=0)
    assert [(text, source.id) for text, source in made] == EXPECTED
    assert perturbed_tasks(SAMPLES, NEIGHBOURS, 6, seed=0) == made
    assert perturbed_tasks(SAMPLES, NEIGHBOURS, 3, seed=0) == made[:3]
    assert perturbed_tasks(SAMPLES, NEIGHBOURS, 6, seed=1) != made


def test_every_text_is_made_of_the_tasks_and_their_neighbours() -> None:
    # The longest task says how long a text may be, so that two others' sentences fit into one.
    longest = RobotSample("t/4", "Pull the Cable " * 6 + "now.", ("Drone",), ("Drone",))
    tasks = [*TASKS, longest.task]
    made = perturbed_tasks([*SAMPLES, longest], NEIGHBOURS, 2000, seed=3)
    texts = [text for text, _ in made]
    # Five tasks do not give two thousand texts; each that there is differs in more than case and punctuation.
    assert 20 < len(texts) < 2000 and len({normalise_task(text) for text in texts}) == len(texts)
    assert all(16 <= len(text) <= max(map(len, tasks)) for text in texts)
    known = {word for task in tasks for word in re.findall(r"\w+", task)}
    new = {word for text in texts for word in re.findall(r"\w+", text)} - known
    assert new == {"Shoot", "attic", "tile", "Wire", "room", "boxes"}
    # What is kept is never replaced: no text has fewer of these than its parts had.
    sentences = {part: part for task in tasks for part in re.split(r"(?<=[.!?;:])\s+", task.strip())}
    back = {other.lower(): word for word, others in NEIGHBOURS.items() for other in others}
    for text, _ in made:
        for part in re.split(r"(?<=[.!?;:])\s+", text.strip()):
            plain = re.sub(r"[A-Za-z]+", lambda m: back.get(m.group().lower(), m.group()), part).lower()
            assert plain in {sentence.lower() for sentence in sentences}
    # A part comes with another task's, too, and the task that a text was made of is one of those it is from.
    assert any("Film" in text and ("crates" in text or "Cable" in text) for text in texts)


def test_without_neighbours_only_sentences_move() -> None:
    texts = {text for text, _ in perturbed_tasks(SAMPLES, {}, 200, seed=0)}
    parts = {part for task in TASKS for part in re.split(r"(?<=[.!?;:])\s+", task)}
    assert all(part in parts for text in texts for part in re.split(r"(?<=[.!?;:])\s+", text))
    assert TASKS[0] in texts and "Then fetch the ladder." in texts
    assert perturbed_tasks([RobotSample("a", "Dive.", ("Drone",), ("Drone",))], {}, 5, seed=0) == []
