"""Checkpoints of a stage between the engine, which knows what to keep, and the disk: written whole or not at all, held
against their manifest, rotated. Safetensors and JSON alone; nothing is pickled.

Beside the model folder's own files a checkpoint has ``training_state.safetensors`` (optimizer, random number
generators and running sums, those of all processes), ``training_state.json`` and transformers' ``trainer_state.json``.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embervlm.folders import UNFINISHED, WeightsError, one_line, read_json_file, verify_folder

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
STATE_TENSORS = "training_state.safetensors"
STATE_FILE = "training_state.json"
STAGE_FILE = "stage.json"
#: How many checkpoints of a stage are kept.
KEPT = 2
#: Bytes of a checkpoint's tokenizer, configuration and JSON, with room to spare.
OTHER_BYTES = 16 * 1024**2

_VERSION = 1
_OPTIMIZER = "optimizer."
_RANDOM = "random."


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or none that can be used; the message has the cure."""


# ---- folders ----


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below a stage's folder, valid or not, the newest first."""
    numbered = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(numbered, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """After which optimizer step a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def verify_checkpoint(checkpoint: Path) -> None:
    """Refuse a checkpoint that is not exactly what was written.

    Raises:
        WeightsError: names the checkpoint and what is wrong with it.
    """
    if not checkpoint.is_dir():
        raise WeightsError(f"{checkpoint}: no such checkpoint folder")
    verify_folder(checkpoint, exact=True)
    missing = [name for name in (STATE_FILE, STATE_TENSORS, STAGE_FILE) if not (checkpoint / name).is_file()]
    if missing:
        raise WeightsError(f"{checkpoint}: has no {missing[0]}, so was not written by this version of the pipeline")


def newest_valid(folder: Path, stage: int) -> Path | None:
    """The newest checkpoint of a stage that is whole; each newer one is refused by a line in the log.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    found = checkpoints(folder)
    reasons = []
    for checkpoint in found:
        try:
            verify_checkpoint(checkpoint)
        except WeightsError as error:
            reasons.append(str(error))
            logger.warning("Stage %d: a checkpoint is refused: %s", stage, error)
        else:
            return checkpoint
    if found:
        raise CheckpointError(
            f"stage {stage}: none of its {len(found)} checkpoints can be used ({'; '.join(reasons)}). "
            "Cure: bring back a whole one, or remove them to begin the stage anew"
        )
    return None


def remove_unfinished(folder: Path) -> None:
    """Remove what a run that was killed while it saved left in a stage's folder."""
    for ending in UNFINISHED:
        for path in folder.glob(f".*{ending}"):
            shutil.rmtree(path, ignore_errors=True)


def rotate(folder: Path, newest: int) -> None:
    """Remove the checkpoints before the last ``KEPT`` up to the step ``newest``. Later ones are another run's line."""
    for old in [path for path in checkpoints(folder) if step_of(path) <= newest][KEPT:]:
        # Under a checkpoint's name there is never half of one.
        unfinished = old.with_name(f".{old.name}{UNFINISHED[1]}")
        shutil.rmtree(unfinished, ignore_errors=True)
        old.rename(unfinished)
        shutil.rmtree(unfinished, ignore_errors=True)


def checkpoint_bytes(model: nn.Module) -> int:
    """About how large a checkpoint is: the weights, twice those that are trained for AdamW's moments, and the rest."""
    weights = [*model.parameters(), *model.buffers()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = sum(2 * 4 * parameter.numel() for parameter in trained)
    return sum(each.numel() * each.element_size() for each in weights) + moments + OTHER_BYTES


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what would not fit the disk.

    Raises:
        CheckpointError: names both sizes.
    """
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: {free / 1e6:,.0f} MB are free on the disk, {what} needs {needed / 1e6:,.0f} MB. "
            "Cure: free space there, or another --output_dir; --resume auto goes on with what is saved"
        )


# ---- what is in them ----


@dataclass(frozen=True)
class TrainingState:
    """What a run needs beside the model and transformers' own counters to go on as if it had not stopped.

    Attributes:
        optimizer: of torch, ``state_dict()``.
        scheduler, scaler: the same; plain numbers. No scaler unless the precision is fp16.
        processes: tensors of all processes, (processes, ...), by name: random number generators and running sums.
        numbers: further plain numbers.
    """

    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None
    processes: dict[str, Tensor]
    numbers: dict[str, Any]


def write_state(folder: Path, state: TrainingState, stage: int) -> None:
    """Write the state of a run of ``stage`` into a checkpoint's folder."""
    moments = {
        f"{_OPTIMIZER}{place}.{name}": tensor.detach().cpu().contiguous()
        for place, entry in state.optimizer["state"].items()
        for name, tensor in entry.items()
    }
    save_file({**moments, **state.processes}, folder / STATE_TENSORS)
    document = {
        "version": _VERSION,
        "parameter_groups": state.optimizer["param_groups"],
        "scheduler": state.scheduler,
        "scaler": state.scaler,
        "numbers": state.numbers,
    }
    (folder / STATE_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / STAGE_FILE).write_text(json.dumps({"stage": stage}) + "\n", encoding="utf-8")


def read_state(folder: Path) -> TrainingState:
    """Read what :func:`write_state` wrote.

    Raises:
        WeightsError: it is not that.
    """
    try:
        document = read_json_file(folder / STATE_FILE)
        if document["version"] != _VERSION:
            raise WeightsError(f"{folder}: training state of version {document['version']}; expected {_VERSION}")
        moments: dict[int, dict[str, Tensor]] = {}
        processes = {}
        for name, tensor in load_file(folder / STATE_TENSORS).items():
            if name.startswith(_OPTIMIZER):
                place, _, moment = name.removeprefix(_OPTIMIZER).partition(".")
                moments.setdefault(int(place), {})[moment] = tensor
            else:
                processes[name] = tensor
        groups = [{**group, "betas": tuple(group["betas"])} for group in document["parameter_groups"]]
        return TrainingState(
            {"state": moments, "param_groups": groups},
            dict(document["scheduler"]),
            document["scaler"],
            processes,
            dict(document["numbers"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{folder}: its training state cannot be read ({one_line(error)})") from None


def stage_of(checkpoint: Path) -> int:
    """Which stage a checkpoint is of.

    Raises:
        WeightsError: it does not say.
    """
    try:
        return int(read_json_file(checkpoint / STAGE_FILE)["stage"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{checkpoint}: no checkpoint of this pipeline ({STAGE_FILE}: {error})") from None


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Give a model the weights of a checkpoint.

    Raises:
        WeightsError: they are not this model's.
    """
    try:
        missing, unexpected = model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{checkpoint}: its weights cannot be loaded ({one_line(error)})") from None
    # Of weights that are one under two names, one is saved.
    saved_as_other = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [name for name in missing if name not in saved_as_other]
    if missing or unexpected:
        raise WeightsError(f"{checkpoint}: its weights are another model's ({[*missing, *unexpected][:3]})")


def random_state() -> dict[str, Tensor]:
    """The states of this process's random number generators: Python's, NumPy's, torch's, and of its GPU."""
    version, words, gauss = random.getstate()
    kind, numpy_words, place, has_gauss, cached = np.random.get_state(legacy=True)
    assert version == 3 and kind == "MT19937"
    states = {
        "python": torch.tensor(words),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(numpy_words).astype(np.int64)),
        "numpy_place": torch.tensor([place, has_gauss]),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {f"{_RANDOM}{name}": state for name, state in states.items()}


def set_random_state(states: Mapping[str, Tensor]) -> None:
    """Set this process's random number generators to what :func:`random_state` gave.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError: they are not that.
    """
    has, gauss = states[f"{_RANDOM}python_gauss"].tolist()
    random.setstate((3, tuple(states[f"{_RANDOM}python"].tolist()), gauss if has else None))
    place, has_gauss = states[f"{_RANDOM}numpy_place"].tolist()
    words = states[f"{_RANDOM}numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, place, has_gauss, float(states[f"{_RANDOM}numpy_gauss"])))
    # torch reads from the start of the memory that a view lies in, so that a row of several processes' must be copied.
    torch.set_rng_state(states[f"{_RANDOM}torch"].clone())
    if torch.cuda.is_available() and f"{_RANDOM}cuda" in states:
        torch.cuda.set_rng_state(states[f"{_RANDOM}cuda"].clone())
