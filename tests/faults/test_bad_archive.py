"""Archives that refuse, abort, sleep, fall silent and vanish, all at once, beside one that is well.

DCMTK's storescp plays those that it can. S2NODE_RESULTS says how many results are made in each of the two
phases: while every archive is well, and while all but one are bad. Then they are mended. The full form
measures that the archive that is well waits no more than a lane's tick longer. The short form measures no
time: there the node has more patience with a bad archive than the test has, so that a lane that waits for
another's is seen.
"""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest
from pydicom import dcmread

from node.deliver import HOUR_S
from node.ledger import Ledger, Output, ReceivedInstance
from node.service import DELIVER_CHECK_S
from node.states import State
from node.supervisor import owner_name

pytestmark = pytest.mark.peers

BAD = {
    "refuses": lambda archive: archive.become("--refuse"),
    "rejects-for-now": lambda archive: archive.reject("for now"),
    "rejects-for-good": lambda archive: archive.reject("for good"),
    "aborts-after": lambda archive: archive.become("--abort-after"),
    "aborts-during": lambda archive: archive.become("--abort-during"),
    "keeps-unanswered": lambda archive: archive.keep_unanswered(),
    "sleeps": lambda archive: archive.become("--sleep-during", "30"),
    "silent": lambda archive: archive.fall_silent(),
    "vanished": lambda archive: archive.stop(),
}
"""How each turns bad. "refuses" is a rejection without a reason, which may pass; "rejects-for-good" alone
leaves its results to a person."""
WELL = "well"
NO_ANSWER = "no answer to C-STORE"
"""Why a delivery was put off where nobody knows whether the archive has the instance: it is sent again."""
EVERY_ONE = ("+uf",)
"""storescp keeps each instance that comes in a file of its own, also one that it has."""
EVERY_S = 1.0
"""Seconds between two results."""


@pytest.mark.timeout(0)
def test_bad_archives_have_everything_once_when_mended_and_delay_no_other(
    rig, amount, figures, quick_settings, storescp, ct_files, free_port, tmp_path
):
    results = amount("RESULTS", short=2, full=60)
    patience_s = amount("PATIENCE_S", short=1200, full=5)
    archives = {name: storescp(always=EVERY_ONE) for name in (WELL, *BAD)}
    settings = quick_settings(
        listen={"port": free_port()},
        retry={"first_s": 0.2, "max_s": 2, "max_attempts": 100_000, "break_after": 3, "probe_s": 1},
        destinations=[towards(name, archive, patience_s) for name, archive in archives.items()],
    )
    data_dir = settings.storage.data_dir
    with Ledger(data_dir / rig.LEDGER_FILE) as ledger:
        jobs = [ready(ledger, number, data_dir) for number in range(1, 2 * results + 1)]
        with rig.Victim(settings) as victim:
            assert rig.until(victim.listens)
            for job_id in jobs[:results]:
                finish(ledger, job_id, ct_files, archives)
            for name, turn in BAD.items():
                turn(archives[name])
            bad_since = time.monotonic()
            for job_id in jobs[results:]:
                finish(ledger, job_id, ct_files, archives)
            assert rig.until(lambda: all(has(ledger, job_id, WELL) for job_id in jobs))
            broken = rig.until(
                lambda: [each for each in ledger.destinations(archives) if each.breaker.opened_at]
            )
            assert rig.until(lambda: all(is_refused(ledger, job_id) for job_id in jobs[results:]))
            unanswering = archives["keeps-unanswered"]
            assert rig.until(lambda: len(unanswering.datasets()) > results * len(ct_files))
            bad_for_s = time.monotonic() - bad_since
            put_off = sum(
                each.attempt
                for job_id in jobs
                for each in ledger.deliveries(job_id)
                if each.destination == WELL
            )
            for archive in archives.values():
                archive.become()
            retried = Counter()

            def is_delivered():
                for job in ledger.jobs([State.PARKED]):
                    retried[job.id] += ledger.retry(job.id, time.time()) is State.BUILT
                return all(ledger.job(job_id).state is State.DELIVERED for job_id in jobs)

            rig.until(is_delivered, 1200)
            undelivered = sum(ledger.job(job_id).state is not State.DELIVERED for job_id in jobs)
            assert victim.stop() == 0
        waits = {phase: [wait_s(ledger, job_id) for job_id in part] for phase, part in split(jobs, results)}
        outputs = {job_id: ledger.outputs(job_id) for job_id in jobs}
        unanswered = Counter(
            (job_id, event.note.partition(":")[0])
            for job_id in jobs
            for event in ledger.events(job_id)
            if NO_ANSWER in (event.note or "")
        )
    expected = {output.sop_instance_uid: output.path for of_job in outputs.values() for output in of_job}
    missing = again = twice = changed = 0
    for name, archive in archives.items():
        found = archive.datasets()
        copies = Counter(ds.SOPInstanceUID for ds in found)
        missing += len(expected.keys() - copies.keys())
        changed += sum(ds != dcmread(expected[ds.SOPInstanceUID]) for ds in found)
        for job_id, of_job in outputs.items():
            more = sum(copies[output.sop_instance_uid] for output in of_job) - len(of_job)
            again += min(more, unanswered[job_id, name])
            twice += max(0, more - unanswered[job_id, name])
    figures(
        "bad-archive",
        {
            "results": len(jobs),
            "instances sent to each archive": len(expected),
            "bad archives": len(BAD),
            "seconds they were bad": round(bad_for_s),
            "breakers open then": len(broken),
            "results that a person sent on, once each": len(retried),
            "results not delivered everywhere when mended": undelivered,
            "instances missing": missing,
            "instances there again whose answer had broken off": again,
            "other instances there again": twice,
            "instances changed": changed,
            "longest wait of the archive that is well, others well, s": round(max(waits["alone"]), 2),
            "longest wait of the archive that is well, others bad, s": round(max(waits["beside"]), 2),
            "lane tick, s": DELIVER_CHECK_S,
        },
    )
    assert (undelivered, missing, twice, changed, put_off) == (0, 0, 0, 0, 0)
    assert retried == dict.fromkeys(jobs[results:], 1)
    assert again
    assert broken
    if os.environ.get("S2NODE_FAULTS") == "full":
        assert max(waits["beside"]) <= max(waits["alone"]) + DELIVER_CHECK_S


def towards(name, archive, patience_s):
    words = ("connect_timeout_s", "acse_timeout_s", "dimse_timeout_s", "network_timeout_s")
    patience = dict.fromkeys(words, patience_s)
    place = {"name": name, "host": "127.0.0.1", "port": archive.port, "ae_title": archive.ae_title}
    return {**place, **patience}


def ready(ledger, number, data_dir):
    """A job that this process works on."""
    series = f"2.25.1{number:06}"
    path = data_dir / "inbox" / series / "1.dcm"
    received = ReceivedInstance(f"{series}.0", "1.2", "1.2", series, "1.3", "CT", path, "00", 1)
    job_id = ledger.record_instance(received, time.time()).job_id
    ledger.move(job_id, State.SETTLED, time.time())
    ledger.move(job_id, State.READY, time.time())
    leased = ledger.lease(owner_name(os.getpid()), time.time(), HOUR_S)
    assert leased is not None and leased.id == job_id
    return job_id


def finish(ledger, job_id, files, archives):
    """Its result is there, for every archive. The next one comes a moment later."""
    outputs = [outbox_file(path, ledger, job_id) for path in files]
    ledger.record_built(job_id, owner_name(os.getpid()), outputs, [], list(archives), now=time.time())
    time.sleep(EVERY_S)


def outbox_file(path, ledger, job_id):
    """The file as an output of the job, under UIDs of its own."""
    ds = dcmread(path)
    ds.SeriesInstanceUID = f"2.25.2{job_id:06}"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.2{job_id:06}.{ds.InstanceNumber}"
    target = ledger.path.parent / "outbox" / ds.SeriesInstanceUID / f"{ds.SOPInstanceUID}.dcm"
    target.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(target)
    return Output(
        job_id,
        "arterial",
        "ct_series",
        ds.SeriesInstanceUID,
        ds.SOPInstanceUID,
        ds.SOPClassUID,
        target,
        "00",
    )


def has(ledger, job_id, name):
    """Whether the archive has all of the job."""
    return not ledger.pending_outputs(job_id, name)


def is_refused(ledger, job_id):
    """Whether the archive that rejects for good has left the job to a person."""
    return any(each.refused for each in ledger.deliveries(job_id) if each.destination == "rejects-for-good")


def split(jobs, results):
    return [("alone", jobs[:results]), ("beside", jobs[results:])]


def wait_s(ledger, job_id):
    """Seconds from the result to the first answer of the archive that is well."""
    owed = next(each.owed_since for each in ledger.deliveries(job_id) if each.destination == WELL)
    return min(each.at for each in ledger.answers(job_id) if each.destination == WELL) - owed
