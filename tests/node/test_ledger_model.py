"""The ledger against a model of it: whatever happens in whatever order, no acknowledged slice is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from itertools import pairwise
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node.ledger import Job, Ledger, MoveRefused, Output, ReceivedInstance, StaleLease
from node.states import MOVES, State

SERIES = st.sampled_from(["1.1", "1.2"])
NUMBERS = st.integers(1, 5)
BYTES = st.sampled_from(["a" * 64, "b" * 64])
STATES = st.sampled_from([state for state in State if state is not State.SUPERSEDED])


def received(series: str, number: int, sha256: str) -> ReceivedInstance:
    sop = f"{series}.{number}"
    return ReceivedInstance(sop, "1.2.840", "1.2.840.1", series, "1", "A", Path(f"/{sop}.dcm"), sha256, 1)


class LedgerMachine(RuleBasedStateMachine):
    """Senders, the settle lane, two workers and an operator, all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.ledger = Ledger(self.folder / "ledger.sqlite3")
        self.now = 1000.0
        self.first_bytes: dict[tuple[str, int], str] = {}
        self.leases: dict[str, Job] = {}

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    @rule(series=SERIES, number=NUMBERS, sha256=BYTES)
    def a_slice_comes(self, series: str, number: int, sha256: str) -> None:
        self.now += 1
        before = self.living(series)
        if before is not None and before.state is State.PURGED:  # what it held is gone
            for key in [key for key in self.first_bytes if key[0] == series]:
                del self.first_bytes[key]
        answer = self.ledger.record_instance(received(series, number, sha256), self.now)
        held = self.first_bytes.get((series, number))
        if held is None:
            assert answer.is_new
            self.first_bytes[(series, number)] = sha256
            late = before is not None and before.state is not State.RECEIVING
            assert (answer.superseded_job_id is not None) == late
        else:
            assert (answer.is_new, answer.conflict) == (False, held != sha256)
            assert before is not None and answer.job_id == before.id

    @rule(series=SERIES, judged=st.integers(0, 6))
    def a_series_is_settled(self, series: str, judged: int) -> None:
        job = self.living(series)
        if job is not None:
            settled = self.ledger.settle(job.id, judged, self.now)
            assert settled == (job.state is State.RECEIVING and job.instances == judged)

    @rule(series=SERIES, to=STATES)
    def a_job_is_moved(self, series: str, to: State) -> None:
        job = self.living(series)
        if job is None:
            return
        try:
            self.ledger.move(job.id, to, self.now)
        except MoveRefused:
            assert to not in MOVES[job.state]
        else:
            assert to in MOVES[job.state]

    @rule(owner=st.sampled_from(["w1", "w2"]), later_s=st.sampled_from([1, 100]))
    def a_worker_takes_a_job(self, owner: str, later_s: int) -> None:
        self.now += later_s
        job = self.ledger.lease(owner, self.now, 60)
        if job is not None:
            self.leases[owner] = job

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def a_worker_is_done(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.leases)))
        leased = self.leases.pop(owner)
        now = self.ledger.job(leased.id)
        sop = f"2.25.{leased.id}.{now.attempt}.{len(self.ledger.events(leased.id))}"
        made = Output(leased.id, "venous", "ct_series", "2.25.1", sop, "1.2", Path("/out.dcm"), "c" * 64)
        try:
            self.ledger.record_built(leased.id, owner, [made], [], [], now=self.now)
        except StaleLease:
            assert now.owner != owner or now.state is not State.READY
        else:
            assert now.owner == owner and now.state is State.READY

    @rule(series=SERIES)
    def somebody_retries(self, series: str) -> None:
        job = self.living(series)
        if job is not None and job.state in {State.PARKED, State.REJECTED}:
            assert self.ledger.retry(job.id, self.now) in {State.SETTLED, State.READY, State.BUILT}

    @invariant()
    def every_slice_that_was_acknowledged_is_in_the_one_living_generation(self) -> None:
        for series in {series for series, _ in self.first_bytes}:
            jobs = self.ledger.find_jobs(series)
            assert [job.generation for job in jobs] == list(range(1, len(jobs) + 1))
            assert all(job.state is State.SUPERSEDED for job in jobs[:-1])
            held = {one.sop_instance_uid: one.sha256 for one in self.ledger.instances(jobs[-1].id)}
            expected = {f"{s}.{n}": sha for (s, n), sha in self.first_bytes.items() if s == series}
            assert held == expected
            assert jobs[-1].instances == len(held)

    @invariant()
    def every_state_is_explained_by_the_events(self) -> None:
        for job in self.ledger.jobs():
            events = self.ledger.events(job.id)
            assert events[0].from_state is None
            assert events[-1].to_state is job.state
            for before, after in pairwise(events):
                assert after.from_state is before.to_state
                assert after.to_state in MOVES[before.to_state] or after.to_state is before.to_state

    def living(self, series: str) -> Job | None:
        jobs = self.ledger.find_jobs(series)
        return jobs[-1] if jobs else None


LedgerMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestLedgerAgainstItsModel = LedgerMachine.TestCase


def test_a_process_killed_while_it_records_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from node.ledger import Ledger, ReceivedInstance
        ledger = Ledger(Path(sys.argv[1]))
        for number in range(int(sys.argv[2]), 1_000_000):
            path = Path(sys.argv[1]).parent / f"{number}.dcm"
            ledger.record_instance(
                ReceivedInstance(f"1.2.{number}", "1", "1", "1.2", "1", "A", path, "a" * 64, 1), 100.0
            )
            print(number, flush=True)
    """
    path = tmp_path / "ledger.sqlite3"
    acknowledged: list[int] = []
    for round_ in range(3):
        start = len(acknowledged) * 1000
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(path), str(start)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        acknowledged += [int(writer.stdout.readline()) for _ in range(5)]
        time.sleep(0.007 * round_)
        writer.kill()
        rest, _ = writer.communicate(timeout=60)
        acknowledged += [int(line) for line in rest.split()]
    with Ledger(path) as ledger:
        [job] = ledger.jobs()
        held = {one.sop_instance_uid for one in ledger.instances(job.id)}
        assert {f"1.2.{number}" for number in acknowledged} <= held
        assert job.instances == len(held) <= len(acknowledged) + 3
