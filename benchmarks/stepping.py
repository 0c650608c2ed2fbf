"""What the processes do that the training benchmarks measure: optimizer steps over batches that lie ready in memory.

Called with a task and its settings as JSON; prints one JSON object. ``step`` measures the package's trainer or the
plain reference, ``rank`` is one of several processes of the same.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import naive
import torch
import workload
from measured import Again, peak_flops, resident
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import TrainerCallback, set_seed

from embervlm.data.collate import Collator
from embervlm.data.order import WINDOW
from embervlm.fleet import Fleet
from embervlm.model import EmberVLMForConditionalGeneration, EmberVLMProcessor, preset_config
from embervlm.training.allocator import keep_freed_memory
from embervlm.training.arguments import RunSettings
from embervlm.training.engine import training_arguments
from embervlm.training.pipeline import STAGES

#: Batches that are gone through again and again: the first of an epoch's order over as many samples as one of its
#: windows has, so that they are of one length each as in training.
PREPARED = 6
WARM_UP = 2

#: What the operations of a step are, by the beginning of their names, for the profile.
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"),
    "attention": ("aten::_scaled_dot_product",),
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::_convolution", "aten::conv"),
    "normalisation": ("aten::native_layer_norm", "aten::native_batch_norm", "aten::batch_norm"),
    "activations": ("aten::gelu", "aten::tanh", "aten::sigmoid", "aten::relu", "aten::pow"),
    "softmax and loss": ("aten::_log_softmax", "aten::_softmax", "aten::exp_", "aten::nll_loss", "aten::gather"),
    "optimizer and clipping": ("aten::_fused_adamw", "aten::_foreach", "aten::linalg_vector_norm", "aten::addcdiv_"),
    "copies and new memory": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::empty", "aten::cat", "aten::clone"),
}


def step(settings: dict[str, Any]) -> dict[str, Any]:
    """Optimizer steps of one stage.

    Args:
        settings: ``stage``, ``preset``, ``way`` (``ours``, ``compiled`` or ``naive``), ``precision`` (``bf16`` or
            ``no``), ``batch_size``, ``steps``, ``threads``, ``pictures`` (their folder) and ``out`` (a folder for the
            trainer); and where wanted ``all_text``, ``profile``, ``tokens`` (made texts of one length) and ``robots``
            (a made fleet).

    Returns:
        seconds of each step after the warm-up, samples a second by the mean over the batches of each one's median,
        counted operations, padded tokens and supervised places of a sample, trained parameters, the machine's peak in
        this precision, and the highest resident memory until the last of the steps, in bytes.
    """
    torch.set_num_threads(settings["threads"])
    set_seed(0)
    ours = settings["way"] != "naive"
    if ours:
        keep_freed_memory()
    precision = settings["precision"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = EmberVLMForConditionalGeneration(preset_config(settings["preset"]))
    # As with released weights, which stage 1 leaves as they are, and with a teacher, which costs more in stage 3.
    model.config.vision_pretrained = model.config.text_encoder_taught = True
    processor = EmberVLMProcessor.for_config(model.config)
    fleet = workload.made_fleet(settings["robots"]) if settings.get("robots") else Fleet.default()
    given = _examples(settings, processor, fleet)
    if ours:
        batches, seconds, profile, trained, highest = _train(model, processor, fleet, given, settings)
    else:
        batches, seconds, profile, trained, highest = _train_plainly(model, processor, fleet, given, settings)
    counted = batches if ours and "tokens" not in settings else batches[:1]  # the others are all of one length
    operations = statistics.fmean(_count(model, batch, dtype, plainly=not ours) for batch in counted)
    of_batches = [seconds[number :: len(batches)] for number in range(min(len(batches), len(seconds)))]
    middle = statistics.fmean(map(statistics.median, of_batches))
    peak = peak_flops(dtype)
    return {
        "seconds": seconds,
        "samples_per_second": settings["batch_size"] / middle,
        "operations_per_sample": operations / settings["batch_size"],
        "share_of_peak": operations / middle / peak,
        "peak_flops": peak,
        "tokens": statistics.fmean(batch["input_ids"].shape[1] for batch in batches),
        "supervised": sum(int((batch["labels"] != -100).sum()) for batch in batches)
        / (len(batches) * settings["batch_size"]),
        "trained_parameters": trained,
        "resident": highest,
        "profile": profile,
    }


def _examples(settings: dict[str, Any], processor: Any, fleet: Fleet) -> list[Any]:
    size = settings["batch_size"]
    if "tokens" in settings:
        made = workload.made_examples(
            PREPARED * size, settings["tokens"], processor, fleet if settings["stage"] == 3 else None
        )
        return [made[n * size : (n + 1) * size] for n in range(PREPARED)]
    pictures = workload.write_pictures(Path(settings["pictures"]))
    samples = workload.stage_samples(settings["stage"], WINDOW * size, pictures)
    dataset = workload.stage_dataset(settings["stage"], samples, processor, all_text=settings.get("all_text", True))
    return workload.examples(dataset, size, PREPARED)


def _train(model: Any, processor: Any, fleet: Fleet, given: Any, settings: dict[str, Any]) -> Any:
    """The package's trainer over prepared batches."""
    stage = settings["stage"]
    run = RunSettings(
        output_dir=Path(settings["out"]),
        mixed_precision=settings["precision"],
        batch_size=settings["batch_size"],
        num_workers=0,
        max_steps=settings["steps"] + WARM_UP + 1,
        log_steps=10**9,
    )
    arguments = training_arguments(run, stage, run.output_dir)
    arguments.save_strategy = "no"
    fleet_in_use = fleet if stage == 3 else None
    collate = Collator(processor.tokenizer, fleet_in_use)
    batches = [collate(examples) for examples in given]
    trainer = STAGES[stage](model, arguments, _Length(10**6), None, processing_class=processor, fleet=fleet_in_use)
    if settings["way"] == "compiled":
        model.language_model.transformer.compile(dynamic=True)
    trainer.get_train_dataloader = lambda: DataLoader(Again(batches), batch_size=None, collate_fn=dict)
    clock = _Clock(profiled=settings["steps"] + WARM_UP if settings.get("profile") else None)
    trainer.add_callback(clock)
    trainer.train()
    model.language_model.transformer._compiled_call_impl = None  # so that its operations can be counted
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return batches, clock.seconds[WARM_UP : WARM_UP + settings["steps"]], clock.profile, trained, clock.highest


def _train_plainly(model: Any, processor: Any, fleet: Fleet, given: Any, settings: dict[str, Any]) -> Any:
    stage = settings["stage"]
    for part in STAGES[stage].frozen_parts(model):
        getattr(model, part).requires_grad_(False)
    naive.plain(nn.Module.train(model))
    optimizer = naive.optimizer(model)
    fleet_in_use = fleet if stage == 3 else None
    batches = [
        naive.batch_of(each, processor.tokenizer, fleet_in_use, processor.image_tokens)
        for each in given[: settings["steps"]]
    ]
    seconds = []
    for number in range(settings["steps"] + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
            loss = naive.loss(model, batches[number % len(batches)])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - started)
    highest = resident("VmHWM")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return batches, seconds[1:], None, trained, highest


def _count(model: Any, batch: dict[str, Any], dtype: torch.dtype, *, plainly: bool) -> float:
    """Floating point operations of one step's forward and backward pass, an addition and a product counted as two."""
    aten = torch.ops.aten
    # The counter knows the attention of GPUs alone.
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
            *shapes[:4]
        ),
    }
    model.train()
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = naive.loss(model, batch) if plainly else model(**batch).loss
        loss.backward()
    model.zero_grad()
    return float(counter.get_total_flops())


class _Length:
    """Stands for a data set that is never asked, since the batches are ready."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds from the beginning of each step to its end, memory until then, and the profile of one of them."""

    def __init__(self, profiled: int | None) -> None:
        self.seconds: list[float] = []
        self.highest = 0
        self.profiled, self.profile = profiled, None
        self._started = 0.0
        self._profiler: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.profiled:
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self._profiler.__enter__()
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)
        if self._profiler is None:  # which takes memory of its own
            self.highest = resident("VmHWM")
        else:
            self._profiler.__exit__(None, None, None)
            self.profile, self._profiler = _shares(self._profiler.key_averages()), None


def _shares(averages: Any) -> dict[str, float]:
    """The share of each kind of operation in the time of a profiled step."""
    times: dict[str, float] = defaultdict(float)
    for each in averages:
        kind = next((kind for kind, names in KINDS.items() if each.key.startswith(names)), "all other")
        times[kind] += each.self_cpu_time_total
    whole = sum(times.values())
    return {kind: spent / whole for kind, spent in sorted(times.items(), key=lambda item: -item[1])}


def ranks(settings: dict[str, Any]) -> dict[str, Any]:
    """The same steps by several processes together, one thread each; what the first of them measures."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(settings["processes"]):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": settings["processes"]}
        network = {"LOCAL_WORLD_SIZE": settings["processes"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in (place | network).items()}
        command = [sys.executable, __file__, "step", json.dumps(settings | {"threads": 1})]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    written = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process failed")
    found: dict[str, Any] = json.loads(written[0].splitlines()[-1])
    found["samples_per_second"] *= settings["processes"]
    return found


if __name__ == "__main__":
    task = {"step": step, "ranks": ranks}[sys.argv[1]]
    found = task(json.loads(sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.write(json.dumps(found) + "\n")
