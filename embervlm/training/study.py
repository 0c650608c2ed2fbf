"""What a model does before and after stage 3 where it has a teacher: it learns how that sees many texts.

The robot head's text encoder studies: it reads tasks and descriptions as texts, and its match learns whom the teacher
would send, out of fleets that differ from batch to batch. Its vectors learn to tell the teacher's own, which say more
of a text than who goes (Romero et al., FitNets, arXiv 1412.6550). So do the means of the tokens' embeddings, by which
words learn what they mean before attention has learnt to find them.

Before stage 3 the token embeddings study too. Stage 3 then goes on with them, to write and to see, so that the encoder
studies once more at its end, with the words as they are, and keeps what it has learnt to say of tasks about pictures.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments

from embervlm.data.collate import encode_fleet_text, task_rows
from embervlm.data.order import batches_by_length
from embervlm.fleet import Fleet
from embervlm.prompts import encode_task
from embervlm.training.engine import WARMUP_SHARE, optimizer_for
from embervlm.training.lessons import Lessons
from embervlm.training.teacher import MEMBER_WEIGHT, Teller

#: How fast the token embeddings study, as a share of the rate: the language model has learnt to write with them.
WORDS_RATE = 0.3
#: Passes over the texts before stage 3, and after it.
PASSES, PASSES_AGAIN = 3, 2
#: The rate of the study after stage 3, as a share of that before it.
RATE_AGAIN = 0.5
BATCH = 128
#: Share of the batches whose fleet is the run's; the others draw theirs among all robots that the teacher knows.
OWN_FLEET_SHARE = 0.5
DRAWN_ROBOTS = 12
VECTOR_WEIGHT = 3.0
#: Batches of texts whose judgement shall stay, as a share of the others.
KEPT_SHARE = 0.2


class _Tellers(nn.Module):
    """From vectors of tasks and robots, and from what their words mean, to the teacher's; of use here alone."""

    def __init__(self, width: int, words_width: int, teacher_width: int) -> None:
        super().__init__()
        self.of_task = nn.Linear(width, teacher_width)
        self.of_robot = nn.Linear(width, teacher_width)
        self.of_task_words = nn.Linear(words_width, teacher_width)
        self.of_robot_words = nn.Linear(words_width, teacher_width)


def study(
    model: Any,
    tokenizer: Any,
    lessons: Lessons,
    fleet: Fleet,
    arguments: TrainingArguments,
    kept: Sequence[str] | None = None,
) -> None:
    """Train the robot head's text encoder and its match on a teacher's lessons, in place.

    Args:
        model: an :class:`EmberVLMForConditionalGeneration`.
        tokenizer: its tokenizer.
        lessons: the teacher's; the run's robots stand first.
        fleet: the run's.
        arguments: the stage's, for learning rate, seed, precision and device.
        kept: for the study after stage 3, the texts of which the match shall go on to say what it says now; without
            them it is that before stage 3, and the token embeddings are trained too.
    """
    model.config.text_encoder_taught = True
    torch.manual_seed(arguments.seed)
    rng = random.Random(f"study/{arguments.seed}")
    texts = [encode_task(text, tokenizer) for text in lessons.texts]
    tasks, robots = _directions(lessons.vectors), _directions(lessons.robot_vectors)
    head, words = model.robot_head, model.get_input_embeddings()
    tellers = _Tellers(model.config.text_encoder_width, words.embedding_dim, tasks.shape[1])
    learning = nn.ModuleDict(
        {"encoder": head.text_encoder, "match": head.by_meaning, "words": words, "tellers": tellers}
    ).to(arguments.device)
    words.requires_grad_(kept is None)
    rate = 1.0 if kept is None else RATE_AGAIN
    optimizer = optimizer_for(learning, arguments, {"words": WORDS_RATE, "": rate})
    passes = PASSES if kept is None else PASSES_AGAIN
    said = _Kept(model, tokenizer, kept or (), fleet, arguments.device)
    steps = passes * math.ceil(len(texts) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / max(1, WARMUP_SHARE * steps), (1 + math.cos(math.pi * step / steps)) / 2),
    )
    tell = Teller("study: step", steps)
    model.train()
    lengths = [len(text) for text in texts]
    batches = chain.from_iterable(batches_by_length(lengths, BATCH, rng) for _ in range(passes))
    for step, rows in enumerate(batches, 1):
        own = rng.random() < OWN_FLEET_SHARE
        drawn = range(len(lessons.robots))
        pool = list(range(len(fleet))) if own else rng.sample(drawn, min(DRAWN_ROBOTS, len(drawn)))
        batch = {
            **task_rows([texts[row] for row in rows]),
            **encode_fleet_text([lessons.robots[place] for place in pool], tokenizer),
            "leading": lessons.leading[rows][:, pool].float().softmax(-1),
            "going": lessons.going[rows][:, pool].float().sigmoid(),
            "tasks": tasks[rows],
            "robots": robots[pool],
        }
        batch = {name: tensor.to(arguments.device) for name, tensor in batch.items()}
        with torch.autocast(arguments.device.type, torch.bfloat16, enabled=arguments.bf16):
            loss = _loss(model, tellers, batch)
            if kept and rng.random() < KEPT_SHARE:
                loss = loss + said.loss(rng)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learning.parameters(), arguments.max_grad_norm)
        optimizer.step()
        schedule.step()
        tell(step, loss.item())
    words.requires_grad_(True)
    model.to("cpu").eval()


class _Kept:
    """What the match says of some texts and the run's fleet, and how far it has come from that."""

    def __init__(self, model: Any, tokenizer: Any, texts: Sequence[str], fleet: Fleet, device: torch.device) -> None:
        self.model, self.device = model, device
        self.texts = [encode_task(text, tokenizer) for text in texts]
        self.fleet = {name: tensor.to(device) for name, tensor in encode_fleet_text(fleet, tokenizer).items()}
        with torch.no_grad():
            said = [self._say(range(start, min(start + BATCH, len(texts)))) for start in range(0, len(texts), BATCH)]
        if said:
            self.leading, self.going = (torch.cat(each) for each in zip(*said, strict=True))

    def _say(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        tasks = {name: each.to(self.device) for name, each in task_rows([self.texts[row] for row in rows]).items()}
        leading, going = _match(self.model, tasks | self.fleet)[-2:]
        return leading.float(), going.float()

    def loss(self, rng: random.Random) -> Tensor:
        """Of a batch of the texts, drawn by lot."""
        rows = rng.sample(range(len(self.texts)), min(BATCH, len(self.texts)))
        leading, going = self._say(rows)
        far = F.cross_entropy(leading, self.leading[rows].softmax(-1))
        return far + MEMBER_WEIGHT * F.binary_cross_entropy_with_logits(going, self.going[rows].sigmoid())


def _match(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Token embeddings of tasks and robots, their meanings, and the leader and member logits of the match."""
    words, described = model.look_up(batch["task_input_ids"], batch["fleet_input_ids"])
    meanings = model.robot_head.text_encoder(words, batch["task_lengths"])
    robots = model.robot_head.text_encoder(described, batch["fleet_lengths"])
    return words, described, meanings, robots, *model.robot_head.by_meaning(meanings, robots)


def _loss(model: Any, tellers: _Tellers, batch: dict[str, Tensor]) -> Tensor:
    words, described, meanings, robots, leading, going = _match(model, batch)
    losses = [
        F.cross_entropy(leading.float(), batch["leading"]),
        MEMBER_WEIGHT * F.binary_cross_entropy_with_logits(going.float(), batch["going"]),
    ]
    for told, known in (
        (tellers.of_task(meanings), batch["tasks"]),
        (tellers.of_robot(robots), batch["robots"]),
        (tellers.of_task_words(_mean(words, batch["task_lengths"])), batch["tasks"]),
        (tellers.of_robot_words(_mean(described, batch["fleet_lengths"])), batch["robots"]),
    ):
        losses.append(VECTOR_WEIGHT * (1 - F.cosine_similarity(told.float(), known).mean()))
    return torch.stack(losses).sum()


def _mean(embeddings: Tensor, lengths: Tensor) -> Tensor:
    """The normalised means of texts' embeddings, (texts, width), from (texts, tokens, width), padded at the end."""
    used = torch.arange(embeddings.shape[1], device=lengths.device)[None] < lengths[:, None]
    return F.layer_norm((embeddings * used[..., None]).sum(1) / lengths[:, None], embeddings.shape[-1:])


def _directions(vectors: Tensor) -> Tensor:
    """The vectors' directions from their common mean, by which they differ most; (vectors, width)."""
    directions = F.normalize(vectors.float(), dim=-1)
    return F.normalize(directions - directions.mean(0), dim=-1)
