"""What works in the background has the lowest priority and does not outlive the node."""

import os
import subprocess
import sys
import time

import pytest

from node.background import LOWEST

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "node.background", sys.executable, "-c", sys.argv[1]])
time.sleep(600)
"""
CHILD = "import os, time; print(os.getpid(), os.nice(0), flush=True); time.sleep(600)"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
def test_it_is_nice_and_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, nice = map(int, parent.stdout.readline().split())
        assert nice == LOWEST
        parent.kill()
    end = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_command_that_is_not_there_is_an_error():
    done = subprocess.run(
        [sys.executable, "-m", "node.background", "no-such-command"],
        capture_output=True, text=True, check=False, env=os.environ | {"PATH": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "FileNotFoundError" in done.stderr
