"""The tables of a model in its ONNX graphs: exact, or a few bits a number with a scale for every 32 or 16 of a row.

The table of tokens is read by two graphs, from one file beside them: ``language`` looks its rows up, ``vocabulary``
compares states with all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embervlm.export.graphs import OPSET

#: Numbers of a row that share a scale; 16 where rows are too short.
BLOCKS = (32, 16)
#: Operators beside the standard's that every build of the runtime has.
CONTRIB = "com.microsoft"
_IR_VERSION = 10


@dataclass(frozen=True)
class Table:
    """A table of (rows, columns).

    Attributes:
        name: of the table and of its file.
        columns: of a row.
        bits: a number's; 32 for exact ones.
        block: numbers of a row that share a scale; 0 for exact ones.
        numbers: (rows, columns) exact, or (rows, bytes of a row).
        scales: (rows, blocks) in half precision; None for exact ones.
    """

    name: str
    columns: int
    bits: int
    block: int
    numbers: NDArray[np.float32] | NDArray[np.uint8]
    scales: NDArray[np.float16] | None = None

    @classmethod
    def of(cls, name: str, values: NDArray[np.float32], bits: int) -> Table:
        """The table of ``values``, (rows, columns), at 32, 8 or 4 bits a number.

        Columns that do not fill whole blocks stay exact.
        """
        rows, columns = values.shape
        block = next((block for block in BLOCKS if columns % block == 0), 0)
        if bits == 32 or not block:
            return cls(name, columns, 32, 0, np.ascontiguousarray(values, np.float32))
        largest, zero = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
        blocks = values.reshape(rows, -1, block)
        scales = (np.abs(blocks).max(-1) / largest).astype(np.float16)
        divisors = np.where(scales == 0, 1, scales).astype(np.float32)[..., None]
        numbers = (np.rint(blocks / divisors).clip(-largest, largest) + zero).astype(np.uint8)
        if bits == 4:
            numbers = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
        return cls(name, columns, bits, block, numbers.reshape(rows, -1), scales)

    @property
    def file(self) -> str:
        """The name of the file that both graphs read it from."""
        return f"{self.name}.bin"

    def tensors(self, *, beside: bool) -> list[TensorProto]:
        """The table's numbers and scales; ``beside``: those of the file, at their places in it."""
        found = [numpy_helper.from_array(self.numbers, self.name)]
        if self.scales is not None:
            found.append(numpy_helper.from_array(self.scales, f"{self.name}.scales.half"))
        if beside:
            offset = 0
            for tensor in found:
                length = len(tensor.raw_data)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", self.file), ("offset", offset), ("length", length)):
                    tensor.external_data.add(key=key, value=str(value))
                offset += length
        return found

    def content(self) -> bytes:
        """What the file holds."""
        return self.numbers.tobytes() + (b"" if self.scales is None else self.scales.tobytes())


def look_up(model: onnx.ModelProto, table: Table, ids: str, rows: str, *, beside: bool) -> None:
    """Let a graph take places in a table where it took the table's rows.

    Args:
        model: changed in place.
        table: what is looked up.
        ids: the name of the input of places, which stands in the place of the input ``rows`` unless it is there.
        rows: the input that is looked up from now on.
        beside: the table stands in a file of its own.
    """
    graph = model.graph
    (found,) = (given for given in graph.input if given.name == rows)
    axes = [axis.dim_param or axis.dim_value for axis in found.type.tensor_type.shape.dim][:-1]
    if all(given.name != ids for given in graph.input):
        found.CopyFrom(helper.make_tensor_value_info(ids, TensorProto.INT64, axes))
    else:
        graph.input.remove(found)
    if table.scales is None:
        nodes = [helper.make_node("Gather", [table.name, ids], [rows])]
    else:
        nodes = [
            _scales(table),
            helper.make_node(
                "GatherBlockQuantized",
                [table.name, ids, f"{table.name}.scales"],
                [rows],
                domain=CONTRIB,
                bits=table.bits,
                block_size=table.block,
                gather_axis=0,
                quantize_axis=1,
            ),
        ]
        add_contrib(model)
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    graph.initializer.extend(table.tensors(beside=beside))


def vocabulary(table: Table) -> onnx.ModelProto:
    """The graph of the language head: states, (batch, width) -> logits, (batch, vocabulary)."""
    rows, tensors = len(table.numbers), table.tensors(beside=True)
    if table.scales is None:
        nodes = [helper.make_node("Gemm", ["state", table.name], ["logits"], transB=1)]
    else:
        numbers = tensors[0]
        del numbers.dims[:]
        blocks = table.columns // table.block
        numbers.dims.extend([rows, blocks, table.block * table.bits // 8])
        nodes = [
            _scales(table),
            helper.make_node(
                "MatMulNBits",
                ["state", table.name, f"{table.name}.scales"],
                ["logits"],
                domain=CONTRIB,
                K=table.columns,
                N=rows,
                bits=table.bits,
                block_size=table.block,
                accuracy_level=4,
            ),
        ]
    graph = helper.make_graph(
        nodes,
        "vocabulary",
        [helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", table.columns])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", rows])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
    if table.scales is not None:
        add_contrib(model)
    return model


def add_contrib(model: onnx.ModelProto) -> None:
    """Say that a graph uses the runtime's own operators."""
    if all(each.domain != CONTRIB for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def _scales(table: Table) -> onnx.NodeProto:
    return helper.make_node(
        "Cast", [f"{table.name}.scales.half"], [f"{table.name}.scales"], to=TensorProto.FLOAT, name=f"{table.name}.cast"
    )
