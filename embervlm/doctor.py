"""``embervlm doctor``: says what this machine has and checks the installation, a model, a fleet and data, one by one.

It stands beside the command line, on top of everything. Nothing heavy is imported before the check that needs it, so
that a broken installation is told and not met.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from embervlm.data.sample import Picture

_PACKAGE = "embervlm"
_NAMED_PACKAGES = ("torch", "transformers", "accelerate")
#: Packages that transformers imports as soon as they are installed, and that are not needed here.
_RISKY_PACKAGES = ("torchvision", "timm")
#: What a training run of the larger preset writes, checkpoints with their optimizer included, rounded up.
_DISK_BYTES = 2 * 1024**3
_IMPORT_SECONDS = 120
_PICTURES_DECODED = 20
_SAMPLES_ENCODED = 200
# Every error of this package is a ValueError; the others are how libraries fail that are broken or do not fit together.
_FAILURES = (ValueError, OSError, ImportError, RuntimeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was looked at, whether it is as it should be, and what was found, with the cure if it is not."""

    name: str
    passed: bool
    found: str


class _Unfit(ValueError):
    """What a check found is not as it should be."""


def examine(
    model: str | Path | None = None,
    stage1_data: Path | None = None,
    stage2_data: Path | None = None,
    robot_data: Path | None = None,
    fleet: Path | None = None,
) -> list[Check]:
    """Run every check that applies; one that fails does not stop the next.

    Args:
        model: a model folder to check, or ``spark`` for all checks of the model that comes with the package.
        stage1_data, stage2_data, robot_data: folders or files to check as the training command reads them.
        fleet: a fleet file to check, and to read the robot tasks with.
    """
    checks = [_check("Python", _python)]
    checks += [_check(name, lambda name=name: _package(name)) for name in _NAMED_PACKAGES]  # type: ignore[misc]
    checks.append(_check("other packages", _other_packages))
    checks += [_check(name, lambda name=name: _risky_package(name)) for name in _RISKY_PACKAGES]  # type: ignore[misc]
    checks += [
        _check("cores and memory", _cores_and_memory),
        _check("GPU", _gpu),
        _check("disk", _disk),
        _check("tokenizer", _tokenizer),
        _check("presets", _presets),
        _check("model in the package", _model_in_the_package),
    ]
    if fleet is not None:
        checks.append(_check("fleet", lambda: _fleet(fleet)))
    if model is not None:
        checks += _model_checks(model, fleet)
    for name, path, stage in (("stage 1 data", stage1_data, 1), ("stage 2 data", stage2_data, 2)):
        if path is not None:
            roots = [stage1_data] if stage == 2 and stage1_data is not None else []
            checks.append(_check(name, lambda path=path, stage=stage, roots=roots: _base_data(path, stage, roots)))  # type: ignore[misc]
    if robot_data is not None:
        checks.append(_check("robot tasks", lambda: _robot_data(robot_data, fleet)))
    return checks


def _check(name: str, look: Callable[[], str]) -> Check:
    """Run ``look``, which returns what it found or raises."""
    try:
        return Check(name, True, look())
    except _FAILURES as error:
        return Check(name, False, _one_line(error))


def _python() -> str:
    found, wanted = platform.python_version(), _own_metadata().get("Requires-Python", "")
    if found not in SpecifierSet(wanted):
        raise _Unfit(f"{found}, expected {wanted}. Cure: make an environment with such a Python")
    return f"{found} ({wanted})"


def _own_metadata() -> Any:
    try:
        return metadata.metadata(_PACKAGE)
    except metadata.PackageNotFoundError:
        raise _Unfit(
            f"{_PACKAGE} is not installed here, so what it supports is not known. Cure: pip install -e . in its folder"
        ) from None


def _requirements() -> dict[str, SpecifierSet]:
    """What the installed package needs for training, without its other extras: name -> supported versions."""
    parsed = [Requirement(line) for line in _own_metadata().get_all("Requires-Dist") or []]
    return {r.name: r.specifier for r in parsed if r.marker is None or r.marker.evaluate({"extra": "train"})}


def _package(name: str) -> str:
    return _fitting_version(name, _requirements()[name])


def _other_packages() -> str:
    others = {name: range_ for name, range_ in _requirements().items() if name not in _NAMED_PACKAGES}
    found, faults = [], []
    for name, range_ in others.items():
        try:
            found.append(f"{name} {_fitting_version(name, range_).split()[0]}")
        except _Unfit as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise _Unfit("; ".join(faults))
    return ", ".join(found)


def _fitting_version(name: str, supported: SpecifierSet) -> str:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        raise _Unfit(f'not installed, expected {supported}. Cure: pip install "{name}{supported}"') from None
    if not supported.contains(version, prereleases=True):
        raise _Unfit(f'{version}, expected {supported}. Cure: pip install "{name}{supported}"')
    return f"{version} ({supported})"


def _risky_package(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return "not installed, not needed"
    version = _installed_version(name)
    # In a process of its own: a library that does not load can take the process with it.
    try:
        tried = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=_IMPORT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise _Unfit(f"{name}{version} did not import within {_IMPORT_SECONDS} s. Cure: pip uninstall {name}") from None
    if tried.returncode != 0:
        said = tried.stderr.strip().splitlines() or [f"exit {tried.returncode}"]
        raise _Unfit(
            f"{name}{version} is installed but does not import, which breaks transformers ({said[-1]:.160}). "
            f"Cure: pip uninstall {name}"
        )
    return f"installed{version}, imports"


def _installed_version(name: str) -> str:
    try:
        return f" {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return ""


def _cores_and_memory() -> str:
    # What this process may use, which is less than the machine has in many containers.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{cores} core{'' if cores == 1 else 's'}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found += f", {_gib(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))} of memory"
    return f"{found} ({platform.system()}, {platform.machine()})"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none; training and selection run on the CPU"
    devices = range(torch.cuda.device_count())
    return ", ".join(
        f"{torch.cuda.get_device_name(i)} ({_gib(torch.cuda.get_device_properties(i).total_memory)})" for i in devices
    )


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < _DISK_BYTES:
        raise _Unfit(f"{_gib(free)} free here; a training run needs up to {_gib(_DISK_BYTES)}. Cure: make room")
    return f"{_gib(free)} free here"


def _tokenizer() -> str:
    from embervlm.tokens import CONTROL_IDS, load_tokenizer

    tokenizer = load_tokenizer()
    return f"{len(tokenizer)} tokens, {', '.join(f'{token} {index}' for token, index in CONTROL_IDS.items())}"


def _presets() -> str:
    import torch

    from embervlm.model import EmberVLMForConditionalGeneration, preset_config
    from embervlm.model.configuration_embervlm import PRESETS

    found = []
    for name in PRESETS:
        with torch.device("meta"):
            parameters = EmberVLMForConditionalGeneration(preset_config(name)).num_parameters()
        found.append(f"{name} {parameters / 1e6:.1f}M parameters")
    return ", ".join(found)


def _fleet(path: Path) -> str:
    from embervlm.fleet import Fleet

    fleet = Fleet.from_yaml(path)
    return f"{len(fleet)} robot{'' if len(fleet) == 1 else 's'}: {', '.join(fleet.names)}"


def _model_in_the_package() -> str:
    from embervlm.folders import BOX_MODEL, has_box_model

    if not has_box_model():
        return "none; select and evaluate need --model"
    return _load(BOX_MODEL, [])


def _model_checks(name: str | Path, fleet_file: Path | None) -> list[Check]:
    """The checks of one model; those after the first only if it loads, and of ONNX graphs only whether they answer."""
    from embervlm.folders import is_onnx, model_folder

    if is_onnx(model_folder(name)):
        return [_check("model", lambda: _graphs(model_folder(name), fleet_file))]
    loaded: list[tuple[Path, Any]] = []
    checks = [_check("model", lambda: _load(name, loaded))]
    if not loaded:
        return checks
    ((folder, model),) = loaded
    processor = _Processor(folder)
    checks.append(_check("model's tokens", lambda: _model_tokens(model, processor)))
    checks.append(_check("model's pictures", lambda: _model_pictures(model, processor)))
    checks.append(_check("model's wording", lambda: _model_wording(model)))
    checks.append(_check("model's fleet", lambda: _model_fleet(folder, fleet_file, model)))
    return checks


class _Processor:
    """A model's processor; a plain language model's folder has none and gets the package's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, model: Any) -> Any:
        from embervlm.model import EmberVLMProcessor
        from embervlm.model.weights import load_processor

        if (self.folder / "processor_config.json").is_file():
            return load_processor(self.folder)
        return EmberVLMProcessor.for_config(model.config)


def _load(name: str | Path, loaded: list[tuple[Path, Any]]) -> str:
    from embervlm.folders import is_complete, model_folder
    from embervlm.model.weights import load_model

    folder = model_folder(name)
    model = load_model(folder)
    loaded.append((folder, model))
    manifest = "agrees with its manifest" if is_complete(folder) else "no manifest to hold it against"
    return f"{folder}: {model.num_parameters() / 1e6:.1f}M parameters, {manifest}"


def _graphs(folder: Path, fleet_file: Path | None) -> str:
    from PIL import Image

    from embervlm.fleet import Fleet
    from embervlm.selection import RobotSelector

    selector = RobotSelector.from_pretrained(folder)
    fleet = Fleet.from_yaml(fleet_file) if fleet_file is not None else None
    # Every graph is opened by it.
    selector.select("Film the roof.", Image.new("RGB", (64, 64)), fleet=fleet)
    return f"{folder}: ONNX graphs that agree with their manifest and answer"


def _model_tokens(model: Any, processor: _Processor) -> str:
    from embervlm.preflight import check_embeddings, embedding_rows

    tokenizer = processor.of(model).tokenizer
    check_embeddings(model, tokenizer)
    return f"{embedding_rows(model)} embedding rows for {len(tokenizer)} tokens"


def _model_pictures(model: Any, processor: _Processor) -> str:
    from embervlm.preflight import check_image_tokens

    check_image_tokens(model, processor.of(model))
    vision = model.config.vision_config
    return f"{vision.image_size} pixels become {vision.image_tokens} visual tokens"


def _model_wording(model: Any) -> str:
    from embervlm.preflight import check_prompt_version

    check_prompt_version(model.config.prompt_version)
    return f"prompt version {model.config.prompt_version}"


def _model_fleet(folder: Path, fleet_file: Path | None, model: Any) -> str:
    from embervlm.fleet import Fleet
    from embervlm.folders import load_fleet
    from embervlm.preflight import check_fleet_length
    from embervlm.prompts import robot_description
    from embervlm.tokens import encode_text, load_tokenizer

    fleet = Fleet.from_yaml(fleet_file) if fleet_file is not None else load_fleet(folder)
    tokenizer, positions = load_tokenizer(), model.config.text_config.n_positions
    check_fleet_length(fleet, tokenizer, positions)
    longest = max(len(encode_text(tokenizer, robot_description(robot))) for robot in fleet)
    return f"{len(fleet)} robots, the longest description {longest} of {positions} positions"


def _base_data(path: Path, stage: int, picture_roots: list[Path]) -> str:
    from embervlm.data.collate import ConversationDataset
    from embervlm.data.loaders import load_base
    from embervlm.data.shards import names_shards

    if stage == 1 and names_shards(path):
        return _shards(path)
    picture_roots = [root for root in picture_roots if not names_shards(root)]
    data = load_base(path, 1 if stage == 1 else 2, extra_image_roots=picture_roots)
    of_each = ", ".join(f"{row.dataset} {row.records:,} ({row.with_image:,} with their picture)" for row in data.report)
    found = f"{of_each}; {len(data.train):,} for training, {len(data.validation):,} for validation"
    longest = _encode_some(ConversationDataset(data.train, _default_processor(), augment=False, seed=0))
    # Read by their places, since there can be a million.
    some = [data.train[index] for index in _spread(len(data.train), _PICTURES_DECODED)]
    return f"{found}; {longest}; {_decode_some([sample.image for sample in some])}"


def _shards(pattern: Path) -> str:
    from embervlm.data.index import cache_folder
    from embervlm.data.sample import DataError
    from embervlm.data.shards import find
    from embervlm.data.stream import open_catalogue

    catalogue = open_catalogue(find(pattern), cache_folder() / "shards", seed=0)
    damaged = [shard for shard in catalogue.shards if shard.damage is not None]
    if damaged:
        raise DataError(
            f"{damaged[0].path}: {damaged[0].damage} ({len(damaged)} of {len(catalogue.shards)} shards damaged)"
        )
    samples = catalogue.validation_samples()
    return (
        f"{len(catalogue.shards):,} shards, {len(catalogue):,} pairs for training, {len(samples):,} for validation; "
        f"{_decode_some([sample.image for sample in samples])}"
    )


def _robot_data(path: Path, fleet_file: Path | None) -> str:
    from embervlm.data.collate import RobotTaskDataset
    from embervlm.data.robot_loader import load_robot_tasks
    from embervlm.fleet import Fleet

    fleet = Fleet.from_yaml(fleet_file) if fleet_file is not None else Fleet.default()
    data = load_robot_tasks(path, fleet)
    samples, report = [*data.train, *data.validation], data.report
    found = (
        f"{report.records:,} records, {report.samples:,} tasks, {report.with_image:,} with a picture, "
        f"{report.missing_images:,} left out for want of theirs; {report.train:,} for training, "
        f"{report.validation:,} for validation"
    )
    longest = _encode_some(RobotTaskDataset(samples, _default_processor(), fleet, augment=False, seed=0))
    return f"{found}; {longest}; {_decode_some([sample.image for sample in samples])}"


def _default_processor() -> Any:
    from embervlm.model import EmberVLMProcessor, preset_config

    return EmberVLMProcessor.for_config(preset_config("ember"))


def _encode_some(dataset: Any) -> str:
    """Encode samples spread over ``dataset`` and check them as the training command does before its first step."""
    from embervlm.preflight import check_labels, check_positions

    positions, rows, longest = dataset.max_length, len(dataset.tokenizer), 0
    for index in _spread(len(dataset), _SAMPLES_ENCODED):
        sample, encoded = dataset.samples[index], dataset.encoded(index)
        check_positions(len(encoded.input_ids), positions, sample.id)
        check_labels(encoded.input_ids, encoded.labels, rows, sample.id)
        longest = max(longest, len(encoded.input_ids))
    return f"the longest prompt looked at has {longest} of {positions} positions"


def _decode_some(images: Sequence[Picture | None]) -> str:
    """Decode pictures spread over ``images``."""
    from embervlm.data.images import read_picture

    pictures = [image for image in dict.fromkeys(images) if image is not None]
    looked_at = [pictures[index] for index in _spread(len(pictures), _PICTURES_DECODED)]
    for picture in looked_at:
        read_picture(picture)
    return f"{len(looked_at)} pictures looked at, all sound" if pictures else "no pictures"


def _spread(count: int, at_most: int) -> list[int]:
    """At most ``at_most`` places from 0 to ``count``, evenly spread."""
    kept = min(count, at_most)
    return [place * count // kept for place in range(kept)]


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
