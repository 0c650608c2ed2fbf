"""What the processes do that the selection and generation benchmarks measure: questions, one after another.

Called with a task and its settings as JSON; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive
import torch
import workload
from measured import peak_flops, spread
from torch.utils.flop_counter import FlopCounterMode

from embervlm.data.images import decode_image
from embervlm.data.robot_loader import read_robot_tasks
from embervlm.fleet import Fleet
from embervlm.model import EmberVLMForConditionalGeneration, EmberVLMProcessor, preset_config
from embervlm.prompts import encode, task_pieces
from embervlm.runtime.torch_model import TorchRuntime
from embervlm.selection import Calibration, RobotSelector

WARM_UP = 3


def select(settings: dict[str, Any]) -> dict[str, Any]:
    """Selections without reasoning of one task after another, each with a JPEG of 640x480 pixels.

    Args:
        settings: ``preset`` or ``model`` (a folder), ``way`` (``ours`` or ``naive``), ``precision`` (of the plain way),
            ``repeats``, ``threads``, ``picture`` and, where wanted, ``robots`` (a made fleet).

    Returns:
        milliseconds from the JPEG's bytes and the text to the choice, the plan's writing not counted.
    """
    torch.set_num_threads(settings["threads"])
    selector = _selector(settings)
    # Weights that know nothing would write plans for seconds, of half of a fleet or of one robot; that is not measured.
    selector.calibration = replace(selector.calibration, member_threshold=1.0, phases_alone=False)
    fleet = workload.made_fleet(settings["robots"]) if settings.get("robots") else selector.fleet
    picture = Path(settings["picture"]).read_bytes()
    tasks = [task.task for task in read_robot_tasks(workload.TASKS, Fleet.default())[: settings["repeats"] + WARM_UP]]
    plain = settings["way"] == "naive"
    if plain:
        naive.plain(selector.runtime.model)

    def ask(task: str) -> float:
        started = time.perf_counter()
        if plain:
            with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
                naive.select(selector.runtime.model, selector.runtime.processor, fleet, task, picture)
            return 1000 * (time.perf_counter() - started)
        answer = selector.select(task, image=picture, reason=False, fleet=fleet)
        return 1000 * (time.perf_counter() - started) - answer.timing_ms.get("plan", 0.0)

    milliseconds = [ask(task) for task in tasks][WARM_UP:]
    found = {"milliseconds": spread(milliseconds)}
    if isinstance(selector.runtime, TorchRuntime):
        with FlopCounterMode(display=False) as counter:
            ask(tasks[0])
        peak = peak_flops(torch.bfloat16 if plain and settings["precision"] == "bf16" else torch.float32)
        operations = float(counter.get_total_flops())
        share = operations / (found["milliseconds"]["median"] / 1000) / peak
        found |= {"operations": operations, "peak_flops": peak, "share_of_peak": share}
    return found


def generate(settings: dict[str, Any]) -> dict[str, Any]:
    """So many tokens after a task with a picture, the likeliest each time, without a selection's constraints.

    Args:
        settings: as of :func:`select`, and ``tokens``.

    Returns:
        milliseconds from the picture's bytes to the last token.
    """
    torch.set_num_threads(settings["threads"])
    selector = _selector(settings)
    picture = Path(settings["picture"]).read_bytes()
    tasks = [task.task for task in read_robot_tasks(workload.TASKS, Fleet.default())[: settings["repeats"] + 1]]
    plain, tokens = settings["way"] == "naive", settings["tokens"]
    if plain:
        naive.plain(selector.runtime.model)

    def write(task: str) -> float:
        started = time.perf_counter()
        if plain:
            with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
                naive.generate(
                    selector.runtime.model, selector.runtime.processor, selector.fleet, task, picture, tokens
                )
        else:
            _write(selector, task, picture, tokens)
        return 1000 * (time.perf_counter() - started)

    return {"milliseconds": spread([write(task) for task in tasks][1:])}


def _write(selector: RobotSelector, task: str, picture: bytes, tokens: int) -> None:
    """The loop of a selection's writing, behind the fleet that is kept."""
    runtime = selector.runtime
    reader = runtime.reader(selector._fleet_state(selector.fleet))
    ids = list(encode(task_pieces(task, has_image=True), runtime.tokenizer, runtime.image_tokens).input_ids)
    (features,) = runtime.see([runtime.pixels(decode_image(picture))])
    state, position = reader.read(ids, 0, features), len(ids)
    for number in range(tokens):
        token = int(reader.logits(state).argmax())
        if number < tokens - 1:  # the last one need not be read
            state, position = reader.read([token], position), position + 1


def _selector(settings: dict[str, Any]) -> Any:
    if settings.get("model"):
        return RobotSelector.from_pretrained(settings["model"])
    torch.manual_seed(0)
    model = EmberVLMForConditionalGeneration(preset_config(settings["preset"]))
    model.config.text_encoder_taught = True  # which is what costs more
    runtime = TorchRuntime(model, EmberVLMProcessor.for_config(model.config))
    return RobotSelector(runtime, Fleet.default(), Calibration())


if __name__ == "__main__":
    task = {"select": select, "generate": generate}[sys.argv[1]]
    sys.stdout.write(json.dumps(task(json.loads(sys.argv[2]))) + "\n")
