"""Runs a model by PyTorch: what selection asks, on the model as it was trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from embervlm.model.modeling_embervlm import FleetState
from embervlm.model.weights import load_model, load_processor
from embervlm.preflight import check_embeddings, check_image_tokens, check_prompt_version
from embervlm.prompts import encode_task
from embervlm.runtime.base import Floats, Match
from embervlm.words import hashed_words, padded


class TorchRuntime:
    """A model by PyTorch, its encoder fused as it is now.

    Args:
        model: put into eval mode.
        processor: the model's.

    Raises:
        TokenizerError, PreflightError: they do not fit each other, or this version's wording.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        check_embeddings(model, processor.tokenizer)
        check_image_tokens(model, processor)
        check_prompt_version(model.config.prompt_version)
        self.model, self.processor = model.eval(), processor
        self._encoder = model.vision.fused()
        self.tokenizer = processor.tokenizer

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> TorchRuntime:
        """The model of a folder.

        Raises:
            WeightsError, TokenizerError, PreflightError: the folder is missing, damaged or does not fit.
        """
        return cls(load_model(folder), load_processor(folder))

    @property
    def positions(self) -> int:
        """Positions of the language model."""
        return int(self.model.config.text_config.n_positions)

    @property
    def image_tokens(self) -> int:
        """Places of a prompt that a picture takes."""
        return int(self.processor.image_tokens)

    def pixels(self, picture: Image.Image) -> Floats:
        """A picture as the encoder reads it, (3, size, size)."""
        pixels: Floats = self.processor.image_processor.pixels(picture)
        return pixels

    @torch.inference_mode()
    def see(self, pixels: Sequence[Floats]) -> list[Tensor]:
        """The features of pictures, each (visual tokens, width)."""
        return list(self.model.projector(self._encoder(torch.from_numpy(np.stack(pixels)))))

    @torch.inference_mode()
    def encode_fleet(self, texts: Sequence[Sequence[int]]) -> FleetState:
        """Encode a fleet's descriptions, given as token ids, each on its own."""
        # Any id will do behind a description; transformers would warn about that of the padding token.
        state: FleetState = self.model.encode_fleet(*_padded(texts))
        return state

    @torch.inference_mode()
    def states(self, prompts: Sequence[Sequence[int]], features: Sequence[Tensor | None], fleet: FleetState) -> Tensor:
        """The states at the ends of prompts that are read together, (prompts, width)."""
        ids, lengths = _padded(prompts)
        seen = [each for each in features if each is not None]
        embedded = self.model.embed(ids, torch.stack(seen) if seen else None)
        states: Tensor = self.model.language_model.transformer(
            inputs_embeds=embedded,
            past_key_values=fleet.cache(len(prompts)),
            position_ids=torch.arange(ids.shape[1])[None],
            use_cache=True,
        ).last_hidden_state
        return states[torch.arange(len(prompts)), lengths - 1]

    @torch.inference_mode()
    def match(self, states: Tensor, tasks: Sequence[str], fleet: FleetState) -> Match:
        """Who leads, who goes along and how many go."""
        head = self.model.robot_head
        ids, lengths = _padded([encode_task(task, self.tokenizer) for task in tasks])
        meanings = head.meanings(self.model.get_input_embeddings()(ids), lengths)
        hashes, weights = padded([hashed_words(task) for task in tasks])
        words = head.by_words.vectors(torch.from_numpy(hashes), torch.from_numpy(weights))
        leader, member = head(states, meanings, words, fleet)
        return Match(*(each.float().numpy() for each in (leader, member, head.by_words.counts(words))))

    def reader(self, fleet: FleetState) -> TorchReader:
        """What reads one text behind a fleet."""
        return TorchReader(self.model, fleet)


class TorchReader:
    """Reads one text behind a fleet, with a key-value cache."""

    def __init__(self, model: Any, fleet: FleetState) -> None:
        self.model, self.cache = model, fleet.cache(1)

    @torch.inference_mode()
    def read(self, ids: Sequence[int], position: int, features: Tensor | None = None) -> Tensor:
        """Take in tokens that stand at ``position`` and after it; returns the state at the last of them, (1, width)."""
        outputs = self.model.language_model.transformer(
            inputs_embeds=self.model.embed(torch.tensor([list(ids)]), None if features is None else features[None]),
            past_key_values=self.cache,
            position_ids=torch.arange(position, position + len(ids))[None],
            use_cache=True,
        )
        state: Tensor = outputs.last_hidden_state[:, -1]
        return state

    @torch.inference_mode()
    def logits(self, state: Tensor) -> Floats:
        """What may come after a state of (1, width): (vocabulary,)."""
        logits: Floats = self.model.language_model.lm_head(state)[0].float().numpy()
        return logits


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids, (rows, longest), with zeros behind the shorter ones, which no used place sees, and the lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids, lengths
