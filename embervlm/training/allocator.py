"""How a training process gets its memory on a CPU; the pipeline settles it before the first tensor of a step."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, for the next tensor.

    It otherwise maps every large tensor anew and gives it back, so that each step has the system clear hundreds of
    megabytes page by page, which takes about as long as working on them.

    Returns:
        whether this process uses an allocator that can be told so.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
