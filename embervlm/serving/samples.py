"""The sample scenes of the page: which they are, and how their files in ``page/samples`` are made.

``python -m embervlm.serving.samples`` renders them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embervlm.data.sample_data.render import encode_jpeg, render
from embervlm.data.sample_data.scenes import build_scene

PAGE = Path(__file__).with_name("page")
FOLDER = PAGE / "samples"
SIZE = 288


@dataclass(frozen=True)
class Sample:
    """A scene to try: its file's name, its kind in the sample data, what it shows, and a task for it."""

    name: str
    kind: str
    seed: int
    title: str
    task: str


SAMPLES = (
    Sample("warehouse", "warehouse", 3, "Warehouse aisle", "Take this box of screws to the packing bench, quickly."),
    Sample("pipeline", "underwater_pipeline", 1, "Pipeline on the seabed", "Look along the pipe for cracks and leaks."),
    Sample("power-line", "power_line", 2, "Power line", "Check the insulators at the top of the mast."),
    Sample("kitchen", "kitchen", 4, "Kitchen", "Put the cups into the cabinet and wipe the table."),
    Sample("rubble", "rubble", 2, "Collapsed building", "Climb over the rubble and look for people who call for help."),
    Sample("harbour", "harbour", 5, "Harbour", "Film the quay from above, then inspect the piles under water."),
)


def render_sample(sample: Sample) -> bytes:
    """A scene's JPEG file; the same bytes whenever the same libraries make it."""
    rng = np.random.default_rng(sample.seed)
    return encode_jpeg(render(build_scene(sample.kind, rng).picture, SIZE, rng), 82)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for each in SAMPLES:
        (FOLDER / f"{each.name}.jpg").write_bytes(render_sample(each))
