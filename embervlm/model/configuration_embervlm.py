"""The model's configuration and its two presets; the first thing that is read of a checkpoint."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config, PreTrainedConfig

from embervlm.prompts import PROMPT_VERSION
from embervlm.tokens import CONTROL_IDS, END_OF_TEXT_ID, IMAGE, ROBOT_SELECTION, VOCABULARY


@strict
class EmberVLMVisionConfig(PreTrainedConfig):  # type: ignore[misc]
    """RepViT's size. ``repvit_m0_9`` is the default.

    Attributes:
        widths: channels of the four stages.
        depths: blocks of the four stages.
        image_size: height and width of the input in pixels; pictures are resized to this square.
        image_mean, image_std: per channel, of the data that the encoder's weights were trained on (ImageNet).
    """

    model_type = "embervlm_vision"
    base_config_key = "vision_config"

    widths: list[int] | tuple[int, ...] = (48, 96, 192, 384)
    depths: list[int] | tuple[int, ...] = (2, 2, 14, 2)
    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def image_tokens(self) -> int:
        """Visual tokens of a picture: the encoder halves each side five times, rounding up."""
        side = self.image_size
        for _ in range(5):
            side = (side + 1) // 2
        return side * side


@strict
class EmberVLMConfig(PreTrainedConfig):  # type: ignore[misc]
    """A vision encoder, a GPT-2 language model and a robot head.

    Attributes:
        vision_config: the encoder's :class:`EmberVLMVisionConfig`.
        text_config: transformers' ``GPT2Config``; its ``vocab_size`` is the number of embedding rows.
        image_token_id: the token that is repeated for a picture's places.
        robot_selection_token_id: the token at which the robot head reads.
        vision_pretrained: whether the encoder's weights were trained before; if not, stage 1 trains it too.
        language_pretrained: whether the language model's were; if not, a teacher's words may be what it starts with.
        text_encoder_width: of the robot head's text encoder (:mod:`embervlm.model.text_encoder`), a multiple of 32.
        text_encoder_layers: its blocks.
        text_encoder_taught: whether a teacher has taught it; until then the robot head does without it, since what it
            would learn from a few thousand tasks are short cuts past the picture.
        word_places: rows of the robot head's table of hashed words (:mod:`embervlm.words`), an even number.
        word_width: its columns.
        prompt_version: the wording (``prompts.PROMPT_VERSION``) that the weights were trained with.
    """

    model_type = "embervlm"
    sub_configs = {"vision_config": EmberVLMVisionConfig, "text_config": GPT2Config}

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = CONTROL_IDS[IMAGE]
    robot_selection_token_id: int = CONTROL_IDS[ROBOT_SELECTION]
    vision_pretrained: bool = False
    language_pretrained: bool = False
    text_encoder_width: int = 128
    text_encoder_layers: int = 4
    text_encoder_taught: bool = False
    word_places: int = 131_072
    word_width: int = 16
    prompt_version: int = PROMPT_VERSION
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = EmberVLMVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = GPT2Config(**(self.text_config or _EMBER_TEXT))
        # The nested model would otherwise tie its own head.
        self.text_config.tie_word_embeddings = self.tie_word_embeddings
        super().__post_init__(**kwargs)


_TEXT_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 1024,
    "bos_token_id": END_OF_TEXT_ID,
    "eos_token_id": END_OF_TEXT_ID,
    "pad_token_id": END_OF_TEXT_ID,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
# The size of tinyllm/30M-0.4.
_EMBER_TEXT = _TEXT_COMMON | {"n_embd": 384, "n_layer": 6, "n_head": 6}
_SPARK_TEXT = _TEXT_COMMON | {"n_embd": 128, "n_layer": 4, "n_head": 4}
_SPARK_VISION = {"widths": (24, 48, 96, 192), "depths": (1, 1, 4, 1), "image_size": 112}

PRESETS = ("ember", "spark")
#: Where the ``ember`` preset's parts are taken from when a hub can be reached; ``spark`` starts from nothing.
PRETRAINED_LANGUAGE_MODEL = {"ember": "tinyllm/30M-0.4", "spark": "none"}
PRETRAINED_VISION = {"ember": "timm/repvit_m0_9.dist_450e_in1k", "spark": "none"}


def preset_config(name: str) -> EmberVLMConfig:
    """The configuration of a preset: ``ember`` (38M parameters) or ``spark`` (9M, for laptops, tests and the demo).

    Raises:
        ValueError: there is no such preset.
    """
    if name == "ember":
        return EmberVLMConfig()
    if name == "spark":
        return EmberVLMConfig(vision_config=dict(_SPARK_VISION), text_config=dict(_SPARK_TEXT))
    raise ValueError(f"unknown preset {name!r}; there are: {', '.join(PRESETS)}")
