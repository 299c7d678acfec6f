"""What glibc keeps of freed memory, seen in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from node.memory import keep_freed_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

assert not int(sys.argv[1]) or keep_freed_memory()
empty = resident_mib()
held = [np.ones(1 << 20, np.uint8) for _ in range(100)]
full = resident_mib()
del held
print(full - empty, resident_mib() - empty)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize("keeps", [True, False])
def test_freed_memory_is_kept_where_that_is_asked_for(keeps: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(keeps))], check=True, capture_output=True, text=True
    )
    used, left = (int(word) for word in done.stdout.split())
    assert 90 <= used <= 120
    assert left >= 90 if keeps else left <= 10
