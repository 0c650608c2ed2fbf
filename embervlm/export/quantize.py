"""Smaller and faster ONNX graphs: products with weights in bytes, what is left in half precision on the disk.

Activations are quantised as they come (dynamically), so that nothing has to be calibrated.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

#: Numbers from which on a tensor is worth a conversion at loading.
_LARGE = 1_024
_HALF_ROUNDING = 2.0**-10


def in_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its products with weights in bytes, a scale a column.

    Weights take 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which 8 would overflow, and
    answers shall be the same everywhere.
    """
    with tempfile.TemporaryDirectory(prefix="embervlm-export-") as folder:
        exact, smaller = Path(folder) / "exact.onnx", Path(folder) / "bytes.onnx"
        # The library would warn of shapes that were not inferred, which what is quantised here does without.
        helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
        onnx.save(model, exact)
        quantize_dynamic(
            exact,
            smaller,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
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
