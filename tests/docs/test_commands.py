"""The commands in the documents: those of the guides are run with tiny settings, all others held to what there is."""

from __future__ import annotations

import argparse
import ast
import contextlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from pages import PAGES, ROOT, Block, blocks

from embervlm.cli import _parser, main
from embervlm.training.arguments import add_training_flags

RUN = [page for page in PAGES if any(block.is_run for block in blocks(page)) and page.parent == ROOT / "docs"]
CHECKED = [
    pytest.param(command, id=f"{page.stem}: {command[:60]}")
    for page in PAGES
    for block in blocks(page)
    if not block.is_run
    for command in block.commands
]
#: What keeps a command short, appended to it: the last of a flag's values counts.
TINY = {
    "train": "--max_steps 1 --batch_size 2 --num_workers 0 --log_steps 1 --robot_variants 1",
    "data sample": "--scenes 20",
    "evaluate": "--written 2",
}


def run(command: str, model: Path) -> None:
    words = shlex.split(command)
    assert words[0] == "embervlm", f"{command}: in a block that is run only embervlm's own commands may stand"
    for start, more in TINY.items():
        if " ".join(words[1:]).startswith(start):
            words += more.split()
    if words[1] == "train":
        words += ["--init_from", str(model)]
    assert main(words[1:]) == 0, command


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_guide_runs_as_it_stands(
    page: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("embervlm", "collection", "docs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.title:
            file = tmp_path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        elif block.language == "sh":
            for command in block.commands:
                run(command, tiny_folder)
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", CHECKED)
def test_any_other_command_is_one(command: str) -> None:
    program, _, rest = command.partition(" ")
    CHECKS[program](rest)


def _embervlm(rest: str) -> None:
    # A placeholder of a usage line stands for a number where one is expected.
    filled = re.sub(r"\b[NKS]\b", "2", re.sub(r"[\[\]]", "", rest))
    filled = re.sub(r"(--\S+ \w+)\|\S+", r"\1", filled)
    assert _parser().parse_args(shlex.split(filled)).run


def _training(rest: str) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_training_flags(parser)
    parser.parse_args(shlex.split(rest))


def _script(rest: str) -> None:
    words = shlex.split(rest)
    if words[0] == "-c":
        ast.parse(words[1])
        return
    if words[0] == "scripts/train_all.py":
        _training(rest.partition("train_all.py")[2])
        return
    script = ROOT / words[0]
    source = script.read_text(encoding="utf-8")
    for module in re.findall(r"^from (\w+) import", source, re.MULTILINE):
        beside = script.with_name(f"{module}.py")
        source += beside.read_text(encoding="utf-8") if beside.is_file() else ""
    for flag in re.findall(r"--[a-z_]+", rest):
        assert f'"{flag}"' in source, f"{words[0]} has no {flag}"


def _torchrun(rest: str) -> None:
    before, script, after = rest.partition("scripts/train_all.py")
    assert script and before.startswith("--nproc_per_node=")
    _training(after)


def _make(rest: str) -> None:
    assert re.search(rf"^{re.escape(rest.split()[0])}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def _pip(rest: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"(?:embervlm|\.)\[([^]]+)]", rest):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for word in re.findall(r"--constraint (\S+)", rest):
        assert (ROOT / word).is_file()


def _files(rest: str) -> None:
    for word in re.split(r"[ =]", rest):
        if "/" in word and not word.startswith(("you/", "outputs/")):
            assert (ROOT / word).exists(), word


def _curl(rest: str) -> None:
    """Run by tests/serving/test_docs.py, against a server."""
    for word in re.findall(r"image=@(\S+)", rest):
        assert (ROOT / word).is_file()


CHECKS = {
    "embervlm": _embervlm,
    "torchrun": _torchrun,
    "python": _script,
    "make": _make,
    "pip": _pip,
    "curl": _curl,
    "pytest": _files,
    "hf": _files,
    "jupyter": _files,
    "tensorboard": _files,
    "lmms-eval": _files,
}


def test_the_checks_refuse_what_is_not_there() -> None:
    assert len(RUN) >= 4 and len(CHECKED) >= 30
    for wrong in (
        lambda: _make("demon"),
        lambda: _pip('install "embervlm[everything]"'),
        lambda: _script("benchmarks/photographs.py --nothing"),
        lambda: _files("docs/notebooks/last_steps.ipynb"),
    ):
        with pytest.raises(AssertionError):
            wrong()
    for usage in (lambda: _embervlm("select --pictures DIR"), lambda: _training("--output_dir out --robot_dat x")):
        with pytest.raises((SystemExit, argparse.ArgumentError)), contextlib.redirect_stderr(None):
            usage()
    assert list(Block("", "", "$ A=1 embervlm x \\\n  --y  # why\nnothing\n").commands) == ["embervlm x    --y"]


def test_titled_blocks_are_what_they_are_called() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.title.endswith(".yaml"):
                assert yaml.safe_load(block.text)
