"""The doctor finds what is wrong, and has a cure for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from config.settings import Settings
from engine import session
from engine.session import NVIDIA_NODES
from node.archive import Archive
from node.doctor import CHECKS, CURES, Finding, Level, check, examine
from node.ledger import LEDGER_FILE, Ledger, Output, ReceivedInstance
from node.ledger.schema import MIGRATIONS
from node.scp import Scp
from node.spool import Spool
from node.states import State

NOW = 1.8e9


Make = Callable[..., Settings]


@pytest.fixture
def settings(quick_settings: Make, free_port: Callable[[], int]) -> Make:
    """Settings of a node whose folder is there, with its ledger."""

    def make(**sections: Any) -> Settings:
        made = quick_settings(listen={"port": free_port()}, **sections)
        Ledger(made.storage.data_dir / LEDGER_FILE).close()
        return made

    return make


def found(settings: Settings, now: float = NOW) -> dict[str, list[Finding]]:
    findings = examine(settings, lambda: now)
    assert all(finding.cure or finding.level is Level.OK for finding in findings)
    return {name: [finding for finding in findings if finding.check == name] for name in CHECKS}


def levels(findings: list[Finding]) -> set[Level]:
    return {finding.level for finding in findings}


def edit(settings: Settings, statement: str) -> None:
    with closing(sqlite3.connect(settings.storage.data_dir / LEDGER_FILE, isolation_level=None)) as db:
        db.execute(statement)


def test_every_check_has_a_cure_of_its_own() -> None:
    assert set(CHECKS) == set(CURES)


def test_a_node_in_good_health_has_nothing_but_ok(settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with Archive(tmp_path / "archive") as archive:
        peer = {"name": "pacs", "host": "127.0.0.1", "port": archive.port, "ae_title": "ARCHIVE"}
        whole = settings(
            destinations=[peer, {"kind": "folder", "name": "disk", "path": tmp_path / "disk"}],
            requesters=[{key: peer[key] for key in ("ae_title", "host", "port")}],
        )
        folder = whole.storage.data_dir
        with Ledger(folder / LEDGER_FILE) as ledger, Scp(whole, ledger, Spool(folder)):
            seen = found(whole)
    assert {name for name, findings in seen.items() if levels(findings) != {Level.OK}} == set()
    assert len(seen["peers"]) == 3


def test_what_is_wrong_is_found_and_named(settings: Callable[..., Settings], tmp_path: Path) -> None:
    away = {"host": "127.0.0.1", "port": 1, "ae_title": "AWAY"}
    sick = settings(
        storage={"min_free_bytes": 2**60},
        destinations=[
            {"name": "pacs", "connect_timeout_s": 1, **away},
            {"kind": "folder", "name": "disk", "path": tmp_path / "no"},
        ],
        requesters=[{"timeout_s": 1, **away}],
    )
    with Ledger(sick.storage.data_dir / LEDGER_FILE) as ledger:
        received = ReceivedInstance("1", "1", "1", "1", "1", "CT", tmp_path / "1", "00", 1)
        job_id = ledger.record_instance(received, NOW + 3600).job_id
        ledger.move(job_id, State.PARKED, NOW + 3600)
    for graph in sick.storage.data_dir.rglob("translator.onnx"):
        graph.write_bytes(b"")
    seen = found(sick)
    assert "0xA700" in seen["disk"][0].what
    assert seen["ledger"][0].what == "1 jobs are parked"
    assert "3600 s in the future" in seen["clock"][0].what
    assert Level.PROBLEM in levels(seen["models"])
    assert levels(seen["provider"]) == {Level.PROBLEM}
    assert levels(seen["listener"]) == {Level.PROBLEM}
    assert [finding.level for finding in seen["peers"]] == [Level.PROBLEM, Level.PROBLEM, Level.WARNING]


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers()
    or any(node.exists() for node in NVIDIA_NODES),
    reason="needs a GPU build, no GPU",
)
def test_a_model_that_lost_its_gpu_is_told_with_why_and_with_what_would_be_faster(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(engine={"provider": "auto", "threads": 1})
    [plain, *_] = found(chosen)["provider"]
    assert plain.level is Level.OK
    assert "faster: an NVIDIA GPU" in plain.what
    monkeypatch.setattr(session, "_has_nvidia_gpu", lambda: True)
    [lost, *_] = found(chosen)["provider"]
    assert (lost.level, lost.cure) == (Level.WARNING, CURES["provider"])
    assert "runs on cpu with 1 threads" in lost.what
    assert "faster: an NVIDIA GPU" in lost.what
    assert "'cuda' was asked for" in lost.what


def test_a_machine_where_no_node_has_run_says_so(quick_settings: Callable[..., Settings]) -> None:
    fresh = quick_settings(listen={"port": 0})
    seen = found(fresh, now=1.0)
    assert "no ledger" in seen["ledger"][0].what
    assert "never set" in seen["clock"][0].what
    assert levels(seen["listener"]) == {Level.WARNING}
    assert found(fresh)["clock"][0].level is Level.OK
    nowhere = fresh.storage.model_copy(update={"data_dir": Path("/no/where")})
    gone = fresh.model_copy(update={"storage": nowhere})
    assert found(gone)["disk"][0].level is Level.WARNING


@pytest.mark.parametrize(
    ("version", "level"), [(len(MIGRATIONS) + 1, Level.PROBLEM), (len(MIGRATIONS) - 1, Level.WARNING)]
)
def test_a_ledger_of_another_version_is_named(
    settings: Callable[..., Settings], version: int, level: Level
) -> None:
    one = settings()
    edit(one, f"PRAGMA user_version = {version}")
    assert levels(found(one)["ledger"]) == {level}


def test_a_destination_of_old_that_results_are_at_is_named(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    one = settings(destinations=[{"kind": "folder", "name": "new", "path": tmp_path}])
    with Ledger(one.storage.data_dir / LEDGER_FILE) as ledger:
        received = ReceivedInstance("1", "1", "1", "1", "1", "CT", tmp_path / "1", "00", 1)
        job_id = ledger.record_instance(received, NOW).job_id
        for state in (State.SETTLED, State.READY):
            ledger.move(job_id, state, NOW)
        ledger.lease("w", NOW, 60.0)
        output = Output(job_id, "venous", "ct_series", "2.25.5", "2.25.5.1", "1", tmp_path / "2", "00")
        ledger.record_built(job_id, "w", [output], [], ["old", "older", "new"], now=NOW)
        for name in ("old", "new"):
            ledger.begin_delivery(job_id, name, NOW)
        [finding] = check("ledger", one, NOW)
        assert finding.level is Level.WARNING
        assert finding.what.startswith("results of 1 jobs are at old,")
        note = Output(0, "", "rejection_note", "2.25.9", "2.25.9.1", "1", tmp_path / "3", "00")
        ledger.reject(
            job_id, ["2.25.5.1"], note, destinations=["old"], calling_ae="S", reason="", recall=True, now=NOW
        )
        assert levels(check("ledger", one, NOW)) == {Level.OK}


@pytest.mark.parametrize(("share", "words"), [(1.2, "new series get 0xA700"), (1.8, "must stay free")])
def test_a_disk_that_fills_up_is_told_before_everything_is_refused(
    tmp_path: Path, share: float, words: str
) -> None:
    free = Spool(tmp_path).free_bytes()
    storage = {"data_dir": tmp_path, "min_free_bytes": int(free / share)}
    [finding] = check("disk", Settings.model_validate({"storage": storage}), NOW)
    assert finding.level is Level.WARNING
    assert words in finding.what
    assert finding.cure
