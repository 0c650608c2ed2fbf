"""What the site's builder does beside Markdown: cards that lie outside of docs/, the icon and the commands' help become
part of the site.
"""

import contextlib
import io
import os
import re
from typing import Any

from mkdocs.structure.files import File

from embervlm.cli import main

#: Pages of the site that lie elsewhere in the repository, by the name that they get.
PAGES = {"collection.md": "collection/README.md", "collection-robots.md": "collection/robots/README.md"}
COMMANDS = (
    "train",
    "select",
    "evaluate",
    "data sample",
    "data robots",
    "data report",
    "serve",
    "mcp",
    "export",
    "doctor",
)
_BY_PATH = {path: name for name, path in PAGES.items()}
_ROLE = re.compile(r":(?:meth|func|class|mod|attr):(?=<code>)")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the cards and the commands' help to the pages, and the icon that the server's page has."""
    files.append(File.generated(config, "commands.md", content=_commands()))
    files.append(File.generated(config, "icon.svg", abs_src_path="embervlm/serving/page/icon.svg"))
    for name in PAGES:
        files.append(File.generated(config, name, content=_card(name)))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Let links out of docs/ to a card lead to its page."""
    if page.file.src_uri in PAGES:
        return markdown
    return _LINK.sub(lambda found: f"]({_BY_PATH.get(found[1].removeprefix('../'), found[1])}", markdown)


def on_page_content(html: str, **others: Any) -> str:
    """Show Sphinx's roles, which docstrings have, as the code that they name."""
    return _ROLE.sub("", html)


def _commands() -> str:
    """The help of every command, as the command prints it."""
    os.environ["COLUMNS"] = "100"  # which argparse asks for the width
    parts = ["# Commands\n\nExit 0 on success, 1 on a failed check or run, 2 on bad usage; errors in one line.\n"]
    for command in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
        parts.append(f"\n## embervlm {command}\n\n```text\n{shown.getvalue().rstrip()}\n```\n")
    return "".join(parts)


def _card(name: str) -> str:
    """A card's text, its links those of the site."""
    path = PAGES[name]
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 -- the builder runs in the repository's root
        text = file.read()

    def moved(found: re.Match[str]) -> str:
        parts = path.split("/")[:-1]
        for part in found[1].split("/"):
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        target = "/".join(parts)
        return f"]({_BY_PATH.get(target, target.removeprefix('docs/'))}"

    return _LINK.sub(moved, text)
