"""The model: a picture's features are projected into the language model's input, and the robot head reads its states.

The fleet is not part of the token sequence. Each robot's description is encoded on its own, from position 0; the keys
and values of all descriptions are the constant start that every prompt attends to, and the last state of each
description is that robot's key. So the order of a fleet does not matter, a fleet is encoded once and reused, and its
length takes none of the prompt's positions. What tasks and descriptions mean as texts, an encoder of its own reads
beside that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, GPT2LMHeadModel, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import ModelOutput

from embervlm.model.configuration_embervlm import EmberVLMConfig
from embervlm.model.head_loss import head_loss
from embervlm.model.repvit import RepViT
from embervlm.model.text_encoder import TextEncoder
from embervlm.prompts import IGNORED, reads_whole
from embervlm.words import MOST_COUNTED

#: What cosine similarities are divided by in :func:`matching_loss`.
MATCHING_TEMPERATURE = 0.07
#: How much a robot must be like those that words were fitted for, of 1, before words say something of it.
LEAST_KNOWN = 0.8


@dataclass
class FleetState:
    """What the model keeps of a fleet.

    Attributes:
        robot_states: the last state of each description, (robots, width).
        robot_meanings: the text encoder's vectors of the descriptions, (robots, text encoder's width).
        keys, values: of every layer, the descriptions' tokens that prompts read, one after another, (1, heads, fleet
            tokens, head width).
    """

    robot_states: Tensor
    robot_meanings: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def tokens(self) -> int:
        """Tokens that prompts read."""
        return self.keys[0].shape[2]

    def cache(self, batch: int) -> DynamicCache:
        """A key-value cache that starts with this fleet, for a batch of prompts."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), layer)
        return cache


@dataclass
class EmberVLMOutput(ModelOutput):  # type: ignore[misc]
    """What :meth:`EmberVLMForConditionalGeneration.forward` returns.

    Attributes:
        loss: the sum of the parts below that could be computed.
        logits: (batch, kept places, vocabulary); None when labels were given.
        past_key_values: the cache, when asked for.
        leader_logits: (batch, robots), of the matches by state and by meaning, which are what training trains; their
            softmax says who leads.
        member_logits: (batch, robots), likewise; their sigmoid says who goes along.
        language_loss, image_loss, task_loss, leader_loss, member_loss: the parts of the loss.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    leader_logits: Tensor | None = None
    member_logits: Tensor | None = None
    language_loss: Tensor | None = None
    image_loss: Tensor | None = None
    task_loss: Tensor | None = None
    leader_loss: Tensor | None = None
    member_loss: Tensor | None = None


class Projector(nn.Module):
    """Visual features to the language model's width: normalisation and a two-layer perceptron."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.up = nn.Linear(features, 4 * width)
        self.down = nn.Linear(4 * width, width)
        # Small, so that pictures start as faint as words.
        self.down.initial_std = 0.002  # type: ignore[assignment]

    def forward(self, features: Tensor) -> Tensor:
        """(pictures, features, height, width) -> (pictures, height * width, language model's width)."""
        tokens = features.flatten(2).transpose(1, 2)
        return cast(Tensor, self.down(F.gelu(self.up(self.norm(tokens)))))


class RobotMatch(nn.Module):
    """Compares a vector of each prompt with one of each robot: one logit for each robot in use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.leader_query = nn.Linear(width, width)
        self.leader_key = nn.Linear(width, width)
        self.member_query = nn.Linear(width, width)
        self.member_key = nn.Linear(width, width)
        self.scale = width**-0.5

    def forward(self, prompts: Tensor, robots: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, width) and (robots, width) -> leader logits and member logits, each (batch, robots)."""
        leader = self.leader_query(prompts) @ self.leader_key(robots).T * self.scale
        member = self.member_query(prompts) @ self.member_key(robots).T * self.scale
        return leader, member


class WordMatch(nn.Module):
    """Compares a task's hashed words with each robot: a linear classifier of words, whose outputs are robots' states.

    Its numbers are no parameters: once the language model has its last state of the robots, they are fitted by convex
    optimisation (``training.words_fit``), where steps of stochastic descent learn training tasks by heart. Until then
    all logits are 0.

    Attributes:
        table: each row's share in a task's vector, (places, word width).
        rarity: how much each row tells (:func:`embervlm.words.rarity`), (places,).
        leader_key, member_key: from a robot's normalised state and a 1 to what is held against a task's vector and a
            1, (word width + 1, width + 1).
        known_key: likewise to how much a robot is one that the words were fitted for, (1, width + 1); of strangers,
            below ``LEAST_KNOWN``, words say nothing.
        count_key: to logits of how many robots go, from a task's vector and a 1, (``MOST_COUNTED``, word width + 1).
    """

    table: Tensor
    rarity: Tensor
    leader_key: Tensor
    member_key: Tensor
    known_key: Tensor
    count_key: Tensor

    def __init__(self, width: int, places: int, word_width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(places, word_width))
        self.register_buffer("rarity", torch.zeros(places))
        self.register_buffer("leader_key", torch.zeros(word_width + 1, width + 1))
        self.register_buffer("member_key", torch.zeros(word_width + 1, width + 1))
        self.register_buffer("known_key", torch.zeros(1, width + 1))
        self.register_buffer("count_key", torch.zeros(MOST_COUNTED, word_width + 1))

    def vectors(self, hashes: Tensor, weights: Tensor) -> Tensor:
        """The vectors of texts by their hashed words, (texts, word width).

        Args:
            hashes, weights: (texts, words), of :func:`embervlm.words.padded`.
        """
        places = hashes % len(self.table)
        shares = normalised_by_kind(hashes, weights * self.rarity[places])
        vectors: Tensor = (shares[:, None].to(self.table.dtype) @ self.table[places])[:, 0]
        return vectors

    def forward(self, vectors: Tensor, robots: Tensor) -> tuple[Tensor, Tensor]:
        """(texts, word width) and (robots, width) -> leader logits and member logits, each (texts, robots)."""
        texts = F.pad(vectors, (0, 1), value=1.0)
        leader, member = self.keys(robots)
        return texts @ leader.T, texts @ member.T

    def counts(self, vectors: Tensor) -> Tensor:
        """The logits of how many robots a task needs, (texts, ``MOST_COUNTED``): their softmax."""
        return F.pad(vectors, (0, 1), value=1.0) @ self.count_key.T

    def keys(self, robots: Tensor) -> tuple[Tensor, Tensor]:
        """What is held against a text's vector and a 1, leader and member, each (robots, word width + 1).

        Args:
            robots: their normalised states, (robots, width).
        """
        described = F.pad(robots, (0, 1), value=1.0)
        known = ((described @ self.known_key.T - LEAST_KNOWN) / (1 - LEAST_KNOWN)).clamp(0, 1)  # (robots, 1)
        return described @ self.leader_key.T * known, described @ self.member_key.T * known


def normalised_by_kind(hashes: Tensor, weights: Tensor) -> Tensor:
    """Weights of hashed words of which those of each kind, even and odd, have a length of the root of a half.

    Args:
        hashes, weights: (texts, words); a kind whose weights are all 0 keeps them.
    """
    odd = (hashes % 2).to(weights.dtype)
    squares = weights.square()
    of_odd, of_even = (squares * odd).sum(-1, keepdim=True), (squares * (1 - odd)).sum(-1, keepdim=True)
    return weights / (2 * (odd * of_odd + (1 - odd) * of_even)).sqrt().clamp(min=1e-12)


class RobotHead(nn.Module):
    """Who leads and who goes along, by three matches whose logits are added.

    The first reads what the language model made of fleet, picture and task: its state at ``<|robot_selection|>``. The
    second reads task and descriptions as texts alone, by an encoder of its own, whose knowledge of texts is not
    overwritten by learning to see and to write. The third reads the task's hashed words (:mod:`embervlm.words`): single
    words decide many tasks, and a few thousand tasks teach that better to a flat model than to a deep one (Cheng et
    al., Wide & Deep, arXiv 1606.07792).

    Args:
        config: the model's.
    """

    def __init__(self, config: EmberVLMConfig) -> None:
        super().__init__()
        self.config = config
        width, encoder_width = config.text_config.hidden_size, config.text_encoder_width
        self.state_norm = nn.LayerNorm(width)
        self.robot_norm = nn.LayerNorm(width)
        self.by_state = RobotMatch(width)
        self.text_encoder = TextEncoder(width, encoder_width, config.text_encoder_layers)
        self.by_meaning = RobotMatch(encoder_width)
        self.by_words = WordMatch(width, config.word_places, config.word_width)

    def meanings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """The text encoder's vectors of texts, (texts, its width); zeros until it is taught.

        Args:
            embeddings, lengths: as the encoder takes them.
        """
        if not self.config.text_encoder_taught:
            return embeddings.new_zeros(len(embeddings), self.config.text_encoder_width)
        return cast(Tensor, self.text_encoder(embeddings, lengths))

    def match_state(self, state: Tensor, fleet: FleetState) -> tuple[Tensor, Tensor]:
        """The logits of the first match: leader and member, each (batch, robots).

        Args:
            state: at ``<|robot_selection|>``, (batch, width).
            fleet: in use.
        """
        leader, member = self.by_state(self.state_norm(state), self.robot_norm(fleet.robot_states))
        return leader, member

    def match_meaning(self, meanings: Tensor, fleet: FleetState) -> tuple[Tensor, Tensor]:
        """The logits of the second match: leader and member, each (batch, robots); 0 until its encoder is taught.

        Args:
            meanings: of the tasks, (batch, text encoder's width).
            fleet: in use.
        """
        leader, member = self.by_meaning(meanings, fleet.robot_meanings)
        return (leader, member) if self.config.text_encoder_taught else (0 * leader, 0 * member)

    def match_words(self, words: Tensor, fleet: FleetState) -> tuple[Tensor, Tensor]:
        """The logits of the third match: leader and member, each (batch, robots).

        Args:
            words: the tasks' vectors (:meth:`WordMatch.vectors`), (batch, word width).
            fleet: in use.
        """
        leader, member = self.by_words(words, self.robot_norm(fleet.robot_states))
        return leader, member

    def forward(self, state: Tensor, meanings: Tensor, words: Tensor, fleet: FleetState) -> tuple[Tensor, Tensor]:
        """Leader logits and member logits, each (batch, robots); the arguments are those of the three matches."""
        matches = (
            self.match_state(state, fleet),
            self.match_meaning(meanings, fleet),
            self.match_words(words, fleet),
        )
        leading, going = zip(*matches, strict=True)
        return torch.stack(leading).sum(0), torch.stack(going).sum(0)


class EmberVLMForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """EmberVLM. ``generate`` writes text for prompts without a fleet; a selection goes through ``RobotSelector``."""

    config_class = EmberVLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _no_split_modules = ["GPT2Block"]
    _tied_weights_keys = {"language_model.lm_head.weight": "language_model.transformer.wte.weight"}
    # The Trainer then divides by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: EmberVLMConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision = RepViT(vision.widths, vision.depths)
        self.projector = Projector(vision.widths[-1], text.hidden_size)
        self.language_model = GPT2LMHeadModel(text)
        if text.activation_function == "gelu_new":
            for block in self.language_model.transformer.h:  # the same function in one pass over memory, not in eight
                block.mlp.act = ACT2FN["gelu_pytorch_tanh"]
        self.robot_head = RobotHead(config)
        self.image_tokens = vision.image_tokens
        self._fused_vision: RepViT | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initial weights of the parts that are not GPT-2's; the library does GPT-2's by its own class."""
        if isinstance(module, nn.Conv2d):
            # He et al., arXiv 1502.01852: the variance over the fan-out, for convolutions before a rectifier.
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)
        # Containers are not visited when weights are loaded, so what is special about a leaf is reached through flags.
        if getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
        if (std := getattr(module, "initial_std", None)) is not None:
            init.normal_(module.weight, std=std)

    def train(self, mode: bool = True) -> EmberVLMForConditionalGeneration:
        """As in torch, but a frozen encoder stays in eval mode: its BatchNorm statistics are frozen too."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.vision.parameters()):
            self.vision.eval()
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The language model's token embedding."""
        return cast(nn.Embedding, self.language_model.transformer.wte)

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the language model's token embedding."""
        self.language_model.transformer.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        """The language model's head."""
        return cast(nn.Linear, self.language_model.lm_head)

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the language model's head."""
        self.language_model.lm_head = new_embeddings

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(pictures, 3, height, width) -> (pictures, visual tokens, language model's width)."""
        if self._fused_vision is None:
            return cast(Tensor, self.projector(self.vision(pixel_values)))
        with torch.no_grad():
            features = self._fused_vision(pixel_values)
        return cast(Tensor, self.projector(features))

    def fuse_frozen_vision(self, frozen: bool, dtype: torch.dtype) -> None:
        """Ask a fused copy of the encoder, in ``dtype``, while it is frozen; the encoder itself stays to be saved."""
        fused = self.vision.fused().to(dtype) if frozen else None
        # Past nn.Module, for which it would be a part of the model with weights of its own.
        self.__dict__["_fused_vision"] = fused

    def look_up(self, *ids: Tensor | None, sparse: bool = False) -> list[Tensor | None]:
        """Token embeddings of several tensors of ids, of whatever shapes, in one call; negative ids get any.

        Each call of its own would have its own gradient of the whole table's size to clear and to add.

        Args:
            ids: what to look up.
            sparse: give the table a gradient of the rows alone that were looked up. Only where another gradient of the
                whole table, to which these rows are added, comes from the language head.
        """
        given = [each for each in ids if each is not None]
        if not given:
            return [None] * len(ids)
        table = self.get_input_embeddings().weight
        flat = F.embedding(torch.cat([each.reshape(-1) for each in given]).clamp(min=0), table, sparse=sparse)
        parts = iter(torch.split(flat, [each.numel() for each in given]))
        return [None if each is None else next(parts).view(*each.shape, -1) for each in ids]

    def encode_fleet(
        self,
        fleet_input_ids: Tensor,
        fleet_lengths: Tensor,
        fleet_places: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> FleetState:
        """Encode the descriptions of a fleet, each on its own.

        Args:
            fleet_input_ids: (robots, longest description), padded at the end with any id.
            fleet_lengths: tokens of each description, (robots,).
            fleet_places: as :func:`places_read` gives them, (fleet tokens,); found by the lengths where not given, for
                which a GPU makes the host wait.
            embeddings: of the ids, where they are known already, (robots, longest description, width).
        """
        cache = DynamicCache()
        # Padding stands behind the text, where the causal mask hides it from every place that is used.
        if embeddings is None:
            embeddings = cast(Tensor, self.look_up(fleet_input_ids)[0])
        states = self.language_model.transformer(
            inputs_embeds=embeddings, past_key_values=cache, use_cache=True
        ).last_hidden_state  # (robots, longest, width)
        robots, longest = fleet_input_ids.shape
        places = places_read(fleet_lengths, longest) if fleet_places is None else fleet_places

        def in_a_row(tensor: Tensor) -> Tensor:  # (robots, heads, longest, head) -> (1, heads, fleet tokens, head)
            return tensor.transpose(1, 2).flatten(0, 1).index_select(0, places).transpose(0, 1)[None]

        return FleetState(
            robot_states=states[torch.arange(robots, device=states.device), fleet_lengths - 1],
            robot_meanings=self.robot_head.meanings(embeddings, fleet_lengths),
            keys=[in_a_row(layer.keys) for layer in cache.layers],
            values=[in_a_row(layer.values) for layer in cache.layers],
        )

    def embed(self, input_ids: Tensor, features: Tensor | None, embeddings: Tensor | None = None) -> Tensor:
        """Token embeddings with the pictures' features at the image tokens, (batch, tokens, width).

        Args:
            input_ids: (batch, tokens).
            features: of :meth:`get_image_features`, in the order of the image tokens' runs.
            embeddings: of the ids, where they are known already.

        Raises:
            ValueError: the image tokens are not as many as the pictures' visual tokens.
        """
        if embeddings is None:
            embeddings = cast(Tensor, self.get_input_embeddings()(input_ids))
        if features is None:
            return embeddings
        features = features.to(embeddings.dtype)
        places = input_ids == self.config.image_token_id
        expected = features.shape[0] * features.shape[1]
        # Counting on a GPU would make the host wait; there, masked_scatter itself refuses too few features.
        if input_ids.device.type == "cpu" and int(places.sum()) != expected:
            raise ValueError(
                f"{int(places.sum())} image tokens in the text, but {features.shape[0]} pictures give {expected} "
                f"visual tokens ({features.shape[1]} each). Cure: one run of {features.shape[1]} tokens a picture"
            )
        return embeddings.masked_scatter(places[..., None], features)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        supervised_places: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        fleet_input_ids: Tensor | None = None,
        fleet_lengths: Tensor | None = None,
        fleet_places: Tensor | None = None,
        fleet_mask: Tensor | None = None,
        selection_index: Tensor | None = None,
        task_input_ids: Tensor | None = None,
        task_lengths: Tensor | None = None,
        leader_labels: Tensor | None = None,
        member_labels: Tensor | None = None,
        image_words: Tensor | None = None,
        task_index: Tensor | None = None,
        task_words: Tensor | None = None,
        **kwargs: Any,
    ) -> EmberVLMOutput:
        """Run the model on a batch of prompts.

        Args:
            input_ids: (batch, tokens); image tokens are filled from ``pixel_values`` in order.
            attention_mask: (batch, tokens), 1 where there is text; not needed when padding stands at the end.
            position_ids: (batch, tokens); counted from 0 where not given.
            past_key_values: a cache to go on from.
            inputs_embeds: (batch, tokens, width), instead of ``input_ids``.
            pixel_values: (pictures, 3, size, size), one for each run of image tokens.
            labels: (batch, tokens), -100 where not supervised. The language head then runs at the supervised places
                alone and no logits are returned.
            supervised_places: where in ``labels``, laid flat, the next place is supervised, (places,); found by the
                labels where not given, for which a GPU makes the host wait.
            use_cache: return the cache.
            logits_to_keep: how many last places get logits (0: all), or their indices.
            fleet_input_ids: (robots, longest description); the prompts then attend to this fleet.
            fleet_lengths: tokens of each description, (robots,).
            fleet_places: as :meth:`encode_fleet` takes them.
            fleet_mask: (batch, robots), bool, which robots each prompt's own fleet has: it attends to no other, and the
                others' logits are very small numbers. Without it every prompt has all of them.
            selection_index: (batch,), the place at which the robot head reads.
            task_input_ids: (batch, longest task), each prompt's task by itself, padded at the end with any id; needed
                with ``selection_index``.
            task_lengths: tokens of each task, (batch,).
            leader_labels: (batch, robots), the probability that each robot leads; rows sum to 1.
            member_labels: (batch, robots), 1 for every robot to send.
            image_words: (pictures, words), tokens of what is said about each picture, -100 where there are fewer.
            task_index: (batch,), the task's last place.
            task_words: (batch, words), tokens of what each task requires, -100 where there are fewer.
            kwargs: ignored; transformers passes some to every model.

        Raises:
            ValueError: more tokens than the language model has positions, image tokens without their pictures, or a
                fleet without the lengths of its descriptions, or a place of selection without the tasks.
        """
        features = None
        if inputs_embeds is None and input_ids is None:
            raise ValueError("either input_ids or inputs_embeds is needed")
        text, fleet_text, tasks, said, required = self.look_up(
            input_ids if inputs_embeds is None else None,
            fleet_input_ids,
            task_input_ids,
            image_words if pixel_values is not None else None,
            task_words,
            # A GPU sorts the rows before it adds them, and makes the host wait for their number.
            sparse=labels is not None and self.config.tie_word_embeddings and self.device.type == "cpu",
        )
        if inputs_embeds is None:
            features = None if pixel_values is None else self.get_image_features(pixel_values)
            inputs_embeds = self.embed(cast(Tensor, input_ids), features, text)
        batch, tokens = inputs_embeds.shape[:2]
        fleet = None
        if fleet_input_ids is not None:
            if fleet_lengths is None:
                raise ValueError("fleet_input_ids and fleet_lengths are needed together")
            longest = fleet_input_ids.shape[1]
            if fleet_places is None:
                fleet_places = places_read(fleet_lengths, longest)
            fleet = self.encode_fleet(fleet_input_ids, fleet_lengths, fleet_places, fleet_text)
            past_key_values = fleet.cache(batch)
            position_ids = torch.arange(tokens, device=inputs_embeds.device)[None]
            if fleet_mask is not None:
                attention_mask = behind_own_fleet(attention_mask, fleet_mask, fleet_places // longest, tokens)
        # A fleet's tokens take none of the prompt's positions.
        seen = past_key_values.get_seq_length() if past_key_values is not None and fleet is None else 0
        positions = self.config.text_config.max_position_embeddings
        if seen + tokens > positions:
            raise ValueError(
                f"{seen + tokens} tokens, but the language model has {positions} positions. Cure: a shorter text"
            )
        outputs = self.language_model.transformer(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=True if past_key_values is not None else use_cache,
        )
        states: Tensor = outputs.last_hidden_state  # (batch, tokens, width)

        result = EmberVLMOutput(past_key_values=outputs.past_key_values if use_cache else None)
        losses: list[Tensor] = []
        if fleet is not None and selection_index is not None:
            at_selection = states[torch.arange(batch, device=states.device), selection_index]  # (batch, width)
            if tasks is None or task_lengths is None:
                raise ValueError("selection_index needs task_input_ids and task_lengths")
            meanings = self.robot_head.meanings(tasks, task_lengths)  # (batch, text encoder's width)
            by_state = self.robot_head.match_state(at_selection, fleet)
            by_meaning = self.robot_head.match_meaning(meanings, fleet)
            leading, going = (first + second for first, second in zip(by_state, by_meaning, strict=True))
            if fleet_mask is not None:
                least = torch.finfo(states.dtype).min / 4  # so that more can be added to it
                leading, going = leading.masked_fill(~fleet_mask, least), going.masked_fill(~fleet_mask, least)
            result.leader_logits, result.member_logits = leading, going
            if leader_labels is not None:
                result.leader_loss = F.cross_entropy(leading.float(), leader_labels.float())
                losses.append(result.leader_loss)
            if member_labels is not None:
                weight = None if fleet_mask is None else fleet_mask * (fleet_mask.numel() / fleet_mask.sum())
                result.member_loss = F.binary_cross_entropy_with_logits(
                    going.float(), member_labels.float(), weight=weight
                )
                losses.append(result.member_loss)
        if image_words is not None and said is not None and features is not None:
            result.image_loss = matching_loss(features.mean(1), image_words, said)
            losses.append(result.image_loss)
        if task_words is not None and required is not None and task_index is not None:
            at_task = states[torch.arange(batch, device=states.device), task_index]  # (batch, width)
            result.task_loss = matching_loss(at_task, task_words, required)
            losses.append(result.task_loss)
        if labels is not None:
            result.language_loss = self.language_loss(states, labels, supervised_places)
            losses.append(result.language_loss)
            result.loss = torch.stack(losses).sum()
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            result.logits = self.language_model.lm_head(states[:, kept])
        return result

    def language_loss(self, states: Tensor, labels: Tensor, supervised_places: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the next token over the supervised places; the head runs at these alone.

        Args:
            states: (batch, tokens, width).
            labels: (batch, tokens), not shifted.
            supervised_places: as :meth:`forward` takes them.
        """
        if supervised_places is None:
            supervised_places = F.pad(labels[:, 1:] != IGNORED, (0, 1)).flatten().nonzero()[:, 0]
        following = labels.flatten()[supervised_places + 1]
        at_places = states.flatten(0, 1).index_select(0, supervised_places)  # (supervised places, width)
        return head_loss(at_places, self.language_model.lm_head.weight, following)


def places_read(fleet_lengths: Tensor, longest: int, robots: int | None = None) -> Tensor:
    """Where in descriptions, laid flat from (robots, longest), the tokens are that prompts read, (fleet tokens,).

    Args:
        fleet_lengths: tokens of each description, (robots,).
        longest: places that each description has.
        robots: in a fleet, where these are several fleets' robots.
    """
    robots = len(fleet_lengths) if robots is None else robots
    place, ends = torch.arange(longest, device=fleet_lengths.device)[None], fleet_lengths[:, None]
    read = place < ends if reads_whole(robots) else place == ends - 1
    return read.flatten().nonzero()[:, 0]


def behind_own_fleet(attention_mask: Tensor | None, fleet_mask: Tensor, described: Tensor, tokens: int) -> Tensor:
    """The attention mask of prompts that stand behind several robots' descriptions and see those of their own fleet.

    Args:
        attention_mask: of the prompts alone, (batch, tokens); None where all of it is seen.
        fleet_mask: (batch, robots), bool.
        described: the robot of each of the fleet's tokens, (fleet tokens,).
        tokens: of the prompts.

    Returns:
        (batch, fleet tokens + tokens), bool.
    """
    descriptions = fleet_mask[:, described]  # (batch, fleet tokens)
    prompts = fleet_mask.new_ones(len(fleet_mask), tokens) if attention_mask is None else attention_mask.bool()
    return torch.cat([descriptions, prompts], 1)


def matching_loss(vectors: Tensor, words: Tensor, embeddings: Tensor) -> Tensor:
    """How badly vectors and the words that belong to them find each other within the batch.

    A text is the mean of its tokens' embeddings; each vector must be nearest to its own text, and each text to its
    own vector (Radford et al., arXiv 2103.00020). So pictures are drawn to the words of their captions, and tasks
    to those of their requirements, without waiting for attention to find them. Equal texts count as one.

    Args:
        vectors: (batch, width).
        words: (batch, words), token ids, -100 where there are fewer; a vector without any takes no part.
        embeddings: of the words, (batch, words, width); those of -100 are of no account.
    """
    said = words != IGNORED
    taking_part = said.any(1)  # (batch,)
    vectors = F.normalize(vectors.float(), dim=-1)
    texts = F.normalize((embeddings * said[..., None]).float().sum(1), dim=-1)  # (batch, width)
    # Masked and not picked out, for which a GPU would make the host wait.
    likeness = vectors @ texts.T / MATCHING_TEMPERATURE
    likeness = likeness.masked_fill(~(taking_part[:, None] & taking_part), torch.finfo(likeness.dtype).min)
    same = (words[:, None] == words[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True) * taking_part[:, None]
    total = F.cross_entropy(likeness, target, reduction="sum") + F.cross_entropy(likeness.T, target, reduction="sum")
    return total / (2 * taking_part.sum().clamp(min=1))
