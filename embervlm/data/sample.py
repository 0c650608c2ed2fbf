"""What every reader produces and everything after it consumes: one picture-and-text record or one robot task."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from embervlm.fleet import Fleet

Style = Literal["caption", "short_answer", "chat"]
Split = Literal["train", "validation"]


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the place in it, what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange. ``answer`` is what the model learns to say; a caption has an empty ``question``."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class PackedPicture:
    """A picture inside another file, read when it is wanted.

    Attributes:
        file: the tar shard or Arrow file that holds it.
        position: the first byte of its data in a tar shard; its row in an Arrow file.
        size: its bytes in a tar shard; -1 for an Arrow file.
    """

    file: Path
    position: int
    size: int

    def __str__(self) -> str:
        return f"{self.file}[{self.position}]"


Picture = Path | PackedPicture


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of stages 1 and 2.

    Attributes:
        id: data set and the record's own id, for example ``vqa_v2/984000``; unique in a run.
        dataset: name of the reader that made it.
        style: how the record reads (``prompts`` decides the wording).
        image: where the picture is, or None for a text-only record.
        turns: the exchanges in order; every answer is supervised.
        split: ``validation`` where the publisher's own file is a validation or test file.
    """

    id: str
    dataset: str
    style: Style
    image: Picture | None
    turns: tuple[Turn, ...]
    split: Split = "train"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One phase of a plan. Steps that share an ``order`` run side by side, after all those of a lower one."""

    order: int
    robot: str
    subtask: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The written grounds of a selection; the fourth step, the decision, follows from the selection itself.

    Attributes:
        requirements: what the task needs.
        environment: what the picture shows; empty for a task without one.
        capabilities: those of the leader's capabilities, as its fleet file words them, that meet the need.
    """

    requirements: str
    environment: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RobotSample:
    """One robot task of stage 3.

    Attributes:
        id: file and place, for example ``single_robot_selection.json[12]``.
        task: the task's text, without a leading ``Task:``.
        leaders: the robots that may lead, by the fleet's names; several where the label does not say which.
        selected: every robot to send, leaders included, in the fleet's order.
        plan: the phases in order, or empty where the data give none.
        reasoning: the written grounds, or None where the data give none.
        image: the scene's picture, or None; none is ever made up.
        family: which tasks are versions of one another, for splits that keep them together; None where not known.
        voice: in whose manner the task is worded, for splits by it; None where not known.
        suitable: the robots that could lead well enough, leaders included, in the fleet's order; empty where not known.
        fleet: whose robots these are; None for those of the run's fleet. The samples of a file share one object.
    """

    id: str
    task: str
    leaders: tuple[str, ...]
    selected: tuple[str, ...]
    plan: tuple[PlanStep, ...] = ()
    reasoning: Reasoning | None = None
    image: Path | None = None
    family: str | None = None
    voice: str | None = None
    suitable: tuple[str, ...] = ()
    fleet: Fleet | None = field(default=None, repr=False)


def normalise_task(text: str) -> str:
    """The form in which two task texts count as the same: no case, accents' composition, apostrophes or punctuation."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"^\s*task\s*:", "", text)
    text = re.sub(r"['’‘`]", "", text)
    return " ".join(re.findall(r"\w+", text))


_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20[0-9]{2}_)?([0-9]{12})\.[A-Za-z]+")


def image_key(name: str) -> str:
    """What identifies a picture across data sets, from its file's name without folders.

    COCO's 2014 and 2017 names of one photograph give one key.
    """
    match = _COCO_NAME.fullmatch(name)
    return f"coco/{match.group(1)}" if match else name


def key_hash(key: str) -> int:
    """A 64-bit number for a key, the same in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())


T = TypeVar("T")


def split_by_key(
    items: Iterable[T], key: Callable[[T], str], share: float, seed: int
) -> tuple[Sequence[T], Sequence[T]]:
    """Split ``items`` into training and validation so that no key is on both sides.

    The keys with the smallest seeded hashes go to validation: at least one when there are two or more and
    ``share`` is above 0. Neither the order of the items nor the other keys' wording changes where a key goes by much.

    Returns:
        training items and validation items, each in the given order.
    """
    items = list(items)
    keys = sorted({key(item) for item in items}, key=lambda k: hashlib.sha256(f"{seed}/{k}".encode()).digest())
    count = round(share * len(keys))
    if share > 0 and len(keys) > 1:
        count = min(max(count, 1), len(keys) - 1)
    held_out = set(keys[:count])
    train = [item for item in items if key(item) not in held_out]
    validation = [item for item in items if key(item) in held_out]
    return train, validation
