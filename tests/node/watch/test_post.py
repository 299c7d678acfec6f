"""A whole node is watched: its log, its figures, its pages and its audit tell one story."""

from __future__ import annotations

import http.client
import io
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE

from config.settings import LogSettings, Settings
from node import log as node_log
from node.alarm import Alert, AlertKind
from node.ledger import LEDGER_FILE, Ledger
from node.service import Node
from node.states import State
from node.supervisor import Supervisor
from node.watch.post import Watch
from node.watch.signs import Signs

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).parents[1] / "audit" / "audit-message.rng"))


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


def get(port: int, path: str) -> tuple[int, str]:
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    asking.request("GET", path)
    answer = asking.getresponse()
    found = answer.status, answer.read().decode()
    asking.close()
    return found


def associate(port: int, title: str, series: list[Dataset]) -> bool:
    ae = AE(ae_title=title)
    ae.add_requested_context(CTImageStorage)
    assoc = ae.associate("127.0.0.1", port, ae_title="S2NODE")
    for ds in series if assoc.is_established else ():
        assoc.send_c_store(ds)
    if assoc.is_established:
        assoc.release()
    return not assoc.is_rejected


def test_a_journey_is_logged_counted_and_audited_and_only_the_audit_names_the_patient(
    quick_settings: Callable[..., Settings],
    store_peer: Callable[..., Any],
    new_series: Callable[[int], list[Dataset]],
) -> None:
    peer = store_peer()
    settings = quick_settings(
        destinations=[{"name": "pacs", "host": "127.0.0.1", "port": peer.port, "ae_title": "PEER"}],
        listen={"allow_ae_titles": ["CT"]},
        watch={"enabled": True, "port": 0},
        audit={"to_file": True},
    )
    log = io.StringIO()
    node_log.configure(LogSettings(format="json"), log)
    series = new_series(1)
    with Node(settings) as node:
        port = node.watch.port
        assert port
        assert until(lambda: get(port, "/readyz") == (200, "ok\n"))
        assert get(port, "/healthz") == (200, "ok\n")
        assert associate(node.port, "CT", series)
        assert not associate(node.port, "ROGUE", series)
        assert until(lambda: [job.state for job in node.ledger.jobs()] == [State.DELIVERED])
        delivered = 's2node_moves_total{from_state="BUILT",to_state="DELIVERED"} 1.0'
        assert until(lambda: delivered in get(port, "/metrics")[1])
        figures = get(port, "/metrics")[1]
        events = node.ledger.events(1)
    moves = [(event.to_state, event.code) for event in events if event.from_state is not event.to_state]
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    moved = [(line["to"], line["code"]) for line in lines if line["event"] == "job moved"]
    assert moved == moves
    assert 's2node_alerts_total{kind="association refused"} 1.0' in figures
    assert 's2node_delivered_instances_total{destination="pacs",outcome="delivered"} 24.0' in figures
    assert 's2node_stage_seconds_count{phase="arterial",stage="compose"} 1.0' in figures
    header = series[0]
    for text in (figures, log.getvalue()):
        assert not re.search(r"\d+(\.\d+){5,}", text)
        for value in (header.PatientName, header.PatientID, header.AccessionNumber, header.StudyDate):
            assert str(value) not in text
    audit = (settings.storage.data_dir / "audit" / "messages.log").read_text().splitlines()
    roots = [etree.fromstring(line.encode()) for line in audit]
    for root in roots:
        SCHEMA.assertValid(root)
    told = [root.find("EventIdentification/EventID").get("originalText") for root in roots]
    assert told[0] == told[-1] == "Application Activity"
    assert sorted(told[1:-1]) == [
        "DICOM Instances Accessed",
        "DICOM Instances Accessed",
        "DICOM Instances Transferred",
        "DICOM Instances Transferred",
        "Security Alert",
    ]
    assert str(header.PatientID) in audit[told.index("DICOM Instances Transferred")]
    assert "ROGUE" in audit[told.index("Security Alert")]


def test_our_own_call_is_no_news_where_the_lists_do_not_name_us(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {"storage": {"data_dir": tmp_path}, "audit": {"to_file": True}, "listen": {"host": "127.0.0.1"}}
    )
    refused = Alert(AlertKind.REFUSED, "address not in allow_addresses", "127.0.0.1")
    signs = Signs({}, (), 0, True)
    with Ledger(tmp_path / LEDGER_FILE) as ledger, Watch(settings, ledger, lambda: signs, bool) as watch:
        watch.serve()
        assert watch.port is None
        assert not watch.answers()
        watch.alarm(refused)
        watch.alarm(Alert(AlertKind.TLS, "certificate required", "127.0.0.1"))
        watch.alarm(Alert(AlertKind.REFUSED, "address not in allow_addresses", "10.1.1.1"))
        assert [name for name, _ in watch.steps()] == ["log", "audit"]
    text = (tmp_path / "audit" / "messages.log").read_text()
    assert text.count("Security Alert") == 1
    assert "10.1.1.1" in text


@pytest.mark.parametrize(("speaks", "is_ready"), [("say_ready()", True), ("pass", False)])
def test_a_worker_says_when_its_models_are_loaded(speaks: str, is_ready: bool) -> None:
    program = f"import time; from node.supervisor import say_ready; {speaks}; print(); time.sleep(60)"
    keeper = Supervisor(
        Settings(),
        on_death=lambda _: None,
        on_fatal=lambda: None,
        command=(sys.executable, "-c", program),
    )
    keeper.start()
    try:
        assert until(lambda: keeper.pid)
        until(lambda: keeper.is_ready, 30 if is_ready else 1)
        assert keeper.is_ready is is_ready
    finally:
        keeper.stop()
    assert not keeper.is_ready
