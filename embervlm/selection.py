"""Selection: a picture and a task go in, the robots to send come out. Every answer of the package is made here.

The order is that of the training prompts: task, (requirements, environment), the robot head's choice, (grounds), plan.
Names, grounds and the plan's robots are written under constraints, so that the text can only say what the head chose.
Every decision is made here, on numbers that a runtime gives: PyTorch, or ONNX graphs without it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from embervlm.clauses import bare, clauses, orders
from embervlm.data.images import ImageError, decode_image
from embervlm.fleet import Fleet, Robot
from embervlm.folders import WeightsError, is_onnx, load_fleet, model_folder, read_json_file
from embervlm.preflight import check_fleet_length, check_positions
from embervlm.prompts import (
    BECAUSE,
    NO_PICTURE,
    decision_sentence,
    encode,
    robot_description,
    selection_text,
    task_pieces,
)
from embervlm.runtime.base import Floats, Match, Reader, Runtime
from embervlm.runtime.onnx_model import OnnxRuntime
from embervlm.tokens import (
    ACTION_PLAN,
    CONTROL_IDS,
    END_OF_TEXT_ID,
    REASONING_END,
    REASONING_START,
    ROBOT_SELECTION,
    encode_text,
)

logger = logging.getLogger(__name__)

CALIBRATION_FILE = "calibration.json"
MAX_TASK_CHARACTERS = 2_000
#: Of a file of tasks.
MAX_TASKS_BYTES = 256 * 1024**2
MAX_STEP_TOKENS = 48
#: Fleets whose encoded descriptions are kept.
MAX_KEPT_FLEETS = 4
MAX_PLAN_STEPS = 8
#: Phases of one robot in a plan.
MAX_ROBOT_PHASES = 2
#: A picture with fewer pixels a side says nothing about a scene.
MIN_PICTURE_SIDE = 8
#: Robots up to which the best clause for each is looked for among all assignments.
MAX_ASSIGNED = 8
#: Beyond it a logit of going along is as good as sure, and a count as good as ruled out.
MAX_LOGIT, LEAST_COUNT = 15.0, 1e-3
MAX_COUNT_WEIGHT = 10.0
#: Texts that are read together.
MAX_BATCH = 32
#: Coverages of prediction sets: from an even bet to what ``MIN_COVERAGE_TASKS`` validation tasks can vouch for.
MIN_COVERAGE, MAX_COVERAGE = 0.5, 0.99
COVERAGE_PERCENTS = range(50, 100)
MIN_COVERAGE_TASKS = 100

Picture = str | os.PathLike[str] | Image.Image | bytes
#: Called whenever tokens are taken in, before the model reads them, with the part of the answer that is being written
#: (``requirements``, ``environment``, ``selection``, ``capabilities``, ``plan``) and its text so far; an exception from
#: it ends the work.
OnStep = Callable[[str, str], None]


class SelectionError(ValueError):
    """A task that cannot be answered; the message says what is wrong with it."""


@dataclass(frozen=True)
class Calibration:
    """Numbers fitted on validation data, so that a confidence is a frequency.

    Attributes:
        temperature: what the leader logits are divided by (Guo et al., arXiv 1706.04599).
        member_threshold: the probability from which on a robot goes along.
        samples: validation tasks that they were fitted on; 0 where nothing was fitted.
        fleet: :func:`fleet_mark` of the fleet that they were fitted for; empty where nothing was fitted.
        set_thresholds: the threshold of a prediction set's score (:func:`set_scores`) for a coverage of 50%, 51% ...
            99%, never falling; empty where the validation tasks were too few.
        with_picture: what holds instead for tasks with a picture, where these were enough to be fitted apart: what is
            seen and what is only told are known with other certainty.
        clause_share: how much of a robot's logit of going along is that of the clause that most wants it, from 0 to 1;
            the rest is the whole task's.
        count_weight: how much it counts who goes that a task's words say how many go (:func:`with_counts`).
        phases_alone: whether a robot that goes alone may have several phases, as in some task that was fitted on.
    """

    temperature: float = 1.0
    member_threshold: float = 0.5
    samples: int = 0
    fleet: str = ""
    set_thresholds: tuple[float, ...] = ()
    with_picture: Calibration | None = None
    clause_share: float = 0.0
    count_weight: float = 0.0
    phases_alone: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ``calibration.json``."""
        values = asdict(replace(self, with_picture=None)) | {"set_thresholds": list(self.set_thresholds)}
        del values["with_picture"]
        return values if self.with_picture is None else values | {"with_picture": self.with_picture.to_dict()}

    def of(self, pictured: bool) -> Calibration:
        """What holds for tasks with a picture, or for those without."""
        return self.with_picture or self if pictured else self

    def set_threshold(self, coverage: float) -> float:
        """The threshold for a coverage; one between two whole percents is raised to the higher.

        Raises:
            SelectionError: the coverage is out of range, or this model was calibrated on too few tasks.
        """
        check_coverage(coverage)
        if not self.set_thresholds:
            raise SelectionError(
                f"no coverage can be promised: the model was calibrated on {self.samples} validation tasks, prediction"
                f" sets need {MIN_COVERAGE_TASKS}; train on more robot tasks, or ask without coverage"
                if self.samples < MIN_COVERAGE_TASKS
                else "no coverage can be promised: the model's calibration has no prediction sets; finish stage 3 again"
            )
        return self.set_thresholds[math.ceil(coverage * 100 - 1e-9) - COVERAGE_PERCENTS[0]]

    @classmethod
    def from_folder(cls, folder: Path) -> Calibration:
        """The calibration of a model folder; the neutral one where it has none.

        Raises:
            WeightsError: the file cannot be read, or its numbers are out of range.
        """
        path = folder / CALIBRATION_FILE
        if not path.is_file():
            return cls()
        try:
            return cls._from_dict(read_json_file(path), path)
        except WeightsError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise WeightsError(f"{path}: not a calibration ({error!r:.100})") from None

    @classmethod
    def _from_dict(cls, values: dict[str, Any], path: Path) -> Calibration:
        of_pictures = values.get("with_picture")
        made = cls(
            float(values["temperature"]),
            float(values["member_threshold"]),
            int(values["samples"]),
            str(values.get("fleet", "")),
            tuple(float(threshold) for threshold in values.get("set_thresholds", ())),
            None if of_pictures is None else cls._from_dict(of_pictures, path),
            float(values.get("clause_share", 0.0)),
            float(values.get("count_weight", 0.0)),
            bool(values.get("phases_alone", True)),
        )
        shares = (made.member_threshold, made.clause_share)
        if not (
            0 < made.temperature < float("inf")
            and all(0 <= share <= 1 for share in shares)
            and 0 <= made.count_weight <= MAX_COUNT_WEIGHT
        ):
            raise WeightsError(
                f"{path}: temperature must be above 0, member_threshold and clause_share from 0 to 1, count_weight from"
                f" 0 to {MAX_COUNT_WEIGHT}, found {values!s:.200}"
            )
        thresholds = made.set_thresholds
        if thresholds and not (
            len(thresholds) == len(COVERAGE_PERCENTS)
            and all(low <= high for low, high in itertools.pairwise((0.0, *thresholds, 1.0)))
        ):
            raise WeightsError(
                f"{path}: set_thresholds must be {len(COVERAGE_PERCENTS)} numbers from 0 to 1 that never fall,"
                f" found {len(thresholds)}: {thresholds!s:.60}"
            )
        return made


def check_coverage(coverage: float) -> None:
    """Make sure that a prediction set can be asked for this coverage.

    Raises:
        SelectionError: it is no number from ``MIN_COVERAGE`` to ``MAX_COVERAGE``.
    """
    if not MIN_COVERAGE <= coverage <= MAX_COVERAGE:
        raise SelectionError(f"coverage must be from {MIN_COVERAGE} to {MAX_COVERAGE}, found {coverage}")


def set_scores(leading: Sequence[float]) -> list[float]:
    """How far down the list of leaders each robot stands: the probability of all that are likelier than it, together.

    A prediction set holds the robots whose score is at most a threshold, so it is filled best first until it holds
    enough probability. This is the score of adaptive prediction sets (Angelopoulos and Bates, arXiv 2107.07511)
    without the robot's own probability. The best robot scores 0, so that no set is empty, and nothing is drawn by lot,
    so that a question always has one answer. Tried on three sets of 720 to 800 tasks (84 to 88% of leaders right) at
    90%, all about as well covered as asked but the last:

    - this score: 1.04 to 1.19 robots a set; sets of one were right in 90 to 91%;
    - 1 - p (least ambiguous sets): 1.04 to 1.17 robots; sets of one right in 89 to 90%; some sets empty;
    - with the robot's own probability, and 0.1 for each further robot (regularised): 1.22 to 1.29 robots;
    - with the robot's own probability alone: 2.5 to 2.7 robots, which covered 99%.
    """
    order = sorted(range(len(leading)), key=lambda index: -leading[index])
    scores, before = [0.0] * len(leading), 0.0
    for index in order:
        scores[index] = before
        before += leading[index]
    return scores


def fleet_mark(fleet: Fleet) -> str:
    """A short mark of all that a model reads of a fleet, whatever the robots' order."""
    texts = sorted(robot_description(robot) for robot in fleet)
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class RobotScore:
    """A robot's part in an answer: the probability that it leads, and whether it is sent."""

    robot: str
    confidence: float
    selected: bool


@dataclass(frozen=True)
class Phase:
    """One phase of a plan; it begins when all those of ``depends_on`` (their ``step``) are done."""

    step: int
    robot: str
    subtask: str
    depends_on: list[int]


@dataclass(frozen=True)
class Selection:
    """An answer.

    Attributes:
        task: the task as it was asked.
        primary: the robot that leads.
        selected: all robots to send, the leader first.
        robots: the fleet's robots, best first; cut to ``top_n``.
        plan: one entry for each phase.
        reasoning: the four steps (requirements, environment, capabilities, decision); empty when not asked for.
        timing_ms: milliseconds of each part of the work, and in all.
        candidates: the prediction set, best first: the right leader is among them as often as was asked; more than
            one means that a person should be asked. None where no coverage was asked for.
    """

    task: str
    primary: str
    selected: list[str]
    robots: list[RobotScore]
    plan: list[Phase]
    reasoning: list[str]
    timing_ms: dict[str, float] = field(default_factory=dict)
    candidates: list[str] | None = None

    @property
    def confidence(self) -> float:
        """The probability that the primary robot is the right one to lead."""
        return self.robots[0].confidence

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON has it; ``prediction_set`` and ``ask_a_person`` are there if coverage was asked for."""
        answer = asdict(self)
        candidates = answer.pop("candidates")
        if candidates is not None:
            answer |= {"prediction_set": candidates, "ask_a_person": len(candidates) > 1}
        return answer


class Scores(NamedTuple):
    """What the robot head says of tasks, as wholes and of their clauses.

    Attributes:
        leaders, members: logits of the tasks, (tasks, robots) each.
        by_clause: for each task the member logits of its clauses, (clauses, robots).
        counts: the logits of how many robots go, (tasks, counted).
    """

    leaders: Floats
    members: Floats
    by_clause: list[Floats]
    counts: Floats

    def of(self, places: Sequence[int]) -> Scores:
        """Those of some of the tasks."""
        chosen = list(places)
        by_clause = [self.by_clause[place] for place in chosen]
        return Scores(self.leaders[chosen], self.members[chosen], by_clause, self.counts[chosen])


class RobotSelector:
    """Selects robots with a trained model.

    Use :meth:`from_pretrained`. A fleet is encoded once and kept while it is among the last in use.
    """

    def __init__(self, runtime: Runtime, fleet: Fleet, calibration: Calibration) -> None:
        self.runtime, self.fleet, self.calibration = runtime, fleet, calibration
        self.tokenizer = runtime.tokenizer
        self._kept_fleets: dict[Fleet, Any] = {}

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> RobotSelector:
        """The selector of a model folder, or of ``"spark"``, the model that comes with the package.

        A folder of ONNX graphs is run without torch.

        Raises:
            WeightsError, TokenizerError, PreflightError, FleetError: the folder is missing, damaged or does not fit.
        """
        folder = model_folder(folder)
        return cls(load_runtime(folder), load_fleet(folder), Calibration.from_folder(folder))

    @property
    def model(self) -> Any:
        """The model that PyTorch runs; a folder of ONNX graphs has none."""
        return self._torch().model

    @property
    def processor(self) -> Any:
        """The processor of the model that PyTorch runs."""
        return self._torch().processor

    def _torch(self) -> Any:
        if isinstance(self.runtime, OnnxRuntime):
            raise WeightsError(f"{self.runtime.folder}: of ONNX graphs, which only answer; name the model's own folder")
        return self.runtime

    def select(
        self,
        task: str,
        image: Picture | None = None,
        top_n: int | None = None,
        reason: bool = True,
        fleet: Fleet | None = None,
        coverage: float | None = None,
        on_step: OnStep | None = None,
        reader: Callable[[Any], Reader] | None = None,
    ) -> Selection:
        """Select the robots for one task.

        Args:
            task: what is to be done, in plain words.
            image: the scene, or None.
            top_n: how many robots to list in ``robots``; all of them without it.
            reason: write the grounds too.
            fleet: who can be sent; the model's own fleet without it.
            coverage: how often the right leader shall be among the answer's ``candidates``; none are named without.
            on_step: follows the writing and may stop it (see ``OnStep``).
            reader: makes what reads this text behind a fleet, such as a place in a batch of several; one text alone
                without it.

        Raises:
            SelectionError: an empty or too long task, a ``top_n`` below 1, or a coverage that cannot be promised
                (see :meth:`prediction_set`).
            ImageError: a picture that is none, or of a few pixels only.
            FleetError, PreflightError: a fleet that cannot be used.
        """
        if top_n is not None and top_n < 1:
            raise SelectionError(f"top_n must be 1 or more, found {top_n}")
        fleet = fleet or self.fleet
        if coverage is not None:
            self._check_coverage(fleet, coverage, image is not None)
        clock = _Clock()
        state = self._fleet_state(fleet)
        clock.lap("fleet")
        pixels = self.pixels(image, MIN_PICTURE_SIDE)  # (3, size, size)
        prompt = self._prompt(task, image is not None)
        features = None if pixels is None else self.runtime.see([pixels])[0]
        clock.lap("picture")
        writer = _Writer(self.runtime, (reader or self.runtime.reader)(state), on_step)
        writer.read(prompt, features)
        before = self._write_observations(writer, image is not None) if reason else []
        if reason:
            clock.lap("reasoning")
        writer.begin("selection")
        writer.read([CONTROL_IDS[ROBOT_SELECTION]])
        # (1, robots) twice, (1, counted)
        leader_logits, whole, counts = self.runtime.match(writer.state, [task], state)
        leading = self.leading(leader_logits, [image is not None])[0].tolist()
        order = sorted(range(len(fleet)), key=lambda index: -leading[index])
        parts = clauses(task)

        @cache
        def by_clause() -> Floats:  # (clauses, robots)
            return self._logits(parts, [features] * len(parts), state).members if len(parts) > 1 else whole

        calibration = self.calibration.of(image is not None)
        member_logits = with_clauses(whole[0], by_clause(), share) if (share := calibration.clause_share) else whole[0]
        member_logits = with_counts(member_logits, leader_logits[0], counts[0], calibration.count_weight)
        names = [fleet.names[i] for i in self._selected(leading, member_logits, image is not None)]
        clock.lap("selection")
        writer.read(encode_text(self.tokenizer, selection_text(names)))
        after = self._write_grounds(writer, fleet[names[0]], names) if reason else []
        writer.begin("plan")
        if 1 < len(names) <= len(parts):
            plan = plan_by_clauses(parts, by_clause()[:, [fleet.index(name) for name in names]], names)
        else:
            plan = self._write_plan(writer, task, names, calibration.phases_alone)
        clock.lap("plan")
        scores = [RobotScore(fleet.names[i], leading[i], fleet.names[i] in names) for i in order]
        candidates = None if coverage is None else self.prediction_set(leading, coverage, fleet, image is not None)
        return Selection(task, names[0], names, scores[:top_n], plan, before + after, clock.times(), candidates)

    def prediction_set(
        self, leading: Sequence[float], coverage: float, fleet: Fleet | None = None, pictured: bool = False
    ) -> list[str]:
        """The robots among which the right leader is with probability ``coverage``: best first, at least one.

        By split conformal prediction (Angelopoulos and Bates, arXiv 2107.07511): the promise holds over tasks like
        those of validation, of which about that share is covered, and not for each single one. Of another fleet than
        the one that the calibration was fitted for nothing was measured, so none is promised for it, not even with
        larger sets. Tasks whose best robot alone is right more often than asked have sets of one.

        Args:
            leading: the probability that each robot leads, in the fleet's order.
            coverage: from ``MIN_COVERAGE`` to ``MAX_COVERAGE``.
            fleet: as in :meth:`select`.
            pictured: whether the task had a picture.

        Raises:
            SelectionError: the coverage is out of range, validation had too few tasks, or the fleet is another.
        """
        fleet = fleet or self.fleet
        self._check_coverage(fleet, coverage, pictured)
        threshold = self.calibration.of(pictured).set_threshold(coverage)
        scores = set_scores(leading)
        inside = [index for index, score in enumerate(scores) if score <= threshold]
        return [fleet.names[index] for index in sorted(inside, key=lambda index: -leading[index])]

    def _check_coverage(self, fleet: Fleet, coverage: float, pictured: bool) -> None:
        calibration = self.calibration.of(pictured)
        calibration.set_threshold(coverage)
        if calibration.fleet != fleet_mark(fleet):
            raise SelectionError(
                f"no coverage can be promised for this fleet ({', '.join(fleet.names)[:200]}): the model's calibration"
                " was fitted for another; ask without coverage, or calibrate it for this fleet (embervlm calibrate)"
            )

    def score(
        self,
        tasks: Sequence[str],
        images: Sequence[Picture | None],
        fleet: Fleet | None = None,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Floats, Floats]:
        """Leader and member logits of many tasks, without any text being written: each (tasks, robots).

        Args:
            tasks: the tasks' texts.
            images: a picture, or None, for each.
            fleet: as in :meth:`select`.
            batch_size: tasks run together.
            progress: called with the number of tasks done, after each batch.
        """
        pictured = [image is not None for image in images]
        ask_clauses = any(self.calibration.of(each).clause_share for each in set(pictured))
        scores = self.score_clauses(tasks, images, fleet, batch_size, progress, ask_clauses=ask_clauses)
        return scores.leaders, self.going(scores, pictured)

    def score_clauses(
        self,
        tasks: Sequence[str],
        images: Sequence[Picture | None],
        fleet: Fleet | None = None,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
        ask_clauses: bool = True,
    ) -> Scores:
        """As :meth:`score`, with what the head says of the tasks as wholes and of their clauses apart.

        Args:
            tasks, images, fleet, batch_size, progress: as there.
            ask_clauses: without it each task counts as one clause, which is quicker.
        """
        fleet = fleet or self.fleet
        leaders, members, by_clause, counts = [], [], [], []
        state = self._fleet_state(fleet)
        for start in range(0, len(tasks), batch_size):
            rows = range(start, min(start + batch_size, len(tasks)))
            for i in rows:
                check_task(tasks[i])
            pixels = [self.pixels(images[i]) for i in rows]
            pictures = iter(self._see([each for each in pixels if each is not None]))
            texts: list[str] = []
            features: list[Any | None] = []
            ends = []
            for i, seen in zip(rows, pixels, strict=True):
                parts = clauses(tasks[i]) if ask_clauses else []
                own = [tasks[i], *parts] if len(parts) > 1 else [tasks[i]]
                texts += own
                features += [None if seen is None else next(pictures)] * len(own)
                ends.append(len(texts))
            said = self._logits(texts, features, state)
            for place, end in itertools.pairwise([0, *ends]):
                leaders.append(said.leaders[place])
                members.append(said.members[place])
                counts.append(said.counts[place])
                # A task of one clause is that clause.
                by_clause.append(said.members[min(place + 1, end - 1) : end])
            if progress is not None:
                progress(rows.stop)
        return Scores(np.stack(leaders), np.stack(members), by_clause, np.stack(counts))

    def _see(self, pixels: Sequence[Floats]) -> list[Any]:
        found = []
        for start in range(0, len(pixels), MAX_BATCH):
            found += self.runtime.see(pixels[start : start + MAX_BATCH])
        return found

    def _logits(self, texts: Sequence[str], features: Sequence[Any | None], state: Any) -> Match:
        """What the robot head says of texts, each with its picture or None, behind a fleet."""
        prompts = [
            [*self._prompt(text, seen is not None), CONTROL_IDS[ROBOT_SELECTION]]
            for text, seen in zip(texts, features, strict=True)
        ]
        # Those of like length together: less padding.
        order = sorted(range(len(texts)), key=lambda index: (features[index] is None, len(prompts[index])))
        said = []
        for start in range(0, len(order), MAX_BATCH):
            rows = order[start : start + MAX_BATCH]
            states = self.runtime.states([prompts[i] for i in rows], [features[i] for i in rows], state)
            said.append(self.runtime.match(states, [texts[i] for i in rows], state))
        back = np.argsort(order)
        return Match(*(np.concatenate(each)[back] for each in zip(*said, strict=True)))

    def going(self, scores: Scores, pictured: Sequence[bool]) -> Floats:
        """The member logits of tasks with the calibrated shares of their clauses and counts, (tasks, robots).

        Args:
            scores: of :meth:`score_clauses`.
            pictured: whether each task had a picture.
        """
        going = []
        for leaders, members, by_clause, counts, seen in zip(*scores, pictured, strict=True):
            calibration = self.calibration.of(seen)
            logits = with_clauses(members, by_clause, calibration.clause_share)
            going.append(with_counts(logits, leaders, counts, calibration.count_weight))
        return np.stack(going)

    def leading(self, leader_logits: ArrayLike, pictured: Sequence[bool]) -> NDArray[np.float64]:
        """The calibrated probability that each robot leads, (tasks, robots), of logits from :meth:`score`.

        Args:
            leader_logits: (tasks, robots).
            pictured: whether each task had a picture.
        """
        temperatures = np.array([[self.calibration.of(each).temperature] for each in pictured])
        return _softmax(np.asarray(leader_logits, np.float64) / temperatures)

    def selected_names(
        self, leader_logits: ArrayLike, member_logits: ArrayLike, pictured: Sequence[bool]
    ) -> list[list[str]]:
        """The robots to send for each row of logits from :meth:`score` over this selector's fleet, the leader first."""
        rows = zip(self.leading(leader_logits, pictured).tolist(), np.asarray(member_logits), pictured, strict=True)
        return [[self.fleet.names[i] for i in self._selected(*row)] for row in rows]

    def _selected(self, leading: Sequence[float], member_logits: Floats, pictured: bool) -> list[int]:
        """Places of the robots to send: the most likely leader, then those that go along, likeliest leader first."""
        leader = max(range(len(leading)), key=lambda index: leading[index])
        least = self.calibration.of(pictured).member_threshold
        # A sigmoid that does not overflow.
        going = (0.5 + 0.5 * np.tanh(0.5 * member_logits.astype(np.float64))).tolist()
        others = [i for i, p in enumerate(going) if i != leader and p >= least]
        return [leader, *sorted(others, key=lambda index: -leading[index])]

    def _prompt(self, task: str, has_image: bool) -> list[int]:
        check_task(task)
        prompt = encode(task_pieces(task, has_image), self.tokenizer, self.runtime.image_tokens).input_ids
        positions = self.runtime.positions
        # What is written after the task needs room too.
        written = (3 + MAX_PLAN_STEPS) * MAX_STEP_TOKENS
        check_positions(len(prompt) + min(written, positions // 2), positions, "the task with the room for its answer")
        return prompt

    def pixels(self, image: Picture | None, smallest_side: int = 1) -> NDArray[np.float32] | None:
        """A picture as the encoder reads it, (3, size, size); None without one.

        Raises:
            ImageError: it is none, or a side of it is shorter than ``smallest_side``.
        """
        if image is None:
            return None
        picture = image if isinstance(image, Image.Image) else decode_image(image)  # type: ignore[arg-type]
        if min(picture.size) < smallest_side:
            name = "picture" if isinstance(image, (Image.Image, bytes)) else image
            raise ImageError(
                f"{name}: {picture.width}x{picture.height} pixels show no scene; at least {smallest_side} a side are"
                " needed"
            )
        return self.runtime.pixels(picture)

    def _fleet_state(self, fleet: Fleet) -> Any:
        state = self._kept_fleets.get(fleet)
        if state is None:
            check_fleet_length(fleet, self.tokenizer, self.runtime.positions)
            state = self.runtime.encode_fleet(
                [encode_text(self.tokenizer, robot_description(robot)) for robot in fleet]
            )
            # A new dictionary in one step, since several threads may ask: the newest fleets, and the model's own.
            kept = [*self._kept_fleets.items(), (fleet, state)]
            newest = dict(kept[-MAX_KEPT_FLEETS:])
            self._kept_fleets = {each: of for each, of in kept if each == self.fleet or each in newest}
        return state

    def _write_observations(self, writer: _Writer, has_image: bool) -> list[str]:
        """The two steps before the choice: what the task needs, what the picture shows."""
        writer.begin("requirements")
        writer.read([CONTROL_IDS[REASONING_START]])
        requirements = writer.write_line()
        newline = encode_text(self.tokenizer, "\n")
        writer.begin("environment")
        if has_image:
            writer.read(newline)
            environment = writer.write_line()
        else:
            writer.read(encode_text(self.tokenizer, f"\n{NO_PICTURE}"))
            environment = NO_PICTURE
        writer.read([CONTROL_IDS[REASONING_END]])
        return [requirements, environment]

    def _write_grounds(self, writer: _Writer, leader: Robot, names: Sequence[str]) -> list[str]:
        """The two steps after the choice: which of the leader's capabilities meet the need, and the decision."""
        writer.begin("capabilities")
        writer.read(encode_text(self.tokenizer, f"\n{BECAUSE}"))
        matched: list[str] = []
        remaining = list(leader.capabilities)
        ends, comma = [[CONTROL_IDS[ACTION_PLAN]], [END_OF_TEXT_ID]], encode_text(self.tokenizer, ",")
        while remaining and len(matched) < 3:
            separator = ", " if matched else " "
            options = [encode_text(self.tokenizer, f"{separator}{phrase}") for phrase in remaining]
            picked = writer.choose(options + (ends if matched else []), comma)
            if picked >= len(remaining):
                break
            matched.append(remaining.pop(picked))
        return [", ".join(matched), decision_sentence(names[0], names[1:])]

    def _write_plan(self, writer: _Writer, task: str, names: Sequence[str], phases_alone: bool) -> list[Phase]:
        """The plan over the selected robots, each of which gets a phase; one phase when the model writes no plan.

        Args:
            phases_alone: whether a robot that goes alone may have several phases.
        """
        task = " ".join(task.split())  # a phase is one line
        alone = len(names) == 1
        if alone and (not phases_alone or writer.prefers(END_OF_TEXT_ID, CONTROL_IDS[ACTION_PLAN])):
            return [Phase(1, names[0], task, [])]
        writer.read([CONTROL_IDS[ACTION_PLAN]])
        colon = encode_text(self.tokenizer, ":")
        robots = [encode_text(self.tokenizer, f" {name}") for name in names]
        written: list[tuple[int, str, str]] = []
        waiting = set(range(len(names)))
        limit = max(len(names), min(MAX_PLAN_STEPS, MAX_ROBOT_PHASES * len(names)))
        # An order, a name, a colon, a subtask and a line's end.
        phase_tokens = 3 + max(map(len, robots)) + MAX_STEP_TOKENS
        while len(written) < limit and writer.room >= phase_tokens:
            order = written[-1][0] if written else 0
            orders = [order, order + 1] if written else [1]
            options = [encode_text(self.tokenizer, f" {number}") for number in orders]
            may_end = [] if waiting else [[END_OF_TEXT_ID]]
            picked = writer.choose(options + may_end)
            if picked >= len(options):
                break
            # Robots without a phase come first once there is only room for them.
            phases = Counter(name for _, name, _ in written)
            free = [index for index, name in enumerate(names) if phases[name] < MAX_ROBOT_PHASES]
            allowed = sorted(waiting) if limit - len(written) <= len(waiting) else free
            robot = allowed[writer.choose([robots[index] for index in allowed], colon)]
            waiting.discard(robot)
            writer.read(colon)
            subtask = writer.write_line() or task
            writer.read(encode_text(self.tokenizer, "\n"))
            written.append((orders[picked], names[robot], subtask))
        # Robots that the positions left no room to write about are sent along with the task as it stands.
        order = written[-1][0] if written else 1
        written += [(order, names[index], task) for index in sorted(waiting)]
        before = {order: [n for n, (o, _, _) in enumerate(written, 1) if o == order - 1] for order, _, _ in written}
        return [Phase(n, robot, text, before[order]) for n, (order, robot, text) in enumerate(written, 1)]


def with_clauses(member_logits: Floats, by_clause: Floats, share: float) -> Floats:
    """Member logits of which a share is that of the clause which most wants the robot, (..., robots).

    Args:
        member_logits: of the whole task, (..., robots).
        by_clause: of its clauses, (..., clauses, robots).
        share: from 0 to 1.
    """
    logits: Floats = (1 - share) * member_logits + share * by_clause.max(-2)
    return logits


def with_counts(member_logits: Floats, leader_logits: Floats, counts: Floats, weight: float) -> Floats:
    """Member logits of which each knows how many robots go, of one task, (robots,).

    Sets of robots are weighed by the odds of those in them, beside the likeliest leader, and by the likelihood of their
    number, to the power of ``weight``; a robot's logit is then that of being in the set that goes.

    Args:
        member_logits, leader_logits: of the task, (robots,).
        counts: the logits of 1, 2 ... or so many and more robots, (counted,).
        weight: from 0, which changes nothing.
    """
    if not weight:
        return member_logits
    likely = np.log(np.maximum(_softmax(counts), LEAST_COUNT))
    shares = np.exp(weight * (likely - likely.max()))  # of sets of 1, 2 ... and of all larger ones
    others = np.arange(len(member_logits)) != leader_logits.argmax()
    logits = np.clip(member_logits[others].astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
    chances = 1 / (1 + np.exp(-logits))
    # For each robot the chance that 0, 1 ... of the rest go; larger numbers are left out.
    rest = np.zeros((len(logits), len(shares) - 1))
    rest[:, 0] = 1
    for place, chance in enumerate(chances):
        goes = np.full((len(logits), 1), chance)
        goes[place] = 0
        rest[:, 1:] = rest[:, 1:] * (1 - goes) + rest[:, :-1] * goes
        rest[:, :1] *= 1 - goes
    more = shares[:-1] - shares[-1]
    with_it, without = (shares[-1] + rest[:, : len(each)] @ each for each in (more[1:], more))
    found = member_logits.copy()
    found[others] = logits + np.log(with_it / without)
    return found


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """The probabilities of logits, in double precision, over the last axis."""
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return shares


def plan_by_clauses(parts: Sequence[str], logits: Floats, names: Sequence[str]) -> list[Phase]:
    """The plan of a task whose clauses say its phases: each robot gets a clause of its own, and those beside it.

    Args:
        parts: the clauses, at least as many as robots.
        logits: how much each clause wants each robot, (clauses, robots).
        names: the robots.
    """
    # What a robot is wanted for is where it is wanted more than elsewhere.
    wanted = (logits - logits.mean(0)).astype(np.float64).tolist()
    anchors = sorted((place, robot) for robot, place in enumerate(own_places(wanted)))
    owners = [max(range(len(names)), key=row.__getitem__) for row in logits.tolist()]
    spans: list[tuple[int, int]] = []
    for number, (place, robot) in enumerate(anchors):
        start, end = place, place + 1
        first = anchors[number - 1][0] + 1 if number else 0
        last = anchors[number + 1][0] if number + 1 < len(anchors) else len(parts)
        while start > max(first, spans[-1][1] if spans else 0) and owners[start - 1] == robot:
            start -= 1
        while end < last and owners[end] == robot:
            end += 1
        spans.append((start, end))
    # What stands between two phases says when the second begins as often as it tells of the first.
    whole = [", ".join(parts[start:end]) for start, end in spans]
    order = orders(whole)
    steps = sorted(range(len(anchors)), key=lambda index: (order[index], index))
    before = {each: [n for n, i in enumerate(steps, 1) if order[i] == each - 1] for each in order}
    return [
        Phase(number, names[anchors[index][1]], bare(whole[index]), before[order[index]])
        for number, index in enumerate(steps, 1)
    ]


def own_places(wanted: Sequence[Sequence[float]]) -> list[int]:
    """For each column a row of its own so that the sum of the chosen numbers is largest: the assignment problem.

    By dynamic programming over the rows and the sets of columns that have theirs; beyond ``MAX_ASSIGNED`` columns, the
    largest numbers first.

    Args:
        wanted: (rows, columns), at least as many rows as columns.
    """
    columns = len(wanted[0])
    if columns > MAX_ASSIGNED:
        found: dict[int, int] = {}
        pairs = itertools.product(range(len(wanted)), range(columns))
        for row, column in sorted(pairs, key=lambda pair: -wanted[pair[0]][pair[1]]):
            if column not in found and row not in found.values():
                found[column] = row
        return [found[column] for column in range(columns)]
    # By the set of columns that have a row: the best sum so far, and those rows.
    best: dict[int, tuple[float, dict[int, int]]] = {0: (0.0, {})}
    for row, gains in enumerate(wanted):
        for done, (total, rows) in list(best.items()):
            for column, gain in enumerate(gains):
                more = done | 1 << column
                if more != done and (more not in best or total + gain > best[more][0]):
                    best[more] = (total + gain, rows | {column: row})
    rows = best[(1 << columns) - 1][1]
    return [rows[column] for column in range(columns)]


def load_runtime(folder: Path) -> Runtime:
    """What runs the model of a folder: ONNX graphs by themselves, any other by PyTorch.

    Raises:
        WeightsError, TokenizerError, PreflightError: the folder is missing, damaged or does not fit.
    """
    if is_onnx(folder):
        return OnnxRuntime(folder)
    try:
        from embervlm.runtime.torch_model import TorchRuntime
    except ImportError as error:
        raise WeightsError(
            f"{folder}: is run by torch and transformers, of which {error.name} is not installed; run: pip install"
            ' "embervlm[train]", or name a folder that embervlm export --format onnx wrote'
        ) from None
    return TorchRuntime.from_folder(folder)


class _Writer:
    """Reads and writes one text token by token behind a fleet.

    The model reads what was taken in once something is asked of it, all of it together.
    """

    def __init__(self, runtime: Runtime, reader: Reader, on_step: OnStep | None = None) -> None:
        self.tokenizer, self._positions = runtime.tokenizer, runtime.positions
        self._reader, self._on_step = reader, on_step
        self._part, self._text = "", ""
        self.position = 0
        self._unread: list[int] = []
        self._features: Any = None
        self._state: Any = None
        self._line_ends = {*CONTROL_IDS.values(), END_OF_TEXT_ID}

    @property
    def room(self) -> int:
        """How many tokens can still be taken in."""
        return self._positions - self.position

    def begin(self, part: str) -> None:
        """Say which part of the answer comes next."""
        self._part, self._text = part, ""

    @property
    def state(self) -> Any:
        """The model's state at the last token that was taken in."""
        if self._unread:
            self._state = self._reader.read(self._unread, self.position - len(self._unread), self._features)
            self._unread, self._features = [], None
        return self._state

    def read(self, ids: Sequence[int], features: Any = None) -> None:
        """Take in tokens that are given, with the features of the picture that is among them."""
        if self._on_step is not None:
            self._on_step(self._part, self._text)
        check_positions(self.position + len(ids), self._positions, "the answer")
        self._unread += ids
        if features is not None:
            self._features = features
        self.position += len(ids)

    def write_line(self) -> str:
        """Write until a line's end or a control token, which is not taken in; at most ``MAX_STEP_TOKENS`` tokens.

        No token follows another twice the same way, nor itself: a small model would go in circles.
        """
        written: list[int] = []
        for _ in range(MAX_STEP_TOKENS):
            logits = self._logits()
            if written:
                again = [after for before, after in itertools.pairwise(written) if before == written[-1]]
                logits[[written[-1], *again]] = -math.inf
            token = int(logits.argmax())
            if token in self._line_ends or "\n" in self.tokenizer.decode([token]):
                break
            written.append(token)
            if self._on_step is not None:
                self._text = str(self.tokenizer.decode(written)).strip()
            self.read([token])
        return str(self.tokenizer.decode(written)).strip()

    def choose(self, options: Sequence[Sequence[int]], ends: Sequence[int] = ()) -> int:
        """Write one of ``options``, token by token the likeliest that still leads to one; returns its place.

        Args:
            options: token ids, each at least one, no two alike.
            ends: tokens that follow a whole option; they decide where an option is the beginning of another.
        """
        left, depth = list(range(len(options))), 0
        while len(left) > 1:
            logits = self._logits()
            following = {i: [options[i][depth]] if depth < len(options[i]) else ends for i in left}
            best = max(left, key=lambda i: max((float(logits[token]) for token in following[i]), default=-math.inf))
            if depth == len(options[best]):
                return best
            token = options[best][depth]
            left = [i for i in left if depth < len(options[i]) and options[i][depth] == token]
            if len(left) > 1:
                self.read([token])
                depth += 1
        self.read(options[left[0]][depth:])
        return left[0]

    def prefers(self, token: int, other: int) -> bool:
        """Whether ``token`` is likelier to come next than ``other``; nothing is written."""
        logits = self._logits()
        return bool(logits[token] > logits[other])

    def _logits(self) -> Floats:
        return self._reader.logits(self.state)


class _Clock:
    """Milliseconds of one part of the work after another."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name] = (now - self._last) * 1000
        self._last = now

    def times(self) -> dict[str, float]:
        return {name: round(ms, 2) for name, ms in self._laps.items()} | {
            "total": round((self._last - self._started) * 1000, 2)
        }


def check_task(task: str) -> None:
    """Make sure that a task can be asked.

    Raises:
        SelectionError: it is empty, too long, or not Unicode text.
    """
    if not task.strip():
        raise SelectionError("the task is empty; say in a sentence what is to be done")
    if len(task) > MAX_TASK_CHARACTERS:
        raise SelectionError(f"the task has {len(task)} characters; at most {MAX_TASK_CHARACTERS} are read")
    try:
        task.encode()
    except UnicodeEncodeError as error:
        # A byte that is not UTF-8 on a command line, or half of a pair in JSON.
        raise SelectionError(
            f"the task is not Unicode text: character {error.start + 1} is none; write UTF-8"
        ) from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return found


def read_task_lines(path: Path) -> list[tuple[str, Path | None]]:
    """The tasks of a JSON-lines file: ``{"task": ..., "image": ...}``, the image optional and relative to the file.

    Raises:
        SelectionError: names the line that is wrong and what was expected.
    """
    tasks: list[tuple[str, Path | None]] = []
    try:
        # Not `splitlines`: JSON's texts may hold what Unicode also counts as a line's end.
        with path.open("rb") as file:
            data = file.read(MAX_TASKS_BYTES + 1)
        if len(data) > MAX_TASKS_BYTES:
            raise SelectionError(f"{path}: more than {MAX_TASKS_BYTES:,} bytes of tasks; split the file")
        lines = data.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SelectionError(f"{path}: cannot read the tasks ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            entry = json.loads(line, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            raise SelectionError(f"{place}: not JSON ({error})") from None
        expected = f'{place}: expected {{"task": text}} and optionally "image": a file name'
        if not isinstance(entry, dict):
            raise SelectionError(f"{expected}; found {type(entry).__name__}")
        if unknown := sorted(set(entry) - {"task", "image"}):
            raise SelectionError(f"{expected}; found also: {', '.join(map(repr, unknown))!s:.80}")
        if not isinstance(entry.get("task"), str):
            raise SelectionError(f"{expected}; found {entry!r:.60}")
        try:
            check_task(entry["task"])
        except SelectionError as error:
            raise SelectionError(f"{place}: {error}") from None
        image = entry.get("image")
        if image is not None and not isinstance(image, str):
            raise SelectionError(f"{place}: image must be a file name, found {image!r:.60}")
        tasks.append((entry["task"], None if image is None else path.parent / image))
    if not tasks:
        raise SelectionError(f"{path}: no tasks")
    return tasks
