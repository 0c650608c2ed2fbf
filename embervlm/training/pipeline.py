"""The pipeline: checks everything, then runs the stages in order, each from the folder that the one before it wrote."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainingArguments, set_seed

from embervlm.data.collate import ConversationDataset, RobotTaskDataset
from embervlm.data.index import cache_folder
from embervlm.data.loaders import Stage, dataset_names, load_base
from embervlm.data.quarantine import QUARANTINE_FILE, read_quarantine
from embervlm.data.robot_clauses import clause_tasks, is_clause
from embervlm.data.robot_fleets import OTHER_FLEET_REPEATS, other_fleets
from embervlm.data.robot_loader import load_robot_tasks
from embervlm.data.sample import DataError, RobotSample
from embervlm.data.shards import find, names_shards
from embervlm.data.stream import ORDER_FILE, Catalogue, StreamedDataset, open_catalogue
from embervlm.fleet import FLEET_FILE, Fleet, FleetError
from embervlm.folders import CARD_FILE, METRICS_FILE, check_model_folder, is_complete, verify_folder
from embervlm.model import EmberVLMProcessor
from embervlm.model.weights import load_model, load_source_tokenizer, save_folder, starting_model
from embervlm.preflight import align_embeddings, check_fleet_length, check_labels, check_positions, check_robots
from embervlm.tokens import load_tokenizer
from embervlm.training.allocator import keep_freed_memory
from embervlm.training.arguments import RunSettings
from embervlm.training.checkpoints import (
    KEPT,
    OTHER_BYTES,
    PREFIX,
    check_space,
    checkpoint_bytes,
    checkpoints,
    newest_valid,
    remove_unfinished,
    stage_of,
    step_of,
    verify_checkpoint,
)
from embervlm.training.engine import StageTrainer, training_arguments
from embervlm.training.lessons import Lessons
from embervlm.training.report import stage_record, write_training_report
from embervlm.training.stage1_align import Stage1Trainer
from embervlm.training.stage2_instruct import Stage2Trainer
from embervlm.training.stage3_robots import Stage3Trainer
from embervlm.training.study import study
from embervlm.training.teacher import all_cores, learn, teacher_folder, word_embeddings
from embervlm.training.trackers import end_stage, prepare

logger = logging.getLogger(__name__)

#: How fast stages 1 and 2 change token embeddings that began with what a teacher knows, as a share of the learning
#: rate. A tied head pushes all rows that a batch does not have in one direction, however little, and Adam makes whole
#: steps of it: within a few hundred, what words have in common would outweigh what they mean.
KNOWN_WORDS_RATES = {"language_model.transformer.wte": 0.1}
#: How fast stage 3 changes what was studied, as a share of the rate: little enough that it is kept.
STUDIED_RATES = {
    "language_model.transformer.wte": 0.5,
    "robot_head.text_encoder": 0.2,
    "robot_head.by_meaning": 0.2,
}

STAGES: dict[int, type[StageTrainer]] = {1: Stage1Trainer, 2: Stage2Trainer, 3: Stage3Trainer}
#: How many samples of a stage are encoded to check their ids, lengths and labels before the first step.
CHECKED_SAMPLES = 1000
#: How often a task with a picture stands in a pass of stage 3 beside a teacher's lessons.
PICTURED_REPEATS = 3
LESSONS_FILE = "lessons.safetensors"
STUDIED_FOLDER = "studied"
#: Robots in the fleets in which validation tasks of other fleets than the run's are measured.
OTHER_FLEET_ROBOTS = 6


@dataclass(frozen=True)
class StageData:
    """The samples of one stage: sequences of ``Sample`` or, in stage 3, of ``RobotSample``; ``train`` may be shards.

    ``of_other_fleets`` are stage 3's tasks for validation whose robots are not the run's: they are measured apart, as
    their fleets are put together by lot. ``report`` says what became of the records.
    """

    train: Any
    validation: Any
    of_other_fleets: Any = ()
    report: Any = ()


@dataclass
class Run:
    """What is settled before the first step: settings, fleet, data, and what came out of each stage so far."""

    settings: RunSettings
    fleet: Fleet
    data: dict[int, StageData]
    metrics: dict[str, Any] = field(default_factory=dict)


def run(settings: RunSettings) -> Path:
    """Run the stages that ``settings`` ask for.

    Returns:
        the folder of the trained model: ``final`` after stage 3, else the last stage's own.

    Raises:
        SettingsError, DataError, FleetError, WeightsError, PreflightError, TokenizerError: what is wrong, before the
            first step and with nothing half-written.
        Stopped: a signal asked for it; a checkpoint is saved.
        CheckpointError, NumbersError: the disk is full or the losses are no numbers; the last checkpoint is whole.
    """
    settings.check()
    source = _source_folder(settings)
    if source is not None:
        check_model_folder(source)
    fleet = settings.load_fleet()
    run = Run(settings, fleet, {stage: _load_data(settings, fleet, stage) for stage in settings.stages})
    prepare(settings)
    # From here on there is a process group.
    arguments = training_arguments(settings, settings.stages[0], settings.stage_dir(settings.stages[0]))
    if arguments.device.type == "cpu":
        keep_freed_memory()
    _say_where_this_runs(settings, arguments)
    folder = source or _write_start(run, arguments)
    if arguments.distributed_state.is_main_process:
        _check_space_for_all(settings, folder)
    for stage in settings.stages:
        folder = _run_stage(run, stage, folder)
    if settings.stages[-1] == 3:
        folder = _finish(run, folder, arguments)
    arguments.distributed_state.wait_for_everyone()
    if arguments.distributed_state.is_main_process:
        write_training_report(settings)
        logger.info("The trained model is in %s", folder)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return folder


def _load_data(settings: RunSettings, fleet: Fleet, stage: int) -> StageData:
    if stage == 3:
        robots = load_robot_tasks(settings.data(3), fleet, seed=settings.seed, variants=settings.robot_variants)
        own = [sample for sample in robots.validation if sample.fleet is None]
        if not own:
            raise DataError(
                f"{settings.data(3)}: no validation task is about the run's fleet ({', '.join(fleet.names)!s:.200}), as"
                f" the files have a {FLEET_FILE} beside them with other robots. Cure: --fleet with that file"
            )
        return StageData(
            [*robots.train, *clause_tasks(robots.train, robots.validation)],
            own,
            [sample for sample in robots.validation if sample.fleet is not None],
            robots.report,
        )
    stage1_is_shards = settings.stage1_data is not None and names_shards(settings.stage1_data)
    if stage == 1 and stage1_is_shards:
        rank, ranks = _process()
        files = find(settings.data(1))
        catalogue = open_catalogue(files, cache_folder() / "shards", seed=settings.seed, rank=rank, ranks=ranks)
        return StageData(catalogue, catalogue.validation_samples(), report=catalogue)
    # A conversation's pictures may stand with those of stage 1, as COCO's do.
    roots = [settings.stage1_data] if stage == 2 and settings.stage1_data and not stage1_is_shards else []
    number: Stage = 1 if stage == 1 else 2
    # A choice that names no data set of this stage is about the other one.
    chosen = [name for name in settings.datasets or () if name in dataset_names(number)]
    loaded = load_base(
        settings.data(stage),
        number,
        extra_image_roots=roots,
        seed=settings.seed,
        caps=settings.caps(stage),
        datasets=chosen or None,
    )
    return StageData(loaded.train, loaded.validation, report=loaded.report)


def _process() -> tuple[int, int]:
    """Which process this is, of how many, as torchrun says it before there is a process group."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _source_folder(settings: RunSettings) -> Path | None:
    """The folder that the first stage starts from; None where starting weights must be made."""
    if settings.init_from is not None:
        return settings.init_from
    earlier = (settings.stage_result(stage) for stage in range(settings.stages[0] - 1, 0, -1))
    return next((folder for folder in earlier if is_complete(folder)), None)


def _write_start(run: Run, arguments: TrainingArguments) -> Path:
    """Make the starting weights once, on the first process, as a folder that all of them load."""
    settings, folder = run.settings, run.settings.output_dir / "start"
    if arguments.distributed_state.is_main_process and not (settings.resume and is_complete(folder)):
        set_seed(settings.seed)
        model = starting_model(settings.preset, settings.language_model, settings.vision_weights)
        if settings.teacher is not None and not model.config.language_pretrained:
            _start_with_known_words(model, teacher_folder(settings.teacher))
        source_tokenizer = None
        if settings.language_model not in (None, "none") and Path(str(settings.language_model)).is_dir():
            source_tokenizer = load_source_tokenizer(str(settings.language_model))
        processor = EmberVLMProcessor.for_config(model.config)
        align_embeddings(model, processor.tokenizer, source_tokenizer)
        save_folder(folder, model, processor, run.fleet)
    arguments.distributed_state.wait_for_everyone()
    return folder


def _start_with_known_words(model: Any, teacher: Path) -> None:
    """Let the token embeddings of a language model from nothing start with what a teacher knows of the tokens."""
    table = model.get_input_embeddings().weight.detach()
    known = word_embeddings(teacher, load_tokenizer(), table.shape[1], std=float(table.std()))
    table[: known.shape[0], : known.shape[1]] = known


def _run_stage(run: Run, stage: int, source: Path) -> Path:
    """Train one stage from the folder ``source`` and write its result."""
    settings, trainer_class = run.settings, STAGES[stage]
    output, result = settings.stage_dir(stage), settings.stage_result(stage)
    arguments = training_arguments(settings, stage, output)
    is_main = arguments.distributed_state.is_main_process
    if is_main:
        trainer_class.banner()
    if settings.resume is not None and is_complete(result):
        verify_folder(result)
        if is_main:
            logger.info("Stage %d is complete already: %s", stage, result)
        run.metrics[f"stage{stage}"] = json.loads((result / METRICS_FILE).read_text(encoding="utf-8"))
        return result
    set_seed(settings.seed)
    model = load_model(source)
    processor = EmberVLMProcessor.for_config(model.config)
    align_embeddings(model, processor.tokenizer, load_source_tokenizer(source))
    if stage == 3 and settings.teacher is not None:
        model = _learn_from_teacher(run, settings.teacher, model, processor, arguments)
    train, validation = _datasets(run, stage, processor)
    # Shards are not read for this; their validation pairs stand for all.
    streamed = isinstance(train, StreamedDataset)
    drawn = run.data[stage].train if streamed else train  # of which each process streams its share
    _check_samples(run, stage, validation if streamed else train, model)
    if streamed:
        output.mkdir(parents=True, exist_ok=True)
        train.check_order(output / ORDER_FILE, settings.num_workers, write=is_main)
    trainer = trainer_class(
        model,
        arguments,
        train,
        validation,
        processing_class=processor,
        fleet=run.fleet if stage == 3 else None,
        max_bad_share=settings.max_bad_share,
        max_bad_steps=settings.max_bad_steps,
        rates=_rates(settings, stage, model),
    )
    if is_main:
        _say_what_trains(trainer, model, drawn, validation)
    checkpoint = _checkpoint(settings, stage, arguments)
    if is_main:
        remove_unfinished(output)
        # Those that are kept, one while it is written, and the result.
        missing = max(1, KEPT + 1 - len(checkpoints(output)))
        check_space(output, (missing + 1) * checkpoint_bytes(model), f"stage {stage} with {missing} more checkpoints")
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics: dict[str, Any] = {
        "train_samples": len(drawn),
        "validation_samples": len(validation),
        "steps": trainer.state.global_step,
    }
    if len(validation):
        metrics["validation_loss"] = trainer.evaluate()["eval_loss"]
    metrics["replaced_samples"] = trainer.report_replaced()
    run.metrics[f"stage{stage}"] = metrics
    end_stage(settings)
    if is_main:
        summary = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in metrics.items())
        logger.info("Stage %d: %s", stage, summary)
        files = {METRICS_FILE: json.dumps(metrics, indent=2) + "\n"}
        files |= stage_record(trainer, settings, run.data[stage].report, metrics)
        save_folder(result, model, processor, run.fleet, files)
    arguments.distributed_state.wait_for_everyone()
    return result


def _rates(settings: RunSettings, stage: int, model: Any) -> dict[str, float]:
    """How fast the parts of a model learn that do not learn at the full rate."""
    if settings.teacher is None:
        return {}
    if stage == 3:
        return STUDIED_RATES
    return {} if model.config.language_pretrained else KNOWN_WORDS_RATES


def _learn_from_teacher(run: Run, teacher: str, model: Any, processor: Any, arguments: TrainingArguments) -> Any:
    """Let the model study what a teacher knows. The first process does this; all read its results.

    Returns:
        the model that has studied.
    """
    studied = run.settings.stage_dir(3) / STUDIED_FOLDER
    with arguments.main_process_first(desc="the teacher's lessons"):
        lessons = _lessons(run, teacher)
        known = run.settings.resume is not None and _studied_of(studied) == lessons.made_of
        if arguments.distributed_state.is_main_process and not known:
            with all_cores():
                study(model, processor.tokenizer, lessons, run.fleet, arguments)
            about = {METRICS_FILE: json.dumps({"lessons": lessons.made_of}) + "\n"}
            save_folder(studied, model, processor, run.fleet, about)
    # The same from here on whether this process has studied or not.
    set_seed(run.settings.seed)
    return load_model(studied)


def _study_again(run: Run, teacher: str, model: Any, tokenizer: Any, arguments: TrainingArguments) -> None:
    """Let the trained model study once more; what it says of tasks about pictures, of which no teacher knows, stays."""
    pictured = dict.fromkeys(sample.task for sample in run.data[3].train if sample.image is not None)
    with all_cores():
        study(model, tokenizer, _lessons(run, teacher), run.fleet, arguments, kept=list(pictured))


def _lessons(run: Run, teacher: str) -> Lessons:
    data = run.data[3]
    return learn(
        data.train,
        [*data.validation, *data.of_other_fleets],
        run.fleet,
        teacher_folder(teacher),
        texts=run.settings.teacher_texts,
        seed=run.settings.seed,
        kept=run.settings.stage_dir(3) / LESSONS_FILE,
    )


def _studied_of(studied: Path) -> str | None:
    """Of which lessons a folder is the result; None where it is not complete."""
    if not is_complete(studied):
        return None
    verify_folder(studied)
    made_of: str = json.loads((studied / METRICS_FILE).read_text(encoding="utf-8"))["lessons"]
    return made_of


def _datasets(run: Run, stage: int, processor: Any) -> tuple[Any, Any]:
    data, seed = run.data[stage], run.settings.seed
    if stage == 3:
        train = _drawn_tasks(data.train, taught=run.settings.teacher is not None)
        return (
            RobotTaskDataset(train, processor, run.fleet, augment=True, seed=seed),
            RobotTaskDataset(data.validation, processor, run.fleet, augment=False, seed=seed),
        )
    if isinstance(data.train, Catalogue):
        rank, ranks = _process()
        return (
            StreamedDataset(
                data.train, processor, seed=seed, batch_size=run.settings.batch_size, rank=rank, ranks=ranks
            ),
            ConversationDataset(data.validation, processor, augment=False, seed=seed),
        )
    return (
        ConversationDataset(data.train, processor, augment=True, seed=seed),
        ConversationDataset(data.validation, processor, augment=False, seed=seed),
    )


def _drawn_tasks(samples: Sequence[RobotSample], *, taught: bool) -> list[RobotSample]:
    """The tasks that a pass of stage 3 draws, some more than once.

    Args:
        samples: the training tasks.
        taught: whether a teacher's lessons say who goes by texts alone, so that what stage 3 learns is to see and to
            write: tasks with pictures then count more, and clauses, of which nothing is written, not at all.
    """
    if taught:
        own = [sample for sample in samples if not is_clause(sample)]
        return [*own, *[sample for sample in own if sample.image is not None] * (PICTURED_REPEATS - 1)]
    return [*samples, *[sample for sample in samples if sample.fleet is not None] * (OTHER_FLEET_REPEATS - 1)]


def _check_samples(run: Run, stage: int, dataset: Any, model: Any) -> None:
    """Hold the data against the model: positions, ids, supervised tokens, robots."""
    positions, rows = model.config.text_config.n_positions, model.get_input_embeddings().num_embeddings
    # Spread over the whole set, since a set's parts stand one after another. A robot task is never cut, so that each
    # must fit; the others are.
    every = 1 if stage == 3 else max(1, len(dataset) // CHECKED_SAMPLES)
    for index in range(0, len(dataset), every):
        sample, encoded = dataset.samples[index], dataset.encoded(index)
        check_positions(len(encoded.input_ids), positions, sample.id)
        check_labels(encoded.input_ids, encoded.labels, rows, sample.id)
    if stage == 3:
        for fleet in (run.fleet, *other_fleets(dataset.samples)):
            check_fleet_length(fleet, dataset.tokenizer, positions)
        for sample in dataset.samples:
            check_robots(sample.selected, sample.fleet or run.fleet, sample.id)


def _checkpoint(settings: RunSettings, stage: int, arguments: TrainingArguments) -> str | None:
    """The checkpoint that ``stage`` goes on from, or None to begin it; the first process chooses for all."""
    if settings.resume is None:
        return None
    if settings.resume != "auto":
        folder = Path(settings.resume)
        if stage_of(folder) != stage:
            return None
        verify_checkpoint(folder)
        return str(folder)
    chosen = -1
    if arguments.distributed_state.is_main_process:
        newest = newest_valid(settings.stage_dir(stage), stage)
        chosen = -1 if newest is None else step_of(newest)
    chosen = int(broadcast(torch.tensor(chosen, device=arguments.device)))
    if chosen < 0:
        return None
    newest = settings.stage_dir(stage) / f"{PREFIX}{chosen}"
    logger.info("Stage %d goes on from %s", stage, newest)
    return str(newest)


def _check_space_for_all(settings: RunSettings, start: Path) -> None:
    """Refuse a run whose checkpoints and results will not fit the disk, going by the weights that it starts from."""
    weights = sum(file.stat().st_size for file in start.glob("*.safetensors"))
    left = [stage for stage in settings.stages if not is_complete(settings.stage_result(stage))]
    needed = -sum(
        path.stat().st_size for stage in left for path in settings.stage_dir(stage).rglob("*") if path.is_file()
    )
    # A checkpoint has the weights and twice as much for the optimizer; the last stage also writes one more.
    for _ in left:
        needed += KEPT * (3 * weights + OTHER_BYTES) + weights + OTHER_BYTES
    needed += (3 * weights + OTHER_BYTES) if left else 0
    check_space(settings.output_dir, needed, f"the run with {len(left)} stages and {KEPT} checkpoints of each")


def _finish(run: Run, folder: Path, arguments: TrainingArguments) -> Path:
    """Study again, fit the words, calibrate on the validation tasks that could be read, measure, write ``final``."""
    from embervlm.evaluation.calibration import calibrate
    from embervlm.evaluation.card import model_card
    from embervlm.selection import CALIBRATION_FILE, RobotSelector
    from embervlm.training.words_fit import fit_words

    final = run.settings.result
    if arguments.distributed_state.is_main_process and not (run.settings.resume and is_complete(final)):
        selector = RobotSelector.from_pretrained(folder)
        named = {entry["sample"] for entry in read_quarantine(run.settings.stage_dir(3) / QUARANTINE_FILE)}
        _, dataset = _datasets(run, 3, selector.processor)
        # What was named may have been repaired before a resume.
        validation: Any = [
            sample
            for place, sample in enumerate(dataset.samples)
            if sample.id not in named or not dataset[place].failures
        ]
        if run.settings.teacher is not None:
            _study_again(run, run.settings.teacher, selector.model, selector.tokenizer, arguments)
        fit_words(selector, run.data[3].train, validation)
        calibration, measured = calibrate(selector, validation)
        run.metrics["validation"] = measured
        if run.data[3].of_other_fleets:
            run.metrics["other_fleets"] = _among_others(selector, run.data[3].of_other_fleets, run.settings.seed)
        files = {
            CALIBRATION_FILE: json.dumps(calibration.to_dict(), indent=2) + "\n",
            METRICS_FILE: json.dumps(run.metrics, indent=2) + "\n",
            CARD_FILE: model_card(selector.model, run.metrics),
        }
        save_folder(final, selector.model, selector.processor, run.fleet, files)
    arguments.distributed_state.wait_for_everyone()
    return final


def _among_others(selector: Any, samples: Sequence[RobotSample], seed: int) -> dict[str, Any]:
    """How often the leader is right in small fleets around the robots of tasks, without a picture, of other fleets."""
    from embervlm.evaluation.unseen import composed_fleets, leaders_right, score_in_fleets

    measured, fleets = [], []
    for sample in samples:
        own = sample.fleet or selector.fleet
        try:
            composed = composed_fleets([sample], own, min(OTHER_FLEET_ROBOTS, len(own)), seed)
        except FleetError:  # most of its robots do what this task's do
            continue
        if sample.image is None and len(own) > 1:
            measured.append(sample)
            fleets += composed
    if not measured:
        return {"tasks": 0}
    right = leaders_right(measured, fleets, score_in_fleets(selector, measured, fleets))
    logger.info(
        "Leaders right on %d validation tasks among at most %d robots of other fleets: %.3f",
        len(measured),
        OTHER_FLEET_ROBOTS,
        right,
    )
    return {"tasks": len(measured), "robots": OTHER_FLEET_ROBOTS, "leader_accuracy": right}


def _say_where_this_runs(settings: RunSettings, arguments: TrainingArguments) -> None:
    if arguments.distributed_state.is_main_process:
        state = arguments.distributed_state
        backend = f" ({state.backend})" if state.backend else ""
        device = torch.cuda.get_device_name() if state.device.type == "cuda" else f"{torch.get_num_threads()} threads"
        logger.info(
            "%d process%s%s on %s (%s each), precision %s, batch %d x %d x %d",
            state.num_processes,
            "" if state.num_processes == 1 else "es",
            backend,
            state.device.type.upper(),
            device,
            settings.mixed_precision,
            settings.batch_size,
            settings.gradient_accumulation,
            state.num_processes,
        )


def _say_what_trains(trainer: StageTrainer, model: Any, train: Any, validation: Any) -> None:
    frozen = trainer.frozen_parts(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(
        "%.1fM of %.1fM parameters train; frozen: %s; %d training samples, %d for validation",
        trained / 1e6,
        model.num_parameters() / 1e6,
        ", ".join(frozen) or "nothing",
        len(train),
        len(validation),
    )
