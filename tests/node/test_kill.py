"""Kill −9 of the whole node at random moments of receive, inference and delivery.

``S2NODE_KILLS`` says how many moments (without: 30 where CI is set, else 6); each strikes while another
series is on its way and while earlier ones are still being worked on. ``S2NODE_KILL_SEED`` draws others.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage
from pynetdicom import AE

from engine.session import SessionPolicy
from node.build import build, context_of
from node.ledger import LEDGER_FILE, Ledger
from node.models import ModelStore
from node.outputs.encoding import to_bytes
from node.states import State
from node.worker import Engines, local_time

KILLS = int(os.environ.get("S2NODE_KILLS", "30" if "CI" in os.environ else "6"))
SEED = int(os.environ.get("S2NODE_KILL_SEED", "1"))
STAGES = ("receive", "inference", "delivery")
SERVE = (
    "import sys; from config.settings import Settings; from node.service import serve;"
    "sys.exit(serve(Settings.model_validate_json(sys.stdin.readline())))"
)
QUIET_S = 2.0
"""Longer than the sender needs to come back after a restart: no series is complete before it is."""


class Victim:
    """The node as processes of their own, in one group; none of them outlives the ``with`` block."""

    def __init__(self, settings):
        self.settings = settings

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.process.stdin.write(self.settings.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()

    def kill(self, *, everything):
        """Kill the node, and its worker too with ``everything``; else the worker must notice by itself."""
        if everything:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()

    def stop(self):
        self.process.terminate()
        code = self.process.wait(60)
        self.process.stdin.close()
        return code


@dataclass
class Sender:
    """A modality: keeps what is not acknowledged and sends it again until it is."""

    port: int
    series: list
    acknowledged: set = field(default_factory=set)

    def send_some(self, limit=1000, pause_s=0.0):
        """Send up to ``limit`` of what is not acknowledged; fewer where the node goes away."""
        ae = AE(ae_title="CT")
        ae.connection_timeout, ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 1, 5, 20, 20
        ae.add_requested_context(CTImageStorage)
        assoc = ae.associate("127.0.0.1", self.port, ae_title="S2NODE")
        for ds in self.rest()[:limit]:
            if not assoc.is_established:
                break
            if assoc.send_c_store(ds).get("Status") == 0x0000:
                self.acknowledged.add(ds.SOPInstanceUID)
            time.sleep(pause_s)
        if assoc.is_established:
            assoc.release()

    def send_all(self, seconds=120.0):
        end = time.monotonic() + seconds
        while self.rest():
            assert time.monotonic() < end, "the node does not take the rest of the series"
            self.send_some()
            time.sleep(0.02)

    def rest(self):
        return [ds for ds in self.series if ds.SOPInstanceUID not in self.acknowledged]


def until(condition, seconds=240.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.005)
    return condition()


def strike(stage, victim, sender, ledger, rng):
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
        uid = sender.series[0].SeriesInstanceUID

        def reached():
            job = ledger.find_jobs(uid)[-1]
            return (
                job.owner is not None if stage == "inference" else job.state in {State.BUILT, State.DELIVERED}
            )

        assert until(reached), f"the series did not reach {stage}"
        time.sleep(rng.uniform(0, 0.8 if stage == "inference" else 0.4))
    victim.kill(everything=everything)
    jobs = ledger.find_jobs(sender.uid)
    return "nothing received" if not jobs else f"{jobs[-1].state}{' leased' if jobs[-1].owner else ''}"


def check_acknowledged(ledger, senders):
    """Every acknowledged instance is in the ledger and on the disk, whole."""
    for sender in senders:
        if not sender.acknowledged:
            continue
        instances = {i.sop_instance_uid: i for i in ledger.instances(ledger.find_jobs(sender.uid)[-1].id)}
        assert sender.acknowledged <= set(instances)
        for uid in sender.acknowledged:
            assert sha256(instances[uid].path.read_bytes()).hexdigest() == instances[uid].sha256


@pytest.mark.timeout(300 + 60 * KILLS)
def test_a_killed_node_loses_nothing_and_sends_every_series_back_once(
    quick_settings, store_peer, new_series, free_port, tmp_path
):
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
    with Ledger(settings.storage.data_dir / LEDGER_FILE) as ledger, Victim(settings) as victim:
        for number in range(KILLS):
            sender = Sender(settings.listen.port, new_series(number))
            sender.uid = sender.series[0].SeriesInstanceUID
            senders.append(sender)
            assert until(lambda: listening(settings.listen.port))
            found.append(strike(STAGES[number % 3], victim, sender, ledger, rng))
            check_acknowledged(ledger, senders)
            victim.start()
            sender.send_all()
        assert until(lambda: all(job.state is State.DELIVERED for job in ledger.jobs()), 120 + 20 * KILLS), [
            (job.state, job.code) for job in ledger.jobs()
        ]
        assert victim.stop() == 0
        assert [job.generation for job in ledger.jobs()] == [1] * KILLS
        expected = undisturbed(settings, ledger)
    print(f"{KILLS} kills found: {dict(Counter(found))}")
    arrived = {path.stem: path.read_bytes() for path in disk.rglob("*.dcm")}
    assert arrived.keys() == expected.keys() == set(peer.uids)
    assert arrived == expected
    for received in peer.received:  # what was on its way when the node died may come twice, equal
        assert received == dcmread(disk / received.SeriesInstanceUID / f"{received.SOPInstanceUID}.dcm")


def listening(port):
    probe = AE()
    probe.connection_timeout = 1
    probe.add_requested_context("1.2.840.10008.1.1")
    assoc = probe.associate("127.0.0.1", port, ae_title="S2NODE")
    established = assoc.is_established
    if established:
        assoc.release()
    return established


def undisturbed(settings, ledger):
    """The same jobs built once, in this process, from the files as sent: bytes by SOP Instance UID."""
    engines = Engines(ModelStore(settings), SessionPolicy(provider="cpu", threads=1)).active()
    files = {}
    for job in ledger.jobs():
        built = build(
            [instance.path for instance in ledger.instances(job.id)],
            engines=engines,
            context=context_of(settings, generation=1, created=local_time(job.created_at)),
            rules=settings.intake,
        )
        files |= {str(ds.SOPInstanceUID): to_bytes(ds) for each in built.datasets for ds in each.datasets}
    return files
