"""Where weights come from and what a model folder holds: starting weights, saved and compact models, their processors.

Only safetensors and JSON are read. A folder's weights may be compact (``compact.py``), such as those of the model that
comes with the package, and its processor is then the package's own.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from embervlm.fleet import FLEET_FILE, Fleet
from embervlm.folders import (
    CARD_FILE,
    MANIFEST,
    METRICS_FILE,
    WeightsError,
    check_export,
    complete_folder,
    hub_out_of_reach,
    is_complete,
    is_onnx,
    load_fleet,
    one_line,
    read_config,
    verify_folder,
)
from embervlm.model.compact import (
    WEIGHTS_FILE,
    CompactError,
    is_compact,
    read_compact,
    tied,
    without_weights,
    write_compact,
)
from embervlm.model.configuration_embervlm import (
    PRETRAINED_LANGUAGE_MODEL,
    PRETRAINED_VISION,
    EmberVLMConfig,
    preset_config,
)
from embervlm.model.modeling_embervlm import EmberVLMForConditionalGeneration
from embervlm.model.processing_embervlm import EmberVLMProcessor
from embervlm.tokens import TokenizerError, load_tokenizer

logger = logging.getLogger(__name__)

#: What a compact folder takes over as it is, where the model has it.
TAKEN_OVER = ("calibration.json", METRICS_FILE, CARD_FILE)
#: What transformers raises on folders and configurations that are not what they should be.
_HUB_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    SafetensorError,
    StrictDataclassError,
)


def starting_model(preset: str, language_model: str | None, vision_weights: str | None) -> Any:
    """A model to start stage 1 from.

    Args:
        preset: ``ember`` or ``spark``.
        language_model: a hub name or folder of a GPT-2 model, ``none``, or None for the preset's own.
        vision_weights: a hub name, folder or safetensors file of RepViT weights, ``none``, or None for the preset's.

    Raises:
        WeightsError: weights that were asked for by folder are not there, or do not fit the preset.
    """
    config = preset_config(preset)
    language, from_hub = _pick(language_model, PRETRAINED_LANGUAGE_MODEL[preset])
    vision, vision_from_hub = _pick(vision_weights, PRETRAINED_VISION[preset])
    missing = []
    text_model = vision_state = None
    if language is not None:
        text_model = _load_language_model(language, optional=from_hub)
        missing += [] if text_model is not None else [f"language model {language}"]
    if vision is not None:
        vision_state = _load_vision_state(vision, optional=vision_from_hub)
        missing += [] if vision_state is not None else [f"vision weights {vision}"]
    if text_model is not None:
        _adopt_text_config(config, text_model, str(language))
    model = EmberVLMForConditionalGeneration(config)
    if text_model is not None:
        model.language_model.load_state_dict(text_model.state_dict())
        model.config.language_pretrained = True
    if vision_state is not None:
        model.vision.load_state_dict(_fitting_vision(model, vision_state, str(vision)))
        model.config.vision_pretrained = True
    if missing or (text_model is None and vision_state is None):
        cause = f"{' and '.join(missing)} cannot be reached" if missing else "no pretrained weights are asked for"
        started = [name for name, state in (("language model", text_model), ("vision", vision_state)) if state is None]
        unfrozen = ", vision unfrozen" if vision_state is None else ""
        logger.info("%s: %s from nothing%s", cause, " and ".join(started), unfrozen)
    return model


def load_model(folder: str | os.PathLike[str]) -> Any:
    """The model of one of our folders, or of a plain folder of a GPT-2 language model, as it was saved.

    Raises:
        WeightsError: the folder is missing, incomplete, damaged, or of another kind of model.
    """
    folder = Path(folder)
    config = read_config(folder)
    verify_folder(folder)
    kind = config.get("model_type")
    if kind == "gpt2":
        return starting_model("ember", str(folder), "none")
    if kind != "embervlm":
        raise WeightsError(f"{folder}: a model of type {kind!r}; expected embervlm, or gpt2 as the language model")
    if is_onnx(folder):
        raise WeightsError(
            f"{folder}: of ONNX graphs, which embervlm select and serve run; name the folder that they were made from"
        )
    if is_compact(folder):
        return _load_compact(folder)
    try:
        _check_shapes(folder)
        return EmberVLMForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    except CompactError as error:
        raise WeightsError(f"{folder}: {error}") from None
    except _HUB_ERRORS as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{folder}: cannot load the weights ({one_line(error)})") from None


def _check_shapes(folder: Path) -> None:
    """Hold the weights against the configuration by names and shapes, so that no memory is taken for what is not there.

    Raises:
        CompactError: the configuration describes no model.
        WeightsError: the weights are another model's.
        OSError, SafetensorError: they cannot be read.
    """
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    model = without_weights(folder, len(found))
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(expected.keys() - found.keys() - tied(model.config))
    other = [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    unexpected = sorted(found.keys() - expected.keys())
    if missing or other or unexpected:
        raise WeightsError(
            f"{folder}: the weights do not fit the configuration ({len(missing)} missing: {missing[:3]}, "
            f"{len(other)} of another shape: {other[:2]}, {len(unexpected)} not known: {unexpected[:3]!s:.200})"
        )


def load_source_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """The tokenizer that a folder's weights were trained with, unchecked; None where the folder has none."""
    from transformers import AutoTokenizer

    if not (Path(folder) / "tokenizer.json").is_file() and not (Path(folder) / "vocab.json").is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except _HUB_ERRORS as error:
        raise WeightsError(f"{folder}: cannot read its tokenizer ({one_line(error)})") from None


def load_processor(folder: str | os.PathLike[str]) -> Any:
    """The processor of one of our folders: that of its configuration, with the folder's tokenizer.

    Where the weights are compact, the tokenizer is the package's own. What else a folder says of its processor is for
    programs that go by transformers alone, and not read here.

    Raises:
        WeightsError: it cannot be read, or its tokenizer is not the expected one.
    """
    read_config(Path(folder))
    try:
        config = EmberVLMConfig.from_pretrained(str(folder), local_files_only=True)
        positions = config.text_config.max_position_embeddings
        tokenizer = None if is_compact(Path(folder)) else load_tokenizer(folder, max_length=positions)
        return EmberVLMProcessor.for_config(config, tokenizer)
    except TokenizerError as error:
        raise WeightsError(str(error)) from None
    except _HUB_ERRORS as error:
        raise WeightsError(f"{folder}: cannot read the processor ({one_line(error)})") from None


def save_folder(
    folder: str | os.PathLike[str],
    model: Any,
    processor: EmberVLMProcessor,
    fleet: Fleet,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Write a complete model folder: all of it, or nothing.

    Args:
        folder: where to; a complete folder that is there is replaced.
        model, processor, fleet: what to write.
        extra: further text files, name -> content.
    """
    with complete_folder(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        fleet.to_yaml(temporary / FLEET_FILE)
        for name, content in (extra or {}).items():
            (temporary / name).write_text(content, encoding="utf-8")
    return Path(folder)


def save_compact(
    folder: str | os.PathLike[str], source: str | os.PathLike[str], card: str | os.PathLike[str] | None = None
) -> Path:
    """Write the model of one of our folders as a complete compact one: all of it, or nothing.

    Args:
        folder: where to; a compact folder that is there is replaced, any other refused.
        source: the model's folder, with its fleet, calibration, metrics and card.
        card: a file that takes the card's place.

    Raises:
        WeightsError: as :func:`load_model`; there is no such card; or the model is a plain language model, or has a
            tokenizer of its own.
    """
    folder, source = Path(folder), Path(source)
    check_export(folder, source, replaceable=is_compact(folder), kind="compact", done="made compact")
    if card is not None and not Path(card).is_file():
        raise WeightsError(f"{card}: no such file; expected the model's card")
    model = load_model(source)
    if load_processor(source).tokenizer.get_vocab() != load_tokenizer().get_vocab():
        raise WeightsError(f"{source}: its tokenizer is not the package's, which a compact model is read with")
    with complete_folder(folder) as temporary:
        try:
            write_compact(temporary, model)
        except CompactError as error:
            raise WeightsError(f"{source}: {error}") from None
        load_fleet(source).to_yaml(temporary / FLEET_FILE)
        for name in TAKEN_OVER:
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
        if card is not None:
            shutil.copyfile(card, temporary / CARD_FILE)
    return folder


def _load_compact(folder: Path) -> Any:
    # Written by us alone, so always with a manifest; without it nothing would vouch for the rounded numbers.
    if not is_complete(folder):
        raise WeightsError(f"{folder}: a compact model without its {MANIFEST}. Cure: copy the folder again, all of it")
    try:
        return read_compact(folder)
    except CompactError as error:
        raise WeightsError(f"{folder}: {error}") from None


def _pick(asked: str | None, preset_default: str) -> tuple[str | None, bool]:
    """What to load and whether doing without is allowed: only the preset's own default may be out of reach."""
    source = asked if asked is not None else preset_default
    return (None, False) if source == "none" else (source, asked is None)


def _load_language_model(source: str, optional: bool) -> Any:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, local_files_only=Path(source).is_dir() or hub_out_of_reach(), trust_remote_code=False
        )
    except _HUB_ERRORS as error:
        if optional:
            return None
        raise WeightsError(
            f"{source}: cannot load a language model ({one_line(error)}). "
            "Cure: a folder with a GPT-2 model, a hub name that can be reached, or --language_model none"
        ) from None
    if model.config.model_type != "gpt2":
        raise WeightsError(f"{source}: a language model of type {model.config.model_type!r}; expected gpt2")
    return model


def _load_vision_state(source: str, optional: bool) -> dict[str, torch.Tensor] | None:
    try:
        path = Path(source)
        if path.is_dir():
            path = path / "model.safetensors"
        elif not path.is_file():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, "model.safetensors", local_files_only=hub_out_of_reach()))
        return load_file(path)
    except _HUB_ERRORS as error:
        if optional:
            return None
        raise WeightsError(
            f"{source}: cannot load vision weights ({one_line(error)}). "
            "Cure: a safetensors file or its folder, a hub name that can be reached, or --vision_weights none"
        ) from None


def _fitting_vision(model: Any, state: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    expected = model.vision.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    wrong = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
    unknown = [name for name in state if name not in expected]
    if wrong or unknown:
        raise WeightsError(
            f"{source}: not the weights of this encoder ({len(wrong)} missing or of another shape: {wrong[:2]}, "
            f"{len(unknown)} not known: {unknown[:2]}). Cure: weights of repvit_m0_9 with --preset ember"
        )
    return state


def _adopt_text_config(config: Any, text_model: Any, source: str) -> None:
    text = text_model.config
    if text.n_positions < 256:
        raise WeightsError(f"{source}: {text.n_positions} positions; a selection needs at least 256")
    tied = text_model.get_output_embeddings().weight is text_model.get_input_embeddings().weight
    config.text_config = text
    config.tie_word_embeddings = text.tie_word_embeddings = tied
