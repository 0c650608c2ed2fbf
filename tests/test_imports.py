"""The house's one rule of construction: imports go downward only, and the package itself loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "embervlm"

#: Highest first. A module may import from its own layer's part and from lower layers.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli", "doctor", "scripts"),
    ("training", "serving", "export"),
    ("evaluation", "behaviour_tree", "harness"),
    ("selection",),
    ("data", "runtime"),
    ("preflight",),
    ("model",),
    ("prompts", "folders"),
    ("tokens", "fleet", "words", "pixels", "clauses"),
)
HEIGHT = {part: len(LAYERS) - place for place, layer in enumerate(LAYERS) for part in layer}
#: The package's own names, such as its version, which any part may use.
PUBLIC = "__init__"
#: Within the top layer: the command line runs the doctor, and the scripts run the command line.
BESIDE = {("cli", "doctor"), ("scripts", "cli")}


def part_of(module: str) -> str:
    """``embervlm.data.images`` -> ``data``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else PUBLIC


def imported_parts(source: str, package: tuple[str, ...] = ("embervlm",)) -> set[str]:
    """The parts of ours that a file of ``package`` imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {part_of(name.name) for name in node.names if name.name.split(".")[0] == "embervlm"}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if module == "embervlm":
                found |= {name.name if name.name in HEIGHT else PUBLIC for name in node.names}
            elif module.split(".")[0] == "embervlm":
                found.add(part_of(module))
    return found


def violations(part: str, imported: set[str]) -> list[str]:
    """Which imports of a part go up or sideways."""
    wrong = []
    for other in sorted(imported - {part}):
        if other == PUBLIC or (part, other) in BESIDE:
            continue
        if HEIGHT[other] >= HEIGHT[part]:
            wrong.append(f"{part} imports {other}")
    return wrong


def files() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")])


@pytest.mark.parametrize("file", files(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_go_downward(file: Path) -> None:
    relative = file.relative_to(ROOT)
    part = "scripts" if relative.parts[0] == "scripts" else relative.with_suffix("").parts[1]
    imported = imported_parts(file.read_text(encoding="utf-8"), relative.parent.parts)
    if part == PUBLIC:
        assert imported <= {"fleet", "selection"}
        return
    assert part in HEIGHT, f"{relative}: give its layer a place in LAYERS"
    assert violations(part, imported) == []


def test_the_rule_sees_what_it_forbids() -> None:
    assert violations("tokens", imported_parts("def f():\n    from embervlm.model import weights")) == [
        "tokens imports model"
    ]
    assert violations("evaluation", imported_parts("import embervlm.training.engine")) == [
        "evaluation imports training"
    ]
    assert violations("fleet", imported_parts("from embervlm import tokens")) == ["fleet imports tokens"]
    inner = ("embervlm", "data", "formats")
    assert imported_parts("from . import a\nfrom ..images import b\nfrom ...model import c", inner) == {"data", "model"}
    assert violations("cli", imported_parts("from embervlm import __version__\nimport json")) == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, embervlm; from embervlm import Fleet; Fleet.default(); import embervlm.cli;"
        "print(*sorted({'torch', 'transformers', 'accelerate', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_a_mistyped_flag_of_training_waits_for_nothing_heavy() -> None:
    code = (
        "import sys, embervlm.training.arguments;"
        "print(*sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_the_public_names() -> None:
    import embervlm
    from embervlm import RobotSelector, Selection
    from embervlm.selection import RobotSelector as Own

    assert RobotSelector is Own and Selection.__name__ == "Selection"
    assert set(embervlm.__all__) == {"Fleet", "Robot", "RobotSelector", "Selection", "__version__"}
    with pytest.raises(AttributeError, match="module 'embervlm' has no attribute 'Robots'"):
        _ = embervlm.Robots
