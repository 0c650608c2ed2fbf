"""Model folders of every kind: what a model's name means, how a folder is written whole, and held against its manifest.

A model folder is complete when its ``manifest.json`` is there, which is written last and lists every other file's size
and SHA-256. What is in the folder is read above: by ``model/weights.py``, or by ``runtime`` where it is of ONNX graphs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embervlm.fleet import FLEET_FILE, Fleet

MANIFEST = "manifest.json"
#: What a trained model is and what was measured of it: for people, and for programs.
CARD_FILE, METRICS_FILE = "README.md", "metrics.json"
#: The name of the trained model that comes with the package, and what a command asks that is told no other.
BOX_MODEL = "spark"
_BOX = Path(__file__).resolve().parent / "box"
#: What says that a folder is of ONNX graphs, and what of them.
ONNX_FILE = "onnx.json"
#: Of a JSON file of a model folder, read before anything vouches for the folder.
MAX_JSON_BYTES = 32 * 1024**2
#: What the names of folders end with that are not finished, and of those that one is about to replace.
UNFINISHED = (".partial", ".replaced")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = (
    "*.safetensors",
    "*.json",
    "*.yaml",
    "*.md",
    "*.jinja",
    "*.txt",
    "*.onnx",
    "tokens.bin",
    "words.bin",
    "head.bin",
)


class WeightsError(ValueError):
    """Weights or a model folder that cannot be used; the message names the folder, what is wrong and the cure."""


def model_folder(name: str | os.PathLike[str]) -> Path:
    """The folder that a model's name means: the text ``spark`` the model in the package, any other name that folder.

    A folder called ``spark`` is ``./spark``, or any ``Path``. A text of the form ``owner/name`` that is no folder here
    is a name on the hub, whose files are downloaded to its library's cache, safetensors and text alone.

    Raises:
        WeightsError: the model in the package is asked for, and this installation has none; or there is neither such a
            folder nor such a name on the hub.
    """
    if name != BOX_MODEL:
        is_hub_name = isinstance(name, str) and _HUB_NAME.fullmatch(name) and not Path(name).exists()
        return _from_hub(str(name)) if is_hub_name else Path(name)
    if not has_box_model():
        here = f" (the folder here is ./{BOX_MODEL})" if Path(BOX_MODEL).is_dir() else ""
        raise WeightsError(
            f"this installation carries no trained model; name the folder of one{here}, which embervlm train makes"
        )
    return _BOX / BOX_MODEL


def _from_hub(name: str) -> Path:
    out_of_reach: bool | None = None
    try:
        from huggingface_hub import snapshot_download

        out_of_reach = hub_out_of_reach()
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES), local_files_only=out_of_reach))
    except Exception as error:  # the library's own, of many types; or it is not installed
        reason = "the hub is out of reach" if out_of_reach else one_line(error)
        raise WeightsError(
            f"{name}: no such model folder, nor can a model of this name be had from the hub ({reason}). "
            "Cure: the folder of a trained model, or spark for the one in the package"
        ) from None


def has_box_model() -> bool:
    """Whether a trained model came with this installation."""
    return (_BOX / BOX_MODEL).is_dir()


def check_model_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that is no model folder or is damaged, without loading its weights.

    Raises:
        WeightsError: the folder is missing, has no readable configuration, or differs from its manifest.
    """
    read_config(Path(folder))
    verify_folder(folder)


def check_export(folder: Path, source: Path, *, replaceable: bool, kind: str, done: str) -> None:
    """Refuse to write a model of a kind over something else, or of what is none of our models.

    Args:
        folder: where to.
        source: the model's folder.
        replaceable: whether what ``folder`` holds may be replaced if it is complete.
        kind: what is written, such as ``ONNX``.
        done: what that is called, such as ``written as ONNX``.

    Raises:
        WeightsError: as said, or ``source`` is no model folder.
    """
    if folder.exists() and not (replaceable and is_complete(folder)):
        raise WeightsError(f"{folder}: is there already and no {kind} model; expected the name of a new folder")
    found = read_config(source).get("model_type")
    if found != "embervlm":
        raise WeightsError(f"{source}: a model of type {found!r}; only embervlm can be {done}")


def load_fleet(folder: str | os.PathLike[str]) -> Fleet:
    """The fleet that a model was trained with; the default one where the folder names none."""
    path = Path(folder) / FLEET_FILE
    return Fleet.from_yaml(path) if path.is_file() else Fleet.default()


@contextmanager
def complete_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder to write into, which takes ``folder``'s place, with its manifest, if nothing fails.

    All of it is on the disk before it takes the name, so that not even a power cut leaves half a folder there.

    Raises:
        WeightsError: it could not be written, as on a full disk; what was there before still is.
    """
    folder = Path(folder)
    temporary, replaced = (folder.with_name(f".{folder.name}{ending}") for ending in UNFINISHED)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        write_manifest(temporary)
        _flush(temporary)
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        _flush_entry(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # The second by its name, as this must not import what may not be installed.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        raise WeightsError(f"{folder}: cannot be written ({reason}). Cure: free space there, or another disk") from None
    shutil.rmtree(replaced, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """List every file of ``folder`` with its size and SHA-256 in its ``manifest.json``, which completes it."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in sorted(_files(folder).items())
    }
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    temporary.rename(folder / MANIFEST)


def is_onnx(folder: str | os.PathLike[str]) -> bool:
    """Whether a model folder is of ONNX graphs, which answer but are not trained."""
    return (Path(folder) / ONNX_FILE).is_file()


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether ``folder`` was written to its end."""
    return (Path(folder) / MANIFEST).is_file()


def verify_folder(folder: str | os.PathLike[str], *, exact: bool = False) -> None:
    """Hold a folder against its manifest; unless ``exact``, one without it (from another program) passes.

    Args:
        folder: what is held.
        exact: every file must be listed, and the manifest be there; for what we alone write.

    Raises:
        WeightsError: a file is missing, or its content is not what was written; if ``exact``, also no manifest, or a
            file that is not listed.
    """
    folder = Path(folder)
    if not is_complete(folder):
        if exact:
            raise WeightsError(f"{folder}: has no {MANIFEST}, so was not written to its end")
        return
    try:
        files = read_json_file(folder / MANIFEST)["files"]
        for name, entry in files.items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise WeightsError(f"{folder}: its manifest names a file outside the folder: {name!r}")
            if fault := _fault(path, entry):
                raise WeightsError(
                    f"{folder}: {name} is missing or damaged (it differs from the manifest: {fault}). "
                    "Cure: use another checkpoint, or copy the folder again"
                )
        if exact and (extra := sorted(_files(folder).keys() - files.keys())):
            raise WeightsError(
                f"{folder}: {extra[0]} is not in its manifest, as {len(extra)} of its files. Cure: remove them"
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{folder}: its manifest cannot be read ({one_line(error)})") from None


def read_json_file(path: Path) -> Any:
    """What a JSON file of a model folder or checkpoint holds, which nobody has vouched for yet.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file, too large, not UTF-8, not JSON, or nested too deeply.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("expected a file, found something that is none")
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_JSON_BYTES:,} bytes; at most so many are read")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{path.name}: lists or objects are nested too deeply") from None


def _files(folder: Path) -> dict[str, Path]:
    """What a manifest lists: every file and link of ``folder`` by its name within, but the manifest itself."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path != folder / MANIFEST
    }


def _fault(path: Path, entry: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return "not there"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"{size} bytes, not {entry['bytes']}"
    return None if _sha256(path) == entry["sha256"] else "other content"


def _flush(folder: Path) -> None:
    """Wait until every file of ``folder`` is on the disk, and their names."""
    for path in (folder, *folder.rglob("*")):
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_config(folder: Path) -> dict[str, Any]:
    """What a model folder's ``config.json`` says.

    Raises:
        WeightsError: there is no such folder, or no JSON object in its configuration.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such model folder")
    try:
        config = read_json_file(folder / "config.json")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder}: no readable config.json, so not a model folder ({one_line(error)})") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{folder}: config.json is no JSON object, so not a model folder")
    return config


def one_line(error: BaseException) -> str:
    """An error's message in one line of at most 160 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_out_of_reach() -> bool:
    """Whether only what was downloaded before can be used; asked once and briefly, since the library retries long."""
    # Here, since what answers from a folder alone does without the megabytes that they take.
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    address = urlsplit(constants.ENDPOINT)
    if getproxies().get(address.scheme):
        return False
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=3).close()
    except OSError:
        return True
    return False
