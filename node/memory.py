"""Memory that a busy process has used once is kept for the next array, slice and job."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_TOP_PAD: Final = -2
M_MMAP_THRESHOLD: Final = -3
"""Parameters of glibc's mallopt(3)."""
MIB: Final = 1 << 20
KEPT: Final[dict[int, int]] = {
    M_MMAP_THRESHOLD: 32 * MIB,  # the most that glibc takes: whole volumes still go back at once
    M_TRIM_THRESHOLD: 256 * MIB,
    M_TOP_PAD: 16 * MIB,
}


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, up to 256 MiB, and not ask the kernel for the pages of every slice anew.

    False, and nothing done, where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(which, count) for which, count in KEPT.items())
