"""The tables of a model in its ONNX graphs: exact, or a few bits a number with a scale for every 32 or 16 of a row.

Each stands in a file beside the graphs, which take from it what they look up: that of tokens is read by two of them,
``tokens``, which looks its rows up, and ``vocabulary``, which compares states with all of them.
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
        """The name of the file, beside the graphs, that they read it from."""
        return f"{self.name}.bin"

    def tensors(self) -> list[TensorProto]:
        """The table's numbers and scales, at their places in the file."""
        found = [numpy_helper.from_array(self.numbers, self.name)]
        if self.scales is not None:
            found.append(numpy_helper.from_array(self.scales, f"{self.name}.scales.half"))
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


def token_rows(table: Table) -> onnx.ModelProto:
    """The graph that looks tokens up: ids, (batch, tokens) -> rows, (batch, tokens, width)."""
    graph = helper.make_graph(
        _look_up(table, "ids", "rows"),
        "tokens",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "tokens", table.columns])],
        table.tensors(),
    )
    return _model(graph, table)


def put_in(model: onnx.ModelProto, table: Table, ids: str, rows: str) -> None:
    """Let a graph look up what it took: its input ``rows`` is of ``table`` from now on, at the places of ``ids``."""
    graph = model.graph
    graph.input.remove(next(given for given in graph.input if given.name == rows))
    for place, node in enumerate(_look_up(table, ids, rows)):
        graph.node.insert(place, node)
    graph.initializer.extend(table.tensors())
    _add_contrib(model, table)


def vocabulary(table: Table) -> onnx.ModelProto:
    """The graph of the language head: states, (batch, width) -> logits, (batch, vocabulary)."""
    rows, tensors = len(table.numbers), table.tensors()
    if table.scales is None:
        nodes = [helper.make_node("Gemm", ["state", table.name], ["logits"], transB=1)]
    else:
        numbers = tensors[0]
        del numbers.dims[:]
        blocks = table.columns // table.block
        numbers.dims.extend([rows, blocks, table.block * table.bits // 8])
        nodes = [
            helper.make_node("Cast", [f"{table.name}.scales.half"], [f"{table.name}.scales"], to=TensorProto.FLOAT),
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
    return _model(graph, table)


def _look_up(table: Table, ids: str, rows: str) -> list[onnx.NodeProto]:
    if table.scales is None:
        return [helper.make_node("Gather", [table.name, ids], [rows])]
    # Scales stay halves, of which single ones would take as much memory again as the table.
    return [
        helper.make_node(
            "GatherBlockQuantized",
            [table.name, ids, f"{table.name}.scales.half"],
            [f"{rows}.half"],
            domain=CONTRIB,
            bits=table.bits,
            block_size=table.block,
            gather_axis=0,
            quantize_axis=1,
        ),
        helper.make_node("Cast", [f"{rows}.half"], [rows], to=TensorProto.FLOAT),
    ]


def _model(graph: onnx.GraphProto, table: Table) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
    _add_contrib(model, table)
    return model


def _add_contrib(model: onnx.ModelProto, table: Table) -> None:
    """Say that a graph uses the runtime's own operators, where the table makes it do so."""
    if table.scales is not None and all(each.domain != CONTRIB for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
