"""Disks that fail at every write, and disks that are full: for real, under the process and not inside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from config.settings import RetentionSettings
from node.ledger import Ledger
from node.states import State

HERE = Path(__file__).parent
RETENTION = [name for name in RetentionSettings.model_fields if name.endswith("_days")]
ARCHIVE = {
    "name": "archive",
    "host": "127.0.0.1",
    "ae_title": "ARCHIVE",
    "retrieve": "get",
    "completes": "own",
}
FULL_S = 3.0
"""Long enough for every lane and the worker to fail more than once."""
LANES_PARTS = 4
"""Processes that share the lanes' full form: each waits for the disk most of the time."""


def run_failing(what, template, step, settings, shim, first=0):
    done = subprocess.run(
        [sys.executable, str(HERE / "failing_disk.py"), what, str(template), str(step), str(first)],
        input=settings.model_dump_json() + "\n",
        env={**os.environ, **shim},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def sum_of(tallies):
    """The counts of several processes in one."""
    whole = {key: sum(each[key] for each in tallies) for key in tallies[0] if key != "struck"}
    return whole | {"struck": dict(sum((Counter(each["struck"]) for each in tallies), Counter()))}


def slices_on_disk(series, folder):
    folder.mkdir()
    for ds in series:
        ds.save_as(folder / f"{ds.InstanceNumber:04}.dcm", enforce_file_format=True)
    return folder / "0001.dcm"


def destinations_for(what, free_port, folder):
    """A folder on the disk that fails; for the lanes two archives elsewhere, which are asked in two ways."""
    if what != "lanes":
        (folder / "out").mkdir(parents=True)
        return [{"name": "disk", "kind": "folder", "path": folder / "out"}]
    return [
        {
            "name": commitment, "host": "127.0.0.1", "port": free_port(), "ae_title": commitment.upper(),
            "commitment": commitment, "commitment_wait_s": 0,
        }
        for commitment in ("request", "query")
    ]  # fmt: skip


@pytest.mark.timeout(0)
@pytest.mark.parametrize("what", ["receive", "work", "lanes"])
def test_a_disk_that_fails_at_any_write_costs_no_acknowledged_byte(
    what, rig, amount, figures, quick_settings, new_series, free_port, tmp_path, shim
):
    step = amount("DISK_STEP", short={"receive": 5, "work": 97, "lanes": 61}[what], full=1)
    parts = LANES_PARTS if what == "lanes" and step == 1 else 1
    template = slices_on_disk(new_series(1), tmp_path / "slices")

    def run(part):
        folder = tmp_path / f"part{part}" / "node"
        settings = quick_settings(
            storage={"data_dir": folder},
            destinations=destinations_for(what, free_port, folder),
            retention=dict.fromkeys(RETENTION, 1),
            requesters=[{"ae_title": "CT", "host": "127.0.0.1"}] if what == "receive" else [],
            archives=[ARCHIVE | {"port": free_port()}] if what == "receive" else [],
        )
        return partial(run_failing, what, template, step * parts, settings, shim(folder), part)

    with ThreadPoolExecutor(parts) as pool:
        runs = [pool.submit(run(part)) for part in range(parts)]
        tally = sum_of([each.result() for each in runs])
    figures(
        f"disk-{what}",
        {
            "writes that failed": sum(tally["struck"].values()),
            "refused or put off": tally["refused"],
            "done all the same": tally["kept_all_the_same"],
            "success without the bytes": tally["false_success"],
            "needed a person": tally["needed_a_person"],
            "not well once the disk was": tally["not_recovered"],
            "first failing call": tally["struck"],
        },
    )
    assert tally["refused"] > 0
    assert (tally["false_success"], tally["needed_a_person"], tally["not_recovered"]) == (0, 0, 0)


def test_where_the_filesystem_knows_no_links_instances_are_kept_all_the_same(
    quick_settings, new_series, tmp_path, shim
):
    settings = quick_settings(storage={"data_dir": tmp_path / "node", "min_free_bytes": 0})
    template, environment = (
        slices_on_disk(new_series(1), tmp_path / "slices"),
        shim(settings.storage.data_dir),
    )
    tally = run_failing("without-links", template, 1, settings, environment)
    assert tally["struck"] == {"link tmp": 2}
    assert (tally["kept_all_the_same"], tally["not_recovered"]) == (2, 0)


@pytest.mark.timeout(600)
def test_a_node_on_a_full_disk_refuses_and_goes_on_by_itself_once_there_is_room(
    rig, figures, quick_settings, new_series, free_port, small_disk, tmp_path
):
    """A tmpfs is filled by somebody else: while slices come, and again before the result is written."""
    settings = quick_settings(
        listen={"port": free_port()}, storage={"data_dir": small_disk, "min_free_bytes": 0}
    )
    senders = [rig.Sender(settings.listen.port, new_series(number)) for number in range(2)]
    hog = small_disk / "somebody-elses"
    with rig.Victim(settings) as victim, Ledger(small_disk / rig.LEDGER_FILE) as ledger:
        assert rig.until(victim.listens)
        fill(hog)
        for sender in senders:
            sender.send_some()
        refused = [status for sender in senders for status in sender.statuses if status != 0]
        assert set(refused) <= {0xA700} and refused
        rig.check_acknowledged(ledger, senders)
        hog.unlink()
        senders[0].send_all()
        fill(hog)  # before the series is judged, translated and written
        time.sleep(FULL_S)
        hog.unlink()
        senders[1].send_all()
        assert rig.until(lambda: [job.state for job in ledger.jobs()] == [State.BUILT] * 2), ledger.jobs()
        expected = rig.undisturbed(settings, ledger)
        found = {
            o.sop_instance_uid: o.path.read_bytes() for job in ledger.jobs() for o in ledger.outputs(job.id)
        }
    assert found == expected
    figures(
        "disk-full",
        {
            "refused with 0xA700": len(refused),
            "acknowledged and lost": 0,
            "results that differ": 0,
            "by hand": 0,
        },
    )


def fill(path):
    """Take every byte that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
