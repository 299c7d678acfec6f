"""Kill −9 of node, worker or both at random moments of receive, inference and delivery.

Each series is struck three times: while it comes, while it or another is worked on, and while one is
delivered; earlier ones are on their way then too.
S2NODE_KILLS says how many kills, S2NODE_KILL_SEED draws others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from random import Random

import pytest
from pydicom import dcmread

from node.ledger import Ledger
from node.states import State

SEED = int(os.environ.get("S2NODE_KILL_SEED", "1"))
QUIET_S = 2.0
"""Longer than the sender needs to come back after a restart: no series is complete before it is."""
WHOM = ("node", "worker", "both")
AGAIN = "instances sent again, equal, whose answer was cut off"
A_ROUND = 102
"""Kills of one node before everything is counted and the next one begins."""


def while_it_comes(rig, victim, sender, ledger, rng):
    """Kill the node at a random moment while the sender sends; which series that struck."""
    sender.send_some(rng.randrange(0, len(sender.series)))
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import time, os; time.sleep({rng.uniform(0, 0.2)}); os.kill({victim.process.pid}, 9)",
        ]
    )
    sender.send_some(pause_s=0.01)
    process.wait()
    victim.kill("node")
    jobs = ledger.find_jobs(sender.uid)
    return "nothing received" if not jobs else str(jobs[-1].state)


def once(is_so, within_s):
    """Kills node, worker or both within so many seconds, at random, after a job is as ``is_so`` says."""

    def strike(rig, victim, sender, ledger, rng):
        sender.send_all()

        def reached():
            """Jobs in that state, or this sender's where it went through it between two looks."""
            there = [job for job in ledger.jobs((State.READY, State.BUILT)) if is_so(job)]
            return there or [job for job in ledger.find_jobs(sender.uid) if job.state is State.DELIVERED]

        found = rig.until(reached)
        assert found, [(job.state, job.code) for job in ledger.jobs()]
        time.sleep(rng.uniform(0, within_s))
        victim.kill(rng.choice(WHOM))
        job = ledger.job(found[0].id)
        return f"{job.state}{' leased' if job.owner else ''}"

    return strike


STAGES = {
    "receive": while_it_comes,
    "inference": once(lambda job: job.owner is not None, 0.8),
    "delivery": once(lambda job: job.state is State.BUILT, 0.4),
}


def play(rig, settings, peer, disk, kills, rng, new_series):
    """Kill one node so many times, then let it finish and compare; what the kills found, and what came."""
    senders, found = [], []
    with Ledger(settings.storage.data_dir / rig.LEDGER_FILE) as ledger, rig.Victim(settings) as victim:
        for number in range(kills):
            stage = list(STAGES)[number % len(STAGES)]
            if stage == "receive":
                senders.append(rig.Sender(settings.listen.port, new_series(len(senders))))
            assert rig.until(victim.listens)
            found.append(STAGES[stage](rig, victim, senders[-1], ledger, rng))
            rig.check_acknowledged(ledger, senders)
            victim.revive()
        senders[-1].send_all()
        assert rig.until(
            lambda: all(job.state is State.DELIVERED for job in ledger.jobs()), 120 + 20 * kills
        ), [(job.state, job.code) for job in ledger.jobs()]
        assert victim.stop() == 0
        assert [job.generation for job in ledger.jobs()] == [1] * len(senders)
        expected = rig.undisturbed(settings, ledger)
    arrived = {path.stem: path.read_bytes() for path in disk.rglob("*.dcm")}
    assert arrived.keys() == expected.keys() == set(peer.uids)
    assert arrived == expected
    again = len(peer.received) - len(expected)
    assert again <= kills, "more than the one instance that is on its way when the node dies"
    for received in peer.received:
        assert received == dcmread(disk / received.SeriesInstanceUID / f"{received.SOPInstanceUID}.dcm")
    return {
        "kills": kills,
        "series": len(senders),
        "instances acknowledged": sum(len(sender.acknowledged) for sender in senders),
        AGAIN: again,
        "found": dict(Counter(found)),
    }


@pytest.mark.timeout(0)
def test_a_killed_node_loses_nothing_and_sends_every_series_back_once(
    rig, amount, figures, rounds, quick_settings, store_peer, new_series, free_port, tmp_path
):
    kills = amount("KILLS", short=6, full=1000)

    def one_round(number):
        peer, folder = store_peer(delay_s=0.01), tmp_path / str(number)
        disk = folder / "disk"
        disk.mkdir(parents=True)
        settings = quick_settings(
            listen={"port": free_port()},
            storage={"data_dir": folder / "node"},
            settle={"quiet_s": QUIET_S, "max_wait_s": 600, "check_s": 0.1},
            worker={"max_attempts": 100},
            destinations=[
                {"name": "pacs", "host": "127.0.0.1", "port": peer.port, "ae_title": "PEER"},
                {"name": "disk", "kind": "folder", "path": disk},
            ],
        )
        of_it = min(A_ROUND, kills - number * A_ROUND)
        counted = play(rig, settings, peer, disk, of_it, Random(SEED + number), new_series)
        peer.stop()
        peer.received.clear()
        shutil.rmtree(folder)
        return counted

    told = rounds("kill-random", -(-kills // A_ROUND), one_round, key=f"{kills} {SEED}")
    figures(
        "kill-random",
        {
            **{
                name: sum(each[name] for each in told)
                for name in ("kills", "series", "instances acknowledged", AGAIN)
            },
            "acknowledged and lost": 0,
            "results missing": 0,
            "results twice under other UIDs": 0,
            "results that differ from an undisturbed run": 0,
            "where the kills found a series": dict(sum((Counter(each["found"]) for each in told), Counter())),
        },
    )
