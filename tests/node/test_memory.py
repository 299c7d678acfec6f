"""What glibc keeps of freed memory and what it gives back, seen in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

RESIDENT = """
import sys
import threading
from pathlib import Path
import numpy as np
from node.memory import give_back_freed_memory, keep_freed_memory, share_freed_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
"""

KEEPS = """
assert not int(sys.argv[1]) or keep_freed_memory()
empty = resident_mib()
held = [np.ones(1 << 20, np.uint8) for _ in range(100)]
full = resident_mib()
del held
print(full - empty, resident_mib() - empty)
"""


SHARES = """
assert share_freed_memory()
before = resident_mib()
ready, held = threading.Barrier(9), []

def fill():
    ready.wait()
    held.append([bytearray(1000) for _ in range(8000)])

threads = [threading.Thread(target=fill) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait()
for thread in threads:
    thread.join()
full = resident_mib()
last = [rows.pop() for rows in held]
held.clear()
assert give_back_freed_memory()
print(full - before, resident_mib() - before)
"""


def in_a_process(program: str, *arguments: str) -> tuple[int, int]:
    """What it printed: MiB gained while memory was in use, and when it was freed."""
    command = [sys.executable, "-c", RESIDENT + program, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    used, left = (int(word) for word in done.stdout.split())
    return used, left


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")


@pytest.mark.parametrize("keeps", [True, False])
def test_freed_memory_is_kept_where_that_is_asked_for(keeps: bool) -> None:
    used, left = in_a_process(KEEPS, str(int(keeps)))
    assert 90 <= used <= 120
    assert left >= 90 if keeps else left <= 10


def test_free_memory_of_many_threads_is_given_back() -> None:
    used, left = in_a_process(SHARES)
    assert used >= 60
    assert left <= 10
