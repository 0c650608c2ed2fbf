"""The model, its configuration and its processor; importing this registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from embervlm.model.configuration_embervlm import EmberVLMConfig, preset_config
from embervlm.model.modeling_embervlm import EmberVLMForConditionalGeneration
from embervlm.model.processing_embervlm import EmberVLMImageProcessorPil, EmberVLMProcessor

AutoConfig.register("embervlm", EmberVLMConfig, exist_ok=True)
AutoModelForImageTextToText.register(EmberVLMConfig, EmberVLMForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(EmberVLMConfig, image_processor_classes={"pil": EmberVLMImageProcessorPil}, exist_ok=True)
AutoProcessor.register(EmberVLMConfig, EmberVLMProcessor, exist_ok=True)

__all__ = [
    "EmberVLMConfig",
    "EmberVLMForConditionalGeneration",
    "EmberVLMImageProcessorPil",
    "EmberVLMProcessor",
    "preset_config",
]
