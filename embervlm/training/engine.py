"""The engine that all three stages share: transformers' Trainer with our checks, losses, optimizer and log lines."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator
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
from embervlm.preflight import check_embeddings, check_image_tokens, check_prompt_version
from embervlm.training.arguments import RunSettings

logger = logging.getLogger(__name__)

_BANNER = "=" * 60
_LOSSES = ("language_loss", "image_loss", "task_loss", "leader_loss", "member_loss")
_PARTS = ("vision", "projector", "language_model", "robot_head")
WEIGHT_DECAY = 0.05
WARMUP_SHARE = 0.05


class StageTrainer(Trainer):  # type: ignore[misc]
    """One stage's training. Subclasses say which stage it is and which parts of the model stay as they are.

    Args:
        model: an :class:`EmberVLMForConditionalGeneration`.
        args: transformers' arguments, as :func:`training_arguments` makes them.
        train_dataset, eval_dataset: of :mod:`embervlm.data.collate`.
        processing_class: the model's processor.
        fleet: the fleet in use, for stage 3.
        max_bad_share: the share of training samples that may turn out to be unreadable.

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
    ) -> None:
        check_embeddings(model, processing_class.tokenizer)
        check_image_tokens(model, processing_class)
        check_prompt_version(model)
        frozen = self.frozen_parts(model)
        for part in _PARTS:
            getattr(model, part).requires_grad_(part not in frozen)
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(processing_class.tokenizer, fleet, getattr(train_dataset, "other_robots", ())),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[_Progress(self.number)],
            optimizers=(optimizer_for(model, args), None),
        )
        self.remove_callback(PrinterCallback)
        self._running: dict[str, Tensor] = {}
        self._batches = 0
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
            group=self._train_batch_size * self.args.world_size,
        )
        return self._order

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the loss's parts since the last line; the device is waited for here alone."""
        if "loss" in logs and self._batches:
            for name, total in self._running.items():
                logs[name] = float(total) / self._batches
            self._running, self._batches = {}, 0
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
        self._batches += 1
        parts = {name: outputs.get(name) for name in _LOSSES}
        if outputs.get("leader_logits") is not None and "leader_labels" in inputs:
            picked = outputs["leader_logits"].argmax(-1, keepdim=True)
            parts["leader_accuracy"] = (inputs["leader_labels"].gather(1, picked) > 0).float().mean()
        for name, value in parts.items():
            if value is not None:
                value = value.detach()
                self._running[name] = self._running[name] + value if name in self._running else value


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


def optimizer_for(model: nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """AdamW over what is trainable; norms, biases and embeddings do not decay."""
    groups: dict[bool, list[nn.Parameter]] = defaultdict(list)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and id(parameter) not in embeddings].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": args.weight_decay if decays else 0.0}
            for decays, parameters in groups.items()
        ],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        fused=True,
    )


def training_arguments(settings: RunSettings, stage: int, output_dir: Path) -> TrainingArguments:
    """Transformers' arguments for one stage. Making them joins the process group."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(output_dir),
        use_cpu=not on_gpu,
        ddp_backend=None if "WORLD_SIZE" not in os.environ else ("nccl" if on_gpu else "gloo"),
        ddp_find_unused_parameters=False,
        # Seconds; a teacher may take long on the first process while the others wait.
        ddp_timeout=6 * 3600 if settings.teacher is not None else 1800,
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
        save_total_limit=2,
        report_to=list(settings.report_to),
        disable_tqdm=True,
        prediction_loss_only=True,
    )
