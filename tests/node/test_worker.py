import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from random import Random
from threading import Event, Thread

import pytest
from pydicom import dcmread

from config.settings import EngineSettings, Settings, StorageSettings
from engine.bundle import read_bundle
from engine.errors import BundleInvalid, GraphTooLarge, SynthesisFailed
from engine.session import SessionPolicy
from node import worker as node_worker
from node.ledger import LEDGER_FILE, Ledger, ReceivedInstance, StaleLease
from node.models import ModelStore
from node.outputs.encoding import to_bytes
from node.spool import Spool
from node.states import State
from node.supervisor import EXIT_CONFIG, on_its_gpu, owner_name
from node.worker import (
    EXIT_NOT_NOW,
    IDLE_S,
    Engines,
    HandedBack,
    Heartbeat,
    Worker,
    digest_of,
    local_time,
    policy_of,
    serve,
)


class Bench:
    """A worker in this process with its ledger and spool, and a way to put jobs before it."""

    def __init__(self, settings):
        self.settings = settings
        root = settings.storage.data_dir
        self.ledger, self.spool = Ledger(root / LEDGER_FILE), Spool(root)
        self.models = ModelStore(settings)
        self.now = 1_700_000_000.0
        self.worker = self.new_worker("one")

    def new_worker(self, owner):
        engines = Engines(self.models, SessionPolicy(provider="cpu", threads=1))
        return Worker(
            self.settings, self.ledger, self.spool, engines, owner, Event(), Random(0), lambda: self.now
        )

    def receive(self, series):
        for ds in series:
            name = PurePosixPath("inbox", ds.SeriesInstanceUID, f"{ds.SOPInstanceUID}.dcm")
            placed = self.spool.place(to_bytes(ds), name)
            recorded = self.ledger.record_instance(
                ReceivedInstance(
                    sop_instance_uid=ds.SOPInstanceUID,
                    sop_class_uid=ds.SOPClassUID,
                    transfer_syntax_uid=ds.file_meta.TransferSyntaxUID,
                    series_instance_uid=ds.SeriesInstanceUID,
                    study_instance_uid=ds.StudyInstanceUID,
                    calling_ae="CT",
                    path=placed.path,
                    sha256=placed.sha256,
                    bytes=placed.bytes,
                ),
                self.now,
            )
        return recorded.job_id

    def ready(self, series):
        job_id = self.receive(series)
        self.ledger.move(job_id, State.SETTLED, self.now)
        self.ledger.move(job_id, State.READY, self.now)
        return job_id

    def files(self, job_id):
        return {output.sop_instance_uid: output.path.read_bytes() for output in self.ledger.outputs(job_id)}


@pytest.fixture
def bench(quick_settings):
    bench = Bench(quick_settings(worker={"max_attempts": 3}))
    yield bench
    bench.ledger.close()


def test_a_ready_job_becomes_two_series_in_the_outbox(bench, new_series):
    series = new_series(1)
    job_id = bench.ready(series)
    assert bench.worker.work_once()
    job = bench.ledger.job(job_id)
    assert (job.state, job.progress, job.attempt) == (State.BUILT, 1.0, 1)
    outputs = bench.ledger.outputs(job_id)
    assert {output.phase for output in outputs} == {"arterial", "venous"}
    assert len(outputs) == 2 * len(series)
    datasets = [dcmread(output.path) for output in outputs]
    assert {ds.StudyInstanceUID for ds in datasets} == {series[0].StudyInstanceUID}
    assert {ds.SyntheticData for ds in datasets} == {"YES"}
    assert {record.phase for record in bench.ledger.syntheses(job_id)} == {"arterial", "venous"}


def test_without_a_job_there_is_nothing_to_do(bench):
    assert not bench.worker.work_once()


def test_doing_it_again_gives_the_same_bytes_and_only_the_owner_may_record_them(bench, new_series):
    job_id = bench.ready(new_series(1))
    job = bench.ledger.lease("dead", bench.now, 1.0)
    with pytest.raises(StaleLease):
        bench.worker.produce(job, lambda _: None)
    first = {path.name: path.read_bytes() for path in (bench.spool.root / "outbox").rglob("*.dcm")}
    bench.now += 2
    assert bench.worker.work_once()
    assert bench.ledger.job(job_id).attempt == 2
    assert {f"{uid}.dcm": data for uid, data in bench.files(job_id).items()} == first


def test_a_series_that_is_not_ours_is_rejected_with_its_code(bench, new_series):
    job_id = bench.ready(new_series(1)[:3])
    assert bench.worker.work_once()
    job = bench.ledger.job(job_id)
    assert (job.state, job.code) == (State.REJECTED, "TOO-FEW-SLICES")


def failing(monkeypatch, error):
    def build(*_, **__):
        raise error

    monkeypatch.setattr(node_worker, "build", build)


def test_a_failed_synthesis_is_tried_again_and_at_last_parked(bench, new_series, monkeypatch):
    failing(monkeypatch, SynthesisFailed("out of device memory"))
    job_id = bench.ready(new_series(1))
    for attempt in (1, 2):
        assert bench.worker.work_once()
        job = bench.ledger.job(job_id)
        assert (job.state, job.attempt) == (State.READY, attempt)
        assert job.not_before > bench.now
        assert not bench.worker.work_once()
        bench.now = job.not_before
    assert bench.worker.work_once()
    job = bench.ledger.job(job_id)
    assert (job.state, job.code, job.reason) == (State.PARKED, "SYNTHESIS-FAILED", "out of device memory")


def test_a_job_waits_for_the_disk_however_often_it_fails(bench, new_series):
    job_id = bench.ready(new_series(1))
    outbox = bench.spool.root / "outbox"
    outbox.rmdir()
    outbox.write_bytes(b"in the way")
    for _ in range(5):
        bench.now += 3600
        assert bench.worker.work_once()
        job = bench.ledger.job(job_id)
        assert (job.state, job.owner, job.attempt) == (State.READY, None, 0)
        assert bench.now < job.not_before < bench.now + 60
    outbox.unlink()
    bench.now += 3600
    assert bench.worker.work_once()
    assert bench.ledger.job(job_id).state is State.BUILT


def test_a_bug_parks_the_job_with_its_place_and_without_its_message(bench, new_series, monkeypatch):
    failing(monkeypatch, KeyError("DOE^JANE"))
    job_id = bench.ready(new_series(1))
    bench.worker.work_once()
    job = bench.ledger.job(job_id)
    assert (job.state, job.code) == (State.PARKED, "BUG")
    assert job.reason.startswith("KeyError < test_worker.py:")
    assert "DOE" not in job.reason
    assert bench.worker.work_once() is False


def test_a_job_that_killed_its_worker_at_every_attempt_is_parked_and_the_next_one_runs(bench, new_series):
    poison, good = bench.ready(new_series(1)), bench.ready(new_series(2))
    for attempt in range(1, 4):
        assert bench.ledger.lease(f"dead {attempt}", bench.now, 1.0).id == poison
        bench.now += 2
    assert bench.worker.work_once()
    job = bench.ledger.job(poison)
    assert (job.state, job.code) == (State.PARKED, "WORKER-DIED")
    assert bench.worker.work_once()
    assert bench.ledger.job(good).state is State.BUILT


def test_a_worker_told_to_stop_hands_its_job_back_and_the_attempt_does_not_count(bench, new_series):
    job_id = bench.ready(new_series(1))
    bench.worker.stopping.set()
    bench.worker.work_once()
    job = bench.ledger.job(job_id)
    assert (job.state, job.owner, job.attempt) == (State.READY, None, 0)
    assert bench.new_worker("two").work_once()
    assert bench.ledger.job(job_id).state is State.BUILT


def test_a_late_slice_takes_the_job_away_and_nothing_is_recorded(bench, new_series, monkeypatch):
    series = new_series(1)
    job_id = bench.ready(series[:-1])
    build = node_worker.build

    def slow(*args, **options):
        built = build(*args, **options)
        bench.receive(series[-1:])
        return built

    monkeypatch.setattr(node_worker, "build", slow)
    assert bench.worker.work_once()
    assert bench.ledger.job(job_id).state is State.SUPERSEDED
    assert bench.ledger.outputs(job_id) == []


def test_an_error_in_a_job_that_was_taken_away_decides_nothing(bench, new_series, monkeypatch):
    series = new_series(1)
    job_id = bench.ready(series[:-1])

    def superseded(*_, **__):
        bench.receive(series[-1:])
        raise KeyError

    monkeypatch.setattr(node_worker, "build", superseded)
    assert bench.worker.work_once()
    assert bench.ledger.job(job_id).state is State.SUPERSEDED


def test_a_model_activated_between_two_jobs_is_used_for_the_second(bench, new_series, translator_bundle):
    first, second = bench.ready(new_series(1)), bench.ready(new_series(2))
    bench.worker.work_once()
    bundle = bench.models.activate(translator_bundle("arterial", gain=0.5, version="2.0.0"))
    bench.worker.work_once()
    before = {record.phase: record for record in bench.ledger.syntheses(first)}
    after = {record.phase: record for record in bench.ledger.syntheses(second)}
    assert after["arterial"].model_digest == bundle.digest != before["arterial"].model_digest
    assert after["venous"].model_digest == before["venous"].model_digest


def test_a_job_that_is_taken_away_leaves_nothing_and_is_begun_anew_with_the_model_that_is_active_then(
    bench, new_series, translator_bundle
):
    job_id = bench.ready(new_series(1))
    newer = translator_bundle("arterial", gain=0.5, version="2.0.0")

    taken = []

    def take_away(fraction):
        taken.extend(bench.ledger.revoke_leases(bench.now, "recalled"))
        bench.models.activate(newer)

    with pytest.raises(StaleLease):
        bench.worker.produce(bench.ledger.lease("one", bench.now, 60.0), take_away)
    assert taken == [job_id]
    job = bench.ledger.job(job_id)
    assert (job.state, job.attempt, job.owner) == (State.READY, 0, None)
    assert bench.ledger.outputs(job_id) == []
    assert bench.worker.work_once()
    made = {record.phase: record.model_digest for record in bench.ledger.syntheses(job_id)}
    assert made["arterial"] == read_bundle(bench.models.active()["arterial"]).digest


def test_a_worker_that_hears_in_the_middle_that_its_job_was_taken_away_goes_on(
    bench, new_series, monkeypatch
):
    job_id = bench.ready(new_series(1))

    def taken_away(*_, **__):
        bench.ledger.revoke_leases(bench.now, "recalled")
        raise HandedBack

    monkeypatch.setattr(node_worker, "build", taken_away)
    assert bench.worker.work_once()
    assert bench.ledger.job(job_id).attempt == 0


def test_an_engine_stays_open_while_its_model_is_active(bench, translator_bundle):
    engines = bench.worker.engines
    first = engines.active()
    assert engines.active()["arterial"] is first["arterial"]
    bench.models.activate(translator_bundle("arterial", gain=0.5, version="2.0.0"))
    second = engines.active()
    assert second["arterial"] is not first["arterial"]
    assert second["venous"] is first["venous"]


def test_a_damaged_model_parks_the_job(bench, new_series):
    job_id = bench.ready(new_series(1))
    (bench.models.active()["arterial"] / "translator.onnx").write_bytes(b"")
    bench.worker.work_once()
    job = bench.ledger.job(job_id)
    assert (job.state, job.code) == (State.PARKED, "BUNDLE-INVALID")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleInvalid):
        digest_of(tmp_path)


def test_a_heartbeat_renews_with_the_progress_until_the_work_is_done():
    seen = []
    with Heartbeat(lambda done: seen.append(done) or True, 0.01, Event()) as heartbeat:
        heartbeat.progress(0.5)
        time.sleep(0.1)
    count = len(seen)
    assert count >= 2
    assert seen[-1] == 0.5
    time.sleep(0.05)
    assert len(seen) == count


def test_work_whose_lease_was_lost_is_told_at_its_next_step():
    with Heartbeat(lambda _: False, 0.01, Event()) as heartbeat:
        time.sleep(0.1)
        with pytest.raises(HandedBack):
            heartbeat.progress(0.1)


def test_work_that_stands_still_ends_its_process(bench):
    ended = Event()
    with Heartbeat(lambda _: True, 0.01, Event(), stalled_s=0.05, on_stall=ended.set) as heartbeat:
        heartbeat.progress(0.1)
        assert ended.wait(5)


def test_work_goes_on_until_told_to_stop(bench, new_series):
    job_id = bench.ready(new_series(1))
    thread = Thread(target=bench.worker.run)
    thread.start()
    for _ in range(500):
        if bench.ledger.job(job_id).state is State.BUILT:
            break
        time.sleep(0.02)
    bench.worker.stopping.set()
    thread.join(5)
    assert not thread.is_alive()
    assert bench.ledger.job(job_id).state is State.BUILT


def test_a_job_is_not_taken_from_its_worker_when_the_clock_is_set(bench, new_series):
    job_id = bench.ready(new_series(1))
    worker = bench.settings.worker
    assert bench.ledger.lease("another", bench.now, worker.lease_s)
    waited = []

    class Stopping(Event):
        def wait(self, seconds):
            waited.append(seconds)
            if len(waited) == 1:
                bench.now += 86_400
            else:
                assert bench.ledger.renew(job_id, "another", bench.now, worker.lease_s, 0.5)
                bench.worker.stopping.set()

    bench.worker = replace(bench.worker, stopping=Stopping())
    bench.worker.run()
    assert waited == [IDLE_S, 2 * worker.heartbeat_s]
    assert bench.ledger.job(job_id).attempt == 1


def test_every_setting_of_where_models_run_reaches_them(tmp_path):
    settings = EngineSettings(
        provider="cpu", threads=3, devices=(1, 0), memory_bytes=5_000_000, cuda_graph=True
    )
    shared = EngineSettings.model_fields.keys() & SessionPolicy.model_fields.keys()
    assert shared == {"provider", "threads", "memory_bytes", "cuda_graph"}
    whole = Settings(engine=settings, storage=StorageSettings(data_dir=tmp_path))
    policy = policy_of(whole)
    assert policy.model_dump(include=shared) == settings.model_dump(include=shared)
    assert policy.device == 1
    assert policy.engine_cache == tmp_path / "tensorrt"
    assert policy_of(whole, 3).sharers == 3


def test_each_worker_has_its_gpu(bench):
    engine = EngineSettings(devices=(2, 0, 1))
    settings = bench.settings.model_copy(update={"engine": engine})
    assert [policy_of(on_its_gpu(settings, n)).device for n in range(5)] == [2, 0, 1, 2, 0]
    assert on_its_gpu(settings, 1).model_copy(update={"engine": engine}) == settings


def test_a_jobs_time_has_a_zone():
    assert local_time(0).astimezone(UTC) == datetime(1970, 1, 1, tzinfo=UTC)


def test_models_that_cannot_run_here_end_the_process_with_78(bench):
    (bench.models.active()["venous"] / "translator.onnx").write_bytes(b"")
    assert serve(bench.settings, Event()) == EXIT_CONFIG


def test_models_without_memory_end_the_process_so_that_it_is_started_again(bench, monkeypatch):
    def open_engine(folder, policy):
        raise GraphTooLarge("graph 'denoiser', while it was loaded: CUDA failure 2: out of memory")

    monkeypatch.setattr(node_worker, "open_engine", open_engine)
    assert serve(bench.settings, Event()) == EXIT_NOT_NOW != EXIT_CONFIG


@pytest.mark.parametrize("name", ["bundle.json", "translator.onnx"])
def test_a_disk_that_fails_for_a_moment_is_no_fault_of_the_models(bench, monkeypatch, name):
    def fails(path, *rest, **named):
        if path.name == name:
            raise OSError(errno.EIO, "Input/output error")
        return original(path, *rest, **named)

    original = Path.open
    monkeypatch.setattr(Path, "open", fails)
    assert serve(bench.settings, Event()) == EXIT_NOT_NOW


def test_serving_ends_with_0_when_told_to_stop(bench):
    stopping = Event()
    stopping.set()
    assert serve(bench.settings, stopping) == 0


def spawn(settings):
    child = subprocess.Popen([sys.executable, "-m", "node.worker"], stdin=subprocess.PIPE)
    child.stdin.write(settings.model_dump_json().encode() + b"\n")
    child.stdin.flush()
    return child


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)
    return condition()


def test_the_process_works_and_ends_when_asked(bench, new_series):
    job_id = bench.ready(new_series(1))
    child = spawn(bench.settings)
    assert until(lambda: bench.ledger.job(job_id).state is State.BUILT)
    child.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert child.poll() is None
    child.terminate()
    assert child.wait(10) == 0
    child.stdin.close()


def test_the_process_ends_with_its_node(bench, new_series):
    bench.ready(new_series(1))
    child = spawn(bench.settings)
    owner = owner_name(child.pid)
    assert until(lambda: any(owner in (event.note or "") for event in bench.ledger.events(1)))
    child.stdin.close()
    assert child.wait(10) != 0
    assert os.getpid() != child.pid
