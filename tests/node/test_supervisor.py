import errno
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pytest

from config.settings import Settings
from node import supervisor
from node.supervisor import EXIT_CONFIG, Supervisor, is_gone, owner_name, wait_s

SLEEPER = "import sys; sys.stdin.readline(); import time; time.sleep(60)"
PATIENT = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER


def until(condition, seconds=10.0):
    """Wait for ``condition`` and say whether it came true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """Supervises ``python -c code``; what it reports lands in ``.deaths`` and ``.fatal``."""
    monkeypatch.setattr(supervisor, "FIRST_WAIT_S", 0.05)
    started = []

    def start(code):
        deaths, fatal = [], []
        keeper = Supervisor(
            Settings(storage={"data_dir": tmp_path}),
            on_death=deaths.append,
            on_fatal=lambda: fatal.append(True),
            command=(sys.executable, "-c", code),
        )
        keeper.deaths, keeper.fatal = deaths, fatal
        keeper.start()
        started.append(keeper)
        return keeper

    yield start
    for keeper in started:
        keeper.stop(grace_s=1.0)


def test_a_worker_that_is_killed_is_started_again_and_its_leases_are_reported(supervise):
    keeper = supervise(SLEEPER)
    assert until(lambda: keeper.pid)
    first = keeper.pid
    name = owner_name(first)
    os.kill(first, signal.SIGKILL)
    assert until(lambda: keeper.pid not in {None, first})
    assert keeper.deaths == [name]
    assert is_gone(name)
    assert keeper.is_alive


def test_a_ledger_that_fails_while_a_death_is_recorded_ends_no_supervision(supervise, monkeypatch):
    keeper = supervise(SLEEPER)

    def fail(owner):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(keeper, "_on_death", fail)
    assert until(lambda: keeper.pid)
    first = keeper.pid
    os.kill(first, signal.SIGKILL)
    assert until(lambda: keeper.pid not in {None, first})
    assert keeper.is_alive


def test_a_process_that_cannot_be_had_is_asked_for_again(supervise, monkeypatch):
    popen, failures = subprocess.Popen, [OSError(errno.EAGAIN, "Resource temporarily unavailable")] * 2

    def start(*args, **options):
        if failures:
            raise failures.pop()
        return popen(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    keeper = supervise(SLEEPER)
    assert until(lambda: keeper.pid)
    assert not failures


def test_a_worker_gets_its_settings_as_one_line(supervise, tmp_path):
    out = tmp_path / "line"
    keeper = supervise(f"import sys, pathlib; pathlib.Path({str(out)!r}).write_text(sys.stdin.readline())")
    assert until(lambda: keeper.deaths)
    assert Settings.model_validate_json(out.read_text()).storage.data_dir == tmp_path


def test_a_worker_whose_configuration_cannot_work_is_not_started_again(supervise):
    keeper = supervise(f"raise SystemExit({EXIT_CONFIG})")
    assert until(lambda: keeper.fatal)
    assert until(lambda: not keeper.is_alive)
    assert len(keeper.deaths) == 1


def test_stopping_ends_the_worker_and_is_no_death_to_be_mended(supervise):
    keeper = supervise(SLEEPER)
    assert until(lambda: keeper.pid)
    pid = keeper.pid
    keeper.stop()
    assert keeper.pid is None
    assert not keeper.is_alive
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_will_not_end_is_ended(supervise):
    keeper = supervise(PATIENT)
    assert until(lambda: keeper.pid)
    time.sleep(0.2)
    keeper.stop(grace_s=0.3)
    assert keeper.pid is None


def test_waits_between_deaths_grow_to_a_minute():
    assert [wait_s(deaths) for deaths in (1, 2, 3, 8, 1000)] == [0.5, 1.0, 2.0, 60.0, 60.0]


def test_a_living_process_is_not_gone_and_an_ended_one_is():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = owner_name(child.pid)
    assert not is_gone(owner)
    child.kill()
    assert until(lambda: is_gone(owner))  # a zombie counts as gone
    child.communicate()
    assert is_gone(owner)


def test_a_process_number_used_again_is_not_mistaken_for_the_owner():
    host, boot, pid, start = owner_name(os.getpid()).rsplit("/", 3)
    assert is_gone(f"{host}/{boot}/{pid}/{int(start) - 1}")


def test_owners_from_before_a_reboot_are_gone():
    _, _, pid, start = owner_name(os.getpid()).rsplit("/", 3)
    assert is_gone(f"{socket.gethostname()}/another-boot/{pid}/{start}")


def test_nothing_is_known_of_an_owner_on_another_machine():
    assert not is_gone("elsewhere/boot/1/1")
