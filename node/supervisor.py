"""Keeps a worker process alive, and knows whether the owner of a lease still is.

A worker is a child process, so a crash in a model's runtime costs one attempt at one job and not the node. It
gets its settings as one line on standard input; that pipe stays open, and its end means the node is gone.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Final

import structlog

from config.settings import Settings
from node.flow import Failure, attempt

log = structlog.get_logger(__name__)

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: settings or bundle are wrong, so starting again cannot help."""

READY_FD = "S2NODE_READY_FD"
"""The variable with the number of the pipe on which a worker says, by a byte, that its models are loaded."""

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
STEADY_S = 60.0
"""A worker that lived this long was well; its next death starts the waits from the beginning."""
POLL_S = 0.1


OWNER: Final = re.compile(r"[^\s/]+(/[^\s/]*/\d+/\w+)")
"""A name of :func:`owner_name` within a text: its host, and the rest."""


def owner_name(pid: int) -> str:
    """Who holds a lease: host, boot, process, and its start, so that a reused number is not mistaken."""
    return f"{socket.gethostname()}/{boot_id()}/{pid}/{started_at(pid)}"


def is_gone(owner: str) -> bool:
    """Whether the process that :func:`owner_name` named has ended; False where that cannot be known."""
    host, boot, pid, start = owner.rsplit("/", 3)
    if host != socket.gethostname():
        return False
    return boot != boot_id() or started_at(int(pid)) != start


def is_of_this_boot(owner: str) -> bool:
    """Whether the process that :func:`owner_name` named was begun since the machine was started."""
    return owner.rsplit("/", 3)[1] == boot_id()


def boot_id() -> str:
    """What tells this boot of the machine from any other; empty where the system has no such thing."""
    source = Path("/proc/sys/kernel/random/boot_id")
    return source.read_text().strip() if source.exists() else ""


def started_at(pid: int) -> str:
    """Start of a process in ticks since boot (proc(5), stat field 22), "alive" without /proc, or "gone"."""
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)
            return "alive"
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    state, start = fields[0], fields[19]
    return "gone" if state in "ZX" else start


def wait_s(deaths: int) -> float:
    """Seconds before a worker that died ``deaths`` times in a row is started again."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(deaths - 1, 16)))


def on_its_gpu(settings: Settings, worker: int) -> Settings:
    """The settings of one worker process: its GPU comes first."""
    devices = settings.engine.devices
    first = worker % len(devices)
    engine = settings.engine.model_copy(update={"devices": devices[first:] + devices[:first]})
    return settings.model_copy(update={"engine": engine})


class Supervisor:
    """One worker process, started again whenever it dies, whatever else fails, until :meth:`stop`.

    ``on_death`` is called with the process's owner name after each death; ``on_fatal`` once if the worker
    says that its configuration cannot work (exit 78), after which it is not started again.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_death: Callable[[str], None],
        on_fatal: Callable[[], None],
        command: tuple[str, ...] = (sys.executable, "-m", "node.worker"),
    ) -> None:
        self._settings = settings
        self._on_death = on_death
        self._on_fatal = on_fatal
        self._command = command
        self._stopping = Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        # Linux ends the child with the thread that started it: this thread lives as long as the child.
        self._thread = Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the worker and the thread that watches it."""
        self._thread.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask the worker to hand its job back and end; after ``grace_s`` seconds it is ended."""
        self._stopping.set()
        self._thread.join(grace_s)
        if self._thread.is_alive() and self._child is not None:
            self._child.kill()
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether somebody still watches."""
        return self._thread.is_alive()

    @property
    def pid(self) -> int | None:
        """Process number of the worker, None between two of them."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    @property
    def is_ready(self) -> bool:
        """Whether the worker runs and has its models loaded."""
        return self.pid is not None and self._is_ready

    def _run(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            outcome = attempt(self._live_once)
            if self._stopping.is_set():
                return
            if outcome == EXIT_CONFIG:
                log.error("worker cannot start", exit_code=outcome)
                self._on_fatal()
                return
            deaths = 1 if time.monotonic() - began > STEADY_S else deaths + 1
            if isinstance(outcome, Failure):  # no process to be had, no memory, no file: later perhaps
                log.error("worker not started", trace=outcome.trace, wait_s=wait_s(deaths))
            else:
                log.error("worker died", exit_code=outcome, deaths=deaths, wait_s=wait_s(deaths))
            self._stopping.wait(wait_s(deaths))

    def _live_once(self) -> int:
        """Run one worker to its end, whatever ends it; returns its exit code (negative: the signal)."""
        self._is_ready = False
        with _pipe() as (hears, tells):
            environ = {**os.environ, READY_FD: str(tells)}
            with subprocess.Popen(
                self._command, stdin=subprocess.PIPE, pass_fds=[tells], env=environ
            ) as child:
                self._child = child
                owner = owner_name(child.pid)
                self._hand_over(child)
                while child.poll() is None and not self._stopping.wait(POLL_S):
                    self._is_ready = self._is_ready or _has_spoken(hears)
                if child.poll() is None:
                    child.terminate()
                code = child.wait()
        told = attempt(lambda: self._on_death(owner))
        if isinstance(told, Failure):  # a disk that fails: the lease is given back by a lane, or runs out
            log.error("death of a worker not recorded", trace=told.trace)
        return code

    def _hand_over(self, child: subprocess.Popen[bytes]) -> None:
        """Write the settings as one line; a child that is already dead is noticed by its exit code."""
        assert child.stdin is not None
        try:
            child.stdin.write(self._settings.model_dump_json().encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            log.warning("worker ended before it had its settings")


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe, the first one read without waiting."""
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def _has_spoken(hears: int) -> bool:
    """Whether anything came through the pipe."""
    try:
        return bool(os.read(hears, 1))
    except BlockingIOError:
        return False


def say_ready(environ: MutableMapping[str, str] = os.environ) -> None:
    """Called by a worker whose models are loaded; nothing where nobody wants to know."""
    end = environ.pop(READY_FD, "")
    if end:
        os.write(int(end), b"1")
        os.close(int(end))
