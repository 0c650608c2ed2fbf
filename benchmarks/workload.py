"""What the benchmarks train on and ask: made samples of the official lengths, as the project's data sets hold them.

Texts are those of ``official_files.py`` and of the task collection, pictures those of ``official_files.py``; all of it
is a function of the numbers given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import official_files

from embervlm.data import collate, robot_fleets
from embervlm.data.collate import ConversationDataset, Example, RobotTaskDataset
from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample import RobotSample, Sample, Turn
from embervlm.fleet import Fleet, Robot
from embervlm.prompts import IGNORED, Encoded
from embervlm.tokens import CONTROL_IDS, END_OF_TEXT_ID, IMAGE

TASKS = Path(__file__).resolve().parent.parent / "collection/train"
PICTURES = 16


def write_pictures(folder: Path, count: int = PICTURES) -> list[Path]:
    """Pictures of 640x480 pixels that take as long to decode as photographs; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.is_file():
            path.write_bytes(official_files.photo_like_jpeg(number))
    return paths


def stage_samples(stage: int, count: int, pictures: Sequence[Path], seed: int = 0) -> Any:
    """Samples of a stage, each with a picture.

    Args:
        stage: 1: captions as long as COCO's. 2: conversations as long as LLaVA's. 3: tasks of the collection, with
            requirements, environment, grounds and, where they have one, a plan.
        count: how many.
        pictures: taken in turn.
        seed: of the draws.
    """
    rng = random.Random(f"{seed}/{stage}")
    picture = [pictures[number % len(pictures)] for number in range(count)]
    if stage == 1:
        captions = [official_files.caption(rng) for _ in range(count)]
        return [Sample(f"made/{n}", "made", "caption", picture[n], (Turn("", captions[n]),)) for n in range(count)]
    if stage == 2:
        talks = [official_files.conversation(rng) for _ in range(count)]
        return [
            Sample(f"made/{n}", "made", "chat", picture[n], tuple(Turn(*turn) for turn in talks[n]))
            for n in range(count)
        ]
    tasks = [task for task in read_robot_tasks(TASKS, Fleet.default()) if task.fleet is None and task.reasoning]
    chosen: list[RobotSample] = rng.sample(tasks, count)
    return [
        replace(
            task,
            image=picture[n],
            reasoning=task.reasoning and replace(task.reasoning, environment=official_files.caption(rng)),
        )
        for n, task in enumerate(chosen)
    ]


def stage_dataset(stage: int, samples: Any, processor: Any, *, all_text: bool = True) -> Any:
    """The data set that a stage trains on.

    Args:
        stage: 1, 2 or 3.
        samples: of :func:`stage_samples`.
        processor: the model's.
        all_text: let stage 3 write everything about every task, each with its picture and for the run's fleet, where
            training proper writes about some alone and varies the fleets.
    """
    if stage < 3:
        return ConversationDataset(samples, processor, augment=True, seed=0)
    if all_text:
        collate.TEXT_SHARE = collate.PLAN_TEXT_SHARE = collate.REASONING_SHARE = 1.0
        collate.PICTURE_DROPOUT = robot_fleets.STAND_IN_SHARE = robot_fleets.OTHER_FLEET_SHARE = 0.0
    return RobotTaskDataset(samples, processor, Fleet.default(), augment=True, seed=0)


def examples(dataset: Any, batch_size: int, batches: int) -> list[list[Example]]:
    """The first batches of an epoch in the order in which they are trained, before they are padded."""
    from embervlm.data.order import epoch_order

    order = epoch_order(getattr(dataset, "lengths", len(dataset)), seed=0, epoch=0, group=batch_size)
    return [[dataset[int(i)] for i in order[n * batch_size : (n + 1) * batch_size]] for n in range(batches)]


def made_fleet(robots: int) -> Fleet:
    """A fleet of so many robots, whose descriptions are about as long as those of the default ones."""
    known = Fleet.default().robots
    rng = random.Random(robots)

    def made(number: int) -> Robot:
        like = known[number % len(known)]
        capabilities = rng.sample([each for robot in known for each in robot.capabilities], len(like.capabilities))
        return replace(like, name=f"{like.name} {number + 1}", capabilities=tuple(capabilities))

    return Fleet([made(number) for number in range(robots)])


def made_examples(count: int, tokens: int, processor: Any, fleet: Fleet | None) -> list[Example]:
    """Examples of one length, of tokens drawn by lot: a picture, then text whose second half is supervised.

    Args:
        count: how many.
        tokens: of each, the picture's places among them.
        processor: the model's.
        fleet: makes tasks of stage 3 of them, each led by one of its robots.
    """
    rng = np.random.default_rng(tokens)
    image, side = processor.image_tokens, processor.image_processor.size["height"]
    made = []
    for number in range(count):
        text = rng.integers(0, END_OF_TEXT_ID, tokens - image).tolist()
        half = image + len(text) // 2
        ids = [CONTROL_IDS[IMAGE]] * image + text
        leads = tuple(float(place == number % len(fleet)) for place in range(len(fleet))) if fleet is not None else ()
        made.append(
            Example(
                Encoded(ids, [IGNORED] * half + ids[half:]),
                rng.standard_normal((3, side, side), dtype=np.float32),
                image_words=tuple(text[:8]),
                task_index=half - 1,
                task=tuple(text[: half - image]),
                task_words=tuple(text[8:16]),
                selection_index=half,
                leader=leads,
                members=leads,
            )
        )
    return made
