"""`s2node jobs destinations`, and what `jobs show` says about where a job went."""

import json
import time

import pytest

from node.ledger import LEDGER_FILE, BreakerRecord, Ledger, Output, ReceivedInstance
from node.states import State

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "s2node.toml"
    path.write_text(
        f'[storage]\ndata_dir = "{tmp_path / "data"}"\n'
        '[[destinations]]\nname = "pacs"\nhost = "h"\nae_title = "A"\nfallback = "disk"\n'
        f'[[destinations]]\nname = "disk"\nkind = "folder"\npath = "{tmp_path}"\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def built(tmp_path):
    """A BUILT job of three outputs, of which the PACS has one and was asked to wait with the second."""
    with Ledger(tmp_path / "data" / LEDGER_FILE) as ledger:
        received = ReceivedInstance("1.2.1", CT, "1.2", "1.2", "1.3", "CT", tmp_path / "f", "00", 1)
        job_id = ledger.record_instance(received, 1.0).job_id
        ledger.move(job_id, State.SETTLED, 2.0)
        ledger.move(job_id, State.READY, 3.0)
        ledger.lease("w", 4.0, 60.0)
        outputs = [
            Output(job_id, "arterial", "ct_series", "2.25.1", f"2.25.1.{n}", CT, tmp_path / f"{n}", "00")
            for n in range(3)
        ]
        now = time.time()
        ledger.record_built(job_id, "w", outputs, [], ["pacs"], now=now - 7200)
        ledger.record_delivery("2.25.1.0", "pacs", 0, now)
        ledger.record_delivery("2.25.1.1", "pacs", 0xA700, now)
        ledger.record_breaker(BreakerRecord("pacs", 3, now - 600, "status 0xA700", now))
        yield job_id


def test_a_destination_that_is_left_alone_is_shown_with_what_waits_for_it(run, config, built):
    shown = run("jobs", "destinations", "-c", config).out
    assert "left alone for 10 min" in shown and "2 h ago" in shown and "status 0xA700" in shown
    assert "answers" in next(line for line in shown.splitlines() if line.startswith("disk"))
    pacs, disk = json.loads(run("jobs", "destinations", "-c", config, "--json").out)
    assert (pacs["destination"], pacs["failures"], pacs["jobs"]) == ("pacs", 3, 1)
    assert (disk["destination"], disk["failures"], disk["jobs"], disk["oldest_at"]) == ("disk", 0, 0, None)


def test_a_job_is_shown_with_what_was_said_about_its_instances(run, config, built):
    shown = run("jobs", "show", built, "-c", config).out
    assert "0x0000 Success" in shown and "0xA700 Refused: out of resources" in shown and "none yet" in shown
    facts = json.loads(run("jobs", "show", built, "-c", config, "--json").out)
    assert [answer["status"] for answer in facts["answers"]] == [0, 0xA700, None]


def test_a_destination_that_failed_once_is_not_left_alone(run, config, built, tmp_path):
    with Ledger(tmp_path / "data" / LEDGER_FILE) as ledger:
        ledger.record_breaker(BreakerRecord("pacs", 1, None, "aborted", 1.0))
    shown = run("jobs", "destinations", "-c", config).out
    assert "fails" in shown and "left alone" not in shown
