"""Smaller and faster ONNX graphs: products with weights in bytes, what is left in half precision on the disk.

Weights take 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which 8 would overflow, and
answers shall be the same everywhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

#: Numbers from which on a tensor is worth a conversion at loading.
_LARGE = 1_024
_HALF_ROUNDING = 2.0**-10


def in_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its products with weights in bytes, a scale a column.

    What the weights are multiplied with is quantised as it comes (dynamically).
    """

    def quantize(exact: Path, smaller: Path) -> None:
        quantize_dynamic(
            exact,
            smaller,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )

    return _quantized(model, quantize)


def encoder_in_bytes(model: onnx.ModelProto, pixels: Iterable[NDArray[np.float32]]) -> onnx.ModelProto:
    """The encoder's graph with its convolutions and products in bytes, a scale a channel.

    Args:
        model: takes ``pixels``, (pictures, 3, size, size).
        pixels: pictures, (3, size, size) each, whose largest and smallest activations say what the bytes stand for.
    """

    def quantize(exact: Path, smaller: Path) -> None:
        # Without it, convolutions that share a weight, such as a bias of zeros, would not be quantised.
        quant_pre_process(exact, exact, skip_symbolic_shape=True)
        quantize_static(
            exact,
            smaller,
            _Pictures(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )

    return _quantized(model, quantize)


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Pictures one by one, as the library asks for them."""

    def __init__(self, pixels: Iterable[NDArray[np.float32]]) -> None:
        self._left = iter(pixels)

    def get_next(self) -> dict[str, Any] | None:
        """The next one; None after the last."""
        pixels = next(self._left, None)
        return None if pixels is None else {"pixels": pixels[None]}


def _quantized(model: onnx.ModelProto, quantize: Callable[[Path, Path], None]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory(prefix="embervlm-export-") as folder:
        exact, smaller = Path(folder) / "exact.onnx", Path(folder) / "bytes.onnx"
        # The library would warn of shapes that were not inferred, which products do without.
        helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
        onnx.save(model, exact)
        quantize(exact, smaller)
        return onnx.load(smaller)


def halve(model: onnx.ModelProto) -> None:
    """Store large tensors in half precision, in place; they are single precision again in memory.

    One that loses more than the rounding, such as one with numbers too large for it, stays as it is.
    """
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.data_location == TensorProto.EXTERNAL:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < _LARGE or np.abs(half - values).max() > _HALF_ROUNDING * np.abs(values).max():
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT, name=f"{name}.cast"))
    for place, cast in enumerate(casts):
        graph.node.insert(place, cast)
