"""The audit is written and sent, waits where it cannot be, and stops nothing."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from lxml import etree

from config.settings import Settings
from node.alarm import Alert, AlertKind
from node.audit.alarms import EVERY_S, MOST, Alarms
from node.audit.auditor import Auditor
from node.filehead import file_head
from node.ledger import CommitmentAnswer, Ledger, Output, ReceivedInstance, SetAside, SynthesisRecord
from node.purge import purge_quarantine
from node.spool import Spool
from node.states import State

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).with_name("audit-message.rng")))
CT = "1.2.840.10008.5.1.4.1.1.2"
NOTE = "1.2.840.10008.5.1.4.1.1.88.59"
TROUBLE = Alert(AlertKind.REFUSED, "calling AE title not in allow_ae_titles", "10.0.0.9", "ROGUE")


class Watch:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def auditor(ledger: Ledger, tmp_path: Path, watch: Watch) -> Iterator[Callable[..., Auditor]]:
    """Makes auditors of the one ledger."""
    made: list[Auditor] = []

    def make(tls: dict[str, Any] | None = None, **audit: Any) -> Auditor:
        settings = Settings.model_validate(
            {
                "storage": {"data_dir": tmp_path / "node"},
                "destinations": [
                    {"name": "pacs", "host": "pacs.example.org", "ae_title": "PACS"},
                    {"name": "disk", "kind": "folder", "path": tmp_path / "disk"},
                ],
                "tls": tls or {},
                "audit": audit,
                "retry": {"first_s": 10, "jitter": 0},
            }
        )
        made.append(Auditor(settings, ledger, elapsed=watch))
        return made[-1]

    yield make
    for each in made:
        each.close()


def written(tmp_path: Path) -> list[Any]:
    """Every message of the files, valid, oldest first."""
    paths = sorted((tmp_path / "node" / "audit").glob("messages.log*"), reverse=True)
    found = [etree.fromstring(line.encode()) for path in paths for line in path.read_text().splitlines()]
    for root in found:
        SCHEMA.assertValid(root)
    return found


def kinds(roots: list[Any]) -> list[tuple[str, str, str]]:
    """Event, action and outcome of each message."""
    return [
        (
            root.find("EventIdentification/EventID").get("originalText"),
            root.find("EventIdentification").get("EventActionCode"),
            root.find("EventIdentification").get("EventOutcomeIndicator"),
        )
        for root in roots
    ]


def journey(
    ledger: Ledger,
    path: Path,
    number: int = 1,
    destinations: tuple[str, ...] = ("pacs", "disk"),
    made_path: Path | None = None,
) -> int:
    """A job from its first instance to DELIVERED, where both destinations have it."""
    uid = f"2.25.5.{number}"
    received = ReceivedInstance(uid, CT, "1.2", uid, "2.25.4", "CT1", path, "00", 1)
    job_id = ledger.record_instance(received, 1.0).job_id
    ledger.move(job_id, State.SETTLED, 2.0)
    ledger.move(job_id, State.READY, 3.0)
    ledger.lease("w", 4.0, 60.0)
    outputs = [
        Output(
            job_id, "venous", "ct_series", "2.25.6", f"2.25.6.{number}.{index}", CT, made_path or path, "aa"
        )
        for index in range(3)
    ]
    made = SynthesisRecord("venous", "m-1", "dd", 0, "bridge", 4, "cpu")
    ledger.record_built(job_id, "w", outputs, [made], ["pacs", "disk"], now=5.0)
    for destination in destinations:
        for output in outputs:
            ledger.record_delivery(output.sop_instance_uid, destination, 0, 6.0)
    return job_id


def reject(ledger: Ledger, job_id: int, path: Path, *, recall: bool = False) -> int:
    """Reject all of the job; the number of the note."""
    rejected = [output.sop_instance_uid for output in ledger.live_outputs(job_id)]
    note = Output(0, "", "rejection_note", "2.25.70", "2.25.70.1", NOTE, path, "bb")
    made = ledger.reject(
        job_id,
        rejected,
        note,
        destinations=["pacs", "disk"],
        calling_ae="S2NODE",
        reason="recalled",
        recall=recall,
        now=20.0,
    )
    assert made is not None and made.note_id is not None
    return made.note_id


@pytest.fixture
def file(tmp_path: Path, ct_files: list[Path]) -> Path:
    return ct_files[0]


def test_a_job_from_start_to_stop_is_told_in_valid_messages_that_name_study_and_patient(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True, site="north")
    one.start()
    journey(ledger, file)
    one.write()
    one.alarm(TROUBLE)
    one.stop()
    found = written(tmp_path)
    assert kinds(found) == [
        ("Application Activity", "E", "0"),
        ("DICOM Instances Transferred", "C", "0"),
        ("DICOM Instances Accessed", "R", "0"),
        ("DICOM Instances Accessed", "C", "0"),
        ("DICOM Instances Transferred", "R", "0"),
        ("DICOM Instances Transferred", "R", "0"),
        ("Security Alert", "E", "4"),
        ("Application Activity", "E", "0"),
    ]
    things = found[4].findall("ParticipantObjectIdentification")
    assert [each.get("ParticipantObjectID") for each in things] == ["2.25.4", "ID0017"]
    assert things[0].find(".//SOPClass").get("NumberOfInstances") == "3"
    assert things[1].findtext("ParticipantObjectName") == "DOE^JANE"
    receivers = [root.findall("ActiveParticipant")[1] for root in found[4:6]]
    assert [each.get("UserID") for each in receivers] == ["PACS", "disk"]
    assert receivers[0].get("NetworkAccessPointID") == "pacs.example.org"
    assert found[6].findall("ActiveParticipant")[1].get("UserID") == "ROGUE"


def test_a_user_without_a_name_is_told_by_number(
    tmp_path: Path, auditor: Callable[..., Auditor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_123_456_789)
    auditor(to_file=True).start()
    assert written(tmp_path)[0].findall("ActiveParticipant")[1].get("UserID") == "4123456789"


def test_a_destination_that_has_everything_is_told_before_the_others_have(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True)
    journey(ledger, file, destinations=("disk",))
    one.write()
    found = written(tmp_path)
    assert kinds(found)[-1] == ("DICOM Instances Transferred", "R", "0")
    assert found[-1].findall("ActiveParticipant")[1].get("UserID") == "disk"
    assert [job.state for job in ledger.jobs()] == [State.BUILT]


def test_results_are_made_once_however_often_they_have_to_be_sent_again(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True)
    job_id = journey(ledger, file)
    ledger.record_question("2.25.99", job_id, "pacs", not_before=8.0, now=7.0)
    lacking = CommitmentAnswer(frozenset(), {"2.25.6.1.0": 0xA700})
    ledger.record_report("2.25.99", lacking, ["pacs"], 8.0)
    ledger.refuse(job_id, "pacs", "no", 9.0)
    assert ledger.retry(job_id, 10.0) is State.BUILT
    one.write()
    made = ("DICOM Instances Accessed", "C", "0")
    assert kinds(written(tmp_path)).count(made) == 1


def test_a_rejection_note_is_told_as_made(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    job_id = journey(ledger, file)
    one = auditor(to_file=True)
    reject(ledger, job_id, file)
    one.write()
    assert kinds(written(tmp_path)) == [("DICOM Instances Accessed", "C", "0")]


def test_a_site_that_names_no_patient_has_the_jobs_number_instead(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True, identities="job")
    journey(ledger, file)
    one.write()
    text = (tmp_path / "node/audit/messages.log").read_text()
    assert 'ParticipantObjectID="job 1"' in text
    assert "DOE" not in text and "ID0017" not in text and "2.25.4" not in text
    assert len(written(tmp_path)) == 5


def test_a_refusal_for_good_and_the_removal_of_files_are_told_too(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True)
    job_id = journey(ledger, file)
    one.write()
    ledger.move(job_id, State.PURGED, 9.0)
    second = ReceivedInstance("2.25.8", CT, "1.2", "2.25.8", "2.25.4", "CT1", tmp_path / "gone", "00", 1)
    refused = ledger.record_instance(second, 10.0).job_id
    for state in (State.SETTLED, State.READY):
        ledger.move(refused, state, 11.0)
    ledger.lease("w", 12.0, 60.0)
    output = Output(refused, "venous", "ct_series", "2.25.7", "2.25.7.1", CT, tmp_path / "gone", "aa")
    ledger.record_built(refused, "w", [output], [], ["pacs"], now=13.0)
    ledger.refuse(refused, "pacs", "no", 14.0)
    one.write()
    found = written(tmp_path)[5:]
    assert kinds(found)[0] == ("DICOM Instances Accessed", "D", "0")
    assert kinds(found)[-1] == ("DICOM Instances Transferred", "R", "8")
    assert found[-1].findtext("EventIdentification/EventOutcomeDescription") == "pacs refused it"
    patients = [root.findall("ParticipantObjectIdentification")[1] for root in found]
    assert patients[-1].get("ParticipantObjectID") == "unknown"


def written_by_a_stranger(path: Path, tag: int, vr: bytes, value: bytes) -> Path:
    """A file whose element ``tag`` is of this VR and value, beside a sound Patient ID."""
    elements = {0x00080016: (b"UI", CT.encode() + b"\0"), 0x00100020: (b"LO", b"ID0018"), tag: (vr, value)}
    data = b"".join(
        struct.pack("<HH2s", each >> 16, each & 0xFFFF, vr)
        + struct.pack("<H" if vr != b"SQ" else "<2xL", len(value))
        + value
        for each, (vr, value) in sorted(elements.items())
    )
    path.write_bytes(file_head(CT, "2.25.5", "1.2.840.10008.1.2.1") + data)
    return path


ITEM_WITH_FOUR_BYTES_OF_FD = bytes.fromhex("feff00e0 0c000000 10002000 4644 0400 31323334")


@pytest.mark.parametrize(
    ("tag", "vr", "value", "patient"),
    [
        (0x00100020, b"FD", b"1234", "unknown"),
        (0x00100020, b"XX", b"1234", "unknown"),
        (0x00100020, b"SQ", ITEM_WITH_FOUR_BYTES_OF_FD, "unknown"),
        (0x00100010, b"FD", b"12", "ID0018"),
    ],
)
def test_a_patient_who_cannot_be_read_stops_no_message(
    ledger: Ledger,
    tmp_path: Path,
    file: Path,
    auditor: Callable[..., Auditor],
    tag: int,
    vr: bytes,
    value: bytes,
    patient: str,
) -> None:
    one = auditor(to_file=True)
    journey(ledger, written_by_a_stranger(tmp_path / "hostile", tag, vr, value))
    journey(ledger, file, number=2)
    one.write()
    patients = [root.findall("ParticipantObjectIdentification")[1] for root in written(tmp_path)]
    told = [[each.get("ParticipantObjectID"), each.findtext("ParticipantObjectName")] for each in patients]
    assert told == [[patient, ""]] * 5 + [["ID0017", "DOE^JANE"]] * 5
    assert one.troubles()["written"] == ""


def supersede(ledger: Ledger, path: Path) -> None:
    """A late slice of the first journey's series."""
    late = ReceivedInstance("2.25.5.1.9", CT, "1.2", "2.25.5.1", "2.25.4", "CT1", path, "01", 1)
    assert ledger.record_instance(late, 9.0).superseded_job_id == 1


def test_what_was_sent_before_a_job_was_superseded_is_told_and_so_is_what_was_on_its_way(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True)
    journey(ledger, file, destinations=("disk",))
    ledger.record_delivery("2.25.6.1.0", "pacs", 0xB000, 7.0)
    ledger.record_delivery("2.25.6.1.1", "pacs", 0xA700, 7.0)
    one.write()
    before = len(written(tmp_path))
    supersede(ledger, file)
    one.write()
    assert not ledger.record_delivery("2.25.6.1.1", "pacs", 0x0000, 10.0)
    one.write()
    found = written(tmp_path)[before:]
    assert kinds(found) == [("DICOM Instances Transferred", "R", "0")] * 2
    assert [root.findall("ActiveParticipant")[1].get("UserID") for root in found] == ["PACS", "PACS"]
    assert [root.find(".//SOPClass").get("NumberOfInstances") for root in found] == ["1", "2"]
    words = [root.findtext("EventIdentification/EventOutcomeDescription") for root in found]
    assert words == ["1 of 3 instances", "2 of 3 instances"]


def test_what_was_sent_before_a_job_was_recalled_is_told(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    job_id = journey(ledger, file, destinations=())
    ledger.record_delivery("2.25.6.1.0", "disk", 0, 7.0)
    one = auditor(to_file=True)
    reject(ledger, job_id, file, recall=True)
    assert ledger.job(job_id).state is State.RECALLED
    one.write()
    found = [root for root in written(tmp_path) if root.find(".//EventID").get("csd-code") == "110104"]
    assert [root.findall("ActiveParticipant")[1].get("UserID") for root in found] == ["disk"]


def test_the_removal_of_a_superseded_jobs_files_is_told_but_not_of_those_the_next_one_has(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    journey(ledger, file, made_path=tmp_path / "made")
    supersede(ledger, tmp_path / "late")
    one = auditor(to_file=True)
    assert ledger.begin_purge(1, [State.SUPERSEDED], 10.0, 11.0)
    one.write()
    (removed,) = written(tmp_path)
    assert kinds([removed]) == [("DICOM Instances Accessed", "D", "0")]
    assert removed.find(".//SOPClass").get("NumberOfInstances") == "3", "the results"


def test_what_is_removed_from_quarantine_is_told_once_for_each_job(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    spool = Spool(ledger.path.parent)
    one, other = journey(ledger, file), journey(ledger, file, 2)
    for job_id, number, sop_class_uid in ((one, 1, CT), (other, 2, ""), (one, 3, CT), (one, 4, NOTE)):
        placed = spool.place(b"other", f"quarantine/2.25.5.{job_id}/{number}.dcm")
        aside = SetAside(
            job_id, placed.path, placed.sha256, placed.bytes, "CT1", "why", sop_class_uid=sop_class_uid
        )
        ledger.record_set_aside(aside, 8.0)
    account = auditor(to_file=True)
    for _ in range(2):
        purge_quarantine(ledger, spool, 9.0, lambda: 10.0)
        account.write()
    removed = written(tmp_path)
    assert kinds(removed) == [("DICOM Instances Accessed", "D", "0")] * 2
    assert [root.find(".//EventOutcomeDescription").text for root in removed] == [
        "instances removed from quarantine: 3",
        "instances removed from quarantine: 1",
    ]
    found = [
        {each.get("UID"): each.get("NumberOfInstances") for each in root.iter("SOPClass")} for root in removed
    ]
    assert found == [{CT: "2", NOTE: "1"}, {}], "of the other one an earlier version kept no class"
    study = removed[0].find("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "2.25.4"


@pytest.mark.parametrize("with_patient", [True, False])
def test_a_case_that_is_exported_is_told_with_who_did_it(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor], with_patient: bool
) -> None:
    job_id = journey(ledger, file)
    one = auditor(to_file=True)
    ledger.record_export(job_id, "alice", 9.0, with_patient=with_patient)
    one.write()
    (told,) = written(tmp_path)
    assert kinds([told]) == [("Export", "R", "0")]
    assert told.find("ActiveParticipant").get("UserID") == "alice"
    words = told.findtext("EventIdentification/EventOutcomeDescription")
    assert words == f"exported it {'with' if with_patient else 'without'} its patient"
    assert told.find(".//SOPClass").get("NumberOfInstances") == "4"


def test_the_file_is_its_owners_alone_rotates_and_keeps_so_many(
    ledger: Ledger, tmp_path: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True, file_bytes=4096, files=2)
    for _ in range(20):
        one.start()
    one.stop()
    folder = tmp_path / "node" / "audit"
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    assert names == ["messages.log", "messages.log.1", "messages.log.2"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()} == {0o600}
    assert all(path.stat().st_size <= 4096 for path in folder.iterdir() if path.is_file())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_cannot_be_written_is_written_later_and_raises_nothing(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True)
    folder = tmp_path / "node" / "audit"
    shutil.rmtree(folder)
    folder.write_bytes(b"a file where the folder should be")
    journey(ledger, file)
    one.alarm(TROUBLE)
    for _ in range(2):
        one.write()
    assert one.troubles()["written"]
    figures = {sample.name: sample.value for metric in one.figures() for sample in metric.samples}
    assert figures["s2node_audit_waiting"] == 0
    folder.unlink()
    folder.mkdir()
    one.write()
    assert not one.troubles()["written"]
    assert len(written(tmp_path)) == 1 + 5


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_part_of_it(
    tmp_path: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True)
    file = tmp_path / "node" / "audit" / "messages.log"
    file.write_bytes(b"<AuditMessage>earlier</AuditMessage>\n" * 15_000)
    before = file.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 100, hard))
    try:
        one.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert one.troubles()["written"] == "File too large"
    assert file.stat().st_size == before
    one.start()
    lines = file.read_bytes().splitlines()
    SCHEMA.assertValid(etree.fromstring(lines[-1]))
    assert len(lines) == 15_001


def test_what_a_killed_node_left_half_written_is_not_sent(
    tmp_path: Path, auditor: Callable[..., Auditor], tls: dict[str, Any], repository: Callable[..., Any]
) -> None:
    receiver = repository()
    waiting = tmp_path / "node" / "audit" / "waiting"
    waiting.mkdir(parents=True)
    (waiting / "1.part").write_bytes(b"half")
    (waiting / "2.msg").write_bytes(b"5 whole")
    one = auditor(tls, syslog_host="127.0.0.1", syslog_port=receiver.port)
    one.send()
    assert receiver.messages == [b"whole"]
    assert list(waiting.iterdir()) == []


def test_who_a_purged_job_was_about_is_told_where_a_purge_left_it(
    ledger: Ledger, tmp_path: Path, file: Path, auditor: Callable[..., Auditor]
) -> None:
    one = auditor(to_file=True)
    job_id = journey(ledger, file)
    ledger.keep_identity(job_id, file.read_bytes())
    file.unlink()
    ledger.move(job_id, State.PURGED, 9.0)
    one.write()
    removed = written(tmp_path)[-1].findall("ParticipantObjectIdentification")[1]
    assert removed.get("ParticipantObjectID") == "ID0017"


def test_messages_reach_a_repository_over_tls_framed_and_valid(
    ledger: Ledger,
    file: Path,
    auditor: Callable[..., Auditor],
    tls: dict[str, Any],
    repository: Callable[..., Any],
    tmp_path: Path,
) -> None:
    receiver = repository()
    one = auditor(tls, syslog_host="127.0.0.1", syslog_port=receiver.port)
    one.start()
    journey(ledger, file)
    one.write()
    one.send()
    one.stop()
    assert not one.sending.reason
    heads, bodies = zip(*(message.split(b"\xef\xbb\xbf", 1) for message in receiver.messages), strict=True)
    assert len(bodies) == 7
    for body in bodies:
        SCHEMA.assertValid(etree.fromstring(body))
    priority, at, _host, app, process, kind, data = heads[0].split(b" ")[:7]
    assert (priority, app, process, kind, data) == (
        b"<85>1",
        b"s2node",
        str(os.getpid()).encode(),
        b"DICOM+RFC3881",
        b"-",
    )
    assert at.endswith(b"Z")
    assert list((tmp_path / "node/audit/waiting").iterdir()) == []
    assert not (tmp_path / "node/audit/messages.log").exists()


def test_a_repository_that_is_away_has_everything_once_it_is_back(
    ledger: Ledger,
    file: Path,
    auditor: Callable[..., Auditor],
    tls: dict[str, Any],
    repository: Callable[..., Any],
    watch: Watch,
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    port = free_port()
    one = auditor(tls, syslog_host="127.0.0.1", syslog_port=port)
    one.start()
    one.write()
    one.send()
    assert one.sending.reason == "Connection refused"
    waiting = tmp_path / "node/audit/waiting"
    assert len(list(waiting.iterdir())) == 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in waiting.iterdir()} == {0o600}
    receiver = repository(port=port, breaks=1)
    one.send()
    assert receiver.breaks == 1, "it rests after a failure"
    watch.now += 20
    one.send()
    assert one.sending.reason
    watch.now += 60
    again = auditor(tls, syslog_host="127.0.0.1", syslog_port=port)
    again.send()
    assert len(receiver.messages) == 1
    assert list(waiting.iterdir()) == []


def test_a_repository_that_hangs_up_after_reading_has_them_too(
    auditor: Callable[..., Auditor], tls: dict[str, Any], repository: Callable[..., Any]
) -> None:
    receiver = repository(polite=False)
    one = auditor(tls, syslog_host="127.0.0.1", syslog_port=receiver.port)
    one.start()
    one.send()
    assert not one.sending.reason
    assert len(receiver.messages) == 1


def test_a_repository_with_a_certificate_of_another_authority_gets_nothing(
    auditor: Callable[..., Auditor], tls: dict[str, Any], repository: Callable[..., Any]
) -> None:
    receiver = repository(authority=trustme.CA())
    one = auditor(tls, syslog_host="127.0.0.1", syslog_port=receiver.port)
    one.start()
    one.send()
    assert "not believed" in one.sending.reason
    assert receiver.messages == []


def test_when_too_much_waits_jobs_stay_in_the_ledger_and_are_told_later(
    ledger: Ledger,
    file: Path,
    auditor: Callable[..., Auditor],
    tls: dict[str, Any],
    repository: Callable[..., Any],
) -> None:
    receiver = repository()
    one = auditor(tls, syslog_host="127.0.0.1", syslog_port=receiver.port, max_waiting=3)
    journey(ledger, file)
    one.write()
    assert "audit.max_waiting" in one.troubles()["queued"]
    one.send()
    one.write()
    one.send()
    assert not one.troubles()["queued"]
    assert len(receiver.messages) >= 5


def test_the_file_goes_on_where_too_much_waits_for_a_repository_that_is_away(
    ledger: Ledger,
    file: Path,
    auditor: Callable[..., Auditor],
    tls: dict[str, Any],
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    away = {"syslog_host": "127.0.0.1", "syslog_port": free_port(), "max_waiting": 3}
    one = auditor(tls, to_file=True, **away)
    journey(ledger, file)
    one.alarm(TROUBLE)
    for _ in range(3):
        one.write()
    assert "audit.max_waiting" in one.troubles()["queued"]
    assert not one.troubles()["written"]
    assert len(written(tmp_path)) == 1 + 5, "each message once"
    assert len(list((tmp_path / "node/audit/waiting").iterdir())) == 3


def test_a_file_that_cannot_be_written_queues_no_message_twice(
    ledger: Ledger,
    file: Path,
    auditor: Callable[..., Auditor],
    tls: dict[str, Any],
    repository: Callable[..., Any],
    tmp_path: Path,
) -> None:
    receiver = repository()
    one = auditor(tls, to_file=True, syslog_host="127.0.0.1", syslog_port=receiver.port)
    (tmp_path / "node/audit/messages.log").mkdir()
    journey(ledger, file)
    for _ in range(3):
        one.write()
    one.send()
    assert one.troubles()["written"]
    assert len(receiver.messages) == 5


def test_a_repository_that_is_added_begins_where_the_file_is(
    ledger: Ledger,
    file: Path,
    auditor: Callable[..., Auditor],
    tls: dict[str, Any],
    repository: Callable[..., Any],
) -> None:
    receiver = repository()
    auditor(to_file=True)
    journey(ledger, file)
    one = auditor(tls, to_file=True, syslog_host="127.0.0.1", syslog_port=receiver.port)
    one.write()
    one.send()
    assert len(receiver.messages) == 5


def test_ten_thousand_refusals_of_one_peer_are_two_messages() -> None:
    watch = Watch()
    alarms = Alarms(watch)
    for _ in range(10_000):
        alarms.take(TROUBLE)
        if not alarms._told:
            assert alarms.due() == [(TROUBLE, 1)]
    assert alarms.due() == []
    watch.now += EVERY_S
    assert alarms.due() == [(TROUBLE, 9_999)]


def test_ten_thousand_different_peers_are_few_messages() -> None:
    alarms = Alarms(Watch())
    for number in range(10_000):
        alarms.take(Alert(AlertKind.CROWDED, "too many connections", f"10.0.{number // 250}.{number % 250}"))
    told = alarms.due()
    assert len(told) == MOST + 1
    assert sum(times for _, times in told) == 10_000
    assert told[-1][0].address == ""


def test_a_header_that_cannot_be_read_names_nobody(
    ledger: Ledger, tmp_path: Path, auditor: Callable[..., Auditor]
) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"\x00" * 100)
    one = auditor(to_file=True)
    journey(ledger, broken)
    one.write()
    assert b'ParticipantObjectID="unknown"' in etree.tostring(written(tmp_path)[0])
