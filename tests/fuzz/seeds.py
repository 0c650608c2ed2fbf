"""What the fuzzer starts from: small inputs of each target, made here and taken from the outside data if there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from made_pictures import bomb, picture

from embervlm.fleet import Fleet

#: Longer ones of the outside data are cut there or left out: what is short is tried often.
MAX_SEED_BYTES = 8_192

TASKS = (
    "Inspect the pipe for cracks, then carry the box to the gate.",
    '<|robot_selection|><|image|> {} \u200b\u202e\ud83e\udd16 検 é \x00 \\ "',
    "",
    "word " * 399,
)
FLEET = """robots:
  - {name: Crane, capabilities: [lifts], limitations: [], environments: [yard], count: 2, payload_kg: 15.5, urdf: a}
  - name: Mole
    capabilities: [digs, "finds pipes"]
    limitations: [slow]
    environments: [soil]
    same_as: Drone
    overlaps: [Crane]
    outdoes: [Crane]
"""
JSON_TEXTS = (
    '[{"id": 1, "image_id": 1, "caption": "A cat."}, {"id": 2, "image_id": "a", "caption": null}]',
    '{"1": {"id": 1, "caption": "\\u00e9\\ud83e\\udd16"}, "2": {"image_id": 1.5e300}}',
    '{"info": {}, "images": [{"id": 84284, "file_name": "000000084284.jpg"}], "annotations": '
    '[{"id": 1, "image_id": 84284, "caption": "A cat."}]}',
    '{"image": "a.jpg", "caption": "A pump room."}\n{"image": "a.jpg", "question": "Open?", "answer": "no", "id": 2}\n',
    '{"image": "a.jpg", "turns": [{"question": "What is this?", "answer": "A pump."}]}\n',
    '{"task": "Look.", "robots": ["Drone"], "leader": "Drone", "image": "a.jpg", "family": "f", "voice": "v"}\n',
    '{"task": "Look, then dig.", "robots": ["Drone", "Humanoid"], "plan": [{"order": 1, "robot": "Drone", "subtask":'
    ' "Look."}], "reasoning": {"requirements": "looking", "environment": "a field", "capabilities": ["fastest"]}}\n',
    '[{"instruction": "Robots:", "input": "Task: Look.", "output": "Drone"}]',
    '[{"instruction": "", "input": "Look.", "subtasks": [{"robot": "Drone", "subtask": "Look.", "order": 1}]}]',
    '{"task": "Look.", "image": "a.jpg"}\n{"task": "Dig."}\n',
    '{"temperature": 1.5, "member_threshold": 0.5, "samples": 3, "fleet": "", "set_thresholds": [], "with_picture":'
    ' {"temperature": 1, "member_threshold": 0, "samples": 0}}',
    '{"files": {"model.safetensors": {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b'
    '7852b855"}, "../x": {"bytes": 1, "sha256": ""}}}',
    '{"version": 1, "parameter_groups": [{"lr": 0.1, "betas": [0.9, 0.98]}], "scheduler": {}, "scaler": null,'
    ' "numbers": {}}',
    '{"stage": 1}',
    "[" * 3_000 + "]" * 3_000,
)


def images(outside: Path | None) -> Iterator[bytes]:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        yield picture(12, 9, kind)
    yield bomb(3_000, 3_000)
    if outside is not None:
        yield from _small(outside / "hostile" / "images", "*")


def fleets(outside: Path | None) -> Iterator[bytes]:
    yield FLEET.encode()
    yield json.dumps(Fleet.default().to_dict()).encode()
    yield b"robots: &a [*a]"


def json_files(outside: Path | None) -> Iterator[bytes]:
    texts = [text.encode() for text in JSON_TEXTS]
    if outside is not None:
        texts += _small(outside / "hostile" / "json" / "test_parsing", "*.json")
        texts += (path.read_bytes()[:MAX_SEED_BYTES] for path in sorted((outside / "fixtures").rglob("*.json*")))
    for number, text in enumerate(texts):
        for reader in range(16) if number < len(JSON_TEXTS) else (number % 16, 7, 8):
            yield bytes([reader]) + text


def select(outside: Path | None) -> Iterator[bytes]:
    pictures = [picture(12, 9), picture(3, 3, "GIF"), b"no picture"]
    heads = (
        {},
        {"top_n": 2, "reason": False, "top-n": 2, "no-reason": True, "json": True},
        {"coverage": 0.9},
        {"plan-format": "behaviortree"},
        {"form": True, "top_n": "3", "coverage": "", "fleet": '{"robots": []}'},
    )
    for by in range(3):
        for number, head in enumerate(heads):
            for place, task in enumerate(TASKS):
                parts = [json.dumps({"by": by} | head).encode() + b"\n" + task.encode("utf-8", "surrogatepass")]
                if (number + place) % 2:
                    parts += [FLEET.encode() if place % 2 else b"", pictures[number % len(pictures)]]
                yield b"\n=====\n".join(parts)
    yield b'{"by": 1, "tasks": true}\n{"task": "Look.", "image": "picture.png"}\n\n=====\n\n=====\n' + pictures[0]


def folders(model: Path) -> Iterator[bytes]:
    for name in ("config.json", "tokenizer_config.json"):
        yield name.encode() + b"\n" + (model / name).read_bytes()
        yield name.encode() + b"\n" + json.dumps(json.loads((model / name).read_bytes())).encode()


def _small(folder: Path, pattern: str) -> Iterator[bytes]:
    for path in sorted(folder.rglob(pattern)):
        if path.is_file() and path.stat().st_size <= MAX_SEED_BYTES:
            yield path.read_bytes()
