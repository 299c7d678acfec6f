"""Becomes another command, at the lowest priority, that ends with the process that started it.

``python -m node.background COMMAND…``: nice 19 (nice(1)), idle disk priority where ``ionice`` is there, and
on Linux SIGTERM when the parent is gone, so that nothing works on behind a node that was killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Sequence

LOWEST = 19
SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2); it outlives execve(2)."""


def become(command: Sequence[str]) -> None:
    """Replace this process by ``command``; returns only if that fails, by OSError."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    os.nice(LOWEST)
    ionice = shutil.which("ionice")
    words = [ionice, "-c", "3", *command] if ionice else list(command)
    os.execvp(words[0], words)


if __name__ == "__main__":
    become(sys.argv[1:])
