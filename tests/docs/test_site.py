"""The site is built strictly, so that no link leads nowhere, and none of its pages loads anything from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)


class Loads(HTMLParser):
    """What a page makes a browser load: all but links that one follows."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attributes if name in ("src", "srcset", "data", "poster")]
        if tag == "link":
            self.loaded += [value or "" for name, value in attributes if name == "href"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    built = {path.stem for path in site.glob("*.html")}
    assert pages | {"collection", "collection-robots", "commands"} <= built
    assert all(flag in (site / "commands.html").read_text() for flag in ("--stage1_data", "--coverage", "--slots"))
    assert 'href="collection.html"' in (site / "data.html").read_text()
    assert (site / "notebooks" / "first_steps.ipynb").is_file()
    reference = (site / "reference.html").read_text()
    for name in ("selection.RobotSelector.select", "fleet.Fleet.from_yaml", "training.arguments.RunSettings"):
        assert f'id="embervlm.{name}"' in reference
    assert ":meth:" not in reference and "Select the robots for one task." in reference


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    checked = 0
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert not [each for each in loads.loaded if OUTSIDE.match(each)], page.name
        checked += len(loads.loaded)
    assert checked > 50
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", text), style.name
