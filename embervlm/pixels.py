"""A picture as the numbers that the vision encoder reads; the one way to them for training, selection and the edge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_pixels(
    image: Image.Image,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> NDArray[np.float32]:
    """A picture resized, scaled to 0..1 and normalised per channel: (3, height, width).

    Args:
        image: of any mode.
        size: width and height.
        mean, std: per channel, of the scaled values.
        resample: how it is resized.
    """
    if image.size != size:
        image = image.resize(size, resample)
    # Channel by channel in place, which is ten times as fast as height by width by 3.
    pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= np.float32(255)
    pixels -= np.array(mean, np.float32)[:, None, None]
    pixels /= np.array(std, np.float32)[:, None, None]
    return pixels
