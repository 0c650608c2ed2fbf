"""The trained model as ONNX graphs, each a module over its parameters that is traced once; ``runtime`` runs them.

They stand to each other as the parts of the model do: picture -> ``vision`` -> ``language`` (fleets, prompts and every
further token) -> ``vocabulary`` (what comes next) and, with what ``meaning`` and ``words`` read of the task and what
``fleet`` keeps of a fleet, -> ``selection`` (who goes). The tables of tokens and words are put in afterwards
(``tables.py``).
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from embervlm.model.modeling_embervlm import normalised_by_kind

#: Of the standard operators; what it has runs in every version of the runtime that the extra allows.
OPSET = 20


class ExportError(ValueError):
    """A model that cannot be written as ONNX; the message says what was found."""


@dataclass(frozen=True)
class Graph:
    """A graph to be traced.

    Attributes:
        name: its file's, without ``.onnx``.
        module: what is traced.
        inputs: example inputs, by the names that they get.
        outputs: the outputs' names.
        dynamic: for each input, the names of its axes that vary.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Any]
    outputs: list[str]
    dynamic: dict[str, dict[int, str]]


class Vision(nn.Module):
    """A picture to visual tokens: the fused encoder and the projector."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision = model.vision.fused()
        self.projector = model.projector

    def forward(self, pixels: Tensor) -> Tensor:
        """(pictures, 3, size, size) -> (pictures, visual tokens, width)."""
        features = self.vision.stages(self.vision.stem(pixels))
        tokens = self.projector.norm(features.flatten(2).transpose(1, 2))
        tokens = F.gelu(_linear(tokens, self.projector.up.weight.T, self.projector.up.bias))
        return _linear(tokens, self.projector.down.weight.T, self.projector.down.bias)


class Language(nn.Module):
    """The language model over new tokens behind a fleet and a text that was read before.

    Keys and values of the fleet, of the text before and of the new tokens stay apart, so that a large fleet's are never
    copied. The last block runs at one place of each row alone, since only that state is asked for.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config.text_config
        if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx or config.add_cross_attention:
            raise ExportError("the language model scales its attention as no GPT-2 does that can be written as ONNX")
        self.transformer = model.language_model.transformer
        self.width, self.heads, self.head_width = config.n_embd, config.n_head, config.n_embd // config.n_head
        activation = ACT2FN[config.activation_function]
        # One operator where there is one for it.
        self.act = partial(F.gelu, approximate="tanh") if config.activation_function == "gelu_new" else activation

    def forward(
        self, rows: Tensor, places: Tensor, features: Tensor, positions: Tensor, at: Tensor, *kept: Tensor
    ) -> tuple[Tensor, ...]:
        """Read tokens.

        Args:
            rows: of the table of tokens, (batch, tokens, width).
            places: (batch, tokens), which visual token stands there; -1 for none.
            features: visual tokens, (visual tokens, width).
            positions: (batch, tokens).
            at: (batch,), the place whose state is asked for.
            kept: for each layer the fleet's keys (heads, head width, fleet tokens) and values (heads, fleet tokens,
                head width), then the keys and values of the text before, each (batch, tokens before, width).

        Returns:
            the states, (batch, width); then each layer's new keys and values, each (batch, tokens, width).
        """
        model = self.transformer
        seen = features[places.clamp(min=0)]  # (batch, tokens, width)
        x = torch.where(places[..., None] >= 0, seen, rows) + model.wpe(positions)
        order = torch.arange(positions.shape[1])
        # (1, 1, tokens, tokens): what a new token sees of the new ones.
        hidden = (order[None] > order[:, None])[None, None]
        new: list[Tensor] = []
        for number, block in enumerate(model.h):
            fleet_keys, fleet_values, keys_before, values_before = kept[4 * number : 4 * number + 4]
            last = number == len(model.h) - 1
            normed = block.ln_1(x)
            query, keys, values = torch.split(_conv1d(normed, block.attn.c_attn), self.width, -1)
            new += [keys, values]
            unseen = hidden
            if last:
                x, query = self._picked(x, at), self._picked(query, at)  # (batch, 1, width)
                unseen = (order[None] > at[:, None])[:, None, None]  # (batch, 1, 1, tokens)
            query = self._heads(query) * self.head_width**-0.5  # (batch, heads, tokens, head width)
            scores = torch.cat(
                [
                    query @ fleet_keys[None],
                    query @ self._heads(keys_before).transpose(2, 3),
                    (query @ self._heads(keys).transpose(2, 3)).masked_fill(unseen, -math.inf),
                ],
                -1,
            ).softmax(-1)
            fleet_tokens, before = fleet_keys.shape[2], keys_before.shape[1]
            attended = (
                scores[..., :fleet_tokens] @ fleet_values[None]
                + scores[..., fleet_tokens : fleet_tokens + before] @ self._heads(values_before)
                + scores[..., fleet_tokens + before :] @ self._heads(values)
            )
            attended = attended.transpose(1, 2).reshape(x.shape[0], -1, self.width)
            x = x + _conv1d(attended, block.attn.c_proj)
            x = x + _conv1d(self.act(_conv1d(block.ln_2(x), block.mlp.c_fc)), block.mlp.c_proj)
        return (model.ln_f(x)[:, 0], *new)

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> (batch, heads, tokens, head width)."""
        return x.reshape(x.shape[0], -1, self.heads, self.head_width).transpose(1, 2)

    def _picked(self, x: Tensor, at: Tensor) -> Tensor:
        """(batch, tokens, width) -> (batch, 1, width), each row's place ``at``."""
        return x.gather(1, at[:, None, None].expand(-1, 1, self.width))


class Meaning(nn.Module):
    """The robot head's text encoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(model.robot_head.text_encoder)
        for block in self.encoder.blocks:
            for name in ("attention_in", "attention_out", "mlp_up", "mlp_down"):
                setattr(block, name, _Product(getattr(block, name)))

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Rows of the table of tokens, (texts, tokens, width), and the texts' lengths -> (texts, encoder's width)."""
        vectors: Tensor = self.encoder(rows, lengths)
        return vectors


class _Product(nn.Module):
    """A linear layer as :func:`_linear` has it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight.T, self.bias)


class Words(nn.Module):
    """The vectors of texts by their hashed words."""

    rarity: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.register_buffer("rarity", model.robot_head.by_words.rarity)

    def forward(self, rows: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        """Rows of the table of words, (texts, words, word width), and where they are -> (texts, word width)."""
        # The table has an even number of rows, so that a place is odd where its hash is.
        shares = normalised_by_kind(places, weights * self.rarity[places])
        return (shares[:, None] @ rows)[:, 0]


class Fleet(nn.Module):
    """What the robot head keeps of a fleet: the keys of all matches side by side."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head = model.robot_head

    def forward(self, states: Tensor, meanings: Tensor) -> tuple[Tensor, Tensor]:
        """Robots' states and meanings -> leader and member keys, (all matches' widths, robots) each."""
        head, robots = self.head, self.head.robot_norm(states)
        compared = ((head.by_state, robots), (head.by_meaning, meanings))
        leader_by_words, member_by_words = head.by_words.keys(robots)
        # As ``match_meaning`` has it.
        scales = (head.by_state.scale, head.by_meaning.scale * head.config.text_encoder_taught)
        leader = [match.leader_key(given) * scale for (match, given), scale in zip(compared, scales, strict=True)]
        member = [match.member_key(given) * scale for (match, given), scale in zip(compared, scales, strict=True)]
        return torch.cat([*leader, leader_by_words], -1).T, torch.cat([*member, member_by_words], -1).T


class Selection(nn.Module):
    """The robot head: who leads, who goes along and how many go."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head = model.robot_head

    def forward(
        self, state: Tensor, meanings: Tensor, words: Tensor, leader_keys: Tensor, member_keys: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What each match reads of tasks, (batch, its width), and a fleet's keys -> leaders, members and counts."""
        head, counts = self.head, self.head.by_words.counts(words)
        words = F.pad(words, (0, 1), value=1.0)
        compared = ((head.by_state, head.state_norm(state)), (head.by_meaning, meanings))
        leader = torch.cat([*(match.leader_query(given) for match, given in compared), words], -1) @ leader_keys
        member = torch.cat([*(match.member_query(given) for match, given in compared), words], -1) @ member_keys
        return leader, member, counts


def graphs(model: Any) -> list[Graph]:
    """The graphs of a trained model, in eval mode.

    Raises:
        ExportError: the language model is of a kind that they do not cover.
    """
    text, size = model.config.text_config, model.config.vision_config.image_size
    width, heads, layers = text.n_embd, text.n_head, text.n_layer
    word_width, visual = model.config.word_width, model.config.vision_config.image_tokens
    meaning = model.config.text_encoder_width
    every = width + meaning + word_width + 1
    batch, tokens, before, robots, fleet_tokens, words = 2, 5, 3, 4, 7, 6
    kept: dict[str, Tensor] = {}
    kept_axes: dict[str, dict[int, str]] = {}
    for layer in range(layers):
        kept[f"fleet_keys.{layer}"] = torch.zeros(heads, width // heads, fleet_tokens)
        kept[f"fleet_values.{layer}"] = torch.zeros(heads, fleet_tokens, width // heads)
        kept[f"keys_before.{layer}"] = torch.zeros(batch, before, width)
        kept[f"values_before.{layer}"] = torch.zeros(batch, before, width)
        kept_axes[f"fleet_keys.{layer}"] = {2: "fleet_tokens"}
        kept_axes[f"fleet_values.{layer}"] = {1: "fleet_tokens"}
        kept_axes[f"keys_before.{layer}"] = {0: "batch", 1: "before"}
        kept_axes[f"values_before.{layer}"] = {0: "batch", 1: "before"}
    places = torch.full((batch, tokens), -1)
    rows = {0: "batch", 1: "tokens"}
    return [
        Graph(
            "vision",
            Vision(model),
            {"pixels": torch.zeros(2, 3, size, size)},
            ["features"],
            {"pixels": {0: "pictures"}},
        ),
        Graph(
            "language",
            Language(model),
            {
                "rows": torch.zeros(batch, tokens, width),
                "places": places,
                "features": torch.zeros(visual + 1, width),
                "positions": places + 1,
                "at": torch.zeros(batch, dtype=torch.long),
                **kept,
            },
            ["state", *(f"{part}.{layer}" for layer in range(layers) for part in ("keys", "values"))],
            {
                "rows": rows,
                "places": rows,
                "features": {0: "visual_tokens"},
                "positions": rows,
                "at": {0: "batch"},
                **kept_axes,
            },
        ),
        Graph(
            "meaning",
            Meaning(model),
            {"rows": torch.zeros(batch, tokens, width), "lengths": torch.tensor([tokens, before])},
            ["vectors"],
            {"rows": rows, "lengths": {0: "batch"}},
        ),
        Graph(
            "words",
            Words(model),
            {
                "rows": torch.zeros(2, words, word_width),
                "places": torch.zeros(2, words, dtype=torch.long),
                "weights": torch.ones(2, words),
            },
            ["vectors"],
            {name: {0: "texts", 1: "words"} for name in ("rows", "places", "weights")},
        ),
        Graph(
            "fleet",
            Fleet(model),
            {"states": torch.zeros(robots, width), "meanings": torch.zeros(robots, meaning)},
            ["leader_keys", "member_keys"],
            {"states": {0: "robots"}, "meanings": {0: "robots"}},
        ),
        Graph(
            "selection",
            Selection(model),
            {
                "state": torch.zeros(2, width),
                "meanings": torch.zeros(2, meaning),
                "words": torch.zeros(2, word_width),
                "leader_keys": torch.zeros(every, robots),
                "member_keys": torch.zeros(every, robots),
            },
            ["leader_logits", "member_logits", "count_logits"],
            {
                "state": {0: "batch"},
                "meanings": {0: "batch"},
                "words": {0: "batch"},
                "leader_keys": {1: "robots"},
                "member_keys": {1: "robots"},
            },
        ),
    ]


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # As a product and a sum, which can be quantised, where a linear layer would become one operator that cannot.
    return x @ weight + bias


def _conv1d(x: Tensor, layer: Any) -> Tensor:
    return _linear(x, layer.weight, layer.bias)


def traced(graph: Graph) -> onnx.ModelProto:
    """The graph as ONNX."""
    buffer: Any = io.BytesIO()  # which it takes, though it does not say so
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter of choice for these plain modules: it takes a second where its successor takes a minute.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            buffer,
            dynamo=False,
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_axes=graph.dynamic,
            opset_version=OPSET,
        )
    return onnx.load_from_string(buffer.getvalue())
