"""Kill −9 of node, worker or both at random moments of receive, inference and delivery.

Each kill strikes while another series is on its way and while earlier ones are still being worked on.
S2NODE_KILLS says how many, S2NODE_KILL_SEED draws others.
"""

from __future__ import annotations

import os
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
STAGES = ("receive", "inference", "delivery")
QUIET_S = 2.0
"""Longer than the sender needs to come back after a restart: no series is complete before it is."""


def strike(rig, stage, victim, sender, ledger, rng):
    """Bring the sender's series as far as ``stage``, then kill the node at a random moment of it.

    Returns where the kill found the series.
    """
    everything = rng.random() < 0.5
    if stage == "receive":
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
        everything = False
    else:
        sender.send_all()

        def reached():
            job = ledger.find_jobs(sender.uid)[-1]
            return (
                job.owner is not None if stage == "inference" else job.state in {State.BUILT, State.DELIVERED}
            )

        assert rig.until(reached), f"the series did not reach {stage}"
        time.sleep(rng.uniform(0, 0.8 if stage == "inference" else 0.4))
    victim.kill(everything=everything)
    jobs = ledger.find_jobs(sender.uid)
    return "nothing received" if not jobs else f"{jobs[-1].state}{' leased' if jobs[-1].owner else ''}"


@pytest.mark.timeout(0)
def test_a_killed_node_loses_nothing_and_sends_every_series_back_once(
    rig, amount, figures, quick_settings, store_peer, new_series, free_port, tmp_path
):
    kills = amount("KILLS", short=30 if "CI" in os.environ else 6, full=1000)
    peer = store_peer(delay_s=0.01)
    disk = tmp_path / "disk"
    disk.mkdir()
    settings = quick_settings(
        listen={"port": free_port()},
        settle={"quiet_s": QUIET_S, "max_wait_s": 600, "check_s": 0.1},
        worker={"max_attempts": 100},
        destinations=[
            {"name": "pacs", "host": "127.0.0.1", "port": peer.port, "ae_title": "PEER"},
            {"name": "disk", "kind": "folder", "path": disk},
        ],
    )
    rng, senders, found = Random(SEED), [], []
    ledger_file = settings.storage.data_dir / rig.LEDGER_FILE
    with Ledger(ledger_file) as ledger, rig.Victim(settings) as victim:
        for number in range(kills):
            sender = rig.Sender(settings.listen.port, new_series(number))
            senders.append(sender)
            assert rig.until(victim.listens)
            found.append(strike(rig, STAGES[number % 3], victim, sender, ledger, rng))
            rig.check_acknowledged(ledger, senders)
            victim.start()
            sender.send_all()
        assert rig.until(
            lambda: all(job.state is State.DELIVERED for job in ledger.jobs()), 120 + 20 * kills
        ), [(job.state, job.code) for job in ledger.jobs()]
        assert victim.stop() == 0
        assert [job.generation for job in ledger.jobs()] == [1] * kills
        expected = rig.undisturbed(settings, ledger)
    arrived = {path.stem: path.read_bytes() for path in disk.rglob("*.dcm")}
    assert arrived.keys() == expected.keys() == set(peer.uids)
    assert arrived == expected
    for received in peer.received:  # what was on its way when the node died may come twice, equal
        assert received == dcmread(disk / received.SeriesInstanceUID / f"{received.SOPInstanceUID}.dcm")
    figures(
        "kill-random",
        {
            "kills": kills,
            "instances acknowledged": sum(len(sender.acknowledged) for sender in senders),
            "acknowledged and lost": 0,
            "results missing": len(expected.keys() - arrived.keys()),
            "results twice under other UIDs": len(arrived.keys() - expected.keys()),
            "results that differ from an undisturbed run": 0,
            "where the kills found the series": dict(Counter(found)),
        },
    )
