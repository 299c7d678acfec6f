from __future__ import annotations

import hashlib
import socket
import sqlite3
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, MRImageStorage
from pynetdicom import AE, _config, build_context
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

from config.settings import ListenSettings, Settings
from node.alarm import Alarm, Alert, nobody
from node.filehead import PREAMBLE, file_head
from node.ledger import Ledger
from node.private import write_private_block
from node.receive import Arrival, Receiver
from node.scp import CT_CLASSES, STRANGERS, Scp, supported_contexts, transfer_syntaxes
from node.spool import Draft, Spool
from node.states import State

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Running:
    """A node's receiving half on loopback, and an association to it at a call."""

    scp: Scp
    spool: Spool
    ledger: Ledger
    settings: Settings

    def associate(
        self, *syntaxes: str, sop_class: str = CTImageStorage, calling: str = "SENDER", called: str = "S2NODE"
    ) -> Association:
        ae = AE(calling)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        contexts = [build_context(VERIFICATION)]
        contexts += [build_context(sop_class, [syntax]) for syntax in syntaxes or (EXPLICIT,)]
        return ae.associate("127.0.0.1", self.scp.port, contexts=contexts, ae_title=called)

    def send(self, *paths: Path, sop_class: str = CTImageStorage) -> list[Dataset]:
        """The answers to the files, sent as they are over one association."""
        syntaxes = {str(read_file_meta_info(path).TransferSyntaxUID) for path in paths}
        assoc = self.associate(*syntaxes, sop_class=sop_class)
        assert assoc.is_established
        answers = [assoc.send_c_store(path) for path in paths]
        assoc.release()
        return answers

    def stored_files(self) -> list[Path]:
        return sorted(path for path in self.spool.root.rglob("*.dcm") if path.is_file())


@pytest.fixture(autouse=True)
def sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender streams a file's data set without decoding it."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)


@contextmanager
def running(folder: Path, alarm: Alarm = nobody, **changes: dict[str, Any]) -> Iterator[Running]:
    listen = {"port": free_port(), **changes.get("listen", {})}
    storage = {"data_dir": folder / "data", "min_free_bytes": 0, **changes.get("storage", {})}
    settings = Settings.model_validate({"listen": listen, "storage": storage})
    spool = Spool(settings.storage.data_dir, settings.storage.min_free_bytes)
    with Ledger(spool.root / "ledger.sqlite3") as ledger, Scp(settings, ledger, spool, alarm=alarm) as scp:
        yield Running(scp, spool, ledger, settings)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


def ct(number: int = 1, series: str = "1.2.3", **values: object) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{series}.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", series
    ds.PatientName, ds.Modality, ds.BitsAllocated = "DOE^JANE", "CT", 16
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def encode(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    """The data set's bytes; what is not Implicit, Big Endian or deflated is written as Explicit."""
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = syntax == IMPLICIT, syntax != BIG_ENDIAN
    write_dataset(out, ds)
    encoded = out.getvalue()
    if syntax in {DEFLATED, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}:
        return deflate(encoded)
    return encoded


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def raw_file(
    path: Path, encoded: bytes, sop_instance: str, syntax: str = EXPLICIT, sop_class: str = CTImageStorage
) -> Path:
    """A file of these bytes that announces what it is told to announce."""
    path.write_bytes(file_head(sop_class, sop_instance, syntax) + encoded)
    return path


def ct_file(
    folder: Path, number: int = 1, series: str = "1.2.3", syntax: str = EXPLICIT, **values: object
) -> Path:
    ds = ct(number, series, **values)
    name = f"{hashlib.sha256(repr((number, series, values)).encode()).hexdigest()[:8]}-{syntax}.dcm"
    return raw_file(folder / name, encode(ds, syntax), ds.SOPInstanceUID, syntax)


# C-ECHO and who may associate


def test_an_echo_is_answered(node: Running) -> None:
    echo(node)


def echo(node: Running) -> None:
    assoc = node.associate()
    assert assoc.send_c_echo().Status == 0x0000
    assoc.release()


@pytest.mark.parametrize(
    ("listen", "names", "reason"),
    [
        ({}, {"called": "ELSEWHERE"}, (1, 1, 7)),
        ({"allow_ae_titles": ["SCANNER"]}, {"calling": "STRANGER"}, (1, 1, 3)),
        ({"allow_addresses": ["10.0.0.0/8"]}, {}, (1, 1, 1)),
    ],
)
def test_a_peer_that_is_not_allowed_is_rejected_with_the_standards_reason(
    tmp_path: Path, listen: dict[str, Any], names: dict[str, str], reason: tuple[int, int, int]
) -> None:
    with running(tmp_path, listen=listen) as node:
        assoc = node.associate(**names)
        assert assoc.is_rejected
        answer = assoc.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == reason


def test_a_peer_on_both_lists_is_let_in(tmp_path: Path) -> None:
    listen = {"allow_ae_titles": ["SCANNER"], "allow_addresses": ["127.0.0.0/8", "::1"]}
    with running(tmp_path, listen=listen) as node:
        assoc = node.associate(calling="SCANNER")
        assert assoc.is_established
        assoc.release()


def test_one_association_too_many_is_rejected_and_a_freed_slot_is_given_again(tmp_path: Path) -> None:
    with running(tmp_path, listen={"max_associations": 2}) as node:
        held = [node.associate() for _ in range(2)]
        assert node.scp.open_associations == 2
        refused = node.associate()
        assert refused.is_rejected
        answer = refused.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 2)
        for assoc in held:
            assoc.release()
        wait_until(lambda: node.scp.open_associations == 0)
        node.associate().release()


def test_a_peer_that_has_its_share_of_associations_is_rejected_for_the_moment(tmp_path: Path) -> None:
    with running(tmp_path, listen={"max_associations_per_ae_title": 1}) as node:
        held = node.associate()
        refused = node.associate()
        assert refused.is_rejected
        answer = refused.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 2)
        other = node.associate(calling="OTHER")
        assert other.is_established
        other.release()
        held.release()


def test_what_a_peer_may_not_do_is_not_offered_to_it(tmp_path: Path) -> None:
    with running(tmp_path, listen={"store_ae_titles": ["CT1"], "echo_addresses": ["10.0.0.0/8"]}) as node:
        scanner = node.associate(calling="CT1")
        assert [cx.abstract_syntax for cx in scanner.accepted_contexts] == [CTImageStorage]
        scanner.release()
        other = node.associate(calling="OTHER")
        assert other.accepted_contexts == []
        assert {cx.result for cx in other.rejected_contexts} == {0x03}  # abstract syntax not supported


def test_what_was_not_offered_cannot_be_stored_on_the_context_for_echo(tmp_path: Path) -> None:
    with running(tmp_path, listen={"store_ae_titles": ["CT1"], "echo_ae_titles": ["OTHER"]}) as node:
        assoc = node.associate(calling="OTHER")
        [context] = assoc.accepted_contexts
        assert context.abstract_syntax == VERIFICATION
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, "1.2.3.1"
        request.DataSet = BytesIO(encode(ct()))
        assoc._reactor_checkpoint.clear()  # the answer is read here
        wait_until(lambda: assoc._is_paused)
        assoc.dimse.send_msg(request, context.context_id)
        _, answer = assoc.dimse.msg_queue.get(timeout=20)
        assoc._reactor_checkpoint.set()
        assert answer.Status == 0xA900
        assert (node.stored_files(), node.ledger.jobs()) == ([], [])
        assoc.abort()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# keeping


def test_a_stored_instance_is_a_file_and_a_row_before_success_is_said(node: Running, tmp_path: Path) -> None:
    encoded = encode(ct(PixelData=b"\x01\x02" * 300))
    [answer] = node.send(raw_file(tmp_path / "a.dcm", encoded, "1.2.3.1"))
    assert answer.Status == 0x0000
    [job] = node.ledger.jobs()
    [instance] = node.ledger.instances(job.id)
    content = instance.path.read_bytes()
    assert content.endswith(encoded) and content.startswith(PREAMBLE)
    assert (instance.sha256, instance.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (job.state, job.calling_ae, job.study_instance_uid) == (State.RECEIVING, "SENDER", "1.2")
    assert dcmread(instance.path).SOPInstanceUID == "1.2.3.1"


def test_the_file_names_no_sender_and_no_version_so_that_a_repeat_is_the_same_file(
    node: Running, tmp_path: Path
) -> None:
    node.send(ct_file(tmp_path))
    meta = read_file_meta_info(node.stored_files()[0])
    assert not meta.ImplementationClassUID.startswith("2.25.")
    assert "ImplementationVersionName" not in meta
    assert "SourceApplicationEntityTitle" not in meta


def test_every_transfer_syntax_is_kept_as_received(node: Running, tmp_path: Path) -> None:
    offered = dict(enumerate(transfer_syntaxes()))
    encoded = {n: encode(ct(n, PixelData=b"\x07\x00" * 64), syntax) for n, syntax in offered.items()}
    paths = [
        raw_file(tmp_path / f"{n}.dcm", encoded[n], f"1.2.3.{n}", syntax) for n, syntax in offered.items()
    ]
    assert [answer.Status for answer in node.send(*paths)] == [0x0000] * len(paths)
    [job] = node.ledger.jobs()
    kept = {int(one.sop_instance_uid.split(".")[-1]): one for one in node.ledger.instances(job.id)}
    assert {n: one.transfer_syntax_uid for n, one in kept.items()} == offered
    for n, one in kept.items():
        assert one.path.read_bytes().endswith(encoded[n])
        assert read_file_meta_info(one.path).TransferSyntaxUID == offered[n]


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "JPEG2000.dcm",
        "image_dfl.dcm",
        "MR_small_RLE.dcm",
        "ExplVR_BigEnd.dcm",
    ],
)
def test_pydicoms_own_samples_are_kept_as_received(node: Running, name: str) -> None:
    check_kept_as_received(node, Path(str(get_testdata_file(name))))


def test_real_ct_in_every_syntax_is_kept_as_received(node: Running, ct_dir: Path) -> None:
    for path in sorted((ct_dir / "ts_zoo_ctimage_ge").glob("*.dcm")):
        check_kept_as_received(node, path)


def check_kept_as_received(node: Running, path: Path) -> None:
    meta = read_file_meta_info(path)
    encoded = path.read_bytes()[132 + 12 + meta.FileMetaInformationGroupLength :]
    [answer] = node.send(path, sop_class=meta.MediaStorageSOPClassUID)
    assert answer.Status in {0x0000, 0xB000}  # a warning: kept in quarantine, beside the one that came first
    kept = [
        f
        for f in node.spool.root.rglob(f"{meta.MediaStorageSOPInstanceUID}.*.dcm")
        if f.read_bytes().endswith(encoded)
    ]
    assert len(kept) == 1


def test_lossless_and_explicit_are_chosen_where_a_sender_offers_several() -> None:
    offered = transfer_syntaxes()
    assert offered[:2] == (EXPLICIT, IMPLICIT)
    assert offered.index("1.2.840.10008.1.2.4.90") < offered.index("1.2.840.10008.1.2.4.91")
    assert len(offered) == len(set(offered)) > 45


def test_other_classes_are_taken_or_refused_as_configured(tmp_path: Path) -> None:
    ds = ct(SOPClassUID=MRImageStorage)
    path = raw_file(tmp_path / "mr.dcm", encode(ds), ds.SOPInstanceUID, sop_class=MRImageStorage)
    with running(tmp_path / "store") as node:
        assert node.send(path, sop_class=MRImageStorage)[0].Status == 0x0000
        assert node.ledger.jobs()[0].instances == 1
    with running(tmp_path / "refuse", listen={"other_classes": "refuse"}) as node:
        assoc = node.associate(sop_class=MRImageStorage)
        assert [str(cx.abstract_syntax) for cx in assoc.accepted_contexts] == [VERIFICATION]
        assoc.release()
    refusing = supported_contexts(ListenSettings(other_classes="refuse"))
    assert {str(cx.abstract_syntax) for cx in refusing} == {VERIFICATION, *CT_CLASSES}


def test_slices_of_many_associations_at_once_make_one_series(node: Running, tmp_path: Path) -> None:
    paths = [ct_file(tmp_path, number) for number in range(24)]
    answers: list[Dataset] = []

    def send(part: int) -> None:
        for path in paths[part::4]:
            answers.extend(node.send(path))

    threads = [threading.Thread(target=send, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.Status for answer in answers] == [0x0000] * 24
    [job] = node.ledger.jobs()
    assert job.instances == 24


def test_a_repeat_is_success_and_writes_nothing(node: Running, tmp_path: Path) -> None:
    path = ct_file(tmp_path)
    node.send(path)
    [kept] = node.stored_files()
    before = kept.stat().st_mtime_ns
    assert node.send(path)[0].Status == 0x0000
    assert node.stored_files() == [kept]
    assert kept.stat().st_mtime_ns == before
    assert node.ledger.counters() == {"repeats": 1}


def test_a_late_slice_opens_the_next_generation(node: Running, tmp_path: Path) -> None:
    node.send(ct_file(tmp_path, 1))
    [first] = node.ledger.jobs()
    node.ledger.move(first.id, State.SETTLED, time.time())
    node.send(ct_file(tmp_path, 2))
    old, new = node.ledger.find_jobs("1.2.3")
    assert (old.state, new.state, new.generation, new.instances) == (State.SUPERSEDED, State.RECEIVING, 2, 2)


def test_other_bytes_under_a_known_uid_go_to_quarantine_and_the_first_stay(
    node: Running, tmp_path: Path
) -> None:
    first, second = ct_file(tmp_path), ct_file(tmp_path, PatientName="DOE^JOHN")
    answers = node.send(first, second, second)
    assert [answer.Status for answer in answers] == [0x0000] * 3
    inbox, quarantine = node.stored_files()
    assert inbox.is_relative_to(node.spool.root / "inbox")
    assert quarantine.parent == node.spool.root / "quarantine" / "1.2.3"
    assert dcmread(inbox).PatientName == "DOE^JANE"
    assert dcmread(quarantine).PatientName == "DOE^JOHN"
    assert node.ledger.counters() == {"quarantined": 2}
    assert node.ledger.jobs()[0].instances == 1


# the loop guard


def synthesizing_equipment() -> Sequence:
    purpose, equipment = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = (
        "109100",
        "DCM",
        "Synthesizing Equipment",
    )
    equipment.PurposeOfReferenceCodeSequence = Sequence([purpose])
    return Sequence([Dataset(), equipment])


MARKS: dict[str, dict[str, object]] = {
    "SyntheticData": {"SyntheticData": "YES"},
    "ImageType": {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC", "VENOUS"]},
    "109100": {"ContributingEquipmentSequence": synthesizing_equipment()},
}


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
@pytest.mark.parametrize("mark", [*MARKS, "private"])
def test_a_synthetic_object_is_taken_counted_and_dropped(
    node: Running, tmp_path: Path, mark: str, syntax: str
) -> None:
    ds = ct(**MARKS.get(mark, {}))
    if mark == "private":
        write_private_block(ds, {3: "VENOUS"})
    [answer] = node.send(raw_file(tmp_path / "a.dcm", encode(ds, syntax), ds.SOPInstanceUID, syntax))
    assert answer.Status == 0x0000
    assert node.ledger.counters() == {"own_dropped": 1}
    assert node.ledger.jobs() == [] and node.stored_files() == []


def test_a_series_the_node_made_is_dropped_even_when_every_mark_was_stripped(
    node: Running, tmp_path: Path
) -> None:
    with sqlite3.connect(node.ledger.path) as db:
        db.execute(
            "INSERT INTO job (id, series_instance_uid, generation, study_instance_uid, calling_ae, state,"
            " created_at, updated_at, last_received_at) VALUES (1, '9.9', 1, '9', 'A', 'BUILT', 0, 0, 0)"
        )
        db.execute(
            "INSERT INTO output VALUES (1, 1, 'venous', 'ct_series', '1.2.3', '2.25.1', '1.2', 'x', 'y')"
        )
    db.close()
    assert node.send(ct_file(tmp_path))[0].Status == 0x0000
    assert node.ledger.counters() == {"own_dropped": 1}
    assert node.stored_files() == []


def test_an_ordinary_series_with_private_elements_and_equipment_is_kept(
    node: Running, tmp_path: Path
) -> None:
    ds = ct(ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], ContributingEquipmentSequence=Sequence([Dataset()]))
    ds.private_block(0x0071, "SOMEONE ELSE", create=True).add_new(1, "LO", "x")
    ds.private_block(0x0009, "GEMS_IDEN_01", create=True).add_new(1, "LO", "x")
    assert node.send(raw_file(tmp_path / "a.dcm", encode(ds), ds.SOPInstanceUID))[0].Status == 0x0000
    assert len(node.stored_files()) == 1


# refusing


def refused(answer: Dataset, status: int, *words: str) -> None:
    assert answer.Status == status
    assert len(answer.ErrorComment) <= 64
    for word in words:
        assert word in answer.ErrorComment


@pytest.mark.parametrize("field", ["SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"])
def test_a_uid_that_is_a_path_is_refused_and_nothing_is_written(
    node: Running, tmp_path: Path, field: str
) -> None:
    hostile = ["../../outside", "/etc/passwd", "..", "", "1.2\\3.4", "1.2.x", "1" * 65]
    paths = []
    for number, uid in enumerate(hostile):
        ds = ct()
        ds.add_new(field, "LO", uid)  # as text: pydicom would not write such a UI
        paths.append(raw_file(tmp_path / f"{number}.dcm", encode(ds), "1.2.3.1"))
    before = sorted(tmp_path.rglob("*"))
    for answer in node.send(*paths):
        refused(answer, 0xC000, field, "missing or no UID")
    assert sorted(tmp_path.rglob("*")) == before
    assert node.ledger.jobs() == []


@pytest.mark.parametrize("encoded", [b"", b"\x00" * 300, b"\xff" * 300, bytes(range(256)) * 2], ids=str)
def test_bytes_that_are_no_data_set_are_refused_with_a_reason(
    node: Running, tmp_path: Path, encoded: bytes
) -> None:
    [answer] = node.send(raw_file(tmp_path / "junk.dcm", encoded or b"\x08\x00", "1.2.3.1"))
    refused(answer, 0xC000)
    assert node.stored_files() == []


def test_a_data_set_other_than_announced_is_refused(node: Running, tmp_path: Path) -> None:
    other_instance = raw_file(tmp_path / "a.dcm", encode(ct()), "1.2.3.99")
    other_class = raw_file(tmp_path / "b.dcm", encode(ct(SOPClassUID=MRImageStorage)), "1.2.3.1")
    first, second = node.send(other_instance, other_class)
    refused(first, 0xA900, "another SOP instance")
    refused(second, 0xA900, "another SOP class")
    assert node.stored_files() == []


def test_a_full_disk_is_answered_with_out_of_resources(tmp_path: Path) -> None:
    with running(tmp_path, storage={"min_free_bytes": 2**62}) as node:
        refused(node.send(ct_file(tmp_path))[0], 0xA700, "the spool is full")
        assert node.stored_files() == [] and node.ledger.jobs() == []


def test_an_instance_that_is_too_large_is_refused_and_the_next_is_taken(tmp_path: Path) -> None:
    with running(tmp_path, storage={"max_instance_bytes": 10_000}) as node:
        large = ct_file(tmp_path, 1, PixelData=bytes(20_000))
        first, second = node.send(large, ct_file(tmp_path, 2))
        refused(first, 0xA700, "at most 10000 bytes")
        assert second.Status == 0x0000


def test_without_a_ledger_there_is_no_success_and_the_file_does_no_harm(
    node: Running, tmp_path: Path
) -> None:
    path = ct_file(tmp_path)
    with sqlite3.connect(node.ledger.path) as db:
        db.execute("ALTER TABLE instance RENAME TO gone")
    refused(node.send(path)[0], 0xA700, "not stored: OperationalError")
    with sqlite3.connect(node.ledger.path) as db:
        db.execute("ALTER TABLE gone RENAME TO instance")
    db.close()
    assert node.ledger.jobs() == []
    assert node.send(path)[0].Status == 0x0000
    assert len(node.stored_files()) == 1
    assert node.ledger.jobs()[0].instances == 1


def test_a_ledger_that_fails_after_the_file_was_placed_gives_no_success(
    node: Running, tmp_path: Path
) -> None:
    path = ct_file(tmp_path)
    with sqlite3.connect(node.ledger.path) as db:
        db.execute("CREATE TRIGGER no BEFORE INSERT ON instance BEGIN SELECT RAISE(ABORT, 'DOE^JANE'); END")
    refused(node.send(path)[0], 0xC211, "not stored: IntegrityError")
    [orphan] = node.stored_files()
    with sqlite3.connect(node.ledger.path) as db:
        db.execute("DROP TRIGGER no")
    db.close()
    assert node.ledger.jobs() == []
    assert node.send(path)[0].Status == 0x0000
    assert node.stored_files() == [orphan]


def test_a_file_that_a_power_cut_left_short_is_replaced_when_the_instance_comes_again(
    node: Running, tmp_path: Path
) -> None:
    """Nobody was promised it: the name reached the disk before the bytes, and the ledger knows nothing."""
    path = ct_file(tmp_path)
    assert node.send(path)[0].Status == 0x0000
    [stored] = node.stored_files()
    whole = stored.read_bytes()
    with sqlite3.connect(node.ledger.path) as db:
        for table in ("instance", "event", "job"):
            db.execute(f"DELETE FROM {table}")
    db.close()
    stored.write_bytes(whole[: len(whole) // 2])
    assert node.send(path)[0].Status == 0x0000
    assert [kept.read_bytes() for kept in node.stored_files()] == [whole]
    assert [job.instances for job in node.ledger.jobs()] == [1]


def test_a_closed_ledger_is_out_of_resources(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "data")
    ledger = Ledger(spool.root / "ledger.sqlite3")
    receiver = Receiver(spool, ledger, 2**20, time.time)
    ledger.close()
    answer = receiver.take(Arrival(CTImageStorage, "1.2.3.1", EXPLICIT, "A", memoryview(encode(ct()))))
    assert answer.status == 0xA700


def test_a_disk_that_fills_up_takes_what_has_begun_and_nothing_new(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        spool = Spool(node.spool.root, 0, new_series_factor=2, resume_factor=4)
        receiver = Receiver(spool, node.ledger, 10**9, time.time)

        def answers(times: float) -> list[int]:
            """To a slice of the series that has begun and to one of a new series, while ``times`` as much is
            free as must stay free."""
            spool.min_free_bytes = int(spool.free_bytes() / times)
            number = next(numbers)
            sent = [ct(number), ct(1, series=f"1.2.4.{number}")]
            return [
                receiver.take(
                    Arrival(CTImageStorage, ds.SOPInstanceUID, EXPLICIT, "CT1", memoryview(encode(ds)))
                ).status
                for ds in sent
            ]

        numbers = count(1)
        full, taken = 0xA700, 0x0000
        assert answers(5) == [taken, taken]
        assert answers(3) == [taken, taken]
        assert answers(1.5) == [taken, full]
        assert answers(3) == [taken, full], "not before there is more room than that"
        assert answers(0.5) == [full, full]
        assert answers(5) == [taken, taken]


def test_a_request_without_a_data_set_is_refused_or_ends_the_association(node: Running) -> None:
    assoc = node.associate()
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, "1.2.3.1"
    context = next(cx for cx in assoc.accepted_contexts if cx.abstract_syntax == CTImageStorage)
    assoc.dimse.send_msg(request, context.context_id)
    echo(node)
    assert node.stored_files() == []
    assoc.abort()


# hostile peers


def connect(node: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.scp.port), timeout=20)


def test_a_pdu_of_four_gigabytes_is_not_waited_for(tmp_path: Path) -> None:
    with running(tmp_path, listen={"acse_timeout_s": 1}) as node:
        with connect(node) as peer:
            peer.sendall(b"\x01\x00" + struct.pack(">L", 2**32 - 1) + b"\x00" * 100)
            assert_closed(peer)
        echo(node)
        wait_until(lambda: node.scp.open_associations == 0)


def assert_closed(peer: socket.socket) -> None:
    """The other side ends the connection, perhaps after an A-ABORT."""
    try:
        while peer.recv(4096):
            pass
    except ConnectionResetError:
        pass


def test_a_peer_that_stops_in_the_middle_of_a_pdu_loses_its_slot(tmp_path: Path) -> None:
    with running(tmp_path, listen={"network_timeout_s": 0.5, "acse_timeout_s": 1}) as node:
        with connect(node) as peer:
            peer.sendall(b"\x01\x00" + struct.pack(">L", 2000) + b"\x00" * 100)
            assert_closed(peer)
        wait_until(lambda: node.scp.open_associations == 0)


def test_a_peer_that_connects_and_says_nothing_loses_its_slot(tmp_path: Path) -> None:
    with running(tmp_path, listen={"network_timeout_s": 0.5, "acse_timeout_s": 0.5}) as node:
        with connect(node) as peer:
            assert_closed(peer)
        wait_until(lambda: node.scp.open_associations == 0)


def test_a_peer_that_aborts_before_it_asks_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path, listen={"acse_timeout_s": 1}) as node:
        with connect(node) as peer:
            peer.sendall(b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00")
            assert_closed(peer)
        wait_until(lambda: node.scp.open_associations == 0)
        echo(node)


@pytest.mark.parametrize(
    "said", [b"\x01", b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\x00\x00\x00\x44" + bytes(68)]
)
def test_a_peer_that_hangs_up_before_it_asks_frees_its_slot_at_once(node: Running, said: bytes) -> None:
    """Not only after the time-out, which is longer here than the wait."""
    with connect(node) as peer:
        peer.sendall(said)
        wait_until(lambda: node.scp.open_associations == 1 or not is_heard(peer))
    wait_until(lambda: node.scp.open_associations == 0, timeout_s=node.settings.listen.acse_timeout_s - 5)


def is_heard(peer: socket.socket) -> bool:
    """Whether the other side has not hung up."""
    peer.setblocking(False)
    try:
        return bool(peer.recv(4096))
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_a_peer_that_drips_bytes_loses_its_slot(tmp_path: Path) -> None:
    with running(tmp_path, listen={"acse_timeout_s": 1}) as node, connect(node) as peer:
        peer.sendall(b"\x01\x00" + struct.pack(">L", 2000))
        with suppress(OSError):
            while is_heard(peer):
                peer.send(b"\x00")
                time.sleep(0.05)
        wait_until(lambda: node.scp.open_associations == 0)


def test_one_address_cannot_hold_every_connection(tmp_path: Path) -> None:
    with running(tmp_path, listen={"max_associations_per_address": 2}) as node:
        peers = [connect(node) for _ in range(2)]
        server = node.scp._listener._server
        assert server is not None
        wait_until(lambda: server.is_crowded("127.0.0.1"))
        assert not server.is_crowded("10.1.1.1")
        with connect(node) as late:
            assert_closed(late)
        for peer in peers:
            peer.close()


def test_strangers_take_nobody_s_place_and_are_told_so_a_few_at_a_time(tmp_path: Path) -> None:
    with running(tmp_path, listen={"max_associations": 2, "allow_addresses": ["10.0.0.0/8"]}) as node:
        peers = [connect(node) for _ in range(STRANGERS)]
        server = node.scp._listener._server
        assert server is not None
        wait_until(lambda: server.is_crowded("127.0.0.1"))
        assert not server.is_crowded("10.1.1.1")
        began = time.monotonic()
        with connect(node) as late:
            assert_closed(late)
        assert node.scp.turned_away_since(began)
        assert not node.scp.turned_away_since(time.monotonic())
        for peer in peers:
            peer.close()
        wait_until(lambda: not server.is_crowded("127.0.0.1"))
        assert node.associate().is_rejected


def test_probes_that_connect_and_hang_up_leave_nothing_behind(node: Running) -> None:
    before = threading.active_count()
    for _ in range(20):
        connect(node).close()
    wait_until(lambda: threading.active_count() <= before)
    echo(node)


def test_connections_beyond_the_spare_ones_are_closed_unheard(tmp_path: Path) -> None:
    with running(tmp_path, listen={"max_associations": 1}) as node:
        peers = [connect(node) for _ in range(9)]
        server = node.scp._listener._server
        assert server is not None
        wait_until(lambda: server.is_crowded("127.0.0.1"))
        with connect(node) as late:
            assert_closed(late)
        for peer in peers:
            peer.close()
        wait_until(lambda: not server.is_crowded("127.0.0.1"))
        echo(node)


def test_a_message_without_end_aborts_the_association(tmp_path: Path) -> None:
    with running(tmp_path, storage={"max_instance_bytes": 10_000}) as node:
        assoc = node.associate()
        answer = assoc.send_c_store(ct_file(tmp_path, PixelData=bytes(3_000_000)))
        assert "Status" not in answer
        wait_until(lambda: not assoc.is_established)
        echo(node)


TWO_MEGABYTES: dict[str, dict[str, Any]] = {
    "listen": {"max_in_flight_bytes": 2**20, "dimse_timeout_s": 3}, "storage": {"max_instance_bytes": 2**20},
}  # fmt: skip
"""What may be in memory where a message has a megabyte at most: that and as much again."""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """A disk that stands still until it is told to go on."""
    goes_on, write = Event(), Draft.write

    def wait_and_write(draft: Draft, chunk: bytes) -> None:
        goes_on.wait(60)
        write(draft, chunk)

    monkeypatch.setattr(Draft, "write", wait_and_write)
    yield goes_on
    goes_on.set()


def test_many_peers_together_cannot_fill_the_memory_while_the_disk_stands_still(
    tmp_path: Path, disk: Event
) -> None:
    """Four messages of which each is short enough; the one that no longer fits ends its association."""
    told: list[Alert] = []
    with running(tmp_path, alarm=told.append, **TWO_MEGABYTES) as node:
        assocs = [node.associate(calling=f"CT{number}") for number in range(4)]
        for assoc in assocs:
            send_half(assoc, bytes(900_000))
        wait_until(lambda: any(not assoc.is_established for assoc in assocs))
        assert {alert.words for alert in told} == {"more in memory than max_in_flight_bytes"}
        disk.set()
        for assoc in assocs:
            assoc.abort()
        wait_until(lambda: node.scp.open_associations == 0)
        path = ct_file(tmp_path, PixelData=bytes(900_000))
        assert [answer.Status for answer in node.send(path, path)] == [0x0000, 0x0000]


def test_messages_that_wait_to_be_kept_are_counted_too(tmp_path: Path, disk: Event) -> None:
    told: list[Alert] = []
    with running(tmp_path, alarm=told.append, **TWO_MEGABYTES) as node:
        assoc = node.associate()
        for _ in range(3):
            send_half(assoc, bytes(900_000), whole=True)
        wait_until(lambda: not assoc.is_established)
        assert {alert.words for alert in told} == {"more in memory than max_in_flight_bytes"}


def test_a_peer_that_is_faster_than_the_disk_waits_for_it(tmp_path: Path, disk: Event) -> None:
    with running(tmp_path, **TWO_MEGABYTES) as node:
        path = ct_file(tmp_path, PixelData=bytes(900_000))
        timer = threading.Timer(1.0, disk.set)
        timer.start()
        answers: list[list[Dataset]] = []
        threads = [threading.Thread(target=lambda: answers.append(node.send(path, path))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.Status for one in answers for answer in one] == [0x0000] * 8


def test_what_is_on_the_disk_already_is_not_in_memory(tmp_path: Path) -> None:
    with running(tmp_path, **TWO_MEGABYTES) as node:
        assocs = [node.associate(calling=f"CT{number}") for number in range(4)]
        for assoc in assocs:
            send_half(assoc, bytes(900_000))
        begun = node.spool.root / "tmp"
        wait_until(lambda: sum(path.stat().st_size for path in begun.iterdir()) > 4 * 850_000)
        assert all(assoc.is_established for assoc in assocs)
        for assoc in assocs:
            assoc.abort()


def test_a_peer_that_sends_a_message_byte_by_byte_loses_its_place(tmp_path: Path) -> None:
    told: list[Alert] = []
    with running(tmp_path, alarm=told.append, listen={"dimse_timeout_s": 1}) as node:
        assoc = node.associate()
        context = next(cx for cx in assoc.accepted_contexts if cx.abstract_syntax == CTImageStorage)
        send_half(assoc, bytes(20_000))
        byte, pdu = P_DATA(), P_DATA_TF()
        byte.presentation_data_value_list = [[context.context_id, b"\x00\x00"]]  # of a data set, not the last
        pdu.from_primitive(byte)
        while assoc.is_established:
            with suppress(OSError, AttributeError):
                assoc.dul.socket.socket.sendall(pdu.encode())
            time.sleep(0.1)
        assert {alert.words for alert in told} == {"message not whole after dimse_timeout_s"}


def test_an_association_that_falls_silent_is_closed(tmp_path: Path) -> None:
    with running(tmp_path, listen={"network_timeout_s": 1}) as node:
        assoc = node.associate()
        assert node.scp.open_associations == 1
        wait_until(lambda: node.scp.open_associations == 0)
        wait_until(lambda: not assoc.is_established)


def send_half(assoc: Association, data: bytes, *, whole: bool = False) -> None:
    """The beginning of a C-STORE of ``data``, all fragments but the last, or the whole of it."""
    context = next(cx for cx in assoc.accepted_contexts if cx.abstract_syntax == CTImageStorage)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, "1.2.3.1"
    request.DataSet = BytesIO(data)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    fragments = list(message.encode_msg(context.context_id, 16_384))
    for fragment in fragments if whole else fragments[:-1]:
        pdu = P_DATA_TF()
        pdu.from_primitive(fragment)
        with suppress(OSError):
            assoc.dul.socket.socket.sendall(pdu.encode())


def test_a_peer_that_does_not_wait_for_answers_is_cut_off(node: Running, tmp_path: Path) -> None:
    assoc = node.associate()
    context = next(cx for cx in assoc.accepted_contexts if cx.abstract_syntax == VERIFICATION)
    message, pdu = C_ECHO_RQ(), P_DATA_TF()
    request = C_ECHO()
    request.MessageID, request.AffectedSOPClassUID = 1, VERIFICATION
    message.primitive_to_message(request)
    [fragment] = message.encode_msg(context.context_id, 16384)
    pdu.from_primitive(fragment)
    wire = assoc.dul.socket.socket  # past the client's own state machine, which has no such peer in mind
    with suppress(OSError):
        for _ in range(3000):
            wire.sendall(pdu.encode())
    wait_until(lambda: not assoc.is_established)
    assert assoc.is_aborted


def test_stopping_ends_associations_that_do_not_end_by_themselves(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        assoc = node.associate()
        port = node.scp.port
        node.scp._listener.stop(grace_s=0.1)
        wait_until(lambda: assoc.is_aborted)
        assert node.scp.open_associations == 0
        with pytest.raises(RuntimeError, match="not listening"):
            assert node.scp.port
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_taken_port_is_an_error_at_start(node: Running, tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="Address already in use"),
        running(tmp_path / "second", listen={"port": node.scp.port}),
    ):
        pass


# other people's tools


@pytest.mark.peers
def test_dcmtk_echoes_and_stores_a_series(node: Running, tmp_path: Path, ct_files: list[Path]) -> None:
    address = ["-aec", "S2NODE", "127.0.0.1", str(node.scp.port)]
    run("echoscu", *address)
    run("storescu", "-xs", *address, *map(str, ct_files))
    run("storescu", "--max-pdu", "131072", *address, *map(str, ct_files))
    [job] = node.ledger.jobs()
    assert job.instances == len(ct_files)
    for instance in node.ledger.instances(job.id):
        assert dcmread(instance.path).SOPInstanceUID == instance.sop_instance_uid


@pytest.mark.peers
def test_dcmtk_hears_why_it_is_refused(tmp_path: Path, ct_files: list[Path]) -> None:
    with running(tmp_path, storage={"min_free_bytes": 2**62}) as node:
        address = ["-aec", "S2NODE", "127.0.0.1", str(node.scp.port)]
        done = run("storescu", "-v", *address, str(ct_files[0]), check=False)
        assert "Refused: OutOfResources" in done.stdout + done.stderr
    with running(tmp_path, listen={"allow_ae_titles": ["SCANNER"]}) as node:
        done = run("echoscu", "-aec", "S2NODE", "127.0.0.1", str(node.scp.port), check=False)
        assert done.returncode != 0
        assert "Calling AE Title Not Recognized" in done.stdout + done.stderr


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
