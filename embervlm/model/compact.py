"""Compact weights: large tables in bytes with a scale a row, the rest in half precision; a quarter of the usual size.

So a trained model fits into the package. ``weights.py`` puts the rest of the folder around what is written here and
reads such folders as it reads others; in memory everything is in single precision again.

``model.safetensors`` holds, for a table ``NAME``, ``NAME.int8`` (rows, columns) and ``NAME.scale`` (rows,) in half
precision, whose product it is; every other tensor has its own name. Format and version stand in the file's metadata and
in ``compact.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from embervlm.folders import one_line
from embervlm.model.configuration_embervlm import EmberVLMConfig
from embervlm.model.modeling_embervlm import EmberVLMForConditionalGeneration

COMPACT_FILE = "compact.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "embervlm-compact"
VERSION = 1
_METADATA_FORMAT = f"{FORMAT}/{VERSION}"
#: Tables of which a prompt reads few rows: an error of one row stays in that row.
TABLES = ("language_model.transformer.wte.weight", "language_model.lm_head.weight", "robot_head.by_words.table")

_INT8, _SCALE = ".int8", ".scale"
#: What a division by the square root or a long run of additions makes of a small error is not small.
_SINGLE_PRECISION = (".running_mean", ".running_var")
_HALF_ROUNDING = 2.0**-11
_LARGEST_BYTE = 127
_FLOATS = {"F16", "F32"}
# How a configuration fails that fits no model, in transformers, torch or ours.
_CONFIG_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    StrictDataclassError,
)


class CompactError(ValueError):
    """Compact weights that cannot be written or read; the message says what was found."""


def is_compact(folder: Path) -> bool:
    """Whether a model folder's weights are compact."""
    return (folder / COMPACT_FILE).is_file()


def write_compact(folder: Path, model: Any) -> None:
    """Write a model's configuration and its compact weights into ``folder``.

    Raises:
        CompactError: a weight is not finite.
    """
    config = model.config.to_diff_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    mark = {"format": FORMAT, "version": VERSION}
    (folder / COMPACT_FILE).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied(model.config)}
    # One entry, since the library writes several in any order and equal models shall give equal files; and not through
    # its own writing, whose files none but their owner may read.
    content = save(compacted(state), {"format": _METADATA_FORMAT})
    (folder / WEIGHTS_FILE).write_bytes(content)


def read_compact(folder: Path) -> Any:
    """The model of a folder with compact weights, in single precision and eval mode.

    Raises:
        CompactError: the files are damaged, of another version, or do not fit each other.
    """
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            _check_version(file.metadata() or {})
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            found = {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}
            model = without_weights(folder, len(found))
            expected = {name: tensor for name, tensor in model.state_dict().items() if name not in tied(model.config)}
            _check_fit(expected, found)
            stored = {name: file.get_tensor(name) for name in found}
    except (OSError, SafetensorError) as error:
        raise CompactError(f"cannot read {WEIGHTS_FILE} ({one_line(error)})") from None
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CompactError(f"{WEIGHTS_FILE}: {name} has values that are not finite")
    model.load_state_dict(restored(stored), strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def compacted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors as they are stored.

    Raises:
        CompactError: a value is not finite.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if not tensor.is_floating_point():
            stored[name] = tensor.clone()
            continue
        tensor = tensor.float()
        if not bool(tensor.isfinite().all()):
            raise CompactError(f"{name} has values that are not finite, so there is no model to write")
        if name in TABLES and float(tensor.abs().max()) / _LARGEST_BYTE < torch.finfo(torch.float16).max:
            stored[name + _INT8], stored[name + _SCALE] = _in_bytes(tensor)
        else:
            stored[name] = (tensor.half() if _fits_half(name, tensor) else tensor.clone()).contiguous()
    return stored


def restored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model from those that :func:`compacted` made; floating ones in single precision."""
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(_INT8) and (own := name.removesuffix(_INT8)) + _SCALE in stored:
            state[own] = tensor.float() * stored[own + _SCALE].float()[:, None]
        elif not (name.endswith(_SCALE) and name.removesuffix(_SCALE) + _INT8 in stored):
            # A copy in any case, since the file's own pages change with the file.
            state[name] = tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
    return state


def _in_bytes(table: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) -> bytes of the same shape and a scale a row, rounded up so that the largest value still fits."""
    exact = (table.abs().amax(1) / _LARGEST_BYTE).numpy()
    rounded = exact.astype(np.float16)
    # But for single precision's own rounding, so that what was in bytes already gets the same scale.
    rounded = np.where(rounded < exact * (1 - 2.0**-20), np.nextafter(rounded, np.float16(np.inf)), rounded)
    scales = torch.from_numpy(rounded)  # (rows,)
    divisors = scales.float().masked_fill(scales == 0, 1)
    rows = (table / divisors[:, None]).round().clamp(-_LARGEST_BYTE, _LARGEST_BYTE)
    return rows.to(torch.int8), scales


def _fits_half(name: str, tensor: Tensor) -> bool:
    """Whether half precision loses no more than its rounding, measured by the tensor's largest value."""
    if name.endswith(_SINGLE_PRECISION):
        return False
    error = float((tensor.half().float() - tensor).abs().max()) if tensor.numel() else 0.0
    return error <= _HALF_ROUNDING * (float(tensor.abs().max()) if tensor.numel() else 0.0)


def without_weights(folder: Path, tensors: int) -> Any:
    """A model of the folder's configuration whose tensors have shapes only, so that no size is too large to look at.

    Args:
        folder: the model's.
        tensors: how many its weights hold.

    Raises:
        CompactError: the configuration describes no model, or one of more layers than there are tensors.
    """
    try:
        config = EmberVLMConfig.from_pretrained(folder, local_files_only=True)
        layers = config.text_config.n_layer + sum(config.vision_config.depths)
        if layers > tensors:
            raise CompactError(f"the configuration has {layers} layers, but {WEIGHTS_FILE} {tensors} tensors")
        with torch.device("meta"):
            return EmberVLMForConditionalGeneration(config)
    except _CONFIG_ERRORS as error:
        if isinstance(error, CompactError):
            raise
        raise CompactError(f"config.json describes no model ({one_line(error)})") from None


def tied(config: Any) -> frozenset[str]:
    """The tensors that are others under a second name, which are not stored."""
    names = EmberVLMForConditionalGeneration._tied_weights_keys
    return frozenset(names) if config.tie_word_embeddings else frozenset()


def _check_version(metadata: Mapping[str, str]) -> None:
    found = metadata.get("format")
    if found != _METADATA_FORMAT:
        raise CompactError(
            f"{WEIGHTS_FILE} is of the format {found!s:.40}, expected {_METADATA_FORMAT}. "
            "Cure: the version of embervlm that wrote it"
        )


def _check_fit(expected: Mapping[str, Tensor], found: Mapping[str, tuple[str, list[int]]]) -> None:
    """Refuse names, types or shapes that are not those of the configuration's model."""
    missing, wrong, known = [], [], set[str]()
    for name, tensor in expected.items():
        shape = list(tensor.shape)
        if name in found or name + _INT8 not in found:
            wanted = {name: (_FLOATS if tensor.is_floating_point() else {"I64"}, shape)}
        else:
            wanted = {name + _INT8: ({"I8"}, shape), name + _SCALE: ({"F16"}, shape[:1])}
            if len(shape) != 2:
                wrong.append(f"{name} is no table")
        known |= set(wanted)
        for key, (types, wanted_shape) in wanted.items():
            if key not in found:
                missing.append(key)
            elif found[key][0] not in types or found[key][1] != wanted_shape:
                wrong.append(
                    f"{key} is {found[key][0]} {found[key][1]}, expected {'/'.join(sorted(types))} {wanted_shape}"
                )
    unknown = sorted(set(found) - known)
    if missing or wrong or unknown:
        raise CompactError(
            f"the weights do not fit the configuration ({len(missing)} missing: {missing[:2]}, "
            f"{len(wrong)} of another shape or type: {wrong[:2]}, {len(unknown)} not known: {unknown[:2]!s:.200})"
        )
