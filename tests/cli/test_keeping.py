"""What is kept and what is taken back: quarantine, recall, one case for support."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.load import load_settings
from engine.bundle import read_bundle
from node.ledger import Ledger, Output, ReceivedInstance, SetAside, SynthesisRecord
from node.models import ModelStore
from node.spool import Spool
from node.states import State

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "s2node.toml"
    path.write_text(
        f'[storage]\ndata_dir = "{tmp_path / "data"}"\n[[destinations]]\nkind = "folder"\nname = "there"\n'
        f'path = "{tmp_path}"\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def ledger(config: Path) -> Iterator[Ledger]:
    with Ledger(load_settings(config, {}).storage.data_dir / "ledger.sqlite3") as opened:
        yield opened


@pytest.fixture
def job(ledger: Ledger, ct_files: list[Path]) -> int:
    """A job of one received file whose one output began to be sent."""
    spool = Spool(ledger.path.parent)
    placed = spool.place(ct_files[0].read_bytes(), "inbox/1.2.3/1.dcm")
    received = ReceivedInstance(
        "1.2.3.1", CT, "1.2", "1.2.3", "2.25.10", "CT1", placed.path, placed.sha256, 1
    )
    job_id = ledger.record_instance(received, 1000.0).job_id
    ledger.move(job_id, State.SETTLED, 1000.0)
    ledger.move(job_id, State.READY, 1000.0)
    ledger.lease("w", 1000.0, 60.0)
    made = spool.place(ct_files[1].read_bytes(), "outbox/2.25.5/2.25.5.1.dcm")
    output = Output(job_id, "venous", "ct_series", "2.25.5", "2.25.5.1", CT, made.path, made.sha256)
    record = SynthesisRecord("venous", "m-1", "dd", 0, "bridge", 4, "cpu")
    ledger.record_built(job_id, "w", [output], [record], ["there"], now=2000.0)
    ledger.record_delivery("2.25.5.1", "there", 0, 2001.0)
    return job_id


def test_a_recall_is_shown_first_and_then_done_once(
    run: Callable[..., object], config: Path, ledger: Ledger, job: int
) -> None:
    named = ("recall", "--model", "m-1", "--since", "1970-01-01", "-c", config)
    row = {
        "job": job,
        "state": "DELIVERED",
        "series": 1,
        "instances": 1,
        "destinations": ["there"],
        "note": None,
    }
    assert json.loads(run(*named, "--dry-run", "--json").out) == [row]
    assert "nothing was recalled" in run(*named, "--dry-run").out
    assert ledger.job(job).state is State.DELIVERED
    (done,) = json.loads(run(*named, "--json").out)
    assert done == {**row, "state": "RECALLED", "note": job + 1}
    assert "0 jobs recalled" in run(*named).out
    listed = run("jobs", "list", "-c", config).out
    assert f"rejects job {job}: model m-1 recalled" in listed and "RECALLED" in listed
    assert run("recall", "--model", "m-1", "--since", "soon", "-c", config).code == 2


def test_a_recall_takes_jobs_from_their_workers_and_warns_while_the_model_is_active(
    run: Callable[..., object], config: Path, ledger: Ledger, job: int
) -> None:
    other = ledger.record_instance(
        ReceivedInstance("9.9.9.1", CT, "1.2", "9.9.9", "2.25.10", "CT1", ledger.path, "00", 1), 3000.0
    ).job_id
    ledger.move(other, State.SETTLED, 3000.0)
    ledger.move(other, State.READY, 3000.0)
    ledger.lease("w", 3000.0, 60.0)
    active = read_bundle(ModelStore(load_settings(config, {})).active()["venous"]).manifest.model_id
    named = ("recall", "--model", active, "--since", "1970-01-01", "-c", config)
    assert "still active" in run(*named, "--dry-run").err
    assert ledger.job(other).owner == "w"
    assert "still active" in run(*named).err
    assert ledger.job(other).owner is None
    assert "begun anew" in (ledger.events(other)[-1].note or "")
    assert "still active" not in run("recall", "--model", "m-1", "--since", "1970-01-01", "-c", config).err


def test_a_recall_that_cannot_say_whose_a_job_is_fails_and_names_the_job(
    run: Callable[..., object], config: Path, ledger: Ledger, job: int
) -> None:
    for path in [each.path for each in ledger.outputs(job)] + [each.path for each in ledger.instances(job)]:
        path.unlink()
    ran = run("recall", "--model", "dd", "--since", "1970-01-01T00:00", "-c", config)
    assert ran.code == 1 and f"no file of job {job}" in ran.err
    assert ledger.job(job).state is State.DELIVERED


def test_a_recall_from_a_destination_that_the_settings_do_not_name_fails_and_leaves_the_result_live(
    run: Callable[..., object], config: Path, ledger: Ledger, job: int
) -> None:
    config.write_text(config.read_text(encoding="utf-8").replace('"there"', '"elsewhere"'), encoding="utf-8")
    named = ("recall", "--model", "m-1", "--since", "1970-01-01", "-c", config)
    for arguments in ([*named, "--dry-run"], named):
        ran = run(*arguments)
        assert ran.code == 1 and f"job {job}: its results went to there" in ran.err
    assert "0 jobs recalled" in ran.out
    assert ledger.job(job).state is State.DELIVERED
    assert [each.id for each in ledger.made_by("m-1", 0.0)] == [job]


def test_the_quarantine_is_listed_with_its_job_and_purged_when_that_is_said(
    run: Callable[..., object], config: Path, ledger: Ledger, job: int
) -> None:
    placed = Spool(ledger.path.parent).place(b"other", "quarantine/1.2.3/1.dcm")
    aside = SetAside(job, placed.path, placed.sha256, placed.bytes, "CT1", "other pixels came first")
    ledger.record_set_aside(aside, 1000.0)
    ledger.record_set_aside(aside, 1001.0)
    (row,) = json.loads(run("quarantine", "-c", config, "--json").out)
    assert (row["job_id"], row["times"], row["reason"]) == (job, 2, "other pixels came first")
    assert "1 in quarantine" in run("quarantine", "-c", config).out
    assert len([event for event in ledger.events(job) if "quarantine" in (event.note or "")]) == 1
    named = ("purge", "--older-than", "1d", "--quarantine", "-c", config)
    assert "quarantine" in run(*named).out
    assert placed.path.exists()
    gone = json.loads(run(*named, "--yes", "--json").out)
    assert gone == {"removed": True, "jobs": [], "quarantine": {"files": 1, "bytes": 5}}
    assert not placed.path.exists()
    assert "0 in quarantine" in run("quarantine", "-c", config).out


def test_one_case_is_written_for_support(
    run: Callable[..., object], config: Path, ledger: Ledger, job: int, tmp_path: Path
) -> None:
    target = tmp_path / "case.tar"
    ran = run("jobs", "export", job, target, "--deidentify", "-c", config)
    assert (ran.code, ran.out) == (0, f"{target}: 2 files\n")
    with tarfile.open(target) as tar:
        assert "results/00001.dcm" in tar.getnames()
    ledger.instances(job)[0].path.unlink()
    assert "left out" in run("jobs", "export", job, tmp_path / "more.tar", "-c", config).err
    assert run("jobs", "export", 99, tmp_path / "none.tar", "-c", config).code == 1
    assert run("jobs", "export", job, target, "-c", config).code == 1
