"""Runs a model folder of ONNX graphs by onnxruntime and numpy alone: what selection asks, without torch.

``export`` writes such folders. The graphs are opened when they are first needed, so that the first answer comes soon.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embervlm.folders import ONNX_FILE, WeightsError, is_complete, one_line, verify_folder
from embervlm.pixels import to_pixels
from embervlm.preflight import check_prompt_version
from embervlm.prompts import encode_task, reads_whole
from embervlm.runtime.base import Floats, Match
from embervlm.tokens import CONTROL_IDS, IMAGE, VOCABULARY, BytePairTokenizer, TokenizerError
from embervlm.words import MOST_COUNTED, hashed_words, padded

MERGES_FILE = "merges.txt"
FORMAT = "embervlm-onnx"
VERSION = 3
#: The graphs of a folder, each ``NAME.onnx``.
GRAPHS = ("vision", "tokens", "language", "vocabulary", "meaning", "words", "fleet", "selection")
#: How many threads a graph may take; all cores without it.
THREADS_VARIABLE = "EMBERVLM_THREADS"

#: The largest files that are read, and the largest numbers of a description, far above those of any preset.
MAX_GRAPH_BYTES = 1_000_000_000
MAX_DESCRIPTION_BYTES = 100_000
MAX_MERGES_BYTES = 2_000_000
_LIMITS = {
    "vocabulary": 1_000_000,
    "positions": 65_536,
    "width": 8_192,
    "layers": 128,
    "heads": 128,
    "image_size": 2_048,
    "image_tokens": 4_096,
    "text_encoder_width": 8_192,
    "word_places": 10_000_000,
    "word_width": 4_096,
    "prompt_version": 1_000_000,
}
#: Robots whose descriptions are encoded together.
_ROBOTS_AT_ONCE = 16


@dataclass(frozen=True)
class Description:
    """What ``onnx.json`` says of the graphs beside it.

    Attributes:
        quantize: ``none`` or ``int8``.
        vocabulary, positions, width, layers, heads: of the language model.
        image_size, image_tokens: of a picture: its sides in pixels, and the visual tokens that it becomes.
        image_mean, image_std: per channel.
        text_encoder_width: of the robot head's text encoder.
        word_places, word_width: of the table of words.
        prompt_version: the wording that the weights were trained with.
    """

    quantize: str
    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int
    image_size: int
    image_tokens: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    text_encoder_width: int
    word_places: int
    word_width: int
    prompt_version: int

    def to_json(self) -> str:
        """As it stands in ``onnx.json``."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_folder(cls, folder: Path) -> Description:
        """The description in a folder.

        Raises:
            WeightsError: it cannot be read, is of another version, or has numbers that no model has.
        """
        path = folder / ONNX_FILE
        try:
            if path.stat().st_size > MAX_DESCRIPTION_BYTES:
                raise ValueError(f"{path.stat().st_size} bytes")
            values = json.loads(path.read_text(encoding="utf-8"))
            version = f"{values.pop('format')}/{values.pop('version')}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{path}: describes no ONNX model ({one_line(error)})") from None
        if version != f"{FORMAT}/{VERSION}":
            raise WeightsError(
                f"{path}: of the format {version:.40}, expected {FORMAT}/{VERSION}."
                " Cure: the version of embervlm that wrote it, or export the model again"
            )
        names = [each.name for each in fields(cls)]
        if sorted(values) != sorted(names):
            raise WeightsError(f"{path}: expected {', '.join(names)}; found {', '.join(map(str, values))!s:.200}")
        for name, limit in _LIMITS.items():
            if type(values[name]) is not int or not 1 <= values[name] <= limit:
                raise WeightsError(
                    f"{path}: {name} must be a whole number from 1 to {limit}, found {values[name]!r:.60}"
                )
        for name in ("image_mean", "image_std"):
            found = values[name]
            if not (isinstance(found, list) and len(found) == 3 and all(_is_channel(each, name) for each in found)):
                raise WeightsError(f"{path}: {name} must be three numbers of a channel, found {found!r:.60}")
            values[name] = tuple(map(float, found))
        if not isinstance(values["quantize"], str):
            raise WeightsError(f"{path}: quantize must be a text, found {values['quantize']!r:.60}")
        made = cls(**values)
        if made.width % made.heads:
            raise WeightsError(f"{path}: a width of {made.width} is not that of {made.heads} heads")
        if made.vocabulary != VOCABULARY:
            raise WeightsError(f"{path}: a vocabulary of {made.vocabulary} tokens, expected {VOCABULARY}")
        return made


@dataclass(frozen=True)
class OnnxFleet:
    """What is kept of a fleet.

    Attributes:
        leader_keys, member_keys: of all matches of the robot head, (width + text encoder's width + word width + 1,
            robots).
        kept: the keys and values of the descriptions' tokens that prompts read, by the names of the graph's inputs.
    """

    leader_keys: Floats
    member_keys: Floats
    kept: Mapping[str, Floats]


class OnnxRuntime:
    """A model of ONNX graphs.

    Args:
        folder: as ``embervlm export --format onnx`` writes it.

    Raises:
        WeightsError: the folder is incomplete, damaged, or of another kind; or onnxruntime is not installed.
        PreflightError: the model was trained with another wording.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._threads = threads_from_environment()
        if not is_complete(self.folder):
            raise WeightsError(f"{folder}: an ONNX model without its manifest. Cure: copy the folder again, all of it")
        self.description = Description.from_folder(self.folder)
        for name in GRAPHS:
            _check_size(self.folder / f"{name}.onnx", MAX_GRAPH_BYTES)
        _check_size(self.folder / MERGES_FILE, MAX_MERGES_BYTES)
        check_prompt_version(self.description.prompt_version)
        verify_folder(self.folder, exact=True)
        try:
            merges = (self.folder / MERGES_FILE).read_text(encoding="utf-8")
            self.tokenizer = BytePairTokenizer(merges, str(self.folder / MERGES_FILE))
        except (OSError, UnicodeDecodeError, TokenizerError) as error:
            raise WeightsError(f"{self.folder}: no tokenizer ({one_line(error)})") from None
        self._signatures = signatures(self.description)
        self._sessions: dict[str, Any] = {}
        self._opening = threading.Lock()

    @property
    def positions(self) -> int:
        """Positions of the language model."""
        return self.description.positions

    @property
    def image_tokens(self) -> int:
        """Places of a prompt that a picture takes."""
        return self.description.image_tokens

    def pixels(self, picture: Image.Image) -> Floats:
        """A picture as the encoder reads it, (3, size, size)."""
        told = self.description
        return to_pixels(picture, (told.image_size, told.image_size), told.image_mean, told.image_std)

    def see(self, pixels: Sequence[Floats]) -> list[Floats]:
        """The features of pictures, each (visual tokens, width)."""
        return list(self._run("vision", {"pixels": np.stack(pixels)})[0])

    def encode_fleet(self, texts: Sequence[Sequence[int]]) -> OnnxFleet:
        """Encode a fleet's descriptions, given as token ids, each on its own."""
        told, heads = self.description, self.description.heads
        whole = reads_whole(len(texts))
        nothing = OnnxFleet(np.empty(0, np.float32), np.empty(0, np.float32), self._no_fleet())
        states: list[Floats] = []
        meanings: list[Floats] = []
        rows: list[list[Floats]] = [[] for _ in range(2 * told.layers)]
        for start in range(0, len(texts), _ROBOTS_AT_ONCE):
            some = texts[start : start + _ROBOTS_AT_ONCE]
            state, new = self._read(some, [None] * len(some), nothing)
            states.append(state)
            meanings.append(self._meanings(some))
            for found, tensor in zip(rows, new, strict=True):
                found += [
                    each[: len(text)] if whole else each[len(text) - 1 : len(text)]
                    for each, text in zip(tensor, some, strict=True)
                ]
        kept: dict[str, Floats] = {}
        for layer in range(told.layers):
            keys, values = (
                np.concatenate(rows[2 * layer + part]).reshape(-1, heads, told.width // heads) for part in (0, 1)
            )  # (fleet tokens, heads, head width)
            kept[f"fleet_keys.{layer}"] = np.ascontiguousarray(keys.transpose(1, 2, 0))
            kept[f"fleet_values.{layer}"] = np.ascontiguousarray(values.transpose(1, 0, 2))
        leader_keys, member_keys = self._run(
            "fleet", {"states": np.concatenate(states), "meanings": np.concatenate(meanings)}
        )
        return OnnxFleet(leader_keys, member_keys, kept)

    def states(self, prompts: Sequence[Sequence[int]], features: Sequence[Floats | None], fleet: OnnxFleet) -> Floats:
        """The states at the ends of prompts that are read together, (prompts, width)."""
        return self._read(prompts, features, fleet)[0]

    def match(self, states: Floats, tasks: Sequence[str], fleet: OnnxFleet) -> Match:
        """Who leads, who goes along and how many go."""
        hashes, weights = padded([hashed_words(task) for task in tasks])
        (vectors,) = self._run("words", {"places": hashes % self.description.word_places, "weights": weights})
        found = self._run(
            "selection",
            {
                "state": states,
                "meanings": self._meanings([encode_task(task, self.tokenizer) for task in tasks]),
                "words": vectors,
                "leader_keys": fleet.leader_keys,
                "member_keys": fleet.member_keys,
            },
        )
        return Match(*found)

    def reader(self, fleet: OnnxFleet) -> OnnxReader:
        """What reads one text behind a fleet."""
        return OnnxReader(self, fleet)

    def _meanings(self, texts: Sequence[Sequence[int]]) -> Floats:
        """The text encoder's vectors of texts, (texts, text encoder's width)."""
        ids, lengths = _padded(texts)
        (rows,) = self._run("tokens", {"ids": ids})
        (vectors,) = self._run("meaning", {"rows": rows, "lengths": lengths})
        found: Floats = vectors
        return found

    def _no_fleet(self) -> dict[str, Floats]:
        told, depth = self.description, self.description.width // self.description.heads
        kept: dict[str, Floats] = {}
        for layer in range(told.layers):
            kept[f"fleet_keys.{layer}"] = np.zeros((told.heads, depth, 0), np.float32)
            kept[f"fleet_values.{layer}"] = np.zeros((told.heads, 0, depth), np.float32)
        return kept

    def _read(
        self,
        prompts: Sequence[Sequence[int]],
        features: Sequence[Floats | None],
        fleet: OnnxFleet,
        position: int = 0,
        before: Mapping[str, Floats] | None = None,
    ) -> tuple[Floats, list[Floats]]:
        """Read texts of a batch from one position on.

        Returns:
            the states at their ends, (prompts, width); each layer's new keys and values, (prompts, longest, width).
        """
        told = self.description
        ids, lengths = _padded(prompts)
        longest = ids.shape[1]
        places = np.full(ids.shape, -1, np.int64)
        seen = [each for each in features if each is not None]
        visual = np.concatenate(seen) if seen else np.zeros((1, told.width), np.float32)  # (visual tokens, width)
        if seen:
            at_pictures = ids == CONTROL_IDS[IMAGE]
            if int(at_pictures.sum()) != len(visual):
                raise ValueError(f"{int(at_pictures.sum())} image tokens in the text, but {len(visual)} visual tokens")
            places[at_pictures] = np.arange(len(visual))
        if before is None:
            nothing = np.zeros((len(prompts), 0, told.width), np.float32)
            before = {f"{part}_before.{n}": nothing for n in range(told.layers) for part in ("keys", "values")}
        (rows,) = self._run("tokens", {"ids": ids})
        state, *new = self._run(
            "language",
            {
                "rows": rows,
                "places": places,
                "features": visual,
                "positions": np.broadcast_to(np.arange(position, position + longest), ids.shape).clip(
                    max=told.positions - 1
                ),
                "at": lengths - 1,
                **fleet.kept,
                **before,
            },
        )
        return state, new

    def _run(self, name: str, feed: Mapping[str, NDArray[Any]]) -> list[Floats]:
        found: list[Floats] = self._session(name).run(list(self._signatures[name][1]), feed)
        return found

    def _session(self, name: str) -> Any:
        session = self._sessions.get(name)
        if session is None:
            with self._opening:
                session = self._sessions.get(name) or self._open(name)
                self._sessions[name] = session
        return session

    def _open(self, name: str) -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise WeightsError(
                f'{self.folder}: an ONNX model, but onnxruntime is not installed; run: pip install "embervlm[edge]"'
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4
        # Lengths of texts vary, so that planning memory for one gains nothing, nor keeping the largest so far.
        # Pictures are all of one size, and the system would clear the encoder's memory anew for each.
        options.enable_mem_pattern = options.enable_cpu_mem_arena = name == "vision"
        # Weights that are packed for products take as much memory again, which one task's row does not repay.
        if name in ("fleet", "selection"):
            options.add_session_config_entry("session.disable_prepacking", "1")
        # Threads wait awake within a run, of which each step takes less than waking them. After it they sleep, since
        # they would heat a small machine and take the cores from the graph that is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = onnxruntime.InferenceSession(
                str(self.folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's own, of many types
            raise WeightsError(f"{self.folder}: {name}.onnx cannot be opened ({one_line(error)})") from None
        self._check_graph(name, session)
        _return_memory()
        return session

    def _check_graph(self, name: str, session: Any) -> None:
        """Refuse a graph whose inputs and outputs are not those of the description."""
        expected = self._signatures[name]
        for what, wanted, given in zip(
            ("inputs", "outputs"), expected, (session.get_inputs(), session.get_outputs()), strict=True
        ):
            found = {each.name: (each.type, _known(each.shape)) for each in given}
            if found != wanted:
                wrong = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
                raise WeightsError(
                    f"{self.folder}: {name}.onnx is not of this model: its {what} differ from {ONNX_FILE}'s at"
                    f" {wrong[0]!r:.60}: found {found.get(wrong[0])}, expected {wanted.get(wrong[0])}"
                )


class OnnxReader:
    """Reads one text behind a fleet, with a key-value cache."""

    def __init__(self, model: OnnxRuntime, fleet: OnnxFleet) -> None:
        self._model, self._fleet = model, fleet
        told = model.description
        # Touched as the text grows, and contiguous at any length.
        self._kept = {
            f"{part}_before.{layer}": np.empty((1, told.positions, told.width), np.float32)
            for layer in range(told.layers)
            for part in ("keys", "values")
        }
        self._length = 0

    def read(self, ids: Sequence[int], position: int, features: Floats | None = None) -> Floats:
        """Take in tokens that stand at ``position`` and after it; returns the state at the last of them, (1, width)."""
        before = {name: kept[:, : self._length] for name, kept in self._kept.items()}
        state, new = self._model._read([ids], [features], self._fleet, position, before)
        end = self._length + len(ids)
        for kept, tensor in zip(self._kept.values(), new, strict=True):
            kept[:, self._length : end] = tensor
        self._length = end
        return state

    def logits(self, state: Floats) -> Floats:
        """What may come after a state of (1, width): (vocabulary,)."""
        (logits,) = self._model._run("vocabulary", {"state": state})
        found: Floats = logits[0]
        return found


def threads_from_environment() -> int:
    """The threads that ``EMBERVLM_THREADS`` allows; 0, which is all cores, without it.

    Raises:
        WeightsError: it is no number from 1 to 256.
    """
    asked = os.environ.get(THREADS_VARIABLE, "")
    if not asked:
        return 0
    if not asked.isdecimal() or not 1 <= int(asked) <= 256:
        raise WeightsError(f"{THREADS_VARIABLE} must be a number of threads from 1 to 256, found {asked!r:.40}")
    return int(asked)


#: Names with types and shapes: of a graph's inputs, and of its outputs.
_Tensors = dict[str, tuple[str, list[int | None]]]
Signature = tuple[_Tensors, _Tensors]


def signatures(told: Description) -> dict[str, Signature]:
    """The inputs and outputs of each graph: type and shape, None where an axis varies."""
    floats, places = "tensor(float)", "tensor(int64)"
    width, depth, meaning = told.width, told.width // told.heads, told.text_encoder_width
    every = width + meaning + told.word_width + 1
    rows: tuple[str, list[int | None]] = (floats, [None, None, width])
    at: tuple[str, list[int | None]] = (places, [None, None])
    kept: _Tensors = {}
    new: _Tensors = {}
    for layer in range(told.layers):
        kept[f"fleet_keys.{layer}"] = (floats, [told.heads, depth, None])
        kept[f"fleet_values.{layer}"] = (floats, [told.heads, None, depth])
        for part in ("keys", "values"):
            kept[f"{part}_before.{layer}"] = (floats, [None, None, width])
            new[f"{part}.{layer}"] = (floats, [None, None, width])
    size = told.image_size
    state: _Tensors = {"state": (floats, [None, width])}
    texts: _Tensors = {"rows": rows, "places": at, "features": (floats, [None, width]), "positions": at}
    keys: _Tensors = {"leader_keys": (floats, [every, None]), "member_keys": (floats, [every, None])}
    meanings: _Tensors = {"meanings": (floats, [None, meaning])}
    words: _Tensors = {"words": (floats, [None, told.word_width])}
    return {
        "vision": (
            {"pixels": (floats, [None, 3, size, size])},
            {"features": (floats, [None, told.image_tokens, width])},
        ),
        "tokens": ({"ids": at}, {"rows": rows}),
        "language": ({**texts, "at": (places, [None]), **kept}, {**state, **new}),
        "vocabulary": (state, {"logits": (floats, [None, told.vocabulary])}),
        "meaning": ({"rows": rows, "lengths": (places, [None])}, {"vectors": (floats, [None, meaning])}),
        "words": (
            {"places": at, "weights": (floats, [None, None])},
            {"vectors": (floats, [None, told.word_width])},
        ),
        "fleet": ({"states": (floats, [None, width]), **meanings}, keys),
        "selection": (
            {**state, **meanings, **words, **keys},
            {
                "leader_logits": (floats, [None, None]),
                "member_logits": (floats, [None, None]),
                "count_logits": (floats, [None, MOST_COUNTED]),
            },
        ),
    }


def _padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids, (rows, longest), with zeros behind the shorter ones, and the rows' lengths, (rows,)."""
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return ids, lengths


def _return_memory() -> None:
    """Give the system back what opening a graph took for a moment; glibc would keep it, and alone can be told."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _known(shape: Sequence[Any]) -> list[int | None]:
    return [each if isinstance(each, int) else None for each in shape]


def _check_size(path: Path, most: int) -> None:
    if not path.is_file():
        raise WeightsError(f"{path.parent}: has no {path.name}. Cure: copy the folder again, all of it")
    if (size := path.stat().st_size) > most:
        raise WeightsError(f"{path}: {size:,} bytes; at most {most:,} are read")


def _is_channel(value: object, name: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return value > 0 if name == "image_std" else True
