"""The clock jumps by a day, forward and back, under a node at work: nothing waits for that day."""

from __future__ import annotations

import mmap
import struct
import time
from collections import Counter
from pathlib import Path

import pytest

from node.ledger import Ledger
from node.states import State

DAY_S = 86_400
QUIET_S = 1.0
BEGUN = "attempt "
"""How the note begins that a worker leaves when it takes a job."""
SHIFT_AT = 6 * 8
"""Offset of ``shift_s`` in struct fault."""


@pytest.mark.timeout(0)
def test_a_clock_that_jumps_by_a_day_during_settle_lease_and_back_off_does_no_harm(
    rig, amount, figures, quick_settings, new_series, free_port, tmp_path, shim
):
    disk = tmp_path / "disk"
    settings = quick_settings(
        listen={"port": free_port()},
        settle={"quiet_s": QUIET_S, "max_wait_s": 600, "check_s": 0.1},
        worker={"count": 2},
        destinations=[{"name": "disk", "kind": "folder", "path": disk}],
    )
    environment = shim(settings.storage.data_dir)
    jumps = [+DAY_S, -DAY_S, -DAY_S, +DAY_S] * amount("CLOCK_ROUNDS", short=1, full=10)
    if not amount("CLOCK_ROUNDS", short=0, full=1):
        jumps = jumps[:2]
    numbers, longest_s, struck = iter(range(1000)), 0.0, 0
    ledger_file = settings.storage.data_dir / rig.LEDGER_FILE
    with (
        Path(environment["S2NODE_FAULT"]).open("r+b") as file,
        mmap.mmap(file.fileno(), 4096) as block,
        rig.Victim(settings, environment) as victim,
        Ledger(ledger_file) as ledger,
    ):
        assert rig.until(victim.listens)
        shift_s, sent_at = 0, 0.0

        def senders(count):
            return [rig.Sender(settings.listen.port, new_series(next(numbers))) for _ in range(count)]

        def states(of):
            return [ledger.find_jobs(sender.uid)[-1].state for sender in of]

        def is_worked_on(sender, meanwhile):
            """Whether a worker has the series, or had it; of the other one slices go on coming."""
            nonlocal sent_at
            if time.monotonic() - sent_at > QUIET_S / 2 and len(meanwhile.rest()) > 1:
                meanwhile.send_some(1)
                sent_at = time.monotonic()
            job = ledger.find_jobs(sender.uid)[-1]
            return job.owner is not None or job.state is State.BUILT

        for jump in jumps:
            waiting, leased, coming = senders(3)
            waiting.send_all()  # its folder is not there: it backs off
            assert rig.until(lambda waiting=waiting: states([waiting]) == [State.BUILT])
            leased.send_all()
            assert rig.until(lambda leased=leased, coming=coming: is_worked_on(leased, coming))
            shift_s += jump
            struct.pack_into("q", block, SHIFT_AT, shift_s)
            began = time.monotonic()
            struck += states([leased]) == [State.READY]
            time.sleep(0.5)
            assert states([coming]) == [State.RECEIVING]
            coming.send_all()
            disk.mkdir()
            three = [waiting, leased, coming]
            assert rig.until(lambda three=three: states(three) == [State.DELIVERED] * 3), states(three)
            longest_s = max(longest_s, time.monotonic() - began)
            disk.rename(tmp_path / f"disk{shift_s}-{began}")
        assert victim.stop() == 0
        assert {job.generation for job in ledger.jobs()} == {1}
        begun = Counter(
            event.job_id
            for job in ledger.jobs()
            for event in ledger.events(job.id)
            if (event.note or "").startswith(BEGUN)
        )
        expected = rig.undisturbed(settings, ledger)
    arrived = {path.stem: path.read_bytes() for path in tmp_path.glob("disk*/**/*.dcm")}
    assert arrived == expected
    assert set(begun.values()) == {1}
    assert struck
    figures(
        "clock",
        {
            "jumps of a day": len(jumps),
            "series under way": 3 * len(jumps),
            "workers": settings.worker.count,
            "series worked on when it jumped": struck,
            "judged too early, or twice": 0,
            "taken from its worker, or built twice": sum(begun.values()) - len(begun),
            "results missing or different": 0,
            "longest way to the destination after a jump, s": round(longest_s, 1),
        },
    )
