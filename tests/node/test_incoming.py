"""Instances are kept while they come: what a sender does in the middle of one is done to a real listener."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

from config.settings import Settings
from node.ledger import LEDGER_FILE, Ledger
from node.scp import Scp
from node.spool import Spool

UID = "1.2.3.1"
PDU_BYTES = 16_384


class Running:
    """A node's receiving half on loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        self.settings = Settings.model_validate(
            {"listen": {"port": port}, "storage": {"data_dir": folder / "data", "min_free_bytes": 0}}
        )
        self.spool = Spool(self.settings.storage.data_dir)
        self.ledger = Ledger(self.spool.root / LEDGER_FILE)
        self.scp = Scp(self.settings, self.ledger, self.spool)

    def associate(self) -> Association:
        ae = AE("SENDER")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        context = build_context(CTImageStorage, ExplicitVRLittleEndian)
        assoc = ae.associate("127.0.0.1", self.scp.port, contexts=[context], ae_title="S2NODE")
        assert assoc.is_established
        return assoc

    def begun(self) -> list[Path]:
        """Files that have no name yet."""
        return list((self.spool.root / "tmp").iterdir())

    def kept(self) -> list[Path]:
        return [path for path in (self.spool.root / "inbox").rglob("*") if path.is_file()]


@pytest.fixture
def node(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Running]:
    started = Running(tmp_path, free_port())
    with started.ledger, started.scp:
        yield started


def encoded(**values: object) -> bytes:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, UID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", "1.2.3"
    ds.PatientName, ds.Modality, ds.BitsAllocated = "DOE^JANE", "CT", 16
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = False, True
    write_dataset(out, ds)
    return out.getvalue()


def fragments(data: bytes, uid: str = UID, number: int = 1) -> list[P_DATA]:
    """A C-STORE of ``data`` that announces ``uid``: the request first, then the data set in pieces."""
    request = C_STORE()
    request.MessageID, request.Priority = number, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, uid
    request.DataSet = BytesIO(data)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    return list(message.encode_msg(1, PDU_BYTES))


def together(*parts: P_DATA) -> P_DATA:
    """The parts as one PDU."""
    joined = P_DATA()
    joined.presentation_data_value_list = [
        list(value) for part in parts for value in part.presentation_data_value_list
    ]
    return joined


def put(assoc: Association, *parts: P_DATA) -> None:
    """Send past the client's own state machine, each part a PDU."""
    for part in parts:
        pdu = P_DATA_TF()
        pdu.from_primitive(part)
        assoc.dul.socket.socket.sendall(pdu.encode())


def status(assoc: Association) -> int:
    """Of the next answer."""
    _, answer = assoc.dimse.msg_queue.get(timeout=20)
    return answer.Status


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


@pytest.fixture
def assoc(node: Running) -> Iterator[Association]:
    opened = node.associate()
    opened._reactor_checkpoint.clear()  # the answers are read here
    wait_until(lambda: opened._is_paused)
    yield opened
    opened._reactor_checkpoint.set()
    opened.abort()


def test_what_has_come_is_written_while_the_rest_is_on_its_way(node: Running, assoc: Association) -> None:
    data = encoded(PixelData=bytes(range(256)) * 400)
    *first, last = fragments(data)
    put(assoc, *first)
    wait_until(lambda: [path.stat().st_size for path in node.begun()] > [PDU_BYTES * 6])
    assert node.kept() == []
    assert node.ledger.jobs() == []
    put(assoc, last)
    assert status(assoc) == 0x0000
    assert [path.read_bytes()[-len(data) :] for path in node.kept()] == [data]
    assert [job.instances for job in node.ledger.jobs()] == [1]
    assert node.begun() == []


def test_a_sender_that_goes_away_in_the_middle_leaves_nothing_behind(node: Running) -> None:
    threads = threading.active_count()
    assoc = node.associate()
    put(assoc, *fragments(encoded(PixelData=bytes(100_000)))[:-1])
    wait_until(node.begun)
    assoc.abort()
    wait_until(lambda: node.begun() == [])
    wait_until(lambda: threading.active_count() <= threads)
    assert (node.kept(), node.ledger.jobs()) == ([], [])


def test_an_instance_whose_answer_nobody_waits_for_is_kept_whole_or_not_at_all(node: Running) -> None:
    assoc = node.associate()
    data = encoded(PixelData=bytes(100_000))
    put(assoc, *fragments(data))
    assoc.dul.socket.socket.close()
    wait_until(lambda: node.scp.open_associations == 0 and node.begun() == [])
    for path in node.kept():
        assert path.read_bytes().endswith(data)


def test_one_association_sends_one_instance_after_the_other_without_waiting(
    node: Running, assoc: Association
) -> None:
    uids = [f"1.2.3.{number}" for number in range(1, 4)]
    for number, uid in enumerate(uids, 1):
        put(assoc, *fragments(encoded(SOPInstanceUID=uid, PixelData=bytes(50_000)), uid, number))
    assert [status(assoc) for _ in uids] == [0x0000] * 3
    [job] = node.ledger.jobs()
    assert sorted(each.sop_instance_uid for each in node.ledger.instances(job.id)) == uids


def test_request_and_data_set_in_one_pdu_are_one_instance(node: Running, assoc: Association) -> None:
    put(assoc, together(*fragments(encoded())))
    assert status(assoc) == 0x0000
    assert [job.instances for job in node.ledger.jobs()] == [1]


def test_request_and_the_first_piece_in_one_pdu_are_one_instance(node: Running, assoc: Association) -> None:
    data = encoded(PixelData=bytes(range(256)) * 200)
    request, first, *rest = fragments(data)
    put(assoc, together(request, first), *rest)
    assert status(assoc) == 0x0000
    assert [path.read_bytes()[-len(data) :] for path in node.kept()] == [data]


def test_a_header_of_several_pieces_is_read_whole(node: Running, assoc: Association) -> None:
    data = encoded(ImageComments="x" * 9000, DerivationDescription="y" * 1000, PatientComments="z" * 9000)
    assert len(fragments(data)) > 2
    put(assoc, *fragments(data))
    assert status(assoc) == 0x0000
    assert [job.study_instance_uid for job in node.ledger.jobs()] == ["1.2"]


def test_a_refusal_in_the_first_piece_is_said_at_the_end_and_the_next_instance_is_kept(
    node: Running, assoc: Association
) -> None:
    data = encoded(PixelData=bytes(100_000))
    put(assoc, *fragments(data, "1.2.3.99"))
    assert status(assoc) == 0xA900
    put(assoc, *fragments(data))
    assert status(assoc) == 0x0000
    assert len(node.kept()) == 1


def test_an_instance_that_is_announced_twice_is_no_success(node: Running, assoc: Association) -> None:
    """The data set is of the first request; the answer would be to the second."""
    data = encoded(PixelData=bytes(100_000))
    request, *pieces = fragments(data)
    again, *_ = fragments(data, "1.2.3.99")
    put(assoc, request)
    wait_until(node.begun)
    put(assoc, again, *pieces)
    assert status(assoc) == 0xA900
