"""The engine that all three stages share: transformers' Trainer with our checks, losses, optimizer and log lines."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from embervlm.data.collate import FAILURES, Collator
from embervlm.data.order import EpochSampler
from embervlm.data.quarantine import QUARANTINE_FILE, Quarantine
from embervlm.data.sample import DataError, Split
from embervlm.data.stream import StreamCollator, StreamedDataset, without_traceback
from embervlm.fleet import Fleet
from embervlm.folders import WeightsError, complete_folder
from embervlm.model.attention import attend_in_fp32
from embervlm.preflight import check_embeddings, check_image_tokens, check_prompt_version
from embervlm.training.arguments import RunSettings
from embervlm.training.checkpoints import (
    KEPT,
    PREFIX,
    CheckpointError,
    TrainingState,
    check_space,
    checkpoint_bytes,
    load_weights,
    random_state,
    read_state,
    rotate,
    set_random_state,
    write_state,
)
from embervlm.training.pace import Pace
from embervlm.training.stopping import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    Stopped,
    StopSignals,
    Watchdog,
    machine_number,
)

logger = logging.getLogger(__name__)

_BANNER = "=" * 60
_LOSSES = ("language_loss", "image_loss", "task_loss", "leader_loss", "member_loss")
_RUNNING = (*_LOSSES, "leader_accuracy")
_NAMED_SAMPLES = 16
PARTS = ("vision", "projector", "language_model", "robot_head")
WEIGHT_DECAY = 0.05
WARMUP_SHARE = 0.05


class NumbersError(RuntimeError):
    """A run whose losses or gradients are no numbers any more; the message names step, samples and the cure."""


class StageTrainer(Trainer):  # type: ignore[misc]
    """One stage's training. Subclasses say which stage it is and which parts of the model stay as they are.

    Args:
        model: an :class:`EmberVLMForConditionalGeneration`.
        args: transformers' arguments, as :func:`training_arguments` makes them.
        train_dataset, eval_dataset: of :mod:`embervlm.data.collate`.
        processing_class: the model's processor.
        fleet: the fleet in use, for stage 3.
        max_bad_share: the share of training samples that may turn out to be unreadable.
        max_bad_steps: how many steps in a row may be skipped because their loss or gradient is no finite number.
        rates: shares of the learning rate, as :func:`optimizer_for` has them.

    Raises:
        TokenizerError, PreflightError: the model does not fit the processor; both sizes, every special token with its
            id and the cure are named.
    """

    number: ClassVar[int]
    title: ClassVar[str]

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        *,
        processing_class: Any,
        fleet: Fleet | None = None,
        max_bad_share: float = RunSettings.max_bad_share,
        max_bad_steps: int = RunSettings.max_bad_steps,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        check_embeddings(model, processing_class.tokenizer)
        check_image_tokens(model, processing_class)
        check_prompt_version(model.config.prompt_version)
        frozen = self.frozen_parts(model)
        for part in PARTS:
            getattr(model, part).requires_grad_(True)
        for part in frozen:
            model.get_submodule(part).requires_grad_(False)
        self.pace = Pace()
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(processing_class.tokenizer, fleet, getattr(train_dataset, "other_robots", ())),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[_Progress(self.number), _Stop(self), self.pace],
            optimizers=(optimizer_for(model, args, rates), None),
        )
        self.remove_callback(PrinterCallback)
        model.fuse_frozen_vision("vision" in frozen, precision(args))
        # What training does not change need not travel between the processes with each batch.
        by_words = [f"robot_head.by_words.{name}" for name, _ in model.robot_head.by_words.named_buffers()]
        model._ddp_params_and_buffers_to_ignore = by_words
        # Of 1x1 convolutions, whose gradients' strides differ only where there is one element: nothing is lost by it.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        if args.bf16 and args.device.type == "cpu":
            attend_in_fp32(model)
        self.max_bad_steps = max_bad_steps
        self._running = torch.zeros(len(_RUNNING), device=args.device)
        self._batches = torch.zeros(len(_RUNNING), device=args.device)
        self._micro_batches: list[Tensor] = []  # of the step that runs: which of their losses are no finite numbers
        self._bad_in_a_row = 0
        self._signals = StopSignals()
        self._watchdog = Watchdog(args.ddp_timeout)
        self._stopped_by = 0
        # Of the checkpoint that is gone on from, until it is taken over: all, and all processes' random numbers.
        self._goes_on: TrainingState | None = None
        self._random: dict[str, Tensor] = {}
        # What a forward pass changes, BatchNorm's means: as it was before the step that runs.
        self._statistics = [] if "vision" in frozen else list(model.vision.buffers())
        self._kept_statistics: list[Tensor] = []
        self._order: EpochSampler | None = None
        named = Path(args.output_dir) / QUARANTINE_FILE
        # A validation picture is replaced too, so that every process has its batch, but does not stop a run.
        self._quarantine = {"train": Quarantine(named, max_bad_share), "validation": Quarantine(named, 1.0)}

    @classmethod
    def frozen_parts(cls, model: Any) -> tuple[str, ...]:
        """The parts of ``model`` that this stage leaves as they are."""
        raise NotImplementedError

    @classmethod
    def banner(cls) -> None:
        """Log the heading of this stage."""
        for line in (_BANNER, f"Stage {cls.number}: {cls.title}", _BANNER):
            logger.info(line)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The model's own loss. In training its parts are kept for the log."""
        self._count(inputs, "train" if model.training else "validation")
        outputs = model(**inputs)
        loss = outputs["loss"]
        if model.training:
            loss = loss + self._touch_unused(model, inputs)
            self._keep(outputs, inputs)
        return (loss, outputs) if return_outputs else loss

    def report_replaced(self) -> int:
        """Say at the end of a stage, over all processes, how many samples were replaced. All processes call it.

        Returns:
            how many draws of training samples were replaced since this process started.

        Raises:
            DataError: more than the allowed share.
        """
        counts = [[split.failed, split.drawn] for split in self._quarantine.values()]
        summed: Tensor = self.accelerator.reduce(torch.tensor(counts, device=self.args.device), "sum")
        (failed, drawn), (failed_in_validation, drawn_in_validation) = summed.tolist()
        path = self._quarantine["train"].path
        logger.info(
            "Stage %d: %s of %s training samples drawn and %s of %s for validation could not be read%s",
            self.number,
            *(f"{number:,}" for number in (failed, drawn, failed_in_validation, drawn_in_validation)),
            f" and were replaced; they are named in {path}" if failed or failed_in_validation else "",
        )
        with self._naming_the_stage():
            self._quarantine["train"].check(drawn, failed)
        return int(failed)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training batches. Shards go past accelerate, by which every process would read all of them."""
        if not isinstance(self.train_dataset, StreamedDataset):
            return super().get_train_dataloader()  # type: ignore[no-any-return]
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            num_workers=self.args.dataloader_num_workers,
            collate_fn=StreamCollator(self.data_collator),
            pin_memory=torch.cuda.is_available(),
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        lengths = getattr(dataset, "lengths", None)
        self._order = EpochSampler(
            len(dataset) if lengths is None else lengths,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            # Of a whole step, so that its samples are the same on however many processes.
            group=self._train_batch_size * self._micro_batches_a_step,
        )
        return self._order

    @property
    def _micro_batches_a_step(self) -> int:
        return int(self.args.gradient_accumulation_steps * self.args.world_size)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train the stage, or what is left of it.

        Args:
            resume_from_checkpoint: a folder that :func:`verify_checkpoint` has passed.
            kwargs: as transformers' Trainer takes them.

        Raises:
            Stopped: a signal asked for it; a checkpoint is saved.
            CheckpointError: a checkpoint cannot be written; those before it are whole.
            NumbersError: too many steps in a row had no finite loss or gradient.
            WeightsError: the checkpoint is not one of this stage's.
        """
        mine = torch.tensor([[machine_number(), os.getpid()]], device=self.args.device)
        machines = self.accelerator.gather(mine).tolist()
        here = [process for machine, process in machines if machine == machine_number() and process != os.getpid()]
        with self._signals.listening(here), self._watched(here):
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self._stopped_by:
            raise Stopped(
                f"stage {self.number}: stopped by a signal after step {self.state.global_step} of "
                f"{self.state.max_steps}; its checkpoint is saved. --resume auto goes on from there",
                self._stopped_by,
            )
        return result

    @contextmanager
    def _watched(self, peers: list[int]) -> Iterator[None]:
        if self.args.world_size == 1:
            yield
            return
        with self._watchdog.watching(peers):
            yield

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        if self._goes_on is not None:
            self._go_on(self._goes_on)
        if self.state.global_step >= self.state.max_steps:  # ended after its last checkpoint, before its result
            self.control.should_training_stop = True
            return
        self._kept_statistics = [buffer.clone() for buffer in self._statistics]
        # Accelerate tells either the order or the data set, and on several processes neither after a resume in
        # mid-epoch.
        if self._order is not None:
            self._order.set_epoch(epoch)
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(epoch)
        if isinstance(self.train_dataset, StreamedDataset):
            goes_on = kwargs["resume_from_checkpoint"] is not None and epoch == kwargs["epochs_trained"]
            self.train_dataset.start_at(epoch, kwargs["steps_trained_in_current_epoch"] if goes_on else 0)
        with self._naming_the_stage():
            super()._run_epoch(epoch=epoch, **kwargs)

    def _count(self, inputs: dict[str, Any], split: Split) -> None:
        """Take what could not be read out of a batch, before the model sees it, and count it."""
        with self._naming_the_stage():
            self._quarantine[split].count(len(inputs["input_ids"]), inputs.pop(FAILURES, ()))

    @contextmanager
    def _naming_the_stage(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            message = without_traceback(error).removeprefix(f"stage {self.number}: ")
            raise DataError(f"stage {self.number}: {message}") from None

    # ---- one step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, whose random numbers are those of its place in the run, whichever process has it."""
        self._watchdog.beat()
        torch.manual_seed(self._seed_of(len(self._micro_batches)))
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        finite = torch.isfinite(loss)
        self._micro_batches.append(~finite)
        return torch.where(finite, loss, 0.0)

    def _seed_of(self, micro_batch: int) -> int:
        place = micro_batch * self.args.world_size + self.args.process_index
        name = f"{self.args.seed}/{self.number}/{self.state.global_step}/{place}"
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest())

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the gradients; where a loss or gradient is no finite number, leave the step out, on all processes."""
        self._watchdog.beat()
        norm = super()._clip_grad_norm(model)
        losses, signals, bad_gradient = self._agree(norm)
        if signals[0] or signals[1]:
            self._signals.acted_on.set()
            self._stopped_by = EXIT_TERMINATED if signals[0] else EXIT_INTERRUPTED
        # A scaler looks for gradients without end by itself, and lowers its scale where it finds some.
        if not any(losses) and (not bad_gradient or self.accelerator.scaler is not None):
            self._bad_in_a_row = 0
            if self._statistics:
                torch._foreach_copy_(self._kept_statistics, self._statistics)
            return norm
        self._skip_step(losses)
        # What is logged stays a number.
        return torch.where(torch.isfinite(norm), norm, 0.0)

    def _agree(self, norm: Tensor) -> tuple[list[bool], list[bool], bool]:
        """What all processes know of the step together: bad micro-batches in order, signals, a bad gradient."""
        noted, world = self._signals.noted, self.args.world_size
        known = torch.zeros(self._micro_batches_a_step + 3, device=self.args.device)
        for number, bad in enumerate(self._micro_batches):
            known[number * world + self.args.process_index] = bad
        name = None if noted is None else noted.name
        known[-3:] = torch.stack(
            [known.new_tensor(name == "SIGTERM"), known.new_tensor(name == "SIGINT"), (~torch.isfinite(norm)).float()]
        )
        self._micro_batches.clear()
        summed: Tensor = self.accelerator.reduce(known, "sum")
        *losses, terminated, interrupted, gradient = (value > 0 for value in summed.tolist())
        return losses, [terminated, interrupted], gradient

    def _skip_step(self, losses: list[bool]) -> None:
        self._bad_in_a_row += 1
        if self.accelerator.scaler is None:
            self.optimizer.zero_grad(set_to_none=True)  # with which AdamW changes nothing
        else:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.zero_()
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._kept_statistics)
        bad = [number for number, is_bad in enumerate(losses) if is_bad]
        found = (
            f"stage {self.number}: step {self.state.global_step + 1}: the {'loss' if bad else 'gradient'} is no finite "
            f"number; the step is skipped on all processes. Samples: {self._samples_of(bad or range(len(losses)))}"
        )
        logger.warning("%s", found)
        if self._bad_in_a_row >= self.max_bad_steps:
            raise NumbersError(
                f"{found}. That was {self._bad_in_a_row} in a row; expected fewer than {self.max_bad_steps}. Cure: a "
                "lower --learning_rate, or without these samples, then --resume auto from the last checkpoint"
            )

    def _samples_of(self, micro_batches: Any) -> str:
        """The ids of the samples of some micro-batches of the step that runs."""
        samples = getattr(self.train_dataset, "samples", None)
        if self._order is None or samples is None:
            return "those of this step in the shards' order, whose ids are not known here"
        size = self._train_batch_size
        steps_an_epoch = len(self._order) // (size * self._micro_batches_a_step)
        first = self.state.global_step % steps_an_epoch * self._micro_batches_a_step
        order = list(self._order)
        places = [
            place for number in micro_batches for place in order[(first + number) * size : (first + number + 1) * size]
        ]
        named = [str(samples[place].id) for place in places[:_NAMED_SAMPLES]]
        more = f" and {len(places) - len(named)} more" if len(places) > len(named) else ""
        return ", ".join(named) + more

    # ---- checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Write a checkpoint whole or not at all; all processes call it, and all end if it cannot be written."""
        self.store_flos()
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"{PREFIX}{step}"
        own = {
            **random_state(),
            "loss": self._tr_loss.reshape(1),
            "running": self._running,
            "batches": self._batches,
            "drawn": torch.tensor([[split.failed, split.drawn] for split in self._quarantine.values()]),
        }
        processes = {
            name: self.accelerator.gather(tensor.to(self.args.device)[None]).cpu().contiguous()
            for name, tensor in own.items()
        }
        failure = None
        if self.args.should_save:
            try:
                check_space(folder, checkpoint_bytes(self.model), "the checkpoint")
                with complete_folder(folder) as temporary:
                    self.model.save_pretrained(temporary)
                    self.processing_class.save_pretrained(temporary)
                    write_state(temporary, self._training_state(processes), self.number)
                    self.state.save_to_json(str(temporary / "trainer_state.json"))
                    self.pace.write(temporary)
                rotate(folder.parent, step)
            except (OSError, CheckpointError, WeightsError) as error:
                failure = error
        failed = self.accelerator.reduce(torch.tensor(float(failure is not None), device=self.args.device), "sum")
        if failure is not None or failed > 0:
            raise CheckpointError(
                f"stage {self.number}: the run ends, as its checkpoint after step {step} cannot be written: "
                f"{failure or 'the first process says why'}. The checkpoints before it are whole"
            )

    def _training_state(self, processes: dict[str, Tensor]) -> TrainingState:
        scaler = self.accelerator.scaler
        return TrainingState(
            optimizer=self.optimizer.state_dict(),
            scheduler=self.lr_scheduler.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            processes=processes,
            numbers={"last_logged": self._globalstep_last_logged, "bad_in_a_row": self._bad_in_a_row},
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        self._goes_on = read_state(Path(checkpoint))
        self.pace.go_on(Path(checkpoint))
        try:
            self.optimizer.load_state_dict(self._goes_on.optimizer)
            self.lr_scheduler.load_state_dict(self._goes_on.scheduler)
        except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
            raise WeightsError(f"{checkpoint}: its optimizer is not this run's ({error})") from None

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self._goes_on is not None and self._goes_on.scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self._goes_on.scaler)

    def _go_on(self, state: TrainingState) -> None:
        """Take over the running sums and counts of a checkpoint, shared out where there are other processes now."""
        own, world = self.args.process_index, self.args.world_size
        same = len(state.processes["loss"]) == world
        device = self.args.device

        def share(name: str, total: bool = True) -> Tensor:
            rows = state.processes[name].to(device)
            if same:
                return rows[own]
            return rows.sum(0) * (own == 0) if total else rows.mean(0)

        self._tr_loss = share("loss", total=False)[0].clone()
        self._running, self._batches = share("running").clone(), share("batches").clone()
        self._globalstep_last_logged = int(state.numbers["last_logged"])
        self._bad_in_a_row = int(state.numbers["bad_in_a_row"])
        for split, (failed, drawn) in zip(self._quarantine.values(), share("drawn").tolist(), strict=True):
            split.failed, split.drawn = int(failed), int(drawn)
        self._goes_on, self._random = None, state.processes

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        rows, self._random = self._random, {}
        try:
            # What is drawn in training goes by seed and place; with other processes than before the rest starts alike.
            own = self.args.process_index % len(rows["loss"])
            set_random_state({name: tensor[own] for name, tensor in rows.items()})
        except (KeyError, ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise WeightsError(f"{checkpoint}: its random numbers cannot be restored ({error})") from None

    # ---- the log ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the loss's parts since the last line, over all processes; all processes call it."""
        if "loss" in logs:
            summed: Tensor = self.accelerator.reduce(torch.stack([self._running, self._batches]), "sum")
            for name, total, batches in zip(_RUNNING, *summed.tolist(), strict=True):
                if batches:
                    logs[name] = total / batches
            self._running.zero_()
            self._batches.zero_()
        super().log(logs, start_time)

    def _touch_unused(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        # A batch without any picture must still give the encoder a gradient (of 0): every process waits for it.
        total = torch.zeros((), device=inputs["input_ids"].device)
        if "pixel_values" not in inputs:
            inner: Any = self.accelerator.unwrap_model(model)
            for part in (inner.vision, inner.projector):
                for parameter in part.parameters():
                    if parameter.requires_grad:
                        total = total + 0.0 * parameter.sum()
        return total

    def _keep(self, outputs: Any, inputs: dict[str, Tensor]) -> None:
        parts = {name: outputs.get(name) for name in _LOSSES}
        if outputs.get("leader_logits") is not None and "leader_labels" in inputs:
            picked = outputs["leader_logits"].argmax(-1, keepdim=True)
            parts["leader_accuracy"] = (inputs["leader_labels"].gather(1, picked) > 0).float().mean()
        for place, name in enumerate(_RUNNING):
            value = parts.get(name)
            if value is not None:
                value = value.detach().float()
                finite = torch.isfinite(value)
                self._running[place] += torch.where(finite, value, 0.0)
                self._batches[place] += finite


class _Progress(TrainerCallback):  # type: ignore[misc]
    """One line a logging interval: step, losses, learning rate, samples a second and what remains."""

    def __init__(self, stage: int) -> None:
        self.stage = stage
        self.started = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = (time.monotonic(), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        seconds, first = time.monotonic() - self.started[0], self.started[1]
        steps = max(state.global_step - first, 1)
        a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        names = ("loss", *_LOSSES, "leader_accuracy")
        values = ", ".join(f"{name.replace('_', ' ')} {logs[name]:.3f}" for name in names if name in logs)
        logger.info(
            "Stage %d: step %d/%d, %s, learning rate %.1e, %.0f samples/s, %.0f s left",
            self.stage,
            state.global_step,
            state.max_steps,
            values,
            logs.get("learning_rate", math.nan),
            steps * a_step / seconds,
            seconds / steps * (state.max_steps - state.global_step),
        )


class _Stop(TrainerCallback):  # type: ignore[misc]
    """Ends training with a checkpoint after the step in which all processes have agreed to."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._stopped_by:
            control.should_save = control.should_training_stop = True


def optimizer_for(
    model: nn.Module, args: TrainingArguments, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW over what is trainable; norms, biases and embeddings do not decay.

    Args:
        model: what is trained.
        args: rate, decay and betas.
        rates: how fast parts learn, as a share of the rate; by the beginning of their parameters' names, of which the
            first that fits counts. Parts that are not named learn at the full rate.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = next((share for start, share in (rates or {}).items() if name.startswith(start)), 1.0)
            groups[parameter.ndim > 1 and id(parameter) not in embeddings, share].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": args.weight_decay if decays else 0.0,
                "lr": args.learning_rate * share,
            }
            # The rate that is logged is that of the first group.
            for (decays, share), parameters in sorted(groups.items(), key=lambda group: -group[0][1])
        ],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        fused=True,
    )


def precision(args: TrainingArguments) -> torch.dtype:
    """The format of the arithmetic."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def training_arguments(settings: RunSettings, stage: int, output_dir: Path) -> TrainingArguments:
    """Transformers' arguments for one stage. Making them joins the process group."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(output_dir),
        run_name=f"{settings.output_dir.resolve().name} stage {stage}",
        use_cpu=not on_gpu,
        ddp_backend=None if "WORLD_SIZE" not in os.environ else ("nccl" if on_gpu else "gloo"),
        ddp_find_unused_parameters=False,
        # Seconds; a teacher may take long on the first process while the others wait.
        ddp_timeout=settings.ddp_timeout or (6 * 3600 if settings.teacher is not None else 1800),
        bf16=settings.mixed_precision == "bf16",
        fp16=settings.mixed_precision == "fp16",
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs(stage),
        max_steps=settings.max_steps if settings.max_steps is not None else -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP_SHARE,
        weight_decay=WEIGHT_DECAY,
        adam_beta1=0.9,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_num_workers=settings.num_workers,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_strategy="steps",
        logging_steps=settings.log_steps,
        logging_first_step=True,
        # Otherwise every batch waits for the device to look at its loss.
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=KEPT,
        report_to=list(settings.report_to),
        disable_tqdm=True,
        prediction_loss_only=True,
    )
