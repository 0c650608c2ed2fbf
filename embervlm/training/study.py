"""What a model does before the first step of stage 3 where it has a teacher: it learns how that sees many texts.

No picture is shown and nothing is written, so that a text costs a small part of what a task of stage 3 does. The robot
head's match by state learns whom the teacher would send, out of fleets that differ from batch to batch; and what it
reads, the language model's states of tasks and descriptions, learns to tell the teacher's own vectors, which say more
of a text than who goes (Romero et al., FitNets, arXiv 1412.6550). So do the means of their tokens' embeddings, by which
words learn what they mean before attention has learnt to find them: without that a study as long comes half as far.
"""

from __future__ import annotations

import math
import random
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainingArguments

from embervlm.data.collate import encode_fleet_text
from embervlm.data.order import batches_by_length
from embervlm.fleet import Fleet
from embervlm.model.attention import attend_in_fp32
from embervlm.prompts import encode, task_pieces
from embervlm.tokens import CONTROL_IDS, END_OF_TEXT_ID, ROBOT_SELECTION
from embervlm.training.engine import WARMUP_SHARE, optimizer_for
from embervlm.training.teacher import MEMBER_WEIGHT, Lessons, Teller

#: What of a model studies.
STUDIED_PARTS = ("language_model", "robot_head")
PASSES = 2
BATCH = 128
#: Share of the batches whose fleet is the run's; the others draw theirs among all robots that the teacher knows.
OWN_FLEET_SHARE = 0.5
DRAWN_ROBOTS = 12
#: Share of the batches whose texts stand behind the descriptions of their fleet, as in use, and not by themselves,
#: which costs half as much.
BEHIND_FLEET_SHARE = 0.5
VECTOR_WEIGHT = 3.0


class _Tellers(nn.Module):
    """From states of tasks and robots, and from what their words mean, to the teacher's vectors; of use here alone."""

    def __init__(self, width: int, teacher_width: int) -> None:
        super().__init__()
        self.of_state = nn.Linear(width, teacher_width)
        self.of_robot = nn.Linear(width, teacher_width)
        self.of_task_words = nn.Linear(width, teacher_width)
        self.of_robot_words = nn.Linear(width, teacher_width)


def study(model: Any, tokenizer: Any, lessons: Lessons, fleet: Fleet, arguments: TrainingArguments) -> None:
    """Train the language model and the robot head on a teacher's lessons, in place.

    Args:
        model: an :class:`EmberVLMForConditionalGeneration`.
        tokenizer: its tokenizer.
        lessons: the teacher's; the run's robots stand first.
        fleet: the run's.
        arguments: the stage's, for learning rate, seed, precision and device.
    """
    torch.manual_seed(arguments.seed)
    rng = random.Random(f"study/{arguments.seed}")
    prompts = [_prompt(text, tokenizer) for text in lessons.texts]
    tasks, robots = _directions(lessons.vectors), _directions(lessons.robot_vectors)
    tellers = _Tellers(model.config.text_config.hidden_size, tasks.shape[1])
    learning = nn.ModuleList([*(getattr(model, part) for part in STUDIED_PARTS), tellers]).to(arguments.device)
    optimizer = optimizer_for(learning, arguments)
    steps = PASSES * math.ceil(len(prompts) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / max(1, WARMUP_SHARE * steps), (1 + math.cos(math.pi * step / steps)) / 2),
    )
    tell = Teller("study: step", steps)
    if arguments.bf16 and arguments.device.type == "cpu":
        attend_in_fp32(model)
    model.train()
    lengths = [len(prompt) for prompt in prompts]
    batches = chain.from_iterable(batches_by_length(lengths, BATCH, rng) for _ in range(PASSES))
    for step, rows in enumerate(batches, 1):
        own = rng.random() < OWN_FLEET_SHARE
        drawn = range(len(lessons.robots))
        pool = list(range(len(fleet))) if own else rng.sample(drawn, min(DRAWN_ROBOTS, len(drawn)))
        batch = {
            "input_ids": pad_sequence([prompts[row] for row in rows], True, END_OF_TEXT_ID),
            "lengths": torch.tensor([len(prompts[row]) for row in rows]),
            **encode_fleet_text([lessons.robots[place] for place in pool], tokenizer),
            "leading": lessons.leading[rows][:, pool].float().softmax(-1),
            "going": lessons.going[rows][:, pool].float().sigmoid(),
            "tasks": tasks[rows],
            "robots": robots[pool],
        }
        batch = {name: tensor.to(arguments.device) for name, tensor in batch.items()}
        with torch.autocast(arguments.device.type, torch.bfloat16, enabled=arguments.bf16):
            loss = _loss(model, tellers, batch, behind_fleet=rng.random() < BEHIND_FLEET_SHARE)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learning.parameters(), arguments.max_grad_norm)
        optimizer.step()
        schedule.step()
        tell(step, loss.item())
    model.to("cpu")


def _loss(model: Any, tellers: _Tellers, batch: dict[str, Tensor], *, behind_fleet: bool) -> Tensor:
    fleet_text = {name: tensor for name, tensor in batch.items() if name.startswith("fleet_")}
    prompts, robots = model.look_up(batch["input_ids"], batch["fleet_input_ids"])
    fleet = model.encode_fleet(**fleet_text, embeddings=robots)
    count, tokens = batch["input_ids"].shape
    states = model.language_model.transformer(
        inputs_embeds=prompts,
        past_key_values=fleet.cache(count) if behind_fleet else None,
        position_ids=torch.arange(tokens, device=batch["input_ids"].device)[None],
        use_cache=behind_fleet,
    ).last_hidden_state  # (texts, tokens, width)
    head = model.robot_head
    state = states[torch.arange(count, device=states.device), batch["lengths"] - 1]
    leading, going = head.match_state(state, fleet)
    losses = [
        F.cross_entropy(leading.float(), batch["leading"]),
        MEMBER_WEIGHT * F.binary_cross_entropy_with_logits(going.float(), batch["going"]),
    ]
    for told, known in (
        (tellers.of_state(head.state_norm(state)), batch["tasks"]),
        (tellers.of_robot(head.robot_norm(fleet.robot_states)), batch["robots"]),
        (tellers.of_task_words(_mean(prompts, batch["lengths"])), batch["tasks"]),
        (tellers.of_robot_words(_mean(robots, batch["fleet_lengths"])), batch["robots"]),
    ):
        losses.append(VECTOR_WEIGHT * (1 - F.cosine_similarity(told.float(), known).mean()))
    return torch.stack(losses).sum()


def _mean(embeddings: Tensor, lengths: Tensor) -> Tensor:
    """The normalised means of texts' embeddings, (texts, width), from (texts, tokens, width), padded at the end."""
    used = torch.arange(embeddings.shape[1], device=lengths.device)[None] < lengths[:, None]
    return F.layer_norm((embeddings * used[..., None]).sum(1) / lengths[:, None], embeddings.shape[-1:])


def _prompt(text: str, tokenizer: Any) -> Tensor:
    ids = encode(task_pieces(text, has_image=False), tokenizer, image_tokens=0).input_ids
    return torch.tensor([*ids, CONTROL_IDS[ROBOT_SELECTION]])


def _directions(vectors: Tensor) -> Tensor:
    """The vectors' directions from their common mean, by which they differ most; (vectors, width)."""
    directions = F.normalize(vectors.float(), dim=-1)
    return F.normalize(directions - directions.mean(0), dim=-1)
