"""What the processes do that ``data.py index`` measures: the plain way to read annotation files, and the package's.

Each call prints one JSON object. Nothing is imported before it is needed, since the imports' memory is measured too.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def plain(data: Path, stage: int) -> dict[str, Any]:
    """Parse whole files with ``json.load`` and build a list of dicts, with no checks and no picture looked for."""
    from official_files import CAPTIONS, GQA, LLAVA, VQA_ANNOTATIONS, VQA_QUESTIONS

    rows: list[dict[str, Any]] = []
    parts: dict[str, dict[str, float]] = {}

    def load(name: str) -> Any:
        with (data / name).open(encoding="utf-8") as file:
            return json.load(file)

    def done(dataset: str, started: float, before: int) -> None:
        parts[dataset] = {"records": len(rows) - before, "seconds": time.perf_counter() - started}

    begun = started = time.perf_counter()
    busy = time.process_time()
    if stage == 2:
        for record in load(LLAVA):
            texts = [message["value"] for message in record["conversations"]]
            rows.append(
                {"question": texts[::2], "answer": texts[1::2], "image": record["image"], "id": record["id"]},
            )
        done("llava", started, 0)
        return {**_spent(begun, busy), "records": len(rows), "parts": parts}

    document = load(CAPTIONS)
    names = {image["id"]: image["file_name"] for image in document["images"]}
    for caption in document["annotations"]:
        image = names[caption["image_id"]]
        rows.append({"question": "", "answer": caption["caption"], "image": image, "id": caption["id"]})
    del document, names
    done("coco_captions", started, 0)

    started, before = time.perf_counter(), len(rows)
    for part in ("train", "val"):
        annotations = load(VQA_ANNOTATIONS.format(part))["annotations"]
        answers = {each["question_id"]: each["multiple_choice_answer"] for each in annotations}
        for each in load(VQA_QUESTIONS.format(part))["questions"]:
            image = f"COCO_{part}2014_{each['image_id']:012}.jpg"
            number = each["question_id"]
            rows.append({"question": each["question"], "answer": answers[number], "image": image, "id": number})
        del annotations, answers
    done("vqa_v2", started, before)

    started, before = time.perf_counter(), len(rows)
    for key, each in load(GQA).items():
        image = f"{each['imageId']}.jpg"
        rows.append({"question": each["question"], "answer": each["answer"], "image": image, "id": key})
    done("gqa", started, before)
    return {**_spent(begun, busy), "records": len(rows), "parts": parts}


def ours(data: Path, stage: int) -> dict[str, Any]:
    """What the training command does for ``stage``; whether from files or from a cache, the environment decides."""
    begun = time.perf_counter()
    from embervlm.data.loaders import load_base

    started, busy = time.perf_counter(), time.process_time()
    if stage == 1:
        loaded = load_base(data, 1, seed=0)
    else:
        loaded = load_base(data / "llava", 2, extra_image_roots=[data], seed=0)
    spent = _spent(started, busy)
    first, last = loaded.train[0], loaded.train[len(loaded.train) - 1]
    return {
        **spent,
        "import_seconds": started - begun,
        "records": sum(row.records for row in loaded.report),
        "parts": {row.dataset: {"records": row.records} for row in loaded.report},
        "train": len(loaded.train),
        "validation": len(loaded.validation),
        "first_and_last": [first.id, last.id],
    }


def _spent(started: float, busy: float) -> dict[str, float]:
    """Wall time since ``started`` and, less moved by what else the machine does, processor time since ``busy``."""
    return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy}


def imports() -> dict[str, Any]:
    """Only what any way of reading has to import."""
    import msgspec
    import pyarrow

    import embervlm.data.loaders

    return {"imported": [module.__name__ for module in (pyarrow, msgspec, embervlm.data.loaders)]}


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    if task == "imports":
        found = imports()
    else:
        found = {"plain": plain, "ours": ours}[task](Path(arguments[0]), int(arguments[1]))
    sys.stdout.write(json.dumps(found) + "\n")
