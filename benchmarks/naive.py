"""The same model trained and asked the plain way, as a reference for ratios; no part of the package uses it.

Plain is what code of this field often does: every text is padded to one length, the vocabulary's logits are computed at
every place, the fleet stands in each prompt as text, the encoder runs unfused and in the mode of the rest, the
optimizer goes parameter by parameter, and nothing is kept from one batch or question to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from embervlm.data.collate import Example, encode_fleet_text, task_rows
from embervlm.data.images import decode_image
from embervlm.fleet import Fleet, Robot
from embervlm.model.modeling_embervlm import FleetState, matching_loss
from embervlm.prompts import IGNORED, encode, encode_task, robot_description, task_pieces
from embervlm.tokens import CONTROL_IDS, END_OF_TEXT_ID, IMAGE, ROBOT_SELECTION, encode_text

#: Tokens that every text is padded to, the picture's not counted: in stages 1 and 2, and in stage 3, where the fleet's
#: text is part of it.
LENGTH, LENGTH_WITH_FLEET = 512, 960


def plain(model: Any) -> Any:
    """The model without the package's own savings: GPT-2's activation is the library's again."""
    model.fuse_frozen_vision(False, torch.float32)
    for block in model.language_model.transformer.h:
        block.mlp.act = ACT2FN["gelu_new"]
    return model


def batch_of(
    examples: Sequence[Example], tokenizer: Any, fleet: Fleet | None, image_tokens: int, length: int | None = None
) -> dict[str, Tensor]:
    """Examples to a batch in which every text has one length; with a fleet, its descriptions stand first.

    Args:
        examples: each with a picture.
        tokenizer: the model's.
        fleet: in stage 3.
        image_tokens: places of a picture.
        length: of a text without its picture; ``LENGTH`` or ``LENGTH_WITH_FLEET`` unless given.
    """
    length = image_tokens + (length or (LENGTH_WITH_FLEET if fleet is not None else LENGTH))
    prefix = [encode_text(tokenizer, f"{robot_description(robot)}\n") for robot in fleet or ()]
    before = [token for description in prefix for token in description]
    ids = torch.full((len(examples), length), END_OF_TEXT_ID)
    labels = torch.full((len(examples), length), IGNORED)
    mask = torch.zeros(len(examples), length, dtype=torch.long)
    for row, example in enumerate(examples):
        text = torch.tensor([*before, *example.encoded.input_ids])[:length]
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
        labels[row, len(before) : len(text)] = torch.tensor(example.encoded.labels)[: length - len(before)]
    pixels = [example.pixels for example in examples if example.pixels is not None]
    batch = {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        "pixel_values": torch.from_numpy(np.stack(pixels)),
        "image_words": _words([example.image_words for example in examples if example.pixels is not None]),
    }
    if fleet is None:
        return batch
    return batch | {
        **encode_fleet_text(fleet, tokenizer),
        "robot_ends": torch.tensor([len(description) for description in prefix]).cumsum(0) - 1,
        "selection_index": len(before) + torch.tensor([example.selection_index for example in examples]),
        "task_index": len(before) + torch.tensor([example.task_index for example in examples]),
        "task_words": _words([example.task_words for example in examples]),
        **task_rows([example.task for example in examples]),
        "leader_labels": torch.tensor([example.leader for example in examples]),
        "member_labels": torch.tensor([example.members for example in examples]),
    }


def _words(rows: Sequence[tuple[int, ...]]) -> Tensor:
    longest = max(1, *(len(row) for row in rows)) if rows else 1
    return torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in rows])


def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The model's training loss of a batch of :func:`batch_of`, in plain code."""
    head = model.robot_head
    features = model.projector(model.vision(batch["pixel_values"]))
    states = run(model, batch["input_ids"], features, batch["attention_mask"])
    logits = model.language_model.lm_head(states)  # (batch, tokens, vocabulary)
    following = batch["labels"][:, 1:].flatten()
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), following, ignore_index=IGNORED)
    embedding = model.get_input_embeddings()
    if (batch["image_words"] != IGNORED).any():
        words = batch["image_words"]
        total = total + matching_loss(features.mean(1), words, embedding(words.clamp(min=0)))
    if "robot_ends" in batch:
        rows = torch.arange(len(states))
        for row in rows:
            described = head.meanings(embedding(batch["fleet_input_ids"]), batch["fleet_lengths"])
            fleet = FleetState(states[row, batch["robot_ends"]], described, [], [])
            by_state = head.match_state(states[row, batch["selection_index"][row]][None], fleet)
            task = embedding(batch["task_input_ids"][row])[None]
            by_meaning = head.match_meaning(head.meanings(task, batch["task_lengths"][row][None]), fleet)
            leading, going = (first + second for first, second in zip(by_state, by_meaning, strict=True))
            leader = F.cross_entropy(leading.float(), batch["leader_labels"][row][None])
            members = F.binary_cross_entropy_with_logits(going.float(), batch["member_labels"][row][None])
            total = total + (leader + members) / len(rows)
        words = batch["task_words"]
        total = total + matching_loss(states[rows, batch["task_index"]], words, embedding(words.clamp(min=0)))
    return total


def run(model: Any, input_ids: Tensor, features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The language model's states at every place, (batch, tokens, width)."""
    embedded = model.get_input_embeddings()(input_ids)
    places = input_ids == CONTROL_IDS[IMAGE]
    embedded = embedded.masked_scatter(places[..., None], features.to(embedded.dtype))
    states: Tensor = model.language_model.transformer(
        inputs_embeds=embedded, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return states


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW in a plain loop over what trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=2e-4, foreach=False, fused=False)


@torch.no_grad()
def select(model: Any, processor: Any, fleet: Fleet, task: str, picture: Any) -> str:
    """The robot that leads, from one pass over the fleet's text, the picture and the task, with all logits."""
    ids, ends = prompt(processor, fleet, task)
    pixels = torch.from_numpy(processor.image_processor.pixels(decode_image(picture)))[None]
    states = run(model, ids, model.projector(model.vision(pixels)))
    model.language_model.lm_head(states)
    head, embedding = model.robot_head, model.get_input_embeddings()
    text = encode_fleet_text(fleet, processor.tokenizer)
    described = head.meanings(embedding(text["fleet_input_ids"]), text["fleet_lengths"])
    robots = FleetState(states[0, ends], described, [], [])
    asked = torch.tensor([encode_task(task, processor.tokenizer)])
    meaning = head.meanings(embedding(asked), torch.tensor([asked.shape[1]]))
    leading = head.match_state(states[:, -1], robots)[0] + head.match_meaning(meaning, robots)[0]
    return fleet.names[int(leading.argmax())]


@torch.no_grad()
def generate(model: Any, processor: Any, fleet: Fleet, task: str, picture: Any, tokens: int) -> list[int]:
    """So many tokens after the prompt, the likeliest each time, with the library's own key-value cache."""
    ids, _ = prompt(processor, fleet, task)
    pixels = torch.from_numpy(processor.image_processor.pixels(decode_image(picture)))[None]
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=END_OF_TEXT_ID,
    )
    new: list[int] = written[0, ids.shape[1] :].tolist()
    return new


def prompt(processor: Any, fleet: Iterable[Robot], task: str) -> tuple[Tensor, Tensor]:
    """A prompt with the fleet's text in it, (1, tokens), and where each description ends, (robots,)."""
    descriptions = [encode_text(processor.tokenizer, f"{robot_description(robot)}\n") for robot in fleet]
    asked = encode(task_pieces(task, has_image=True), processor.tokenizer, processor.image_tokens).input_ids
    ids = [*(token for text in descriptions for token in text), *asked, CONTROL_IDS[ROBOT_SELECTION]]
    return torch.tensor([ids]), torch.tensor([len(text) for text in descriptions]).cumsum(0) - 1
