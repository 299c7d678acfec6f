"""The units are what systemd accepts, and they keep the promises the runbook makes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config.load import EXIT_CONFIG, load_settings

UNITS = Path(__file__).resolve().parents[2] / "systemd"


def values_of(key: str, name: str = "s2node.service") -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (UNITS / name).read_text(encoding="utf-8"), flags=re.MULTILINE)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not on this machine")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with its drop-in, calling a program that is there, as systemd-analyze wants it."""
    unit = (UNITS / "s2node.service").read_text(encoding="utf-8")
    program = values_of("ExecStart")[0].split()[0]
    path = tmp_path / "s2node.service"
    path.write_text(unit.replace(program, sys.executable), encoding="utf-8")
    drop_in = tmp_path / "s2node.service.d"
    drop_in.mkdir()
    shutil.copy(UNITS / "gpu.conf", drop_in)
    return path


def test_systemd_finds_nothing_to_say_about_the_unit(installed: Path) -> None:
    verdict = analyze("verify", "--man=no", "--recursive-errors=no", str(installed))
    ours = [line for line in (verdict.stdout + verdict.stderr).splitlines() if "s2node" in line]
    assert ours == []
    assert verdict.returncode == 0, verdict.stderr


def test_a_wrong_configuration_is_not_restarted_and_a_crash_is() -> None:
    assert values_of("RestartPreventExitStatus") == [str(EXIT_CONFIG)]
    assert values_of("Restart") == ["on-failure"]


def test_the_watchdog_is_one_the_node_feeds() -> None:
    assert values_of("Type") == ["notify"]
    assert values_of("NotifyAccess") == ["main"]
    assert float(values_of("WatchdogSec")[0]) > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("User", "s2node"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("CapabilityBoundingSet", ""),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ],
)
def test_the_node_runs_with_no_more_than_it_needs(key: str, value: str) -> None:
    assert values_of(key) == [value]


def test_the_shipped_configuration_is_valid_and_writes_where_the_unit_allows() -> None:
    settings = load_settings(UNITS / "s2node.toml", {})
    assert values_of("ReadWritePaths") == [str(settings.storage.data_dir)]
    assert f"/var/lib/{values_of('StateDirectory')[0]}" == str(settings.storage.data_dir)


def test_users_and_folders_are_declared_for_what_the_unit_names() -> None:
    assert re.search(r"^u s2node ", (UNITS / "s2node.sysusers.conf").read_text(), flags=re.MULTILINE)
    folders = re.findall(r"^d (\S+)", (UNITS / "s2node.tmpfiles.conf").read_text(), flags=re.MULTILINE)
    assert folders == ["/etc/s2node", "/var/lib/s2node"]
