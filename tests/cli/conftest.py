"""Running the command line inside the test, or in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.cli import main


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command line left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of this machine reaches a test."""
    monkeypatch.delenv("S2NODE_CONFIG", raising=False)
    monkeypatch.setattr("node.commands.options.SYSTEM_FILE", tmp_path / "no-such-file.toml")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        seen = capsys.readouterr()
        return Ran(int(ended.value.code or 0), seen.out, seen.err)

    return command


@pytest.fixture
def python() -> Callable[[str], subprocess.CompletedProcess[str]]:
    def program(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=120
        )

    return program
