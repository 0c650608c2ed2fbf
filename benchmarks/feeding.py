"""What the processes do that ``data.py memory`` and ``data.py feed`` measure: the project's trainers over its data.

Called with a task and its settings as JSON; prints one JSON object.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from measured import MIB, Again, descendants, proportional

#: Batches that are not timed: workers start, memory is allocated.
WARM_UP = 3
#: Batches that the model alone is given, again and again.
PREPARED = 8
#: Where in an epoch memory is measured. The last place is a few batches before the end: after it the workers stop.
SHARES = (0.25, 0.5, 0.75, 1.0)
BEFORE_THE_END = 4


def memory(settings: dict[str, Any]) -> dict[str, Any]:
    """Start the ranks of a run and wait for them; the first one measures all processes and writes the points."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(settings["ranks"]):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": settings["ranks"],
            "LOCAL_WORLD_SIZE": settings["ranks"],
        }
        network = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = os.environ | {name: str(value) for name, value in (place | network).items()}
        command = [sys.executable, __file__, "rank", json.dumps(settings)]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    try:
        # One that fails leaves the others waiting for it.
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks):
                break
            time.sleep(0.1)
        if any(rank.poll() != 0 for rank in ranks):
            raise SystemExit("a rank failed")
    finally:
        for rank in ranks:
            rank.kill()
    found: dict[str, Any] = json.loads((Path(settings["out"]) / "points.json").read_text(encoding="utf-8"))
    return found


def rank(settings: dict[str, Any]) -> dict[str, Any]:
    """One rank: the training loop of stage 2 over text, in which the model's own step is left out."""
    import torch
    from transformers import TrainerCallback

    from embervlm.data.collate import ConversationDataset
    from embervlm.data.loaders import load_base
    from embervlm.model import EmberVLMConfig, EmberVLMForConditionalGeneration, EmberVLMProcessor
    from embervlm.tokens import END_OF_TEXT_ID
    from embervlm.training.arguments import RunSettings
    from embervlm.training.engine import training_arguments
    from embervlm.training.stage2_instruct import Stage2Trainer

    class DataOnly(Stage2Trainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            return torch.zeros(())

    points: list[dict[str, Any]] = []
    started = time.perf_counter()

    class Measure(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps = state.max_steps // settings["epochs"]
            epoch, step = divmod(state.global_step - 1, steps)
            places = {min(round(share * steps), steps - BEFORE_THE_END): share for share in SHARES}
            if step in places:
                torch.distributed.barrier()
                if state.is_world_process_zero:
                    points.append({"epoch": epoch + 1, "share": places[step], **_all(time.perf_counter() - started)})
                torch.distributed.barrier()

    run = RunSettings(
        output_dir=Path(settings["out"]) / "run",
        batch_size=settings["batch_size"],
        num_workers=settings["workers"],
        stage2_epochs=settings["epochs"],
        log_steps=10**9,
    )
    arguments = training_arguments(run, 2, run.output_dir)
    arguments.save_strategy = "no"
    loaded = load_base(settings["data"], 2, seed=0)
    text = {
        "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 512, "vocab_size": 50262,
        "bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID, "pad_token_id": END_OF_TEXT_ID,
    }  # fmt: skip
    vision = {"widths": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "image_size": 64}
    model = EmberVLMForConditionalGeneration(EmberVLMConfig(vision_config=vision, text_config=text))
    processor = EmberVLMProcessor.for_config(model.config)
    dataset = ConversationDataset(loaded.train, processor, augment=True, seed=0)
    trainer = DataOnly(model, arguments, dataset, None, processing_class=processor)
    trainer.add_callback(Measure())
    trainer.train()
    if trainer.is_world_process_zero():
        found = {"records": len(loaded.train), "points": points, "seconds": time.perf_counter() - started}
        (Path(settings["out"]) / "points.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return {}


def _all(seconds: float) -> dict[str, Any]:
    """Memory of all ranks and their workers."""
    pids = descendants(os.getppid())
    whole, anonymous = proportional(pids)
    return {
        "pss_mib": whole / MIB,
        "anonymous_mib": anonymous / MIB,
        "processes": len(pids),
        "seconds": seconds,
    }


def loader(settings: dict[str, Any]) -> dict[str, Any]:
    """Batches of stage 1 as fast as they come, for one epoch at most."""
    batches = iter(_trainer(settings).get_train_dataloader())
    started = time.perf_counter()
    first = next(batches)
    waited = time.perf_counter() - started
    for _ in islice(batches, WARM_UP + 2 * settings["workers"]):
        pass
    samples, begun = 0, time.perf_counter()
    now = begun
    for batch in batches:
        samples += len(batch["input_ids"])
        now = time.perf_counter()
        if now - begun > settings["seconds"]:
            break
    return {
        "samples_per_second": samples / (now - begun),
        "samples": samples,
        "first_batch_seconds": waited,
        "tokens_of_first_batch": list(first["input_ids"].shape),
    }


def model(settings: dict[str, Any]) -> dict[str, Any]:
    """The trainer's whole step over batches that are ready in memory."""
    import torch

    trainer = _trainer(settings | {"steps": 10**6})
    batches = list(islice(iter(trainer.get_train_dataloader()), PREPARED))
    # A copy each time, since a step may take entries out of its batch.
    prepared = torch.utils.data.DataLoader(Again(batches), batch_size=None, collate_fn=dict)
    return _train(trainer, prepared, settings)


def together(settings: dict[str, Any]) -> dict[str, Any]:
    """The same with the loader's workers beside it, as in training."""
    trainer = _trainer(settings | {"steps": 10**6})
    return _train(trainer, trainer.get_train_dataloader(), settings)


class _Timed:
    """A loader that counts how long its batches are waited for."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.waited = inner, 0.0

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.inner)
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - started
            yield batch


def _train(trainer: Any, batches: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Train for the given seconds and count samples after the warm-up."""
    from transformers import TrainerCallback

    timed = _Timed(batches)
    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append((time.perf_counter(), timed.waited))
            steps = len(ends) - WARM_UP
            if steps > 1 and ends[-1][0] - ends[WARM_UP - 1][0] > settings["seconds"]:
                control.should_training_stop = True

    trainer.get_train_dataloader = lambda: timed
    trainer.add_callback(Clock())
    trainer.train()
    (begun, waited_before), (ended, waited) = ends[WARM_UP - 1], ends[-1]
    steps = len(ends) - WARM_UP
    return {
        "samples_per_second": steps * settings["batch_size"] / (ended - begun),
        "steps": steps,
        "seconds_per_step": (ended - begun) / steps,
        "waiting_share": (waited - waited_before) / (ended - begun),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


def _trainer(settings: dict[str, Any]) -> Any:
    from transformers import set_seed

    from embervlm.data.collate import ConversationDataset
    from embervlm.data.loaders import load_base
    from embervlm.model import EmberVLMProcessor
    from embervlm.model.weights import starting_model
    from embervlm.training.arguments import RunSettings
    from embervlm.training.engine import training_arguments
    from embervlm.training.stage1_align import Stage1Trainer

    run = RunSettings(
        output_dir=Path(settings["out"]) / "run",
        mixed_precision="bf16",
        batch_size=settings["batch_size"],
        num_workers=settings["workers"],
        max_steps=settings.get("steps"),
        log_steps=10**9,
    )
    arguments = training_arguments(run, 1, run.output_dir)
    arguments.save_strategy = "no"
    set_seed(0)
    model = starting_model(settings["preset"], "none", "none")
    # Released weights of the encoder stay as they are in stage 1, which makes the model's step the quicker one.
    model.config.vision_pretrained = settings.get("encoder", "frozen") == "frozen"
    processor = EmberVLMProcessor.for_config(model.config)
    loaded = load_base(settings["data"], 1, seed=0)
    dataset = ConversationDataset(loaded.train, processor, augment=True, seed=0)
    return Stage1Trainer(model, arguments, dataset, None, processing_class=processor)


if __name__ == "__main__":
    task = {"memory": memory, "rank": rank, "loader": loader, "model": model, "together": together}[sys.argv[1]]
    found = task(json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")
