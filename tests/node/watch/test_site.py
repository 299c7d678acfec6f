"""/metrics, /healthz and /readyz answer, say what is wrong, and are not held up by anybody."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from config.load import ConfigError, load_settings
from config.settings import Settings, WatchSettings
from node.ledger import LEDGER_FILE, BreakerRecord, Ledger, Output, ReceivedInstance
from node.states import State
from node.watch import site as site_module
from node.watch.figures import Figures, Size, measure
from node.watch.signs import Signs, WorkerSign
from node.watch.site import Site

CT = "1.2.840.10008.5.1.4.1.1.2"
WELL = Signs({"settle": True}, (WorkerSign(True, True, True),), 3, True, {0xA700: 2})


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    asking.request(method, path)
    answer = asking.getresponse()
    found = answer.status, answer.read().decode()
    asking.close()
    return found


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    opened: list[Site] = []

    def start(registry: CollectorRegistry | None = None, problems: list[str] | None = None) -> Site:
        found = problems if problems is not None else []
        made = Site(
            WatchSettings(port=0),
            registry or CollectorRegistry(),
            health=lambda: found,
            readiness=lambda: [*found, "not ready"],
        )
        opened.append(made.__enter__())
        return made

    yield start
    for each in opened:
        each.__exit__(None, None, None)


def test_pages_say_ok_or_what_is_wrong(site: Callable[..., Site]) -> None:
    problems: list[str] = []
    port = site(problems=problems).port
    assert get(port, "/healthz") == (200, "ok\n")
    assert get(port, "/readyz") == (503, "not ready\n")
    problems.append("lane settle is stuck")
    assert get(port, "/healthz") == (503, "lane settle is stuck\n")
    assert get(port, "/elsewhere")[0] == 404
    assert get(port, "/metrics", "POST")[0] == 405


def test_a_page_that_fails_is_an_error_and_the_next_one_works(
    site: Callable[..., Site], capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(CollectorRegistry):
        def collect(self):  # type: ignore[no-untyped-def]
            raise ValueError("DOE^JANE")

    port = site(registry=Broken()).port
    assert get(port, "/metrics")[0] == 500
    assert get(port, "/healthz")[0] == 200
    assert "DOE" not in capfd.readouterr().err


def test_silent_clients_do_not_keep_others_out_for_long(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_module.Handler, "timeout", 0.3)
    port = site().port
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(site_module.MOST_CLIENTS + 4)]
    for each in silent[site_module.MOST_CLIENTS :]:
        each.settimeout(10)
        assert each.recv(1) == b"", "hung up on: too many"
        each.close()
    for each in silent[: site_module.MOST_CLIENTS]:
        each.settimeout(10)
        while each.recv(100):
            pass
        each.close()
    assert get(port, "/healthz")[0] == 200


def test_signs_are_put_into_words() -> None:
    assert WELL.ailments() == WELL.obstacles(answers=True) == []
    workers = (WorkerSign(False, False, False), WorkerSign(True, True, False))
    sick = Signs({"settle": False}, workers, 0, False)
    assert sick.ailments() == ["lane settle is stuck", "a worker is not supervised"]
    assert sick.obstacles(answers=False)[2:] == [
        "the listener does not answer",
        "the disk is below its watermark: new series are refused",
        "worker 0 does not run",
        "worker 1 has not loaded its models",
    ]


def test_the_page_is_for_this_machine_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "s2node.toml"
    file.write_text('[watch]\nenabled = true\nhost = "0.0.0.0"\n')
    with pytest.raises(ConfigError, match="allow_remote"):
        load_settings(file, {})
    file.write_text('[watch]\nenabled = true\nhost = "0.0.0.0"\nallow_remote = true\n')
    assert load_settings(file, {}).watch.allow_remote


def deliver_one(ledger: Ledger, path: Path, destination: str, at: float) -> None:
    """Another series, of one output that is DELIVERED ``at`` then."""
    received = ReceivedInstance("2.25.88.1", CT, "1.2", "2.25.88", "2.25.7", "CT1", path, "00", 1)
    job_id = ledger.record_instance(received, 120.0).job_id
    for state in (State.SETTLED, State.READY):
        ledger.move(job_id, state, 121.0)
    ledger.lease("w", 122.0, 60.0)
    output = Output(job_id, "venous", "ct_series", "2.25.8", "2.25.8.1", CT, path, "aa")
    ledger.record_built(job_id, "w", [output], [], [destination], now=123.0)
    ledger.record_delivery("2.25.8.1", destination, 0x0000, at)


def test_figures_count_what_there_is_and_name_nobody(
    quick_settings: Callable[..., Settings], site: Callable[..., Site]
) -> None:
    pacs = {"name": "pacs", "host": "127.0.0.1", "port": 104, "ae_title": "PACS"}
    archive = {**pacs, "name": "archive", "commitment": "request"}
    settings = quick_settings(destinations=[pacs, archive])
    folder = settings.storage.data_dir
    registry = CollectorRegistry()
    (folder / "inbox" / "2.25.77").mkdir(parents=True)
    (folder / "inbox" / "2.25.77" / "1.dcm").write_bytes(b"x" * 100)
    with Ledger(folder / LEDGER_FILE) as ledger:
        registry.register(Figures(settings, ledger, lambda: WELL, now=lambda: 160.0))
        path = folder / "inbox" / "2.25.77" / "1.dcm"
        for number in (1, 2):
            uid = f"2.25.77.{number}"
            received = ReceivedInstance(uid, CT, "1.2", uid, "2.25.7", "CT1", path, "00", 1)
            job_id = ledger.record_instance(received, 100.0 + number).job_id
        ledger.move(job_id, State.REJECTED, 130.0, "NOT-CT")
        ledger.count("repeats", 5)
        waiting = ledger.jobs([State.RECEIVING])[0].id
        for state in (State.SETTLED, State.READY):
            ledger.move(waiting, state, 101.0)
        ledger.lease("w", 101.0, 60.0)
        outputs = [
            Output(waiting, "venous", "ct_series", "2.25.6", f"2.25.6.{number}", CT, path, "aa")
            for number in range(3)
        ]
        ledger.record_built(waiting, "w", outputs, [], ["pacs"], now=101.0)
        ledger.record_delivery("2.25.6.0", "pacs", 0x0000, 102.0)
        ledger.record_delivery("2.25.6.1", "pacs", 0xC000, 103.0)
        deliver_one(ledger, path, "archive", at=140.0)
        ledger.record_breaker(BreakerRecord("pacs", 4, 104.0, "nobody answers", 104.0))
        status, text = get(site(registry=registry).port, "/metrics")
    found = {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert status == 200
    assert found["s2node_jobs", "BUILT"] == found["s2node_jobs", "REJECTED"] == 1
    assert found["s2node_oldest_job_seconds", "BUILT"] == 59
    assert found["s2node_delivered_instances_total", "pacs", "delivered"] == 1
    assert found["s2node_delivered_instances_total", "pacs", "refused"] == 1
    assert found["s2node_destination_failures", "pacs"] == 4
    assert found["s2node_instances",] == 3
    assert found["s2node_counted_total", "repeats"] == 5
    assert found["s2node_spool_bytes", "inbox"] == 100
    assert found["s2node_spool_files", "inbox"] == 1
    assert found["s2node_disk_free_bytes",] > 0
    assert found["s2node_open_associations",] == 3
    assert found["s2node_lane_up", "settle"] == found["s2node_worker_ready", "0"] == 1
    assert found["s2node_deliveries_waiting", "pacs"] == found["s2node_breaker_open", "pacs"] == 1
    assert found["s2node_deliveries_refused", "pacs"] == 0
    assert found["s2node_oldest_delivery_seconds", "pacs"] == 59
    assert found["s2node_oldest_delivery_seconds", "archive"] == 0
    assert found["s2node_commitments_waiting", "archive"] == 1
    assert found["s2node_oldest_commitment_seconds", "archive"] == 20
    assert ("s2node_commitments_waiting", "pacs") not in found, "it is not asked"
    assert found["s2node_instances_refused_total", "0xA700"] == 2
    assert found["s2node_instances_refused_total", "0xC000"] == 0
    models = [key[2:] for key in found if key[0] == "s2node_model_info"]
    assert sorted(models) == [("gain-arterial-1.0.0", "arterial"), ("gain-venous-1.0.0", "venous")]
    assert "2.25." not in text and "CT1" not in text


def test_a_damaged_model_does_not_spoil_the_figures(
    quick_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = quick_settings()
    for manifest in settings.storage.data_dir.rglob("bundle.json"):
        manifest.write_bytes(b"{")
    with Ledger(tmp_path / LEDGER_FILE) as ledger:
        names = [metric.name for metric in Figures(settings, ledger, lambda: WELL).collect()]
    assert "s2node_model_info" in names


def test_the_spool_is_not_walked_at_every_reading(tmp_path: Path) -> None:
    now = [0.0]
    size = Size(tmp_path, every_s=60, elapsed=lambda: now[0])
    (tmp_path / "inbox").mkdir()
    assert size.now()["inbox"] == (0, 0)
    (tmp_path / "inbox" / "1").write_bytes(b"abc")
    assert size.now()["inbox"] == (0, 0)
    now[0] = 60.0
    assert size.now()["inbox"] == (1, 3)
    assert measure(tmp_path / "nowhere") == (0, 0)
