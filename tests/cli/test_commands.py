"""Each command does one thing, shows it, and ends with the documented code."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from config.load import load_settings
from config.settings import Settings
from engine.phantom import PhantomOptions, make_phantom
from node.archive import Archive
from node.ledger import Job, Ledger, ReceivedInstance
from node.outputs.encoding import to_bytes
from node.phantom_dicom import phantom_series
from node.spool import Spool
from node.states import State


def test_purge_says_what_would_go_and_removes_it_only_with_yes(
    run: Callable[..., object], config: Path, ledger: Ledger
) -> None:
    job = received(ledger, "1.2.3")
    spool = Spool(ledger.path.parent)
    placed = spool.place(b"slice", "inbox/1.2.3/1.dcm")
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE instance SET path = ?", (str(placed.path.relative_to(ledger.path.parent)),))
    db.close()
    ledger.move(job.id, State.REJECTED, 1.0, "NOT-CT")
    assert run("purge", "--older-than", "1d", "-c", config).out.endswith("nothing was removed: add --yes\n")
    named = ("purge", "--older-than", "1d", "--state", "REJECTED", "-c", config)
    seen = json.loads(run(*named, "--json").out)
    row = {"job_id": job.id, "state": "REJECTED", "files": 1, "bytes": 5}
    assert seen == {"removed": False, "jobs": [row]}
    assert placed.path.exists()
    assert json.loads(run(*named, "--json", "--yes").out) == {"removed": True, "jobs": [row]}
    assert not placed.path.exists()
    assert ledger.job(job.id).state is State.PURGED
    assert "removed" in run(*named, "--yes").out


@pytest.mark.parametrize("words", [("soon",), ("1d", "--state", "READY"), ("1d", "--state", "PURGED")])
def test_purge_refuses_an_age_that_is_none_and_jobs_that_are_under_way(
    run: Callable[..., object], config: Path, words: tuple[str, ...]
) -> None:
    assert run("purge", "--older-than", *words, "-c", config).code == 2


def test_the_doctor_names_what_is_wrong_with_its_cure(run: Callable[..., object], config: Path) -> None:
    with config.open("a", encoding="utf-8") as file:
        file.write("[listen]\nport = 1\n")
    ran = run("doctor", "-c", config)
    assert ran.code == 1
    assert "PROBLEM  listener" in ran.out and "cure: systemctl status s2node" in ran.out
    levels = {one["check"]: one["level"] for one in json.loads(run("doctor", "--json", "-c", config).out)}
    assert (levels["configuration"], levels["ledger"]) == ("OK", "PROBLEM")
    config.write_text("[listen]\nprot = 1\n", encoding="utf-8")
    ran = run("doctor", "-c", config)
    assert ran.code == 78 and "prot" in ran.out


@pytest.fixture(scope="module")
def series() -> list[Dataset]:
    options = PhantomOptions(shape=(3, 32, 32), spacing_mm=(5.0, 12.0, 12.0), phases=("ncct",))
    return phantom_series(make_phantom(1, options))


@pytest.fixture
def folder(tmp_path: Path, series: list[Dataset]) -> Path:
    there = tmp_path / "study"
    there.mkdir()
    for number, ds in enumerate(series):
        (there / f"{number}.dcm").write_bytes(to_bytes(ds))
    return there


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path / "archive") as running:
        yield running


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "s2node.toml"
    path.write_text(f'[storage]\ndata_dir = "{tmp_path / "data"}"\n', encoding="utf-8")
    return path


@pytest.fixture
def ledger(config: Path) -> Iterator[Ledger]:
    with Ledger(load_settings(config, {}).storage.data_dir / "ledger.sqlite3") as opened:
        yield opened


def received(ledger: Ledger, series_uid: str, number: int = 1) -> Job:
    path = ledger.path.parent / "inbox" / f"{number}"
    instance = ReceivedInstance(
        sop_instance_uid=f"{series_uid}.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_instance_uid=series_uid,
        study_instance_uid="1.2.3",
        calling_ae="SCANNER",
        path=path,
        sha256="00",
        bytes=10,
    )
    return ledger.job(ledger.record_instance(instance, now=1_000.0).job_id)


def test_init_writes_every_setting_and_does_not_overwrite(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    assert run("init", path).code == 0
    assert load_settings(path, {}) == Settings()
    assert run("init", path).code == 1
    assert run("init", path, "--force").code == 0
    assert run("init", "-").out == path.read_text()


def test_config_check_names_every_problem_and_ends_with_78(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('[listen]\nprot = 1\n[log]\nlevel = "loud"\n')
    ended = run("config", "check", "--config", path)
    assert ended.code == 78
    assert "listen.prot" in ended.err and "log.level" in ended.err


def test_config_check_says_what_it_read(run: Callable, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the defaults: valid" in run("config", "check").out
    assert f"{config}: valid" in run("config", "check", "--config", config).out
    monkeypatch.setenv("S2NODE_CONFIG", str(config))
    assert f"{config}: valid" in run("config", "check").out


def test_the_systems_file_is_read_where_no_other_is_named(
    run: Callable, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.commands.options.SYSTEM_FILE", config)
    assert f"{config}: valid" in run("config", "check").out


def test_config_show_has_every_setting(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "with.toml"
    path.write_text('[[destinations]]\nname = "pacs"\nhost = "h"\nae_title = "A"\n')
    lines = run("config", "show", "--config", path).out.splitlines()
    assert 'listen.ae_title = "S2NODE"' in lines and 'destinations[0].name = "pacs"' in lines
    shown = json.loads(run("config", "show", "--config", path, "--json").out)
    assert set(shown) == set(Settings.model_fields)


def test_config_schema_is_a_json_schema_with_descriptions(run: Callable) -> None:
    schema = json.loads(run("config", "schema").out)
    assert schema["$defs"]["ListenSettings"]["properties"]["port"]["description"].startswith("TCP port")


def test_send_shows_what_became_of_every_file(run: Callable, folder: Path, archive: Archive) -> None:
    (folder / "notes.txt").write_text("no image")
    ended = run("send", folder, "127.0.0.1", archive.port, "--to", "ARCHIVE")
    assert ended.code == 0
    assert "0x0000 Success" in ended.out and "not a DICOM instance" in ended.out
    counted = json.loads(run("send", folder, "127.0.0.1", archive.port, "--to", "ARCHIVE", "--json").out)
    assert counted["stored"] == 3


def test_send_ends_with_1_where_nothing_was_stored(run: Callable, tmp_path: Path, archive: Archive) -> None:
    assert run("send", tmp_path / "archive", "127.0.0.1", archive.port, "--to", "ARCHIVE").code == 1


def test_echo_says_who_answers_and_who_does_not(run: Callable, archive: Archive) -> None:
    assert "answers" in run("echo", "127.0.0.1", archive.port, "--to", "ARCHIVE").out
    ended = run("echo", "127.0.0.1", archive.port, "--to", "OTHER")
    assert ended.code == 1 and "error:" in ended.err


def test_an_ae_title_that_is_none_is_a_usage_error(run: Callable) -> None:
    ended = run("echo", "127.0.0.1", 11112, "--to", "FAR TOO LONG AN AE TITLE")
    assert ended.code == 2 and "1 to 16 printable" in ended.err


def test_jobs_without_a_node_say_where_they_looked(run: Callable, config: Path) -> None:
    ended = run("jobs", "list", "--config", config)
    assert ended.code == 1 and "ledger.sqlite3" in ended.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_ledger_is_not_opened(run: Callable, config: Path, ledger: Ledger) -> None:
    os.chown(ledger.path, 65534, 65534)
    ended = run("jobs", "list", "--config", config)
    assert ended.code == 1 and "run the command as that user" in ended.err


def test_jobs_are_listed_for_people_and_for_scripts(run: Callable, config: Path, ledger: Ledger) -> None:
    first = received(ledger, "1.2.3.4")
    second = received(ledger, "1.2.3.5")
    ledger.move(second.id, State.REJECTED, 1_001.0, "HAS-CONTRAST", "an enhanced aorta")
    shown = run("jobs", "list", "--config", config)
    assert "RECEIVING" in shown.out and "HAS-CONTRAST" in shown.out and "SCANNER" in shown.out
    rows = json.loads(run("jobs", "list", "--config", config, "--json").out)
    assert [(row["id"], row["state"], row["code"]) for row in rows] == [
        (first.id, "RECEIVING", None),
        (second.id, "REJECTED", "HAS-CONTRAST"),
    ]
    only = json.loads(run("jobs", "list", "--config", config, "--json", "--state", "REJECTED").out)
    assert [row["id"] for row in only] == [second.id]


def test_no_jobs_are_an_empty_list(run: Callable, config: Path, ledger: Ledger) -> None:
    assert json.loads(run("jobs", "list", "--config", config, "--json").out) == []


def test_a_job_is_shown_with_its_history(run: Callable, config: Path, ledger: Ledger) -> None:
    job = received(ledger, "1.2.3.4")
    ledger.move(job.id, State.REJECTED, 1_001.0, "NOT-A-GRID", "a gap of 10 mm")
    shown = run("jobs", "show", job.id, "--config", config).out
    assert "1.2.3.4" in shown and "a gap of 10 mm" in shown and "1970-01-01 00:16:41Z" in shown
    facts = json.loads(run("jobs", "show", job.id, "--config", config, "--json").out)
    assert facts["job"]["state"] == "REJECTED" and facts["events"][-1]["code"] == "NOT-A-GRID"


def test_a_job_that_is_not_there_ends_with_1(run: Callable, config: Path, ledger: Ledger) -> None:
    assert run("jobs", "show", 7, "--config", config).code == 1
    assert run("jobs", "retry", 7, "--config", config).code == 1


def test_a_parked_job_is_sent_on_its_way(run: Callable, config: Path, ledger: Ledger) -> None:
    job = received(ledger, "1.2.3.4")
    ledger.move(job.id, State.SETTLED, 1_001.0)
    ledger.move(job.id, State.READY, 1_002.0)
    ledger.move(job.id, State.PARKED, 1_003.0, "BUG", "trace")
    assert run("jobs", "retry", "--parked", "--config", config).out == f"job {job.id}: READY\n"
    assert ledger.job(job.id).state is State.READY
    assert run("jobs", "retry", "--parked", "--config", config).out == "no job to retry\n"


def test_files_of_others_are_not_ours(run: Callable, folder: Path) -> None:
    ended = run("verify", folder)
    assert ended.code == 1 and ended.out.count("not made by this product") == 3
    rows = json.loads(run("verify", folder / "0.dcm", "--json").out)
    assert [row["ours"] for row in rows] == [False]
