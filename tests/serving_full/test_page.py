"""The page in Debian's Chromium: from picture to plan, errors, another fleet, phone width, accessibility."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served

playwright = pytest.importorskip("playwright.sync_api", reason="install the extra 'test-serve'")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, served: Served, request: pytest.FixtureRequest) -> Iterator[Any]:
    options = {"viewport": {"width": 1240, "height": 900}} | getattr(request, "param", {})
    with browser.new_context(**options) as context:
        opened, said = context.new_page(), []
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on(
            "request", lambda asked: said.append(asked.url) if not asked.url.startswith((served.url, "blob:")) else None
        )
        opened.goto(served.url)
        opened.locator(".sample img").first.wait_for()
        opened.locator(".robot").first.wait_for()
        yield opened
        # Nothing failed and nothing was asked of anybody else.
        assert said == []


def ask(page: Any, count: int = 1) -> None:
    page.get_by_role("button", name="Whom to send?").click()
    page.locator("#history li").nth(count - 1).wait_for(timeout=30_000)


def test_from_picture_to_plan(page: Any) -> None:
    page.get_by_role("button", name="Power line").click()
    page.locator("#preview").wait_for()
    started = time.perf_counter()
    ask(page)
    print(f"first picture to answer: {1000 * (time.perf_counter() - started):.0f} ms")
    assert page.locator("#verdict strong").inner_text()
    assert page.locator("#ranking li").count() == 5 and page.locator("#ranking .sent").count() >= 1
    assert "leads" in page.locator("#reasoning dd").nth(3).inner_text()
    assert page.locator("#plan svg").get_attribute("aria-label").startswith("Plan: 1. ")
    assert page.locator("#status").inner_text().startswith(("Done", "Not sure"))
    page.get_by_role("button", name="Kitchen").click()
    page.locator("#task").fill("Put the cups away")
    page.locator("#task").press("Control+Enter")
    page.locator("#history li").nth(1).wait_for(timeout=30_000)
    page.locator("#history button").nth(1).click()
    assert page.locator("#task").input_value().startswith("Check the insulators")


def test_a_file_and_the_keyboard_alone(page: Any, tmp_path: Path) -> None:
    from made_pictures import picture

    (tmp_path / "scene.png").write_bytes(picture(64, 64))
    page.locator("#file").set_input_files(tmp_path / "scene.png")
    page.locator("#preview").wait_for()
    page.locator("#task").focus()
    page.keyboard.type("Film the roof")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#history li").first.wait_for(timeout=30_000)


def test_errors_are_said_where_they_are(page: Any, tmp_path: Path) -> None:
    page.get_by_role("button", name="Whom to send?").click()
    assert page.locator("#task-error").inner_text() == "Say in a sentence what is to be done."
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    page.locator("#file").set_input_files(tmp_path / "broken.png")
    page.locator("#task").fill("Film the roof")
    page.get_by_role("button", name="Whom to send?").click()
    page.locator("#failure").wait_for()
    assert "not a picture that can be read" in page.locator("#failure").inner_text()
    page.get_by_role("button", name="No picture").click()
    ask(page)
    assert not page.locator("#failure").is_visible()


def test_taking_a_robot_out_changes_the_choice(page: Any) -> None:
    page.get_by_role("button", name="Power line").click()
    page.locator("#preview").wait_for()
    ask(page)
    leader = page.locator("#ranking .name").first.inner_text().split("\n")[0].removesuffix("leads").strip()
    page.get_by_role("checkbox", name=leader).uncheck()
    page.locator("#history li").nth(1).wait_for(timeout=30_000)
    assert page.locator("#ranking li").count() == 4
    assert leader not in page.locator("#ranking").inner_text()
    page.get_by_role("button", name="Back to the server's fleet").click()
    page.locator("#history li").nth(2).wait_for(timeout=30_000)
    assert leader in page.locator("#ranking").inner_text()


@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}}], indirect=True)
def test_phone_width(page: Any) -> None:
    page.get_by_role("button", name="Harbour").click()
    page.locator("#preview").wait_for()
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which brings axe-core")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"axe-core cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}],
    ids=["light", "dark", "phone"],
    indirect=True,
)
def test_the_accessibility_scan_finds_nothing(page: Any, axe: str) -> None:
    page.get_by_role("button", name="Harbour").click()
    page.locator("#preview").wait_for()
    ask(page)
    page.locator("summary").first.click()
    page.evaluate(axe)
    page.wait_for_timeout(600)
    found = page.evaluate(
        "async () => (await axe.run()).violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html).join(' | '))"
    )
    assert found == []
