"""Runs the targets under atheris, which follows what of the package each input reaches and changes inputs by that.

    python tests/fuzz/fuzz.py WORK MODEL [--seconds N] [--outside DIR] [--only TARGET] [--input FILE]

Each target runs in a process of its own, forked when everything is imported. What it starts with lies in
WORK/TARGET/corpus, and a faulty input in WORK/TARGET/fault-*; ``--only TARGET --input FILE`` runs that input alone.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As the command sets them; nothing is asked of a hub.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
# Pictures that other tests make too.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["embervlm", "PIL", "yaml"]):
    import targets
    from PIL import Image

    Image.init()  # imports its readers, which otherwise come with the first picture

import seeds

#: How many inputs a short run tries, those that it starts with among them, and how many bytes one may have.
TARGETS = {
    "images": (2_000, 8_192),
    "fleets": (400, 2_048),
    "json_files": (600, 8_192),
    "select": (100, 4_096),
    "folders": (30, 4_096),
}
#: What an input may take beside the libraries: the largest picture that is decoded, three times over.
MEMORY_MB = 2_048
INPUT_SECONDS = 60
#: What JSON, YAML and the inputs' parts are made of, as libFuzzer reads it.
WORDS = Path(__file__).with_name("words.dict")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("model", type=Path, help="of a tiny model")
    parser.add_argument("--seconds", type=int, default=0, help="of each target; a short run without it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--outside", type=Path, help="the outside test data, to start from too")
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--input", type=Path)
    options = parser.parse_args()
    logging.disable()
    failed = 0
    for name in TARGETS if options.only is None else [options.only]:
        print(f"target {name}", file=sys.stderr, flush=True)
        if (child := os.fork()) == 0:
            fuzz(name, options)
        failed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    return failed


def fuzz(name: str, options: argparse.Namespace) -> None:
    """Run one target, and end the process."""
    work = options.work / name
    corpus = work / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    given = {"outside": options.outside, "model": options.model, "work": work}

    def call(function: Callable[..., Any]) -> Any:
        return function(*(given[parameter] for parameter in inspect.signature(function).parameters))

    for number, seed in enumerate(call(getattr(seeds, name))):
        (corpus / f"{number:05}").write_bytes(seed)
    runs, length = TARGETS[name]
    until = f"-max_total_time={options.seconds}" if options.seconds else f"-runs={runs}"
    limits = [f"-max_len={length}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={INPUT_SECONDS}"]
    flags = [f"-seed={options.seed}", f"-dict={WORDS}", f"-artifact_prefix={work}/fault-", "-print_final_stats=1"]
    inputs = [until, str(corpus)] if options.input is None else [str(options.input)]
    atheris.Setup([sys.argv[0], *flags, *limits, *inputs], call(getattr(targets, name)))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
