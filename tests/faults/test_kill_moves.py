"""Kill −9 of node, worker and both at every move between states that a series makes by itself.

A library under the processes (fault.c) sees the write of the move into the ledger's log and strikes just
before it, or when the transaction is on the disk and its writer has not heard of it.
S2NODE_KILLS_PER_MOVE says how many of the six pairs (whom, before or after) each move is tried with.
"""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import sqlite3
import struct
import threading
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest

from config.settings import RetentionSettings
from node import states
from node.archive import Archive
from node.ledger import Ledger
from node.purge import DAY_S
from node.states import State

NODE, WORKER = 1, 2
WHOM = {"node": NODE, "worker": WORKER, "both": NODE | WORKER}
PAIRS = [(whom, after) for after in (False, True) for whom in WHOM]
SOON = 0.1 / DAY_S
END = (State.COMMITTED, State.PURGED, State.REJECTED, State.SUPERSEDED)


def has_ended(job):
    """Nobody is asked to answer for a note."""
    return job.state in END or (job.rejects is not None and job.state is State.DELIVERED)


class Ambush:
    """The part of struct fault in fault.c that kills."""

    AT = 7 * 8 + 256
    LAYOUT = struct.Struct("5q64s")

    def __init__(self, block: mmap.mmap) -> None:
        self._block = block

    def lay(self, job: int, move: str, whom: int, after: bool, worker: int) -> None:
        """Strike ``whom`` at the job's ``move``; SQLite writes the numbers 0 and 1 in another way."""
        assert 2 <= job < 2**15
        self._pack(0, after, job, worker, 0, move)
        self._pack(whom, after, job, worker, 0, move)

    def has_struck(self) -> bool:
        return bool(self.LAYOUT.unpack_from(self._block, self.AT)[4])

    def _pack(self, whom: int, after: bool, job: int, worker: int, struck: int, move: str) -> None:
        self.LAYOUT.pack_into(self._block, self.AT, whom, after, job, worker, struck, move.encode())


# how a series is brought to its move: each returns the number of the job that makes it, and what sets it off


def in_one_go(scene, series):
    return scene.next_job(), lambda: scene.send(series)


def late_slice(scene, series, state, ahead=0):
    """All but one slice, until the job is there; then the last one."""
    scene.send(series[:-1])
    scene.wait(series, state)
    job = scene.next_job() + ahead if ahead else scene.jobs(series)[-1].id
    return job, lambda: scene.send(series[-1:])


def late_after_commitment(scene, series):
    return late_slice(scene, series, State.COMMITTED)


def late_while_ready(scene, series):
    """The worker is held still: the job stays READY."""
    assert scene.rig.until(lambda: is_held_still(scene.victim.worker(), scene.ledger.path))
    return late_slice(scene, series, State.READY)


def is_held_still(worker, ledger_file):
    """Stop the process; where it was in the middle of a transaction, let it go on instead."""
    os.kill(worker, signal.SIGSTOP)
    with closing(sqlite3.connect(ledger_file, timeout=0.5, isolation_level=None)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(worker, signal.SIGCONT)
            return False
        db.execute("ROLLBACK")
    return True


def note_on_the_old(scene, series):
    """The next generation is the next job, the note on the old one the job after."""
    return late_slice(scene, series, State.COMMITTED, ahead=1)


def announced(series):
    """Says that contrast was given."""
    for ds in series:
        ds.ContrastBolusAgent = "IOHEXOL"


def bright(series):
    """Says nothing of contrast, and has the values of it."""
    for ds in series:
        ds.RescaleIntercept += 160


MOVES = {
    "received": ("RECEIVING", in_one_go, None),
    "settled": ("RECEIVINGSETTLED", in_one_go, None),
    "accepted": ("SETTLEDREADY", in_one_go, None),
    "leased": ("READYREADYattempt 1 by ", in_one_go, None),
    "built": ("READYBUILT", in_one_go, None),
    "delivered": ("BUILTDELIVERED", in_one_go, None),
    "committed": ("DELIVEREDCOMMITTED", in_one_go, None),
    "rejected by its header": ("SETTLEDREJECTED", in_one_go, announced),
    "rejected by its pixels": ("READYREJECTED", in_one_go, bright),
    "superseded while ready": ("READYSUPERSEDED", late_while_ready, None),
    "superseded when committed": ("COMMITTEDSUPERSEDED", late_after_commitment, None),
    "rejection note made": ("BUILTrejects job ", note_on_the_old, None),
}
"""A move's texts in the ledger, how it is brought about, and what is done to the series first."""
LAST_MOVE = "COMMITTEDPURGED"


NOT_STRUCK = {
    "one statement, whatever state a late slice finds; struck at READY and COMMITTED": {
        (each, State.SUPERSEDED) for each in set(State) - {State.READY, State.COMMITTED, State.SUPERSEDED}
    },
    "one statement, whatever state a purge finds; struck at COMMITTED": {
        (each, State.PURGED) for each in (State.DELIVERED, State.RECALLED, State.REJECTED, State.PARKED)
    },
    "made by a person's command, in a process of its own": {
        *((each, State.RECALLED) for each in (State.BUILT, State.DELIVERED, State.COMMITTED, State.PARKED)),
        *((State.PARKED, each) for each in (State.SETTLED, State.READY, State.BUILT, State.REJECTED)),
        (State.REJECTED, State.READY),
    },
    "made of an error or of an answer no: no series comes to it by itself": {
        *((each, State.PARKED) for each in (State.RECEIVING, State.SETTLED, State.READY, State.BUILT)),
        (State.RECEIVING, State.REJECTED),
        (State.DELIVERED, State.BUILT),
    },
}
"""Moves of the table of states that are not in MOVES, and why."""


def test_every_move_of_the_table_of_states_is_struck_or_it_is_said_why_not():
    struck = {
        (start, end)
        for start, ends in states.MOVES.items()
        for end in ends
        if f"{start}{end}" in {LAST_MOVE, *(text for text, *_ in MOVES.values())}
    }
    every = {(start, end) for start, ends in states.MOVES.items() for end in ends}
    excused = set().union(*NOT_STRUCK.values())
    assert struck | excused == every
    assert not struck & excused


class Scene:
    """One node, its archive, its ledger, and one series after another."""

    def __init__(self, rig, settings, victim, ledger, ambush):
        self.rig, self.settings, self.victim, self.ledger, self.ambush = (
            rig, settings, victim, ledger, ambush,
        )  # fmt: skip
        self.senders = []

    def next_job(self):
        return max((job.id for job in self.ledger.jobs()), default=0) + 1

    def jobs(self, series):
        return self.ledger.find_jobs(str(series[0].SeriesInstanceUID))

    def send(self, series):
        sender = self.rig.Sender(self.settings.listen.port, series)
        self.senders.append(sender)
        sender.send_all()

    def wait(self, series, *states):
        reached = self.rig.until(lambda: (jobs := self.jobs(series)) and jobs[-1].state in states)
        assert reached, [(job.state, job.code) for job in self.jobs(series)]

    def has_moved(self, job, move):
        events = self.ledger.events(job) if job < self.next_job() else []
        rows = [(each.from_state, each.to_state, each.code, each.note) for each in events]
        return any("".join(text or "" for text in row).startswith(move) for row in rows)

    def strike(self, name, series, whom, after):
        """Bring the series to the move, see the strike, and the series to its end all the same."""
        move, bring, prepare = MOVES[name]
        if prepare is not None:
            prepare(series)
        assert self.rig.until(self.victim.listens)
        assert self.rig.until(self.victim.worker)
        job, set_off = bring(self, series)
        worker = self.victim.worker() or 0
        self.ambush.lay(job, move, whom, after, worker)
        sending = threading.Thread(target=set_off)
        sending.start()
        assert self.rig.until(self.ambush.has_struck), f"{name}: the move does not come"
        if whom & NODE:
            self.victim.reap()
        if whom == NODE | WORKER:  # nobody is left to make the move after all
            assert self.has_moved(job, move) == after
        self.victim.revive()
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
        sending.join()
        self.rig.check_acknowledged(self.ledger, self.senders[-1:])
        self.wait(series, *END)
        assert self.rig.until(lambda: not self.ledger.superseded())


def purged(scene, kills):
    """The node lets everything go, and is killed as it says so of a job; which kills those were."""
    pairs = [(whom, after) for whom, after in PAIRS if WHOM[whom] & NODE][1:]
    scene.victim.settings = scene.settings.model_copy(
        update={
            "retention": RetentionSettings(
                committed_days=SOON,
                delivered_days=SOON,
                rejected_days=SOON,
                superseded_days=SOON,
                check_s=0.2,
            )
        }
    )
    for whom, after in pairs[:kills]:
        job = min(job.id for job in scene.ledger.jobs([State.COMMITTED]) if job.id > 1)
        scene.ambush.lay(job, LAST_MOVE, WHOM[whom], after, 0)
        scene.victim.start()
        assert scene.rig.until(scene.ambush.has_struck)
        scene.victim.reap()
    scene.victim.start()
    assert scene.rig.until(
        lambda: (
            {job.state for job in scene.ledger.jobs()} == {State.PURGED, State.SUPERSEDED}
            and scene.rig.spool_files(scene.ledger.path.parent) == 0
        )
    ), "a purge that was cut off is not finished"
    assert scene.victim.stop() == 0
    return Counter(in_words(whom, after) for whom, after in pairs[:kills])


def in_words(whom, after):
    return f"{whom}, {'after' if after else 'before'}"


@pytest.mark.timeout(0)
def test_a_kill_at_any_move_between_states_loses_nothing_and_makes_nothing_twice(
    rig, amount, figures, quick_settings, new_series, free_port, tmp_path, shim
):
    per_move = amount("KILLS_PER_MOVE", short=1, full=len(PAIRS))
    disk = tmp_path / "disk"
    disk.mkdir()
    with Archive(tmp_path / "archive", ae_title="PEER") as archive:
        settings = quick_settings(
            listen={"port": free_port()},
            worker={"max_attempts": 100},
            destinations=[
                {
                    "name": "pacs", "host": "127.0.0.1", "port": archive.port, "ae_title": "PEER",
                    "commitment": "query", "commitment_wait_s": 0,
                },
                {"name": "disk", "kind": "folder", "path": disk},
            ],
        )  # fmt: skip
        environment = shim(settings.storage.data_dir)
        done, numbers = Counter(), itertools.count(1)
        with (
            Path(environment["S2NODE_FAULT"]).open("r+b") as file,
            mmap.mmap(file.fileno(), 4096) as block,
            rig.Victim(settings, environment) as victim,
            Ledger(settings.storage.data_dir / rig.LEDGER_FILE) as ledger,
        ):
            scene = Scene(rig, settings, victim, ledger, Ambush(block))
            assert rig.until(victim.listens)
            first = new_series(0)
            scene.send(first)
            scene.wait(first, State.COMMITTED)
            for place, name in enumerate(MOVES):
                for turn in range(per_move):
                    whom, after = PAIRS[(place + turn) % len(PAIRS)]
                    scene.strike(name, new_series(next(numbers)), WHOM[whom], after)
                    done[in_words(whom, after)] += 1
            assert rig.until(lambda: all(has_ended(job) for job in ledger.jobs())), ledger.jobs()
            assert victim.stop() == 0
            rig.check_acknowledged(ledger, scene.senders)
            results = [job for job in ledger.jobs([State.COMMITTED]) if job.rejects is None]
            files = {job.id: [each.path for each in ledger.instances(job.id)] for job in results}
            made = rig.undisturbed(settings, ledger, files)
            rejected = ledger.jobs([State.REJECTED])
            notes = [job for job in ledger.jobs() if job.rejects is not None]
            assert len({job.series_instance_uid for job in results}) == len(results)
            assert len(results) + len(rejected) == 1 + sum(done.values())
            done += purged(scene, per_move)
    shown = {"disk": rig.live(disk), "archive": rig.live(tmp_path / "archive")}
    for place in shown.values():
        assert place.keys() == made.keys()
    assert {uid: path.read_bytes() for uid, path in shown["disk"].items()} == made
    assert all(rig.data_set(shown["archive"][uid]) == rig.data_set(shown["disk"][uid]) for uid in made)
    figures(
        "kill-moves",
        {
            "moves": len(MOVES) + 1,
            "kills": sum(done.values()),
            "whom, and on which side of the commit": dict(done),
            "series rejected": len(rejected),
            "rejection notes": len(notes),
            "acknowledged and lost": 0,
            "results missing": 0,
            "results beyond one a series": 0,
            "results that differ from an undisturbed run": 0,
        },
    )
