"""Freed memory: a busy process keeps it for the next array, slice and job; one that waits gives it back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_TOP_PAD: Final = -2
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8
"""Parameters of glibc's mallopt(3)."""
MIB: Final = 1 << 20
KEPT: Final[dict[int, int]] = {
    M_MMAP_THRESHOLD: 32 * MIB,  # the most that glibc takes: whole volumes still go back at once
    M_TRIM_THRESHOLD: 256 * MIB,
    M_TOP_PAD: 16 * MIB,
}
SHARED: Final[dict[int, int]] = {M_ARENA_MAX: 2}
"""Arenas for all threads: with one for each of eight a core, every one keeps pages of its own for ever."""


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, up to 256 MiB, and not ask the kernel for the pages of every slice anew.

    False, and nothing done, where the C library is another one.
    """
    return _set(KEPT)


def share_freed_memory() -> bool:
    """Have all threads that begin from now on take from the same memory what others have freed.

    False, and nothing done, where the C library is another one.
    """
    return _set(SHARED)


def give_back_freed_memory() -> bool:
    """Give every page that holds nothing back to the kernel, malloc_trim(3), a few milliseconds of work.

    False where there was none, or where the C library is another one.
    """
    trim = _of_glibc("malloc_trim")
    return trim is not None and bool(trim(ctypes.c_size_t(0)))


def _set(parameters: dict[int, int]) -> bool:
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and all(mallopt(which, count) for which, count in parameters.items())


def _of_glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
