"""The lane that starts refreshes: on time, one after another, and never in the way of the node."""

import signal
import sys
import time
from datetime import datetime, timedelta

import pytest
from structlog.testing import capture_logs

from config.settings import Settings
from engine.bundle import read_bundle, write_manifest
from node.doctor import check
from node.models import SHIPPED, ModelStore
from node.refresh import RefreshLane, Verdict, lacking, read_verdict
from node.service import Node

START = datetime(2030, 3, 1, 1, 59, 50).astimezone()
LEARNER = """
import json, os, pathlib, shutil, sys, time
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
print("CUDA", repr(os.environ.get("CUDA_VISIBLE_DEVICES")), *words, flush=True)
(out / "run").mkdir()
(out / "run" / "checkpoint.pt").touch()
"""
ACCEPTED = (
    LEARNER
    + """
shutil.copytree(words[words.index("--from") + 1], out / "bundle")
(out / "verdict.json").write_text(json.dumps({"accepted": True, "organs": 2}))
"""
)
REFUSED = (
    LEARNER
    + """
(out / "verdict.json").write_text(json.dumps({"accepted": False, "organs": 2}))
sys.exit(1)
"""
)
BROKEN = LEARNER + "sys.exit(70)"
ENDLESS = LEARNER + "time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + ENDLESS


class Clock:
    """A wall clock that is set by hand."""

    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def refreshing(tmp_path, clock):
    """A lane that runs ``python -c code`` at two in the night of every first."""
    lanes = []

    def make(code, **chosen):
        refresh = {"schedule": "0 2 1 * *", "cases": tmp_path / "pairs", **chosen}
        settings = Settings(storage={"data_dir": tmp_path / "data"}, refresh=refresh)
        lanes.append(RefreshLane(settings, clock, (sys.executable, "-c", code)))
        return lanes[-1]

    yield make
    for lane in lanes:
        lane.stop()


def run_until(lane, event, seconds=20.0):
    """Take steps until ``event`` is logged; everything that was logged."""
    end = time.monotonic() + seconds
    with capture_logs() as logs:
        while not any(line["event"] == event for line in logs):
            assert time.monotonic() < end, logs
            lane.run()
            time.sleep(0.01)
    return logs


def test_nothing_starts_before_its_time_and_each_phase_runs_by_itself(refreshing, clock, tmp_path):
    lane = refreshing(ACCEPTED, checkpoints=tmp_path / "runs")
    with capture_logs() as logs:
        lane.run()
    assert logs == []
    clock.now += timedelta(seconds=15)
    assert [line["phase"] for line in run_until(lane, "refreshed model was exported")][:2] == ["arterial"] * 2
    ended = run_until(lane, "refreshed model was exported")
    assert {line["phase"] for line in ended} == {"venous"}
    folders = sorted((tmp_path / "data" / "refresh").iterdir())
    assert [folder.name for folder in folders] == ["20300301-020005-arterial", "20300301-020005-venous"]
    words = (folders[1] / "refresh.log").read_text()
    assert words.startswith("CUDA ''")
    places = f"--checkpoint {tmp_path / 'data' / 'refresh'} --checkpoint {tmp_path / 'runs'}"
    for part in (f"--from {SHIPPED / 'venous'}", f"--cases {tmp_path / 'pairs'}", "--provider cpu", places):
        assert part in words
    assert (folders[0].stat().st_mode & 0o777) == 0o700
    with capture_logs() as logs:
        lane.run()
    assert logs == []
    assert ModelStore(lane._settings).history() == ()


def test_an_accepted_model_is_put_to_use_where_that_is_wanted(refreshing, clock):
    lane = refreshing(ACCEPTED, phases=["venous"], activate=True, device="gpu")
    clock.now += timedelta(minutes=1)
    run_until(lane, "refreshed model was exported")
    (change,) = ModelStore(lane._settings).history()
    assert change.phase == "venous"


def test_a_model_of_which_no_organ_was_judged_is_never_put_to_use_by_itself(refreshing, clock):
    lane = refreshing(ACCEPTED.replace('"organs": 2', '"organs": 0'), phases=["venous"], activate=True)
    clock.now += timedelta(minutes=1)
    logs = run_until(lane, "refreshed model was exported")
    assert [(line["activated"], line["organs"]) for line in logs if "activated" in line] == [(False, 0)]
    assert ModelStore(lane._settings).history() == ()


def test_a_model_that_is_worse_is_left_without_its_checkpoint(refreshing, clock, tmp_path):
    lane = refreshing(REFUSED, phases=["venous"], activate=True)
    clock.now += timedelta(minutes=1)
    run_until(lane, "refreshed model is worse and was not exported")
    assert ModelStore(lane._settings).history() == ()
    (folder,) = (tmp_path / "data" / "refresh").iterdir()
    assert (folder / "verdict.json").exists()
    assert not (folder / "run" / "checkpoint.pt").exists()


def test_a_failure_is_a_line_in_the_log_and_the_next_phase_has_its_turn(refreshing, clock):
    lane = refreshing(BROKEN)
    clock.now += timedelta(minutes=1)
    for phase in ("arterial", "venous"):
        logs = run_until(lane, "refresh failed")
        assert (logs[-1]["event"], logs[-1]["phase"]) == ("refresh started", "venous") or logs[-1][
            "phase"
        ] == phase
        assert any(line.get("exit_code") == 70 for line in logs)


def test_what_cannot_even_start_is_a_line_in_the_log_too(refreshing, clock, tmp_path):
    lane = refreshing(ACCEPTED)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "refresh").write_text("not a folder")
    clock.now += timedelta(minutes=1)
    logs = run_until(lane, "refresh failed")
    assert "NotADirectoryError" in logs[-1]["trace"] or "FileExistsError" in logs[-1]["trace"]


def test_a_refresh_that_is_due_while_one_runs_is_left_out_and_stop_ends_it(refreshing, clock):
    lane = refreshing(ENDLESS, phases=["venous"])
    clock.now += timedelta(minutes=1)
    run_until(lane, "refresh started")
    clock.now += timedelta(days=31)
    run_until(lane, "refresh is due and the last one still runs")
    process = lane._started.process
    with capture_logs() as logs, lane:
        pass
    assert process.poll() == -signal.SIGTERM
    assert [line["event"] for line in logs] == ["refresh stopped"]
    lane.stop()


def test_a_process_that_does_not_listen_is_killed(refreshing, clock, monkeypatch, tmp_path):
    monkeypatch.setattr("node.refresh.GRACE_S", 0.2)
    lane = refreshing(DEAF, phases=["venous"])
    clock.now += timedelta(minutes=1)
    run_until(lane, "refresh started")
    process = lane._started.process
    (folder,) = (tmp_path / "data" / "refresh").iterdir()
    while not (folder / "run").exists():
        time.sleep(0.01)
    lane.stop()
    assert process.poll() == -signal.SIGKILL


def test_a_day_that_never_comes_starts_nothing(refreshing, clock):
    lane = refreshing(ACCEPTED, schedule="0 2 31 2 *")
    clock.now += timedelta(days=4000)
    with capture_logs() as logs:
        lane.run()
    assert logs == []


@pytest.mark.parametrize(
    ("text", "bundle", "found"),
    [
        ('{"accepted": true, "organs": 7}', True, Verdict(True, 7)),
        ('{"accepted": true, "organs": 7}', False, None),
        ('{"accepted": false, "organs": 0}', False, Verdict(False, 0)),
        ('{"accepted": true}', True, None),
        ("{}", True, None),
        ("[]", True, None),
        ("not json", True, None),
        (None, True, None),
    ],
)
def test_a_verdict_counts_only_whole(tmp_path, text, bundle, found):
    if text is not None:
        (tmp_path / "verdict.json").write_text(text)
    if bundle:
        (tmp_path / "bundle").mkdir()
    assert read_verdict(tmp_path) == found


def test_a_node_has_the_lane_only_where_a_schedule_asks_for_it(quick_settings, tmp_path):
    schedule = {"schedule": "0 2 31 2 *", "cases": tmp_path}
    for refresh, expected in (({}, False), (schedule, True)):
        with Node(quick_settings(refresh=refresh)) as node:
            assert ("refresh" in node._pulses) is expected
            assert node.problems() == []


def test_the_doctor_says_what_a_refresh_would_fail_for(tmp_path):
    shipped = read_bundle(SHIPPED / "venous")
    named, unnamed = ({"checkpoint_sha256": "0" * 64}, {})
    for run, folder in ((named, tmp_path / "named"), (unnamed, tmp_path / "unnamed")):
        folder.mkdir()
        for name in shipped.manifest.files:
            (folder / name).write_bytes((SHIPPED / "venous" / name).read_bytes())
        write_manifest(folder, shipped.manifest.model_copy(update={"run": run}))
    refresh = {"schedule": "0 2 1 * *", "cases": tmp_path / "pairs", "phases": ["venous"]}
    settings = Settings(storage={"data_dir": tmp_path / "data"}, refresh=refresh)
    ModelStore(settings).activate(tmp_path / "unnamed")
    words = [what for what, cure in lacking(settings, "no_such_module") if cure]
    assert words[0] == "the extra train is not installed"
    assert words[1].startswith("no pairs at ")
    assert words[2].startswith("the active venous model does not say")
    assert {finding.level for finding in check("refresh", settings, 0.0)} == {"WARNING"}
    ModelStore(settings).activate(tmp_path / "named")
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.tsv").touch()
    assert list(lacking(settings, "json")) == []
    both = settings.model_copy(
        update={"refresh": settings.refresh.model_copy(update={"phases": ("portal",)})}
    )
    assert [what for what, _ in lacking(both, "json")] == ["no portal model is active"]
    assert [finding.what for finding in check("refresh", Settings(), 0.0)] == ["off"]
