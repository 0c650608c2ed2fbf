"""What the fuzzer calls: each target takes bytes of a stranger and lets out whatever is no documented error."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from made_pictures import picture as made_picture
from safetensors.numpy import save

from embervlm import cli, selection
from embervlm.behaviour_tree import behaviour_tree
from embervlm.data import json_stream, loaders
from embervlm.data.files import Pictures
from embervlm.data.formats.record import Ledger
from embervlm.data.images import MAX_PIXELS, ImageError, decode_image, read_picture
from embervlm.data.json_files import peek_json, read_json
from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample import DataError, PackedPicture
from embervlm.fleet import Fleet, FleetError
from embervlm.folders import WeightsError, verify_folder
from embervlm.model import EmberVLMProcessor
from embervlm.model.weights import load_model, load_processor
from embervlm.preflight import PreflightError
from embervlm.runtime.torch_model import TorchRuntime
from embervlm.selection import (
    CALIBRATION_FILE,
    Calibration,
    RobotSelector,
    SelectionError,
    fleet_mark,
    read_task_lines,
)
from embervlm.serving.limits import check_picture
from embervlm.serving.schemas import RequestError, SelectIn, question_of, question_of_form, validated
from embervlm.training.checkpoints import STAGE_FILE, STATE_FILE, STATE_TENSORS, read_state, stage_of

Target = Callable[[bytes], None]

#: Between the parts of an input of ``select``: what is asked and how, the fleet file, the picture.
PARTS = b"\n=====\n"


class Record(msgspec.Struct):
    """The fields that the streaming readers are asked for."""

    id: Any = None
    image_id: Any = None
    caption: Any = None


def images(work: Path) -> Target:
    """A picture as bytes, as a file and as a place in a tar shard."""
    file = work / "picture"

    def target(data: bytes) -> None:
        with contextlib.suppress(ImageError):
            check_picture(data, MAX_PIXELS)
        try:
            found = decode_image(data)
        except ImageError:
            return
        assert found.mode == "RGB" and 1 <= found.width * found.height <= MAX_PIXELS
        if sum(data[-4:]) % 8:  # decoding it again costs as much
            return
        before = data[:7]
        file.write_bytes(before + data + before)
        for position, size in ((len(before), len(data)), (3, len(data)), (len(data), 2 * len(data)), (-1, 9)):
            with contextlib.suppress(ImageError):
                read_picture(PackedPicture(file, position, size))

    return target


def fleets(work: Path) -> Target:
    """A fleet file; one that is read is written and read again."""
    file, again = work / "fleet.yaml", work / "again.yaml"

    def target(data: bytes) -> None:
        file.write_bytes(data)
        try:
            fleet = Fleet.from_yaml(file)
        except FleetError as error:
            assert "\n" not in str(error)
            return
        fleet.to_yaml(again)
        assert Fleet.from_yaml(again) == fleet and fleet_mark(fleet)
        assert all(fleet.index(name) == place for place, name in enumerate(fleet.names))

    return target


def json_files(work: Path) -> Target:
    """Every reader of JSON: the first byte says which, the others are the file."""
    file, folder = work / "data" / "file.json", work / "folder"
    lines = file.with_suffix(".jsonl")
    for path in (file.parent, folder):
        path.mkdir()
    (file.parent / "a.jpg").write_bytes(b"")
    (file.parent / "000000084284.jpg").write_bytes(b"")
    (folder / "model.safetensors").write_bytes(b"")
    pictures, fleet = Pictures.of(file.parent), Fleet.default()

    def drain(blocks: Iterator[Any]) -> None:
        for block in blocks:
            assert not block.names or len(block.names) == len(block.records)

    def same_count() -> None:
        count = sum(len(block.records) for block in json_stream.read_list(file, Record))
        assert len(read_json(file)) == count

    def annotations(path: Path) -> None:
        found = loaders._format_of(path)
        if found is not None:
            for row in found.read([path], pictures, Ledger()):
                # What an index holds must be text.
                assert all(part.encode() is not None for turn in row.turns for part in turn)

    def of_folder(name: str, read: Callable[[Path], Any]) -> Callable[[], Any]:
        def call() -> None:
            shutil.copyfile(file, folder / name)
            try:
                read(folder)
            finally:
                (folder / name).unlink()

        return call

    (folder / STATE_TENSORS).write_bytes(save({}))  # sound: what is fuzzed is the JSON beside it
    readers: Sequence[Callable[[], Any]] = (
        lambda: read_json(file),
        same_count,
        lambda: drain(json_stream.read_keyed(file, Record)),
        lambda: drain(json_stream.read_lists(file, {"annotations": Record, "images": Record}, {})),
        lambda: drain(json_stream.read_lines(file, Record)),
        lambda: drain(json_stream.read_records(file, Record)),
        lambda: peek_json(file),
        lambda: annotations(file),
        lambda: annotations(lines),
        lambda: read_robot_tasks(file, fleet),
        lambda: read_robot_tasks(lines, fleet),
        lambda: read_task_lines(lines),
        of_folder(CALIBRATION_FILE, Calibration.from_folder),
        of_folder("manifest.json", lambda path: verify_folder(path, exact=True)),
        of_folder(STATE_FILE, read_state),
        of_folder(STAGE_FILE, stage_of),
    )

    def target(data: bytes) -> None:
        number = data[0] % len(readers) if data else 0
        for path in (file, lines):
            path.write_bytes(data[1:])
        with contextlib.suppress(DataError, SelectionError, WeightsError, FleetError):
            readers[number]()

    return target


def select(work: Path, model: Path) -> Target:
    """A selection with a tiny model by the library, by the command's flags, by its file of tasks, as the server asks.

    An input begins with ``{"by": NUMBER, ...}`` in one line, whose other keys are the flags; then, in parts, come the
    task, the fleet file and the picture, the last two only where they are wanted.
    """
    selector = RobotSelector.from_pretrained(model)
    # A random model writes on and on, and is no surer of anything after 48 tokens than after 3.
    selection.MAX_STEP_TOKENS = 3
    fleet_file, picture, tasks = work / "fleet.yaml", work / "picture.png", work / "tasks.jsonl"
    # The folder is read once; reading it is another target's.
    RobotSelector.from_pretrained = functools.cache(lambda folder: selector)  # type: ignore[method-assign, assignment]
    refused = (SelectionError, ImageError, FleetError, PreflightError, RequestError)

    def by_library(task: str, flags: dict[str, Any]) -> None:
        fleet = Fleet.from_yaml(fleet_file) if fleet_file.exists() else None
        found = selector.select(
            task,
            picture.read_bytes() if picture.exists() else None,
            top_n=top_n if type(top_n := flags.get("top_n")) is int else None,
            reason=flags.get("reason") is not False,
            fleet=fleet,
            coverage=coverage if type(coverage := flags.get("coverage")) is float else None,
        )
        json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False).encode()
        behaviour_tree(found.plan, found.task).encode()
        assert found.primary == found.selected[0] and {phase.robot for phase in found.plan} <= set(found.selected)

    def by_command(task: str, flags: dict[str, Any]) -> None:
        given = ["--task", task] if task else ["--tasks", str(tasks), "--json"]
        for name, path in (("--fleet", fleet_file), ("--image", picture)):
            given += [name, str(path)] if path.exists() else []
        for name in ("top-n", "coverage", "plan-format", "reason", "no-reason", "json"):
            value = flags.get(name)
            given += [f"--{name}"] if value is True else [] if value is None else [f"--{name}={value}"]
        # A command line is bytes without NUL.
        given = [text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") for text in given]
        run(["select", "--model", str(model), *(text.replace("\0", "") for text in given)])

    def run(arguments: list[str]) -> None:
        # As Python opens them on a machine that speaks UTF-8.
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
        error = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                code = cli.main(arguments)
            except SystemExit as leaving:
                code = leaving.code
        error.flush()
        said = error.buffer.getvalue()  # type: ignore[attr-defined]
        assert code in (0, 1, 2) and bool(said.strip()) == bool(code) and b"Traceback" not in said
        assert code != 1 or said.count(b"\n") == 1

    def by_server(task: str, flags: dict[str, Any]) -> None:
        if flags.get("form"):
            form: dict[str, str | bytes] = {"task": task}
            form |= {name: str(value) for name, value in flags.items() if name != "form"}
            if picture.exists():
                form["image"] = picture.read_bytes()
            question = question_of_form(form, 32)
        else:
            question = question_of(validated(SelectIn, {"task": task} | flags), 32)
        selector.select(question.task, question.image, question.top_n, question.reason, question.fleet)

    ways = (by_library, by_command, by_server)

    def target(data: bytes) -> None:
        head, _, rest = data.partition(b"\n")
        parts = rest.split(PARTS, 2)
        for path, part in zip((fleet_file, picture), [*parts[1:], b"", b""], strict=False):
            path.unlink(missing_ok=True)
            if part:
                path.write_bytes(part)
        tasks.write_bytes(parts[0])
        try:
            flags = json.loads(head)
            by = ways[int(flags.pop("by")) % len(ways)]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return
        task = "" if flags.get("tasks") else parts[0].decode("utf-8", "surrogateescape")
        with contextlib.suppress(*refused):
            by(task, flags)

    return target


def folders(work: Path, model: Path) -> Target:
    """A model folder of which one JSON file is a stranger's: the first line of an input names it."""
    folder = work / "model"
    folder.mkdir()
    for path in model.iterdir():
        if path.name != "manifest.json":
            (folder / path.name).symlink_to(path)
    tokenizer, picture = load_processor(model).tokenizer, made_picture(12, 9)
    # As `select` does it.
    selection.MAX_STEP_TOKENS = 3

    def use(path: Path) -> None:
        loaded = load_model(path)
        processor = EmberVLMProcessor.for_config(loaded.config, tokenizer)
        RobotSelector(TorchRuntime(loaded, processor), Fleet.default(), Calibration()).select("Go.", picture)

    readers = {b"config.json": use, b"tokenizer_config.json": load_processor}

    def target(data: bytes) -> None:
        name, _, content = data.partition(b"\n")
        if name not in readers:
            return
        file = folder / name.decode()
        file.unlink()
        file.write_bytes(content)
        try:
            readers[name](folder)
        except (WeightsError, PreflightError):
            pass
        finally:
            file.unlink()
            file.symlink_to(model / file.name)

    return target
