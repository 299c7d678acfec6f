"""A ledger that an earlier version wrote opens, is brought up to date, and its open jobs finish.

The files are text (`tests/node/ledgers`), frozen as those versions wrote them.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from node.ledger import CommitmentAnswer, Ledger, LedgerTooNew, Output, Reference, SynthesisRecord
from node.ledger.schema import MIGRATIONS
from node.states import State

LEDGERS = Path(__file__).parent / "ledgers"
VERSIONS = range(1, len(MIGRATIONS))
"""Those before this one."""
CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTHESIS = SynthesisRecord("arterial", "m-1", "dd", 0, "bridge", 4, "cpu")

ON_ITS_WAY = {1: State.RECEIVING, 2: State.SETTLED, 3: State.READY, 4: State.BUILT, 5: State.DELIVERED}
"""Jobs of all files by number; 6 is PARKED, 7 REJECTED, 8 superseded by 9 (BUILT), 10 by 11 (DELIVERED)."""


def a_ledger_of(version: int, folder: Path) -> Path:
    path = folder / "ledger.sqlite3"
    db = sqlite3.connect(path)
    db.executescript((LEDGERS / f"version_{version}.sql").read_text())
    db.close()
    return path


def tables_of(path: Path) -> dict[str, list[str]]:
    db = sqlite3.connect(path)
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {name: sorted(row[1] for row in db.execute(f"PRAGMA table_info({name})")) for name in names}
    db.close()
    return columns


def indexes_of(path: Path) -> set[tuple[str, str]]:
    db = sqlite3.connect(path)
    found = set(db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"))
    db.close()
    return found


def walk(ledger: Ledger, job_id: int) -> None:
    """Take a job to its end, as lanes and worker would."""
    if ledger.job(job_id).state is State.PARKED:
        ledger.retry(job_id, 30.0)
    steps = {State.RECEIVING: State.SETTLED, State.SETTLED: State.READY}
    while (state := ledger.job(job_id).state) in steps:
        ledger.move(job_id, steps[state], 30.0)
    if ledger.job(job_id).state is State.READY:
        leased = ledger.lease("w", 30.0, 60.0)
        assert leased is not None and leased.id == job_id
        built = [
            Output(job_id, "arterial", "ct_series", "2.25.100", f"2.25.100.{job_id}", CT, Path("/x"), "aa")
        ]
        ledger.record_built(job_id, "w", built, [SYNTHESIS], ["pacs"], now=31.0)
    for output in ledger.pending_outputs(job_id, "pacs"):
        ledger.record_delivery(output.sop_instance_uid, "pacs", 0, 32.0)
    held = frozenset(Reference(CT, each.sop_instance_uid) for each in ledger.outputs(job_id))
    ledger.record_found(job_id, "pacs", CommitmentAnswer(held), {"pacs"}, 33.0)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_ledger_of_an_earlier_version_is_migrated_and_its_open_jobs_finish(
    version: int, tmp_path: Path
) -> None:
    path = a_ledger_of(version, tmp_path)
    with Ledger(path) as ledger:
        before = {job.id: job.state for job in ledger.jobs()}
        assert before.items() >= ON_ITS_WAY.items()
        assert ledger.counters() == {"repeats": 3}
        for job_id in (1, 2, 3, 4, 5, 6, 9, 11):
            walk(ledger, job_id)
            assert ledger.job(job_id).state is State.COMMITTED
        for job_id in sorted(before.keys() - {1, 2, 3, 4, 5, 6, 9, 11}):
            assert ledger.job(job_id).state is before[job_id]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_migrated_ledger_has_the_tables_and_indexes_of_a_new_one(version: int, tmp_path: Path) -> None:
    Ledger(tmp_path / "new.sqlite3").close()
    old = a_ledger_of(version, tmp_path)
    Ledger(old).close()
    assert tables_of(old) == tables_of(tmp_path / "new.sqlite3")
    assert indexes_of(old) == indexes_of(tmp_path / "new.sqlite3")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_superseded_result_of_an_earlier_version_is_announced_unless_it_was_rejected(
    version: int, tmp_path: Path
) -> None:
    with Ledger(a_ledger_of(version, tmp_path)) as ledger:
        assert [job.id for job in ledger.superseded()] == [8]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_ledger_is_migrated_once_and_opens_again(version: int, tmp_path: Path) -> None:
    path = a_ledger_of(version, tmp_path)
    with Ledger(path) as first, Ledger(path) as second:
        assert first.jobs() == second.jobs()


def test_a_newer_ledger_is_refused_in_words_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    Ledger(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.commit()
    db.close()
    content = path.read_bytes()
    with pytest.raises(LedgerTooNew, match=r"start the newer s2node that wrote it, or restore the copy"):
        Ledger(path)
    assert path.read_bytes() == content
