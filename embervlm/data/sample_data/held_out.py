"""Tasks about rendered scenes in memory, worded as no training task is: what a model can be asked without any files."""

from __future__ import annotations

import numpy as np
from PIL import Image

from embervlm.data.sample_data.render import render
from embervlm.data.sample_data.scenes import build_scene
from embervlm.data.sample_data.tasks import draw_kinds, make_records

#: Apart from the seeds of the scenes that are written to files.
_STREAM = 91
_SIZE = 224


def held_out_tasks(scenes: int, seed: int) -> list[tuple[str, Image.Image, str]]:
    """Tasks, each with its picture and the robot of the default fleet that leads it; four or five a scene.

    Args:
        scenes: how many are rendered.
        seed: of everything random.
    """
    kinds = draw_kinds(scenes, np.random.default_rng([seed, _STREAM]))
    pictures = []
    for index, kind in enumerate(kinds):
        rng = np.random.default_rng([seed, _STREAM, index])
        pictures.append(Image.fromarray(render(build_scene(kind, rng).picture, _SIZE, rng)))
    records = make_records(kinds, seed + _STREAM, held_out=True)
    return [(record.task, pictures[record.scene], record.leader) for record in records]
