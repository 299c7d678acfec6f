"""Kill −9 of node, worker and both at every move between states, by itself or by a person's command.

A library under the processes (fault.c) sees the write of the move into the ledger's log and strikes just
before it, or when the transaction is on the disk and its writer has not heard of it.
S2NODE_KILLS_PER_MOVE says with how many pairs (whom, before or after) each move is tried: of six, and where
a command makes it of four: that or the node is killed. The short form strikes S2NODE_MOVES of the moves, as
S2NODE_KILL_SEED draws them.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from random import Random

import pytest
from pydicom.uid import CTImageStorage

from config.settings import RetentionSettings
from node import states
from node.archive import NOT_IDENTIFIED, OUT_OF_RESOURCES, SUCCESS, Archive
from node.commands.exits import DONE, FAILED
from node.ledger import Ledger
from node.purge import DAY_S
from node.states import State

NODE, WORKER = 1, 2
WHOM = {"node": NODE, "worker": WORKER, "both": NODE | WORKER}
PAIRS = [(whom, after) for after in (False, True) for whom in WHOM]
BY_COMMAND_PAIRS = [(whom, after) for after in (False, True) for whom in ("command", "node")]
SOON = 0.1 / DAY_S
END = (State.COMMITTED, State.RECALLED, State.PURGED, State.REJECTED, State.SUPERSEDED)
SEED = int(os.environ.get("S2NODE_KILL_SEED", "1"))
MIDDLE = 6
"""A slice without which a series is no regular grid."""


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


class Moody(Archive):
    """An archive with a trouble: none, or it is "full", "strict", "forgetful" or "blind"."""

    trouble = ""

    def _store(self, event):
        """Full: it asks to wait. Strict: it refuses pictures. Forgetful: it loses one picture it accepted."""
        if self.trouble == "full":
            return OUT_OF_RESOURCES
        is_picture = event.request.AffectedSOPClassUID == CTImageStorage
        if self.trouble == "strict" and is_picture:
            return NOT_IDENTIFIED
        if self.trouble == "forgetful" and is_picture:
            self.trouble = ""
            return SUCCESS
        return super()._store(event)

    def _find(self, event):
        """Blind: it cannot be queried."""
        if self.trouble == "blind":
            yield OUT_OF_RESOURCES, None
        else:
            yield from super()._find(event)


TROUBLE = {State.BUILT: "full", State.DELIVERED: "blind", State.PARKED: "strict"}
"""What keeps a job where it would not stay."""


# how a series is brought to its move: each returns the number of the job that makes it, and what sets it off


def in_one_go(scene, series):
    return scene.next_job(), lambda: scene.send(series)


def sent_again(scene, series):
    scene.archive.trouble = "forgetful"
    return in_one_go(scene, series)


def late(state, ahead=0):
    """All but one slice, until the job is there to stay; then the last one.

    ``ahead``: the next generation is the next job, the note on the old one the job after.
    """

    def bring(scene, series):
        job = scene.come_to(series[:-1], state)

        def set_off():
            scene.send(series[-1:])
            scene.archive.trouble = ""

        return (scene.next_job() + ahead if ahead else job), set_off

    return bring


def refused(scene, series):
    """The archive refuses it; then it does not, and a person says so."""
    scene.archive.trouble = "strict"
    job = scene.next_job()

    def set_off():
        scene.send(series)
        scene.retry(job, "BUILTPARKED")

    return job, set_off


def lost_while_received(scene, series):
    """A file is lost before the last slice comes; then it is there again, and a person says so."""
    job, restore = scene.lose_a_file(series)

    def set_off():
        scene.send(series[MIDDLE:][:1])
        scene.retry(job, "RECEIVINGPARKED", restore)

    return job, set_off


def lost_before_intake(scene, series):
    """The same, and a person says so too early."""
    job, restore = scene.lose_a_file(series)
    scene.send(series[MIDDLE:][:1])
    scene.wait(series, State.PARKED)

    def set_off():
        scene.command("jobs", "retry", str(job))
        scene.retry(job, "SETTLEDPARKED", restore)

    return job, set_off


def lost_before_work(scene, series):
    """A file is lost while the worker is held still: the job is parked after its last attempt."""
    job = scene.come_to(series, State.READY)
    restore = scene.lose(job)

    def set_off():
        scene.let_go()
        scene.retry(job, "READYPARKED", restore)

    return job, set_off


# the same for moves that a person's command makes


def recalled(state):
    def bring(scene, series):
        job = scene.come_to(series, state)
        scene.recall(job, "arterial")

        def set_off():
            scene.recall(job, "venous")
            scene.archive.trouble = ""

        return job, set_off

    return bring


def retried(state):
    def bring(scene, series):
        job = scene.come_to(series, state)
        return job, lambda: scene.command("jobs", "retry", str(job))

    return bring


def retried_before_intake(scene, series):
    job = scene.park(series)
    return job, lambda: scene.command("jobs", "retry", str(job))


def retried_before_work(scene, series):
    job = scene.come_to(series, State.READY)
    restore = scene.lose(job)
    scene.let_go()
    scene.wait(series, State.PARKED)
    restore()
    return job, lambda: scene.command("jobs", "retry", str(job))


# what is done to a series first


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
    "to be sent again": ("DELIVEREDBUILT", sent_again, None),
    "rejected by its header": ("SETTLEDREJECTED", in_one_go, announced),
    "rejected by its pixels": ("READYREJECTED", in_one_go, bright),
    "superseded while ready": ("READYSUPERSEDED", late(State.READY), None),
    "superseded when built": ("BUILTSUPERSEDED", late(State.BUILT), None),
    "superseded when delivered": ("DELIVEREDSUPERSEDED", late(State.DELIVERED), None),
    "superseded when committed": ("COMMITTEDSUPERSEDED", late(State.COMMITTED), None),
    "superseded when rejected": ("REJECTEDSUPERSEDED", late(State.REJECTED), announced),
    "superseded when parked": ("PARKEDSUPERSEDED", late(State.PARKED), None),
    "superseded when recalled": ("RECALLEDSUPERSEDED", late(State.RECALLED), None),
    "rejection note made": ("BUILTrejects job ", late(State.COMMITTED, ahead=1), None),
    "parked while received": ("RECEIVINGPARKED", lost_while_received, None),
    "parked before intake": ("SETTLEDPARKED", lost_before_intake, None),
    "parked by the worker": ("READYPARKED", lost_before_work, None),
    "parked by an archive": ("BUILTPARKED", refused, None),
}
"""A move's texts in the ledger, how it is brought about, and what is done to the series first."""
BY_COMMAND = {
    "retried before intake": ("PARKEDSETTLED", retried_before_intake, None),
    "retried before work": ("PARKEDREADY", retried_before_work, None),
    "retried delivery": ("PARKEDBUILT", retried(State.PARKED), None),
    "retried though rejected": ("REJECTEDREADY", retried(State.REJECTED), announced),
    "recalled when built": ("BUILTRECALLED", recalled(State.BUILT), None),
    "recalled when delivered": ("DELIVEREDRECALLED", recalled(State.DELIVERED), None),
    "recalled when committed": ("COMMITTEDRECALLED", recalled(State.COMMITTED), None),
    "recalled when parked": ("PARKEDRECALLED", recalled(State.PARKED), None),
}
"""The same for moves that a person's command makes, in a process of its own: that or the node is killed."""
EVERY_MOVE = (*MOVES, *BY_COMMAND)
PURGED_FROM = (State.COMMITTED, State.DELIVERED, State.REJECTED, State.PARKED, State.RECALLED)
"""States that the node lets go of by itself, in its order."""


NOT_STRUCK = {
    "settling leaves what it cannot judge to intake; that a refusal escapes it is not to be seen": {
        (State.RECEIVING, State.REJECTED)
    },
    "no late slice can be aimed at it: intake follows in the same look": {(State.SETTLED, State.SUPERSEDED)},
    "one statement, whatever state a late slice finds; struck at seven others": {
        (State.PURGED, State.SUPERSEDED)
    },
}
"""Moves of the table of states that are struck nowhere, and why."""


def test_every_move_of_the_table_of_states_is_struck_or_it_is_said_why_not():
    struck = {
        (start, end)
        for start, ends in states.MOVES.items()
        for end in ends
        if f"{start}{end}" in {text for text, *_ in (MOVES | BY_COMMAND).values()}
    } | {(state, State.PURGED) for state in PURGED_FROM}
    every = {(start, end) for start, ends in states.MOVES.items() for end in ends}
    excused = set().union(*NOT_STRUCK.values())
    assert struck | excused == every
    assert not struck & excused


class Scene:
    """One node, its archive, its ledger, and one series after another."""

    def __init__(self, rig, archive, victim, ledger, ambush):
        self.rig, self.archive, self.victim, self.ledger, self.ambush = rig, archive, victim, ledger, ambush
        self.settings = victim.settings
        self.senders = []
        self.stopped = 0

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

    def come_to(self, series, state):
        """Send the series and have its job stay in the state; its number."""
        if state is State.READY:
            assert self.rig.until(self.hold_still)
        self.archive.trouble = TROUBLE.get(state, "")
        self.send(series)
        self.wait(series, State.COMMITTED if state is State.RECALLED else state)
        job = self.jobs(series)[-1].id
        if state is State.PARKED:
            self.archive.trouble = ""
        if state is State.RECALLED:
            self.recall(job, "arterial")
            self.recall(job, "venous")
        return job

    def hold_still(self):
        """Stop the worker; where it was in the middle of a transaction, let it go on instead."""
        self.stopped = self.victim.worker()
        os.kill(self.stopped, signal.SIGSTOP)
        with closing(sqlite3.connect(self.ledger.path, timeout=0.5, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                self.let_go()
                return False
            db.execute("ROLLBACK")
        return True

    def let_go(self):
        """Let the worker go on that was stopped, where it is still there."""
        stopped, self.stopped = self.stopped, 0
        if stopped:
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)

    def lose(self, job):
        """Lose a received file of the job; what brings it back."""
        path = self.ledger.instances(job)[0].path
        data = path.read_bytes()
        path.unlink()
        return lambda: path.write_bytes(data)

    def lose_a_file(self, series):
        """Send all but a slice in the middle, without which nothing is settled, and lose a file of these."""
        self.send(series[:MIDDLE] + series[MIDDLE + 1 :])
        job = self.jobs(series)[-1].id
        assert self.rig.until(lambda: self.has_moved(job, "RECEIVINGRECEIVING"))
        return job, self.lose(job)

    def park(self, series):
        """Have the job parked before intake, with all its files; its number."""
        job, restore = self.lose_a_file(series)
        self.send(series[MIDDLE:][:1])
        self.wait(series, State.PARKED)
        restore()
        return job

    def retry(self, job, parked, restore=lambda: None):
        """Once the job is parked by this move, mend what it was parked for and have it tried again."""
        assert self.rig.until(lambda: self.has_moved(job, parked)), f"it does not come to {parked}"
        restore()
        self.archive.trouble = ""
        self.command("jobs", "retry", str(job))

    def recall(self, job, phase):
        """Recall the phase's model of what was made since this job was: it is the last."""
        since = datetime.fromtimestamp(self.ledger.job(job).created_at).astimezone().isoformat()
        self.command("recall", "--model", f"gain-{phase}-1.0.0", "--since", since)

    def command(self, *words):
        """What a person types, and types again where it is killed: a process group of its own."""
        sections = json.loads(self.settings.model_dump_json(exclude_none=True))
        environment = {f"S2NODE_{name.upper()}": json.dumps(each) for name, each in sections.items()}
        for _ in range(2):
            ended = subprocess.run(
                [sys.executable, "-m", "node.cli", *words],
                env={**self.victim.environment, **environment},
                start_new_session=True,
                capture_output=True,
                check=False,
            )
            if ended.returncode != -signal.SIGKILL:
                break
        assert ended.returncode in {DONE, FAILED}, ended.stderr[-2000:]

    def strike(self, name, series, pair):
        """Bring the series to the move, see the strike, and the series to its end all the same."""
        move, bring, prepare = (MOVES | BY_COMMAND)[name]
        whom, after = pair
        if prepare is not None:
            prepare(series)
        assert self.rig.until(self.victim.listens)
        assert self.rig.until(self.victim.worker)
        job, set_off = bring(self, series)
        self.lay(job, move, whom, after, by_command=name in BY_COMMAND)
        with ThreadPoolExecutor(1) as hand:
            sending = hand.submit(set_off)
            error = self.rig.until(
                lambda: self.ambush.has_struck() or (sending.done() and sending.exception())
            )
            assert self.ambush.has_struck(), f"{name}: the move does not come: {error!r}"
            if whom in {"node", "both"}:
                self.victim.reap()
            if whom == "both":  # nobody is left to make the move after all
                assert self.has_moved(job, move) == after
            self.victim.revive()
            self.let_go()
            sending.result()
        self.rig.check_acknowledged(self.ledger, self.senders[-1:])
        self.wait(series, *END)
        assert self.rig.until(lambda: not self.ledger.superseded())

    def lay(self, job, move, whom, after, by_command):
        """The ambush; a command is the node of its own group, and our node is somebody else to it."""
        if by_command:
            node, command = self.victim.process.pid, whom == "command"
            self.ambush.lay(job, move, NODE if command else WORKER, after, node)
        else:
            self.ambush.lay(job, move, WHOM[whom], after, self.victim.worker() or 0)


def purged(scene, kills):
    """The node lets everything go, killed as it says so of a job in each state: which, and how."""
    struck = []
    scene.victim.settings = scene.settings.model_copy(
        update={
            "retention": RetentionSettings(
                committed_days=SOON,
                delivered_days=SOON,
                rejected_days=SOON,
                parked_days=SOON,
                recalled_days=SOON,
                superseded_days=SOON,
                check_s=0.2,
            )
        }
    )
    pairs = [pair for pair in PAIRS if pair[0] != "worker"]
    for place, state in enumerate(PURGED_FROM):
        for turn in range(min(kills, len(pairs))):
            whom, after = pairs[(place + turn) % len(pairs)]
            left = [job.id for job in scene.ledger.jobs([state]) if job.id > 1]
            if not left:
                break
            scene.ambush.lay(min(left), f"{state}PURGED", WHOM[whom], after, 0)
            scene.victim.start()
            assert scene.rig.until(scene.ambush.has_struck), f"{state} is not purged"
            scene.victim.reap()
            struck.append((state, in_words(whom, after)))
    scene.victim.start()
    assert scene.rig.until(
        lambda: (
            {job.state for job in scene.ledger.jobs()} <= {State.PURGED, State.SUPERSEDED}
            and scene.rig.spool_files(scene.ledger.path.parent) == 0
        )
    ), "a purge that was cut off is not finished"
    assert scene.victim.stop() == 0
    return struck


def in_words(whom, after):
    return f"{whom}, {'after' if after else 'before'}"


@pytest.mark.timeout(0)
def test_a_kill_at_any_move_between_states_loses_nothing_and_makes_nothing_twice(
    rig, amount, figures, quick_settings, new_series, free_port, tmp_path, shim
):
    per_move = amount("KILLS_PER_MOVE", short=1, full=len(PAIRS))
    many = amount("MOVES", short=12, full=len(EVERY_MOVE))
    chosen = sorted(Random(SEED).sample(range(len(EVERY_MOVE)), many))
    disk = tmp_path / "disk"
    disk.mkdir()
    with Moody(tmp_path / "archive", ae_title="PEER") as archive:
        settings = quick_settings(
            listen={"port": free_port()},
            retry={"probe_s": 0.5},
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
            scene = Scene(rig, archive, victim, ledger, Ambush(block))
            assert rig.until(victim.listens)
            scene.come_to(new_series(0), State.COMMITTED)
            for place in chosen:
                name = EVERY_MOVE[place]
                pairs = BY_COMMAND_PAIRS if name in BY_COMMAND else PAIRS
                for turn in range(min(per_move, len(pairs))):
                    pair = pairs[(place + turn) % len(pairs)]
                    scene.strike(name, new_series(next(numbers)), pair)
                    done[in_words(*pair)] += 1
            parked = scene.park(new_series(next(numbers)))
            assert rig.until(lambda: all(has_ended(job) for job in ledger.jobs() if job.id != parked))
            assert victim.stop() == 0
            rig.check_acknowledged(ledger, scene.senders)
            results = [job for job in ledger.jobs([State.COMMITTED]) if job.rejects is None]
            files = {job.id: [each.path for each in ledger.instances(job.id)] for job in results}
            made = rig.undisturbed(settings, ledger, files)
            rejected, taken_back = ledger.jobs([State.REJECTED]), ledger.jobs([State.RECALLED])
            notes = [job for job in ledger.jobs() if job.rejects is not None]
            assert len({job.series_instance_uid for job in results}) == len(results)
            assert len(results) + len(rejected) + len(taken_back) == 1 + sum(done.values())
            let_go = purged(scene, per_move)
            done.update(kill for _, kill in let_go)
    shown = {"disk": rig.live(disk), "archive": rig.live(tmp_path / "archive")}
    for place in shown.values():
        assert place.keys() == made.keys()
    assert {uid: path.read_bytes() for uid, path in shown["disk"].items()} == made
    assert all(rig.data_set(shown["archive"][uid]) == rig.data_set(shown["disk"][uid]) for uid in made)
    figures(
        "kill-moves",
        {
            "moves": len(chosen) + len({state for state, _ in let_go}),
            "kills": sum(done.values()),
            "whom, and on which side of the commit": dict(done),
            "series rejected": len(rejected),
            "series recalled": len(taken_back),
            "rejection notes": len(notes),
            "acknowledged and lost": 0,
            "results missing": 0,
            "results beyond one a series": 0,
            "results that differ from an undisturbed run": 0,
        },
    )
