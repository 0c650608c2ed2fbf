"""Samples to batches: the last step of the data's way, where prompts are encoded, pictures decoded and rows padded.

What a sample looks like in an epoch depends on the seed, the epoch and its place alone, so that a run can be repeated
and resumed whatever the number of workers. One that cannot be read is replaced by another, and the batch says so.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

from embervlm.data.images import ImageError, decode_image, read_picture
from embervlm.data.order import text_lengths
from embervlm.data.quarantine import Failure, replacements
from embervlm.data.robot_fleets import cast, gathered, other_robots, stand_ins
from embervlm.data.sample import DataError, Picture, RobotSample, Sample, image_key
from embervlm.fleet import Fleet, Robot
from embervlm.model.modeling_embervlm import places_read
from embervlm.prompts import (
    CAPTION_QUESTION,
    IGNORED,
    SHORT_ANSWER_HINT,
    Encoded,
    Piece,
    chat_pieces,
    encode,
    encode_task,
    end_pieces,
    grounds_pieces,
    plan_pieces,
    reasoning_pieces,
    robot_description,
    selection_pieces,
    task_pieces,
)
from embervlm.tokens import CONTROL_IDS, END_OF_TEXT_ID, ROBOT_SELECTION, encode_text

#: How often a task's text is trained too and not its selection alone, since the language head costs as much as the
#: rest, and how often that of a task with a plan; how often, then, with its written grounds; and how often a task's
#: picture is left out.
TEXT_SHARE = 0.25
PLAN_TEXT_SHARE = 0.6
REASONING_SHARE = 0.6
PICTURE_DROPOUT = 0.05

#: How often a picture is blurred or sharpened, gets noise, and is compressed again.
FILTER_SHARE = 0.3
NOISE_SHARE = 0.4
JPEG_SHARE = 0.2

#: Weights of red, green and blue in grey (ITU-R BT.601).
_GREY = np.array([0.299, 0.587, 0.114], np.float32)

#: The batch's entry that is not the model's: what could not be read, for the trainer to take out and count.
FAILURES = "failures"


@dataclass(frozen=True, slots=True)
class Example:
    """One sample, ready to be put in a batch.

    Attributes:
        encoded: token ids and labels.
        pixels: (3, size, size), or None without a picture.
        selection_index: the place at which the robot head reads; None in stages 1 and 2.
        image_words: tokens of what is said about the picture, each once; empty where nothing is.
        task_index: the task's last place; None in stages 1 and 2.
        task: the tokens of the task by itself; empty in stages 1 and 2.
        task_words: tokens of what the task requires, each once; empty where the data do not say.
        leader, members: one number a robot, as the model's ``leader_labels`` and ``member_labels``.
        robots: whom these stand for, all of them the task's own, around whom the batch puts a fleet together; empty
            for the run's fleet as it is.
        lot: decides who else is in that fleet.
        failures: the draws that could not be read before this one could; if not even the last of them was replaced,
            this is no sample, and must not be trained on.
    """

    encoded: Encoded
    pixels: NDArray[np.float32] | None
    image_words: tuple[int, ...] = ()
    task_index: int | None = None
    task: tuple[int, ...] = ()
    task_words: tuple[int, ...] = ()
    selection_index: int | None = None
    leader: tuple[float, ...] = ()
    members: tuple[float, ...] = ()
    robots: tuple[Robot, ...] = ()
    lot: int = 0
    failures: tuple[Failure, ...] = ()


def conversation_pieces(sample: Sample) -> list[Piece]:
    """A sample of stages 1 and 2 as a prompt: a caption and a short answer are one turn with a fixed wording."""
    if sample.style == "caption":
        turns = [(CAPTION_QUESTION, turn.answer) for turn in sample.turns]
    elif sample.style == "short_answer":
        turns = [(f"{turn.question} {SHORT_ANSWER_HINT}", turn.answer) for turn in sample.turns]
    else:
        turns = [(turn.question, turn.answer) for turn in sample.turns]
    return chat_pieces(turns, has_image=sample.image is not None)


def robot_task_pieces(sample: RobotSample, *, with_reasoning: bool, with_image: bool, leader: str) -> list[Piece]:
    """A robot task as a prompt: task, reasoning, selection with ``leader`` first, grounds, plan."""
    has_image = with_image and sample.image is not None
    pieces = task_pieces(sample.task, has_image)
    reasoning = sample.reasoning if with_reasoning else None
    if reasoning is not None:
        pieces += reasoning_pieces(reasoning.requirements, reasoning.environment if has_image else None)
    pieces += selection_pieces([leader, *(name for name in sample.selected if name != leader)])
    if reasoning is not None and reasoning.capabilities:
        pieces += grounds_pieces(reasoning.capabilities)
    if sample.plan:
        pieces += plan_pieces([(step.order, step.robot, step.subtask) for step in sample.plan])
    return pieces + end_pieces()


class _SampleDataset(Dataset[Example]):
    samples: Sequence[Sample] | Sequence[RobotSample]

    def __init__(self, processor: Any, *, augment: bool, seed: int) -> None:
        self.tokenizer, self.image_processor = processor.tokenizer, processor.image_processor
        self.image_tokens: int = processor.image_tokens
        self.max_length: int = processor.tokenizer.model_max_length
        self.augment, self.seed, self.epoch = augment, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is running; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        """The sample at ``index``, or the one that takes its place where it cannot be read."""
        try:
            return self._example(index)
        except (ImageError, DataError) as error:
            failures = [self._failure(index, error)]
        for other in replacements(index, len(self), seed=self.seed, epoch=self._epoch):
            try:
                return replace(self._example(other), failures=tuple(failures))
            except (ImageError, DataError) as error:
                failures.append(self._failure(other, error))
        failures[-1] = replace(failures[-1], replaced=False)
        return Example(Encoded([END_OF_TEXT_ID], [IGNORED]), None, failures=tuple(failures))

    def _example(self, index: int) -> Example:
        raise NotImplementedError

    def _failure(self, index: int, error: ImageError | DataError) -> Failure:
        try:
            sample = self.samples[index]
            name, picture = sample.id, None if sample.image is None else str(sample.image)
        except DataError:
            name, picture = f"#{index}", None
        reason = " ".join(str(error).split()).removeprefix(f"{picture}: ")
        return Failure(name, "train" if self.augment else "validation", picture, reason, self._epoch)

    @property
    def _epoch(self) -> int:
        return self.epoch if self.augment else 0

    def _random(self, index: int) -> random.Random:
        return random.Random(f"{self.seed}/{self._epoch}/{index}")

    def _encode(self, pieces: list[Piece]) -> Encoded:
        return encode(pieces, self.tokenizer, self.image_tokens)

    def _words(self, text: str) -> tuple[int, ...]:
        return tuple(dict.fromkeys(encode_text(self.tokenizer, f" {text}"))) if text else ()

    def _pixels(self, source: Any, rng: random.Random) -> NDArray[np.float32]:
        image = decode_image(source) if isinstance(source, bytes) else read_picture(source)
        if self.augment:
            image = vary(image, rng, self.image_processor.size["height"] * 5 // 4)
        pixels: NDArray[np.float32] = self.image_processor.pixels(image)
        return pixels


class ConversationDataset(_SampleDataset):
    """The samples of stages 1 and 2.

    Args:
        samples: what to train or validate on.
        processor: the model's processor.
        augment: vary the pictures, for training.
        seed: of the variation.
    """

    def __init__(self, samples: Sequence[Sample], processor: Any, *, augment: bool, seed: int) -> None:
        super().__init__(processor, augment=augment, seed=seed)
        self.samples: Sequence[Sample] = samples
        # A question's picture often has captions too, in this or another data set. Indexed samples know them; a
        # sequence of objects is small enough to be asked for them here.
        self._captions: Callable[[int], Sequence[str]] = getattr(samples, "captions", None) or _Captions(samples)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """(samples,): bytes of each sample's text, to group the batches by."""
        known: NDArray[np.int32] | None = getattr(self.samples, "lengths", None)
        return text_lengths(self.samples) if known is None else known

    def encoded(self, index: int) -> Encoded:
        """The sample's token ids and labels, cut to the model's positions, without opening its picture."""
        return self._cut(self.samples[index])

    def example(self, sample: Sample, picture: Any, captions: Sequence[str], rng: random.Random) -> Example:
        """A sample ready for a batch, wherever it comes from.

        Args:
            sample: what is said.
            picture: its picture's place or bytes, as ``images`` takes them; None without one.
            captions: all that are known of the picture.
            rng: what varies it.

        Raises:
            ImageError: the picture cannot be read.
            DataError: nothing of it is supervised, as its answers lie behind the model's positions.
        """
        encoded = self._cut(sample)
        if all(label == IGNORED for label in encoded.labels):
            raise DataError(f"no supervised token among its first {len(encoded.labels)}")
        pixels = None if picture is None else self._pixels(picture, rng)
        return Example(encoded, pixels, self._words(rng.choice(captions) if captions else ""))

    def _cut(self, sample: Sample) -> Encoded:
        encoded = self._encode(conversation_pieces(sample))
        return Encoded(encoded.input_ids[: self.max_length], encoded.labels[: self.max_length])

    def _example(self, index: int) -> Example:
        sample = self.samples[index]
        captions = self._captions(index) if sample.image is not None else ()
        return self.example(sample, sample.image, captions, self._random(index))


class _Captions:
    """The captions of a sample's picture, found by going through all samples once."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._of_picture: dict[str, list[str]] = {}
        for sample in samples:
            if sample.style == "caption" and sample.image is not None:
                key = self._key(sample.image)
                self._of_picture.setdefault(key, []).extend(turn.answer for turn in sample.turns)

    def __call__(self, index: int) -> Sequence[str]:
        image = self.samples[index].image
        return self._of_picture.get(self._key(image), ()) if image is not None else ()

    @staticmethod
    def _key(image: Picture) -> str:
        return image_key(image.name) if isinstance(image, Path) else str(image)


class RobotTaskDataset(_SampleDataset):
    """The tasks of stage 3.

    They are not grouped by length: all are short, and those of one wording, which differ in their picture alone, would
    come into the same batch.

    Args:
        samples: what to train or validate on.
        processor: the model's processor.
        fleet: the run's fleet; tasks that have their own are trained among their robots and others.
        augment: vary pictures and fleets, leave some pictures out, and write the grounds for some; for training.
        seed: of the variation.
    """

    def __init__(
        self, samples: Sequence[RobotSample], processor: Any, fleet: Fleet, *, augment: bool, seed: int
    ) -> None:
        super().__init__(processor, augment=augment, seed=seed)
        self.samples: Sequence[RobotSample] = samples
        self.fleet = fleet
        self.other_robots = other_robots(samples, fleet) if augment else ()
        self._stand_ins = stand_ins(fleet, self.other_robots)

    def encoded(self, index: int) -> Encoded:
        """The task's token ids and labels with all that is written about it, without opening its picture."""
        sample = self.samples[index]
        return self._encode(robot_task_pieces(sample, with_reasoning=True, with_image=True, leader=sample.leaders[0]))

    def _example(self, index: int) -> Example:
        sample, rng = self.samples[index], self._random(index)
        text_share = PLAN_TEXT_SHARE if sample.plan else TEXT_SHARE
        with_text = not self.augment or rng.random() < text_share
        with_reasoning = self.augment and with_text and rng.random() < REASONING_SHARE
        with_image = sample.image is not None and not (self.augment and rng.random() < PICTURE_DROPOUT)
        leader = rng.randrange(len(sample.leaders))
        # Not of the numbers that vary the rest, which are the same whatever other robots there are.
        lots = random.Random(f"{self.seed}/{self._epoch}/{index}/fleet")
        played = cast(sample, self.fleet, self._stand_ins, lots, varied=self.augment)
        sample, robots = played.sample, played.robots

        def encoded_as(sample: RobotSample) -> Encoded:
            return self._encode(
                robot_task_pieces(
                    sample, with_reasoning=with_reasoning, with_image=with_image, leader=sample.leaders[leader]
                )
            )

        encoded = encoded_as(sample)
        if len(encoded.input_ids) > self.max_length and sample.fleet is None and robots:
            # Names that are longer than those that were checked before the first step.
            sample, robots = self.samples[index], ()
            encoded = encoded_as(sample)
        selection_index = encoded.input_ids.index(CONTROL_IDS[ROBOT_SELECTION])
        if not with_text:
            cut = selection_index + 1
            encoded = Encoded(encoded.input_ids[:cut], [IGNORED] * cut)
        task = encode_task(sample.task, self.tokenizer)
        names = [robot.name for robot in robots or self.fleet]
        leading = tuple((name in sample.leaders) / len(sample.leaders) for name in names)
        going = tuple(float(name in sample.selected) for name in names)
        return Example(
            encoded,
            self._pixels(sample.image, rng) if with_image else None,
            self._words(sample.reasoning.environment if with_image and sample.reasoning else ""),
            task_index=len(task) + (self.image_tokens if with_image else 0) - 1,
            task=tuple(task),
            task_words=self._words(sample.reasoning.requirements if sample.reasoning else ""),
            selection_index=selection_index,
            leader=leading,
            members=going,
            robots=robots,
            lot=played.lot,
        )


def vary(image: Image.Image, rng: random.Random, largest: int) -> Image.Image:
    """An RGB picture for training as another camera might have taken it in other light, its sides at most ``largest``.

    A crop of 65-100% whose shape differs by up to a quarter, a flip, light, contrast and colour by 30%, half the time
    a colour cast and light that falls off to one side and corner, and now and then blur or sharpening, sensor noise
    and the traces of JPEG. What a picture shows keeps its colours' names.
    """
    scale, shape = rng.uniform(0.65, 1.0) ** 0.5, rng.uniform(-0.12, 0.12)
    width = min(image.width, max(1, round(image.width * scale * (1 + shape))))
    height = min(image.height, max(1, round(image.height * scale * (1 - shape))))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    image = image.crop((left, top, left + width, top + height))
    if max(width, height) > largest:  # what the model does not see is not varied
        image = image.resize((min(width, largest), min(height, largest)), reducing_gap=2.0)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < FILTER_SHARE:
        radius = rng.uniform(0.3, 1.2)
        image = image.filter(rng.choice((ImageFilter.BoxBlur(radius), ImageFilter.UnsharpMask(radius, 120, 0))))
    image = Image.fromarray(_relit(np.asarray(image), rng))
    if rng.random() < JPEG_SHARE:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(25, 80))
        image = decode_image(buffer.getvalue())
    return image


def _relit(picture: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """The picture, (height, width, 3), in other light and with a sensor's noise."""
    height, width, _ = picture.shape
    pixels = picture.astype(np.float32)
    grey = pixels @ _GREY
    light, contrast, colour = (rng.uniform(0.7, 1.3) for _ in range(3))
    mean = float(grey.mean())
    pixels *= light * contrast * colour
    pixels += (light * contrast * (1 - colour) * grey + light * (1 - contrast) * mean)[..., None]
    if rng.random() < 0.5:
        # Warm to cold and green to purple; a lamp or the sky to one side.
        warm, green = rng.uniform(-0.12, 0.12), rng.uniform(-0.06, 0.06)
        pixels *= np.array([1 + warm, 1 + green, 1 - warm], np.float32)
        across, down = (rng.uniform(-0.35, 0.35) for _ in range(2))
        pixels *= (1 + across * np.linspace(-1, 1, width, dtype=np.float32))[:, None]
        pixels *= (1 + down * np.linspace(-1, 1, height, dtype=np.float32))[:, None, None]
    if rng.random() < NOISE_SHARE:
        noise = np.frombuffer(rng.randbytes(pixels.size), np.int8).reshape(pixels.shape)
        pixels += noise * np.float32(rng.uniform(0.02, 0.2))
    varied: NDArray[np.uint8] = np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)
    return varied


def encode_fleet_text(fleet: Iterable[Robot], tokenizer: Any) -> dict[str, Tensor]:
    """Robots' descriptions as the model's ``fleet_input_ids``, ``fleet_lengths`` and ``fleet_places``."""
    return _fleet_rows([encode_text(tokenizer, robot_description(robot)) for robot in fleet])


def task_rows(tasks: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Tasks' tokens (:func:`embervlm.prompts.encode_task`) as the model's ``task_input_ids`` and ``task_lengths``."""
    return {"task_input_ids": _pad(tasks, 0), "task_lengths": torch.tensor([len(task) for task in tasks])}


def _fleet_rows(descriptions: Sequence[list[int]], robots: int | None = None) -> dict[str, Tensor]:
    # Any id will do behind a description; transformers would warn about that of the padding token.
    ids = _pad(descriptions, 0)
    lengths = torch.tensor([len(description) for description in descriptions])
    return {
        "fleet_input_ids": ids,
        "fleet_lengths": lengths,
        "fleet_places": places_read(lengths, ids.shape[1], robots),
    }


class Collator:
    """Examples to one batch, padded at the end to the longest; with a fleet, its descriptions go along once.

    Where tasks get fleets of their own, the descriptions are those of all robots of the batch, and ``fleet_mask`` says
    who is in whose. Who is depends on the examples alone.

    Args:
        tokenizer: the model's tokenizer.
        fleet: the run's fleet, for stage 3.
        others: further robots that tasks may get beside their own.
    """

    def __init__(self, tokenizer: Any, fleet: Fleet | None = None, others: Sequence[Robot] = ()) -> None:
        self.tokenizer, self.fleet, self.others = tokenizer, fleet, others
        self.fleet_text = encode_fleet_text(fleet, tokenizer) if fleet is not None else {}
        self._described: dict[Robot, list[int]] = {}

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The batch, by the names of the model's arguments; ``FAILURES`` too, a list, where there are any."""
        batch: dict[str, Any] = {
            # First, since the Trainer takes the batch size from the first entry.
            "input_ids": _pad([example.encoded.input_ids for example in examples], END_OF_TEXT_ID),
            "labels": _pad([example.encoded.labels for example in examples], IGNORED),
        }
        following = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))
        batch["supervised_places"] = following.flatten().nonzero()[:, 0]
        failures = [failure for example in examples for failure in example.failures]
        if failures:
            batch[FAILURES] = failures
        if not all(failure.replaced for failure in failures):
            return batch  # which nothing is trained on: the trainer ends the run
        if self.fleet is None and not (batch["labels"] != IGNORED).any():
            raise DataError(f"a batch of {len(examples)} samples without a supervised token: there is nothing to learn")
        pixels = [example.pixels for example in examples if example.pixels is not None]
        if pixels:
            batch["pixel_values"] = torch.from_numpy(np.stack(pixels))
            batch |= _words("image_words", [example.image_words for example in examples if example.pixels is not None])
        if self.fleet is not None:
            batch["task_index"] = torch.tensor([example.task_index for example in examples])
            batch |= _words("task_words", [example.task_words for example in examples])
            batch |= task_rows([example.task for example in examples])
            batch["selection_index"] = torch.tensor([example.selection_index for example in examples])
            if any(example.robots for example in examples):
                return batch | self._fleets(examples, self.fleet)
            batch["leader_labels"] = torch.tensor([example.leader for example in examples])
            batch["member_labels"] = torch.tensor([example.members for example in examples])
            batch |= self.fleet_text
        return batch

    def _fleets(self, examples: Sequence[Example], fleet: Fleet) -> dict[str, Tensor]:
        """The labels and the robots of a batch whose tasks have fleets of their own, a column a robot."""
        company = gathered([(example.robots, example.lot) for example in examples], fleet, self.others)
        leaders, members = torch.zeros(2, len(examples), len(company.pool))
        mask = torch.zeros(len(examples), len(company.pool), dtype=torch.bool)
        for row, example in enumerate(examples):
            leaders[row, company.own[row]] = torch.tensor(example.leader)
            members[row, company.own[row]] = torch.tensor(example.members)
            mask[row, company.fleets[row]] = True
        return {
            "leader_labels": leaders,
            "member_labels": members,
            "fleet_mask": mask,
            **_fleet_rows([self._description(robot) for robot in company.pool], len(fleet)),
        }

    def _description(self, robot: Robot) -> list[int]:
        if robot not in self._described:
            self._described[robot] = encode_text(self.tokenizer, robot_description(robot))
        return self._described[robot]


def _words(name: str, rows: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: _pad(rows, IGNORED)} if any(rows) else {}


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    padded = torch.full((len(rows), max(len(row) for row in rows)), value)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(row)
    return padded
