"""Every move of a job is one log line and one count, whoever made it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from config.settings import LogSettings
from node import log as node_log
from node.alarm import Alert, AlertKind
from node.ledger import LEDGER_FILE, Ledger, Output, ReceivedInstance, SynthesisRecord
from node.states import State
from node.watch.chronicle import Chronicle
from node.watch.follow import Follower

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / LEDGER_FILE) as opened:
        yield opened


def received(ledger: Ledger, number: int, at: float) -> int:
    uid = f"2.25.77.{number}"
    path = ledger.path.parent / f"{number}.dcm"
    instance = ReceivedInstance(uid, CT, "1.2", uid, "2.25.7", "CT1", path, "00", 1)
    return ledger.record_instance(instance, at).job_id


def built(ledger: Ledger, job_id: int, at: float) -> None:
    ledger.lease("w", at, 60.0)
    outputs = [Output(job_id, "arterial", "ct_series", "2.25.9", f"2.25.9.{job_id}", CT, Path("/x"), "aa")]
    made = SynthesisRecord("arterial", "m-1", "dd", 0, "bridge", 4, "cpu", {"model": 7.0, "compose": 0.2})
    ledger.record_built(job_id, "w", outputs, [made], ["pacs"], now=at + 8)


def test_each_move_is_one_line_with_job_and_code_and_one_count(ledger: Ledger) -> None:
    stream = io.StringIO()
    node_log.configure(LogSettings(format="json"), stream)
    registry = CollectorRegistry()
    follower = Follower(ledger, "log", Chronicle(ledger, registry, ["pacs"]).hear)
    one, two = received(ledger, 1, 100.0), received(ledger, 2, 101.0)
    ledger.move(one, State.SETTLED, 130.0)
    ledger.move(one, State.READY, 131.0)
    ledger.move(two, State.REJECTED, 132.0, "HAS-CONTRAST", "agent named")
    built(ledger, one, 140.0)
    ledger.postpone(one, "pacs", 150.0, "nobody answered", 149.0)
    ledger.refuse(one, "pacs", "no", 151.0)
    follower.run()
    follower.run()
    moved = [line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == "job moved"]
    assert [(line["job"], line["came_from"], line["to"], line["code"]) for line in moved] == [
        (one, None, "RECEIVING", None),
        (two, None, "RECEIVING", None),
        (one, "RECEIVING", "SETTLED", None),
        (one, "SETTLED", "READY", None),
        (two, "RECEIVING", "REJECTED", "HAS-CONTRAST"),
        (one, "READY", "BUILT", None),
        (one, "BUILT", "PARKED", "DELIVERY-REFUSED"),
    ]
    assert moved[-1]["level"] == "warning"

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("s2node_moves_total", from_state="READY", to_state="BUILT") == 1
    assert value("s2node_rejected_total", code="HAS-CONTRAST") == 1
    assert value("s2node_rejected_total", code="NOT-CT") == 0
    assert value("s2node_parked_total", code="DELIVERY-REFUSED") == 1
    assert value("s2node_state_seconds_sum", state="RECEIVING") == 30 + 31
    assert value("s2node_state_seconds_sum", state="READY") == 17
    assert value("s2node_stage_seconds_sum", phase="arterial", stage="model") == 7
    assert value("s2node_deliveries_put_off_total", destination="pacs") == 1
    assert value("s2node_retries_total", step="deliver") == 1
    assert value("s2node_retries_total", step="work") == 0


def test_a_second_attempt_of_a_worker_is_a_retry(ledger: Ledger) -> None:
    registry = CollectorRegistry()
    follower = Follower(ledger, "log", Chronicle(ledger, registry).hear)
    job_id = received(ledger, 1, 1.0)
    ledger.move(job_id, State.SETTLED, 2.0)
    ledger.move(job_id, State.READY, 3.0)
    ledger.lease("w", 4.0, 10.0)
    ledger.lease("w", 20.0, 10.0)
    follower.run()
    assert registry.get_sample_value("s2node_retries_total", {"step": "work"}) == 1


def test_a_restart_goes_on_where_the_last_one_stopped_and_the_first_start_at_what_is_newest(
    ledger: Ledger,
) -> None:
    heard: list[int] = []
    received(ledger, 1, 1.0)
    follower = Follower(ledger, "log", lambda followed: heard.append(followed.event.job_id))
    follower.run()
    assert heard == []
    two = received(ledger, 2, 2.0)
    Follower(ledger, "log", lambda followed: heard.append(followed.event.job_id)).run()
    assert heard == [two]


def test_what_could_not_be_heard_is_heard_again_and_nothing_before_it(ledger: Ledger) -> None:
    heard: list[int] = []
    broken = True

    def hear(followed: Any) -> None:
        if followed.event.job_id == two and broken:
            raise OSError("no")
        heard.append(followed.event.job_id)

    follower = Follower(ledger, "log", hear)
    one, two, three = (received(ledger, number, 1.0) for number in (1, 2, 3))
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            follower.run()
    assert heard == [one]
    broken = False
    follower.run()
    assert heard == [one, two, three]


def test_an_alert_is_counted_by_its_kind(ledger: Ledger) -> None:
    registry = CollectorRegistry()
    chronicle = Chronicle(ledger, registry)
    chronicle.alarm(Alert(AlertKind.TLS, "no certificate", "10.0.0.1"))
    assert registry.get_sample_value("s2node_alerts_total", {"kind": "TLS failed"}) == 1
    assert registry.get_sample_value("s2node_alerts_total", {"kind": "association refused"}) == 0
