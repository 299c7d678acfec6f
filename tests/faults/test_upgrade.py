"""A node starts on a ledger that an earlier version left in the middle of its work, and ends all of it, once.

What that version left is made by the receiver, the worker and the lanes of today, and then put into the
tables of its time, which the migrations know.
"""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing
from random import Random
from threading import Event

import pytest
from pydicom.uid import CTImageStorage, KeyObjectSelectionDocumentStorage

from engine.session import SessionPolicy
from node.breaker import Breaker
from node.deliver import DeliverLane
from node.lane import Means
from node.ledger import Ledger
from node.ledger.schema import MIGRATIONS, migrate, version_of
from node.models import ModelStore
from node.scp import Scp
from node.spool import Spool
from node.states import State
from node.supervisor import owner_name
from node.worker import Engines, Worker

TAKEN_BEFORE = 3
"""Instances of the job in the middle of its delivery that the archive has."""


def put_back(path, version):
    """Have the ledger in ``path`` as that version wrote it: its tables, and of the rows what these hold."""
    old = path.with_suffix(".old")
    with closing(sqlite3.connect(old, isolation_level=None)) as db:
        migrate(db, old, MIGRATIONS[:version])
        db.execute("ATTACH ? AS today", (str(path),))
        for (name,) in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
            columns = ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({name})"))
            db.execute(f"INSERT INTO main.{name} ({columns}) SELECT {columns} FROM today.{name}")
    old.replace(path)


def version_in(path):
    with closing(sqlite3.connect(path)) as db:
        return version_of(db)


def somebody_gone():
    """The name of a worker process that has ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        name = owner_name(process.pid)
        process.kill()
    return name


class Before:
    """The node of before the update, without its clock: each step is taken by hand."""

    def __init__(self, settings, ledger, spool):
        self.settings, self.ledger = settings, ledger
        engines = Engines(ModelStore(settings), SessionPolicy(provider="cpu", threads=1))
        self.worker = Worker(settings, ledger, spool, engines, somebody_gone(), Event())

    def make_ready(self, job_id):
        self.ledger.move(job_id, State.SETTLED, time.time())
        self.ledger.move(job_id, State.READY, time.time())

    def build(self, job_id):
        self.make_ready(job_id)
        assert self.worker.work_once()
        assert self.ledger.job(job_id).state is State.BUILT

    def deliver(self):
        for destination in self.settings.destinations:
            means = Means(
                ledger=self.ledger, retry=self.settings.retry, rng=Random(1), clock=time.time,
                elapsed=time.monotonic, stopping=Event(), beat=lambda: None,
            )  # fmt: skip
            DeliverLane(means, destination, Breaker(means, destination.name)).run()


@pytest.mark.parametrize("version", sorted({1, len(MIGRATIONS) - 1}))
def test_open_jobs_of_an_earlier_version_end_with_each_result_delivered_once(
    version, rig, quick_settings, store_peer, new_series, free_port, tmp_path
):
    peer = store_peer(sop_classes=(CTImageStorage, KeyObjectSelectionDocumentStorage))
    (tmp_path / "disk").mkdir()
    settings = quick_settings(
        listen={"port": free_port()},
        destinations=[
            {"name": "pacs", "host": "127.0.0.1", "port": peer.port, "ae_title": "PEER"},
            {"name": "disk", "kind": "folder", "path": tmp_path / "disk"},
        ],
    )
    path = settings.storage.data_dir / rig.LEDGER_FILE
    senders = [rig.Sender(settings.listen.port, new_series(number)) for number in range(1, 7)]
    receiving, settled, ready, built, on_its_way, superseded = range(1, 7)
    with Ledger(path) as ledger:
        spool = Spool.of(settings.storage)
        before = Before(settings, ledger, spool)
        with Scp(settings, ledger, spool):
            for number, sender in enumerate(senders, start=1):
                sender.send_some({receiving: 5, superseded: 11}.get(number, 12))
            before.build(superseded)
            before.deliver()
            senders[superseded - 1].send_all()
        before.build(on_its_way)
        peer.statuses = [0x0000] * TAKEN_BEFORE + [None]
        before.deliver()
        before.build(built)
        before.make_ready(ready)
        assert ledger.lease(before.worker.owner, time.time() - 60.0, 30.0).id == ready
        ledger.move(settled, State.SETTLED, time.time())
        late = ledger.find_jobs(senders[superseded - 1].uid)[-1].id
        assert {job.id: job.state for job in ledger.jobs()} == {
            receiving: State.RECEIVING,
            settled: State.SETTLED,
            ready: State.READY,
            built: State.BUILT,
            on_its_way: State.BUILT,
            superseded: State.SUPERSEDED,
            late: State.RECEIVING,
        }
        taken = {each.destination: each.delivered for each in ledger.deliveries(on_its_way)}
        assert taken == {"pacs": TAKEN_BEFORE, "disk": 24}
    put_back(path, version)
    assert version_in(path) == version

    with rig.Victim(settings) as node:
        senders[receiving - 1].send_all()
        with Ledger(path) as ledger:
            done = {State.SUPERSEDED: 1, State.DELIVERED: 7}
            assert rig.until(lambda: Counter(job.state for job in ledger.jobs()) == done), ledger.jobs()
            assert node.stop() == 0
            rig.check_acknowledged(ledger, senders)
            jobs = {job.id: job.rejects for job in ledger.jobs()}
            made = [output.sop_instance_uid for number in jobs for output in ledger.outputs(number)]
    assert list(jobs.values()).count(superseded) == 1, "one rejection note"
    assert len(made) == 2 * (6 * 12 + 11) + 1, "two phases of each slice, and the note"
    assert Counter(peer.uids) == Counter(made)
    assert Counter(file.stem for file in tmp_path.glob("disk/**/*.dcm")) == Counter(made)
    assert version_in(path) == len(MIGRATIONS)
