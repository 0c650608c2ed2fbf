"""``embervlm export --format onnx``: a trained model as a folder of ONNX graphs that ``runtime.onnx_model`` runs."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor

from embervlm.export.check import Loss, Questions, loss, rendered_questions
from embervlm.export.graphs import ExportError, graphs, traced
from embervlm.export.quantize import encoder_in_bytes, halve, in_bytes
from embervlm.export.tables import Table, put_in, token_rows, vocabulary
from embervlm.fleet import FLEET_FILE, Fleet
from embervlm.folders import (
    ONNX_FILE,
    check_export,
    complete_folder,
    is_onnx,
    load_fleet,
    write_manifest,
)
from embervlm.model.weights import TAKEN_OVER, load_model, load_processor
from embervlm.runtime.base import Floats
from embervlm.runtime.onnx_model import MERGES_FILE, Description, OnnxRuntime, signatures
from embervlm.runtime.torch_model import TorchRuntime
from embervlm.selection import Calibration, RobotSelector
from embervlm.tokens import TokenizerError, merges_of

logger = logging.getLogger(__name__)

QUANTIZE = ("none", "int8")
#: Points of leader accuracy that a quantised model may lose.
MOST_LOST = 1.0
#: Graphs whose products with weights are quantised; the rest decides, and is small.
_IN_BYTES = ("vision", "language", "meaning")
#: Pictures that the encoder's activations are measured on before they are quantised.
_CALIBRATED_ON = 64
_TYPES = {"tensor(float)": TensorProto.FLOAT, "tensor(int64)": TensorProto.INT64}


@dataclass(frozen=True)
class Precision:
    """What numbers a folder's graphs are of.

    Attributes:
        table_bits: of a number of the tables; 32 for exact ones.
        products: products with weights in bytes, and the rest in half precision on the disk.
        encoder: the encoder's convolutions in bytes too.
    """

    table_bits: int = 32
    products: bool = False
    encoder: bool = False


EXACT = Precision()
#: What is tried to quantise a model, the next where one loses too much.
QUANTISED = tuple(Precision(bits, True, encoder) for bits in (4, 8) for encoder in (True, False))


def save_onnx(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str],
    quantize: str = "none",
    questions: Questions | None = None,
) -> Loss | None:
    """Write the model of one of our folders as a complete folder of ONNX graphs: all of it, or nothing.

    Args:
        folder: where to; a folder of ONNX graphs that is there is replaced, any other refused.
        source: the model's folder, with its fleet, calibration, metrics and card.
        quantize: ``none`` or ``int8``.
        questions: what a quantised model is checked on; without them tasks about rendered scenes.

    Returns:
        what a quantised model lost; None for an exact one.

    Raises:
        WeightsError: as ``load_model``; or the folder cannot be written.
        ExportError: the model is of a kind that cannot be written; it lost more than ``MOST_LOST`` points; or its fleet
            is another than that of the rendered scenes, and there are no questions.
    """
    folder, source = Path(folder), Path(source)
    check_export(folder, source, replaceable=is_onnx(folder), kind="ONNX", done="written as ONNX")
    runtime = TorchRuntime(load_model(source), load_processor(source))
    exact = RobotSelector(runtime, load_fleet(source), Calibration.from_folder(source))
    if quantize != "none" and questions is None:
        if set(exact.fleet.names) != set(Fleet.default().names):
            raise ExportError(
                f"{source}: its fleet is not the default one, of which the tasks of the check are."
                " Cure: --data with robot tasks of its own"
            )
        questions = rendered_questions()
    found = None
    pictures = _calibration_pixels(exact, questions) if questions is not None and quantize != "none" else []
    with complete_folder(folder) as temporary:
        for precision in QUANTISED if quantize != "none" else (EXACT,):
            for path in temporary.iterdir():
                path.unlink()
            _write_folder(temporary, source, exact, precision, pictures)
            if questions is None:
                break
            smaller = RobotSelector(OnnxRuntime(temporary), exact.fleet, exact.calibration)
            found = loss(exact, smaller, questions)
            logger.info("%s: %s", precision, found)
            if found.points <= MOST_LOST:
                break
        if found is not None and found.points > MOST_LOST:
            raise ExportError(
                f"{source}: {quantize} costs {found.points:.1f} points of leader accuracy, more than {MOST_LOST:g}"
                f" ({found}), so nothing was written. Cure: --quantize none"
            )
    return found


def _calibration_pixels(selector: RobotSelector, questions: Questions) -> list[Floats]:
    """Some of the questions' pictures as the encoder reads them; rendered scenes where they have none."""
    pictures = [picture for picture in questions.pictures if picture is not None]
    pictures = pictures or [picture for picture in rendered_questions().pictures if picture is not None]
    count = min(_CALIBRATED_ON, len(pictures))
    some = [pictures[number * len(pictures) // count] for number in range(count)]
    return [pixels for pixels in map(selector.pixels, some) if pixels is not None]


def _write_folder(
    folder: Path, source: Path, selector: RobotSelector, precision: Precision, pictures: Sequence[Floats]
) -> None:
    """Write everything that the folder of a selector's model has."""
    write_graphs(folder, selector.model, selector.processor, precision, pictures)
    config = selector.model.config.to_diff_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    selector.fleet.to_yaml(folder / FLEET_FILE)
    for name in TAKEN_OVER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    write_manifest(folder)


def write_graphs(
    folder: Path, model: Any, processor: Any, precision: Precision = EXACT, pictures: Sequence[Floats] = ()
) -> None:
    """Write a model's graphs, tables, merges and description into ``folder``.

    Args:
        folder: is there and empty.
        model: in eval mode.
        processor: the model's.
        precision: of the graphs' numbers.
        pictures: for an encoder in bytes: some as it reads them, (3, size, size) each.

    Raises:
        ExportError: the model or its tokenizer is of a kind that cannot be written.
    """
    told = _described(model, processor, "int8" if precision.products else "none")
    bits = precision.table_bits
    tokens = Table.of("tokens", _array(model.get_input_embeddings().weight), bits)
    words = Table.of("words", _array(model.robot_head.by_words.table), bits)
    head = tokens
    if not model.config.tie_word_embeddings:
        head = Table.of("head", _array(model.get_output_embeddings().weight), bits)
    try:
        (folder / MERGES_FILE).write_text(merges_of(processor.tokenizer), encoding="utf-8")
    except TokenizerError as error:
        raise ExportError(f"only GPT-2's vocabulary can be written: {error}") from None
    for graph in graphs(model):
        made = traced(graph)
        if graph.name == "vision" and precision.encoder:
            made = encoder_in_bytes(made, pictures)
        elif graph.name in _IN_BYTES and precision.products:
            made = in_bytes(made)
        if precision.products:
            halve(made)
        if graph.name == "words":
            put_in(made, words, "places", "rows")
        _save(made, folder / f"{graph.name}.onnx", told)
    _save(token_rows(tokens), folder / "tokens.onnx", told)
    _save(vocabulary(head), folder / "vocabulary.onnx", told)
    for table in {each.name: each for each in (tokens, head, words)}.values():
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
        text_encoder_width=config.text_encoder_width,
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
