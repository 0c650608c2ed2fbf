"""What stands before the model: pictures become pixels, chats become token ids; saved with every checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from embervlm.model.configuration_embervlm import EmberVLMConfig
from embervlm.pixels import to_pixels
from embervlm.prompts import CHAT_TEMPLATE
from embervlm.tokens import CONTROL_IDS, IMAGE, load_tokenizer


class EmberVLMImageProcessorPil(PilBackend):  # type: ignore[misc]
    """Pictures to pixels: RGB, resized to a square, scaled to 0..1 and normalised per channel."""

    resample = PILImageResampling.BICUBIC
    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """One picture, (3, size, size): what ``preprocess`` gives, without its overhead for single pictures."""
        side = (self.size["width"], self.size["height"])
        return to_pixels(image, side, self.image_mean, self.image_std, Image.Resampling(self.resample))


class EmberVLMProcessor(ProcessorMixin):  # type: ignore[misc]
    """An image processor and a tokenizer; ``<|image|>`` in a text becomes the places that the picture fills.

    ``apply_chat_template`` keeps control tokens that are spelled in the messages as ordinary text.
    """

    def __init__(
        self, image_processor: Any, tokenizer: Any, image_tokens: int = 49, chat_template: str | None = None
    ) -> None:
        self.image_tokens = image_tokens
        self.image_token = IMAGE
        self.image_token_id = CONTROL_IDS[IMAGE]
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def for_config(cls, config: EmberVLMConfig, tokenizer: Any = None) -> EmberVLMProcessor:
        """The processor of a model, with the package's own tokenizer unless one is given."""
        vision = config.vision_config
        return cls(
            EmberVLMImageProcessorPil(
                size={"height": vision.image_size, "width": vision.image_size},
                image_mean=list(vision.image_mean),
                image_std=list(vision.image_std),
            ),
            tokenizer or load_tokenizer(max_length=config.text_config.max_position_embeddings),
            image_tokens=vision.image_tokens,
        )

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The text that stands for one picture."""
        return self.image_token * self.image_tokens

    def apply_chat_template(self, conversation: Any, *args: Any, tokenize: bool = False, **kwargs: Any) -> Any:
        """As transformers has it, but what the messages say never becomes a control token.

        The library cannot do so while it also returns the mask of the assistant's tokens; there, and only there, texts
        from outside must not be given.
        """
        kwargs.setdefault("sanitize_control_tokens", tokenize and not kwargs.get("return_assistant_tokens_mask"))
        return super().apply_chat_template(conversation, *args, tokenize=tokenize, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """The names of the tensors that this processor makes."""
        return ["input_ids", "attention_mask", "pixel_values"]


__all__ = ["BatchFeature", "EmberVLMImageProcessorPil", "EmberVLMProcessor"]
