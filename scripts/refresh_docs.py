"""Ask again what the documents show: make each call in a block with a prompt (``$ embervlm``, ``$ curl``), and write
its answer below it. For after a change of the model in the box; ``git diff`` then shows what became of the answers.

A call whose model, picture or data are not there keeps its answer, and is named.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "http://127.0.0.1:8000"
_CALL = re.compile(r"(?<=^```\n\$ )((?:embervlm|curl) (?:[^\n]*\\\n)*[^\n]*\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)


def refreshed(text: str, answer: Callable[[list[str]], str | None]) -> str:
    """A document's text with its answers taken anew.

    Args:
        text: the document.
        answer: gives the answer to a call's words, or None to leave what is there.
    """

    def again(found: re.Match[str]) -> str:
        new = answer(shlex.split(found[1].replace("\\\n", " ")))
        return found[1] + (found[2] if new is None else new.rstrip() + "\n")

    return _CALL.sub(again, text)


@contextmanager
def server() -> Iterator[str]:
    """A server with the model in the box on a free port: its address."""
    command = [sys.executable, "-m", "embervlm.cli", "serve", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    try:
        address = next((found[0] for line in process.stderr if (found := re.search(r"http://[\d.]+:\d+", line))), None)
        if address is None:
            raise RuntimeError("the server has not started; try: embervlm serve")
        yield address
    finally:
        process.terminate()
        process.communicate()


def made(words: list[str], address: str) -> str | None:
    """The answer to a call; None where what it asks about is not there."""
    for word in words[1:]:
        path = word.partition("=@")[2] or word
        if "/" in path and "://" not in path and " " not in path and not (ROOT / path).exists():
            print(f"left as it is, for {path} is not there: {shlex.join(words)}", file=sys.stderr)
            return None
    if words[0] == "curl":
        command = [word.replace(ADDRESS, address) for word in words]
        subprocess.run(
            [
                "curl",
                "-sf",
                "--retry",
                "60",
                "--retry-delay",
                "1",
                "--retry-all-errors",
                "-o",
                os.devnull,
                f"{address}/readyz",
            ],
            check=True,
        )
    else:
        command = [sys.executable, "-m", "embervlm.cli", *words[1:]]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False).stdout


def main() -> int:
    """Take all answers anew."""
    with server() as address:
        for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
            text = file.read_text(encoding="utf-8")
            new = refreshed(text, lambda words: made(words, address))
            if new != text:
                file.write_text(new, encoding="utf-8")
                print(file.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
