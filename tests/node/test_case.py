"""One case as a tar: everything of the job and nothing of others; without the patient where that is asked."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from config.settings import Settings
from node.case import log_safe, write_case
from node.deidentify import METHOD
from node.ledger import JobUnknown, Ledger, ReceivedInstance, SetAside
from node.ledger.moves import EXPORTED_CODE
from node.outputs.encoding import to_bytes
from node.spool import Spool
from node.states import State
from node.supervisor import owner_name
from node.users import user_of

PATIENT = ("DOE", "JANE", "ID0017", "19511224", "HOUSE", "ACC9", "20260102")
SERIES = "1.2.826.0.1.3680043.10.511.3.7"


def slice_of(number: int) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{SERIES}.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{SERIES}.0", SERIES
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "DOE^JANE", "ID0017", "19511224"
    ds.ReferringPhysicianName, ds.AccessionNumber, ds.StudyDate = "HOUSE", "ACC9", "20260102"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CTImageStorage, f"{SERIES}.9"
    person = Dataset()
    person.PersonName = "HOUSE"
    reference.PurposeOfReferenceCodeSequence = []
    reference.PersonIdentificationCodeSequence = [person]
    ds.ReferencedImageSequence = [reference]
    ds.private_block(0x0011, "VENDOR", create=True).add_new(1, "LO", "DOE^JANE")
    ds.Modality, ds.Rows, ds.Columns, ds.BitsAllocated = "CT", 1, 1, 16
    ds.add_new("PixelData", "OW", b"\x07\x00")
    return ds


@pytest.fixture
def ledger(tmp_path: Path):
    spool = Spool(tmp_path / "data")
    with Ledger(tmp_path / "data" / "ledger.sqlite3") as ledger:
        for number in (1, 2):
            placed = spool.place(to_bytes(slice_of(number)), f"inbox/{SERIES}/{number}.dcm")
            received = ReceivedInstance(
                f"{SERIES}.{number}", CTImageStorage, "1.2.840.10008.1.2.1", SERIES, f"{SERIES}.0", "CT",
                placed.path, placed.sha256, placed.bytes,
            )  # fmt: skip
            ledger.record_instance(received, 1_700_000_000.0 + number)
        aside = spool.place(to_bytes(slice_of(3)), f"quarantine/{SERIES}/3.dcm")
        reason = f"other pixels came first, says {SERIES}"
        ledger.record_set_aside(
            SetAside(1, aside.path, aside.sha256, aside.bytes, "CT", reason), 1_700_000_009.0
        )
        yield ledger


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}


def test_a_case_holds_files_rows_and_settings(ledger: Ledger, tmp_path: Path) -> None:
    target = tmp_path / "case.tar"
    case = write_case(ledger, Settings(), 1, target, deidentify=False, now=5.0)
    found = contents(target)
    assert list(found) == [
        "received/00001.dcm", "received/00002.dcm", "quarantine/00001.dcm", "case.json", "settings.json"
    ]  # fmt: skip
    assert (case.files, case.left_out) == (3, [])
    assert found["received/00001.dcm"] == ledger.instances(1)[0].path.read_bytes()
    facts = json.loads(found["case.json"])
    assert facts["job"]["series_instance_uid"] == SERIES
    assert [len(facts[each]) for each in ("instances", "outputs", "quarantine")] == [2, 0, 1]
    assert facts["events"][0]["at"] == 1_700_000_001.0
    assert str(tmp_path) not in found["case.json"].decode()
    with pytest.raises(FileExistsError, match="another file"):
        write_case(ledger, Settings(), 1, target, deidentify=False, now=5.0)


def test_a_case_is_its_owners_alone_whatever_the_umask(ledger: Ledger, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_case(ledger, Settings(), 1, tmp_path / "case.tar", deidentify=False, now=5.0)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "case.tar").stat().st_mode) == 0o600


def test_who_takes_a_case_is_kept_in_the_ledger_and_not_in_the_case(ledger: Ledger, tmp_path: Path) -> None:
    for number, deidentify in enumerate((False, True)):
        write_case(ledger, Settings(), 1, tmp_path / f"{number}.tar", deidentify=deidentify, now=5.0)
    user = user_of(os.getuid())
    notes = [event.note for event in ledger.events(1) if event.code == EXPORTED_CODE]
    assert notes == [f"{user}: exported it with its patient", f"{user}: exported it without its patient"]
    facts = json.loads(contents(tmp_path / "1.tar")["case.json"])
    assert EXPORTED_CODE not in {event["code"] for event in facts["events"]}


def test_a_case_without_its_patient_names_nobody_and_stays_together(ledger: Ledger, tmp_path: Path) -> None:
    target = tmp_path / "case.tar"
    write_case(ledger, Settings(), 1, target, deidentify=True, now=5.0)
    found = contents(target)
    everything = b"".join(found.values()).decode("latin-1")
    for word in (*PATIENT, SERIES, "1700000"):
        assert word not in everything, word
    first, second = (dcmread(BytesIO(found[f"received/0000{number}.dcm"])) for number in (1, 2))
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != SERIES
    assert first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID != second.SOPInstanceUID
    assert (first.PatientIdentityRemoved, first.DeidentificationMethod) == ("YES", METHOD)
    assert first.PixelData == b"\x07\x00"
    facts = json.loads(found["case.json"])
    assert facts["job"]["series_instance_uid"] == first.SeriesInstanceUID
    assert facts["instances"][0]["sop_class_uid"] == CTImageStorage
    assert facts["events"][0]["at"] == 0.0
    again = tmp_path / "again.tar"
    write_case(ledger, Settings(), 1, again, deidentify=True, now=5.0)
    assert (
        dcmread(BytesIO(contents(again)["received/00001.dcm"])).SeriesInstanceUID != first.SeriesInstanceUID
    )


def test_uids_of_any_form_and_hosts_are_replaced_in_the_rows_of_a_case_without_its_patient(
    ledger: Ledger, tmp_path: Path
) -> None:
    received = ReceivedInstance(
        "12345.9", CTImageStorage, "1.2.840.10008.1.2.1", "12345.678", "12345", "CT", tmp_path / "gone", "", 0
    )
    job_id = ledger.record_instance(received, 12.0).job_id
    ledger.move(job_id, State.SETTLED, 13.0)
    ledger.move(job_id, State.READY, 13.0)
    owner = owner_name(os.getpid())
    ledger.lease(owner, 14.0, 60.0)
    write_case(ledger, Settings(), job_id, tmp_path / "case.tar", deidentify=True, now=15.0)
    text = contents(tmp_path / "case.tar")["case.json"].decode()
    facts = json.loads(text)
    assert "12345" not in text
    assert facts["job"]["series_instance_uid"] == facts["generations"][0]["series_instance_uid"]
    host, _, worker = owner.partition("/")
    assert facts["job"]["owner"] == f"(left out)/{worker}"
    assert facts["events"][-1]["note"] == f"attempt 1 by (left out)/{worker}"
    rows = json.dumps([facts[key] for key in ("job", "generations", "events")])
    assert f"{host}/" not in rows
    assert facts["version"] == version("s2node")


@pytest.mark.parametrize("deidentify", [True, False])
def test_what_is_gone_or_cannot_be_freed_of_its_patient_is_left_out(
    ledger: Ledger, tmp_path: Path, deidentify: bool
) -> None:
    one, two = ledger.instances(1)
    one.path.unlink()
    two.path.write_bytes(b"not DICOM")
    case = write_case(ledger, Settings(), 1, tmp_path / "case.tar", deidentify=deidentify, now=5.0)
    left_out = ["received/00001.dcm", "received/00002.dcm"][: 2 if deidentify else 1]
    assert case.left_out == json.loads(contents(tmp_path / "case.tar")["case.json"])["left_out"] == left_out


def test_a_case_that_cannot_be_written_leaves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(JobUnknown):
        write_case(ledger, Settings(), 9, tmp_path / "case.tar", deidentify=False, now=5.0)
    with pytest.raises(FileNotFoundError):
        write_case(ledger, Settings(), 1, tmp_path / "nowhere" / "case.tar", deidentify=False, now=5.0)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert EXPORTED_CODE not in {event.code for event in ledger.events(1)}


def test_settings_are_shown_without_addresses_and_paths(tmp_path: Path) -> None:
    given = {
        "storage": {"data_dir": tmp_path},
        "destinations": [{"name": "pacs", "host": "pacs.hospital.example", "ae_title": "PACS"}],
    }
    text = json.dumps(log_safe(Settings.model_validate(given)))
    assert "hospital" not in text and str(tmp_path) not in text
    assert '"ae_title": "PACS"' in text
