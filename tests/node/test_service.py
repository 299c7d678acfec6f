import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE

from node import service, watchdog
from node.ledger import LEDGER_FILE, Ledger, ReceivedInstance
from node.service import Node, NodeRunning, free_orphans
from node.states import State
from node.supervisor import EXIT_CONFIG, boot_id, owner_name
from node.watchdog import Pulse

SERVE = (
    "import sys; from config.settings import Settings; from node.service import serve;"
    "sys.exit(serve(Settings.model_validate_json(sys.stdin.readline())))"
)


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)
    return condition()


def send(port, series):
    ae = AE(ae_title="CT")
    ae.add_requested_context(CTImageStorage)
    assoc = ae.associate("127.0.0.1", port, ae_title="S2NODE")
    statuses = [assoc.send_c_store(ds).Status for ds in series]
    assoc.release()
    return statuses


def destinations(peer, tmp_path):
    (tmp_path / "disk").mkdir()
    return [
        {"name": "pacs", "host": "127.0.0.1", "port": peer.port, "ae_title": "PEER"},
        {"name": "disk", "kind": "folder", "path": tmp_path / "disk"},
    ]


def test_a_series_goes_in_by_c_store_and_two_come_back(quick_settings, store_peer, new_series, tmp_path):
    peer = store_peer()
    series = new_series(1)
    with Node(quick_settings(destinations=destinations(peer, tmp_path))) as node:
        assert set(send(node.port, series)) == {0}
        assert until(lambda: [job.state for job in node.ledger.jobs()] == [State.DELIVERED])
        assert node.problems() == []
        states = [event.to_state for event in node.ledger.events(1) if event.from_state is not event.to_state]
    expected = [State.RECEIVING, State.SETTLED, State.READY, State.BUILT, State.DELIVERED]
    assert states == expected
    assert len(peer.received) == len(set(peer.uids)) == 2 * len(series)
    assert {ds.StudyInstanceUID for ds in peer.received} == {series[0].StudyInstanceUID}
    assert len({ds.SeriesInstanceUID for ds in peer.received}) == 2
    assert {path.stem for path in (tmp_path / "disk").rglob("*.dcm")} == set(peer.uids)


def test_what_comes_back_from_an_archive_that_routes_everything_is_dropped(
    quick_settings, store_peer, new_series, tmp_path
):
    peer = store_peer()
    with Node(quick_settings(destinations=destinations(peer, tmp_path))) as node:
        send(node.port, new_series(1))
        assert until(lambda: [job.state for job in node.ledger.jobs()] == [State.DELIVERED])
        assert set(send(node.port, peer.received)) == {0}
        assert len(node.ledger.jobs()) == 1
        assert node.ledger.counters()["own_dropped"] == 24


def test_a_worker_that_is_killed_costs_one_attempt_and_nothing_else(quick_settings, new_series, monkeypatch):
    with Node(quick_settings()) as node:
        keeper = node._supervisors[0]
        assert until(lambda: keeper.pid)
        send(node.port, new_series(1))
        assert until(lambda: any(job.owner for job in node.ledger.jobs()))
        os.kill(keeper.pid, signal.SIGKILL)
        assert until(lambda: [job.state for job in node.ledger.jobs()] == [State.BUILT])
        job = node.ledger.jobs()[0]
    assert job.attempt == 2


def test_one_data_folder_has_one_node(quick_settings):
    settings = quick_settings()
    with Node(settings), pytest.raises(NodeRunning, match="another node"):
        Node(settings).start()
    with Node(settings):
        pass


def test_a_node_whose_port_is_taken_says_so_and_leaves_nothing_open(quick_settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = quick_settings(listen={"port": taken.getsockname()[1]})
        with pytest.raises(OSError, match="in use"):
            Node(settings).start()
    with Node(settings):
        pass


def test_nothing_counts_as_quiet_before_the_node_has_listened_for_as_long(quick_settings, new_series):
    settings = quick_settings(settle={"quiet_s": 1.0, "max_wait_s": 600, "check_s": 0.05})
    series = new_series(1)
    with Node(settings) as node:
        send(node.port, series[:10])
    time.sleep(1.1)
    with Node(settings) as node:
        time.sleep(0.4)
        assert [job.state for job in node.ledger.jobs()] == [State.RECEIVING]
        send(node.port, series[10:])
        assert until(lambda: [job.state for job in node.ledger.jobs()] == [State.BUILT])
        assert node.ledger.jobs()[0].instances == 12


def test_a_lane_that_fails_gives_no_sign_of_life_and_is_named_as_stuck(quick_settings, monkeypatch):
    def broken(*_):
        raise ValueError("DOE^JANE")

    monkeypatch.setattr(service, "settle_due", broken)
    with Node(quick_settings(settle={"quiet_s": 0, "max_wait_s": 1, "check_s": 0.05})) as node:
        time.sleep(0.3)
        node._pulses["settle"].limit_s = 0.1
        assert node.problems() == ["lane settle is stuck"]


def test_a_node_that_is_not_well_does_not_feed_the_watchdog(quick_settings, monkeypatch, tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        with Node(quick_settings()) as node:
            node._check_health()
            assert systemd.recv(100) == b"WATCHDOG=1"
            node._pulses["a lane that never steps"] = Pulse(limit_s=1, last=0)
            node._check_health()
            with pytest.raises(BlockingIOError):
                systemd.recv(100)


def test_a_listener_that_is_deaf_is_noticed(quick_settings):
    with Node(quick_settings()) as node:
        assert node.problems() == []
        port = node.port
        node.scp.__exit__(None, None, None)
        node.__class__ = type("Deaf", (Node,), {"port": port})
        assert "the listener does not answer" in node.problems()


def test_a_listener_with_no_place_left_is_not_taken_for_deaf(quick_settings):
    with Node(quick_settings(listen={"max_associations_per_address": 2})) as node:
        held = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(2)]
        server = node.scp._listener._server
        while not server.is_crowded("127.0.0.1"):
            time.sleep(0.01)
        assert not watchdog.answers(node.settings.listen, node.port)
        assert node.problems() == []
        for each in held:
            each.close()


def leased(ledger, number, owner):
    uid = f"1.2.{number}"
    received = ReceivedInstance(uid, "1", "1", uid, "1.3", "CT", ledger.path.parent / "f", "00", 1)
    job_id = ledger.record_instance(received, 1.0).job_id
    ledger.move(job_id, State.SETTLED, 2.0)
    ledger.move(job_id, State.READY, 3.0)
    ledger.lease(owner, 4.0, 60.0)
    return job_id


def test_leases_of_dead_owners_are_free_at_once_and_those_of_the_living_are_kept(tmp_path):
    with Ledger(tmp_path / LEDGER_FILE) as ledger:
        owners = {
            leased(ledger, number, owner): owner
            for number, owner in ((1, owner_name(os.getpid())), (2, "elsewhere/boot/1/1"))
        }
        free_orphans(ledger, 5.0)
        assert {job.id: job.owner for job in ledger.jobs()} == owners
        free_orphans(ledger, 5.0, is_dead=lambda owner: owner.startswith("elsewhere"))
        assert [job.owner for job in ledger.jobs()] == [owners[1], None]


@pytest.mark.parametrize(("boot", "attempts"), [(boot_id(), 1), ("before", 0)])
def test_an_attempt_that_ended_with_the_machine_does_not_count(tmp_path, boot, attempts):
    with Ledger(tmp_path / LEDGER_FILE) as ledger:
        job_id = leased(ledger, 1, f"{socket.gethostname()}/{boot}/{2**22}/7")
        free_orphans(ledger, 5.0)
        job = ledger.job(job_id)
        assert (job.owner, job.attempt) == (None, attempts)


def spawn(settings, **env):
    child = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
    )
    child.stdin.write(settings.model_dump_json().encode() + b"\n")
    child.stdin.flush()
    return child


def test_the_service_tells_systemd_that_it_is_ready_feeds_it_and_stops_when_asked(quick_settings, tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(30)
        child = spawn(quick_settings(), NOTIFY_SOCKET=address, WATCHDOG_USEC="900000")
        assert systemd.recv(100) == b"READY=1"
        assert systemd.recv(100) == b"WATCHDOG=1"
        assert systemd.recv(100) == b"WATCHDOG=1"
        child.terminate()
        said = [systemd.recv(100)]
        while said[-1] == b"WATCHDOG=1":
            said.append(systemd.recv(100))
        assert said[-1] == b"STOPPING=1"
        child.communicate(timeout=30)
        assert child.returncode == 0


def test_a_node_whose_models_cannot_run_here_ends_with_78(quick_settings):
    settings = quick_settings()
    for graph in settings.storage.data_dir.rglob("translator.onnx"):
        graph.write_bytes(b"")
    child = spawn(settings)
    _, log = child.communicate(timeout=60)
    assert child.returncode == EXIT_CONFIG
    assert b"models cannot run" in log


def test_the_log_of_a_whole_journey_names_no_patient(quick_settings, store_peer, new_series, tmp_path):
    peer = store_peer(statuses=[0xA700])
    settings = quick_settings(
        destinations=destinations(peer, tmp_path), log={"level": "debug", "format": "json"}
    )
    series = new_series(1)
    child = spawn(settings)
    lines = [json.loads(child.stderr.readline())]
    while lines[-1]["event"] != "node started":  # what was read ahead with it would be lost below
        lines.append(json.loads(child.stderr.readline()))
    send(lines[-1]["port"], series)
    send(lines[-1]["port"], new_series(2)[:1])
    with Ledger(settings.storage.data_dir / LEDGER_FILE) as ledger:
        assert until(lambda: any(job.state is State.DELIVERED for job in ledger.jobs()))
    child.terminate()
    rest = child.communicate(timeout=30)[1].decode()
    lines += [json.loads(line) for line in rest.splitlines()]
    events, log = {line["event"] for line in lines}, json.dumps(lines)
    assert {"node started", "series settled", "job started", "job built", "delivered"} <= events
    header = series[0]
    for value in (header.PatientName, header.PatientID, header.AccessionNumber, header.StudyDate, "2.25."):
        assert str(value) not in log
