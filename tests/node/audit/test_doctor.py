"""The doctor looks at the page of figures and at the audit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from config.load import ConfigError, load_settings
from config.settings import Settings, WatchSettings
from node.audit.trail import FOLDER, WAITING
from node.doctor import Level, check
from node.watch.site import Site


def one(name: str, settings: Settings) -> list[tuple[Level, str]]:
    findings = check(name, settings, 1.8e9)
    assert all(finding.cure or finding.level is Level.OK for finding in findings)
    return [(finding.level, finding.what) for finding in findings]


def watched(port: int) -> Settings:
    return Settings.model_validate({"watch": {"enabled": True, "port": port}})


def test_a_page_that_is_off_ready_not_ready_or_anothers_is_told_apart(free_port: Callable[[], int]) -> None:
    assert one("watch", Settings())[0][0] is Level.OK
    assert "is free" in one("watch", watched(free_port()))[0][1]
    problems: list[str] = []
    registry = CollectorRegistry()
    with Site(WatchSettings(port=0), registry, health=lambda: problems, readiness=lambda: problems) as site:
        assert one("watch", watched(site.port))[0][1].endswith("the node is ready")
        problems.append("worker 0 does not run")
        level, what = one("watch", watched(site.port))[0]
        assert level is Level.WARNING and what.endswith("worker 0 does not run")
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(10)
        port = other.getsockname()[1]

        def answer() -> None:
            wire, _ = other.accept()
            with wire:
                wire.recv(1000)
                wire.sendall(b"not HTTP at all\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert one("watch", watched(port))[0][0] is Level.PROBLEM
        thread.join()


def audited(tmp_path: Path, tls: dict[str, Any] | None = None, **audit: Any) -> Settings:
    return Settings.model_validate({"storage": {"data_dir": tmp_path}, "tls": tls or {}, "audit": audit})


def test_a_repository_that_takes_messages_and_what_waits_for_it_are_found(
    tmp_path: Path, tls: dict[str, Any], repository: Callable[..., Any], free_port: Callable[[], int]
) -> None:
    assert one("audit", audited(tmp_path))[0][0] is Level.OK
    reached = audited(tmp_path, tls, syslog_host="127.0.0.1", syslog_port=repository().port)
    assert [level for level, _ in one("audit", reached)] == [Level.OK, Level.OK]
    (tmp_path / FOLDER / WAITING).mkdir(parents=True)
    (tmp_path / FOLDER / WAITING / "1.msg").write_bytes(b"")
    assert one("audit", reached)[1] == (Level.WARNING, "1 audit messages wait for the repository")
    away = audited(tmp_path, tls, syslog_host="127.0.0.1", syslog_port=free_port())
    assert one("audit", away) == [(Level.PROBLEM, "Connection refused")]


def test_a_repository_without_certificates_is_refused_when_the_settings_are_read(tmp_path: Path) -> None:
    file = tmp_path / "s2node.toml"
    file.write_text('[audit]\nsyslog_host = "audit.example.org"\n')
    with pytest.raises(ConfigError, match=r"audit\.syslog_host needs them"):
        load_settings(file, {})
