"""The last step of `make demo`: one task is put to the trained model in two held-out scenes; the picture decides."""

import json
import subprocess
import sys
from pathlib import Path


def main(model: str, data: Path) -> int:
    """Find a text that occurs with two pictures and two right robots, and select for both."""
    records = json.loads((data / "single_robot_selection.json").read_text(encoding="utf-8"))
    first: dict[str, dict[str, str]] = {}
    for record in records:
        other = first.setdefault(record["input"], record)
        if other["output"] != record["output"]:
            for shown in (other, record):
                task = shown["input"].removeprefix("Task:").strip()
                image = data / shown["image"]
                print(f'$ embervlm select --model {model} --task "{task}" --image {image}', flush=True)
                command = ["-m", "embervlm.cli", "select", "--model", model, "--task", task, "--image", str(image)]
                subprocess.run([sys.executable, *command], check=True)
                print(f"(right: {shown['output']})\n", flush=True)
            return 0
    print("every text of the held-out tasks has one right robot", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
