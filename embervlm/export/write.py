"""``embervlm export --format onnx``: a trained model as a folder of ONNX graphs that ``runtime.onnx_model`` runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor

from embervlm.export.graphs import ExportError, graphs, traced
from embervlm.export.quantize import halve, in_bytes
from embervlm.export.tables import Table, look_up, vocabulary
from embervlm.runtime.onnx_model import MERGES_FILE, ONNX_FILE, Description, signatures
from embervlm.tokens import TokenizerError, merges_of

logger = logging.getLogger(__name__)

QUANTIZE = ("none", "int8")
#: Bits of a table's number in a quantised folder: the first with which the model is as good.
TABLE_BITS = (4, 8)
#: Graphs whose products with weights are quantised; the robot head decides, and is small.
_IN_BYTES = ("vision", "language")
_TYPES = {"tensor(float)": TensorProto.FLOAT, "tensor(int64)": TensorProto.INT64}


def write_graphs(folder: Path, model: Any, processor: Any, quantize: str = "none", table_bits: int = 8) -> None:
    """Write a model's graphs, tables, merges and description into ``folder``.

    Args:
        folder: is there and empty.
        model: in eval mode.
        processor: the model's.
        quantize: ``none``, or ``int8``: products with weights in bytes, tables in ``table_bits`` a number, the rest in
            half precision on the disk.
        table_bits: 4 or 8.

    Raises:
        ExportError: the model or its tokenizer is of a kind that cannot be written.
    """
    told = _described(model, processor, quantize)
    bits = 32 if quantize == "none" else table_bits
    tokens = Table.of("tokens", _array(model.get_input_embeddings().weight), bits)
    words = Table.of("word_rows", _array(model.robot_head.words.weight), bits)
    head = tokens
    if not model.config.tie_word_embeddings:
        head = Table.of("head", _array(model.get_output_embeddings().weight), bits)
    try:
        (folder / MERGES_FILE).write_text(merges_of(processor.tokenizer), encoding="utf-8")
    except TokenizerError as error:
        raise ExportError(f"only GPT-2's vocabulary can be written: {error}") from None
    for graph in graphs(model):
        made = traced(graph)
        if quantize != "none":
            made = in_bytes(made) if graph.name in _IN_BYTES else made
            halve(made)
        if graph.name == "language":
            look_up(made, tokens, "ids", "rows", beside=True)
        elif graph.name == "words":
            look_up(made, words, "places", "rows", beside=False)
        _save(made, folder / f"{graph.name}.onnx", told)
    _save(vocabulary(head), folder / "vocabulary.onnx", told)
    for table in {tokens.name: tokens, head.name: head}.values():
        (folder / table.file).write_bytes(table.content())
    (folder / ONNX_FILE).write_text(told.to_json(), encoding="utf-8")


def _described(model: Any, processor: Any, quantize: str) -> Description:
    config, images = model.config, processor.image_processor
    text = config.text_config
    return Description(
        quantize=quantize,
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        positions=text.n_positions,
        width=text.n_embd,
        layers=text.n_layer,
        heads=text.n_head,
        image_size=config.vision_config.image_size,
        image_tokens=config.vision_config.image_tokens,
        image_mean=tuple(map(float, images.image_mean)),
        image_std=tuple(map(float, images.image_std)),
        word_places=config.word_places,
        word_width=config.word_width,
        prompt_version=config.prompt_version,
    )


def _save(model: onnx.ModelProto, path: Path, told: Description) -> None:
    """Write a graph with the inputs and outputs that it is known by."""
    inputs, outputs = signatures(told)[path.stem]
    for given, wanted in ((model.graph.input, inputs), (model.graph.output, outputs)):
        del given[:]
        for name, (kind, shape) in wanted.items():
            axes = [f"{name}.{axis}" if size is None else size for axis, size in enumerate(shape)]
            given.append(helper.make_tensor_value_info(name, _TYPES[kind], axes))
    del model.graph.value_info[:]
    model.producer_name, model.producer_version, model.doc_string = "embervlm", "", ""
    path.write_bytes(model.SerializeToString(deterministic=True))


def _array(weight: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return weight.detach().float().cpu().numpy()
