"""How fast the node receives: instances per second kept durably, beside the same SCP that throws them away.

One association, slices of 512×512, the sender in a process of its own, the two SCPs in turn within one run:
what the machine and the network stack cost is in both figures, so their ratio is what keeping costs.
"""

from __future__ import annotations

import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import A_ASSOCIATE_RQ, A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    P_DATA,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from config.settings import ListenSettings
from node.ledger import Ledger
from node.receive import SUCCESS, Answer, Arrival, Receiver, file_head
from node.scp import Listener
from node.spool import Spool
from node.uids import IMPLEMENTATION_CLASS_UID

SLICES = 150
ROUNDS = 5
SIDE = 512
PRIVATE_ELEMENTS = 120
"""With these a header has about as many elements as a scanner's."""
MOST_BYTES = 2**24
PDU_BYTES = 131_072
CONTEXT_ID = 1
FILE_HEAD_BYTES = 128 + 4 + 12
"""Before the elements that File Meta Information Group Length counts (PS3.10 7.1)."""
ASSOCIATE_AC = 0x02
"""First byte of an A-ASSOCIATE-AC (PS3.8 9.3.3)."""
SUCCESS_ELEMENT = bytes.fromhex("0000000902000000 0000")
"""Status (0000,0900) of a response, 0x0000, in Implicit VR Little Endian (PS3.7 6.3.1)."""
PATIENCE_S = 300.0
"""Seconds a round may take."""


def bench_receive(
    folder: Path = Path("build"), slices: int = SLICES, rounds: int = ROUNDS
) -> dict[str, object]:
    """Medians over ``rounds`` of ``slices`` instances; ``folder`` says which disk is meant.

    ``ratio`` is the median of the rounds' own ratios: durable and throwing away, one right after the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-receive-") as name:
        source = Path(name) / "slices"
        write_slices(source, slices)
        pairs = [
            (_durable_rate(source, Path(name) / f"data{round_}", slices), _throwaway_rate(source, slices))
            for round_ in range(rounds)
        ]
    return {
        "instances_per_second": round(statistics.median(durable for durable, _ in pairs), 1),
        "throwaway_instances_per_second": round(statistics.median(thrown for _, thrown in pairs), 1),
        "ratio": round(statistics.median(durable / thrown for durable, thrown in pairs), 3),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
    }


def write_slices(folder: Path, slices: int) -> None:
    """CT slices of about 527 kB each in ``folder``, one series."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(slices):
        path = folder / f"{number:04}.dcm"
        path.write_bytes(_file_of(_slice(number, rng.integers(-1000, 2000, (SIDE, SIDE), dtype=np.int16))))


def _slice(number: int, stored: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"2.25.1.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.2", "2.25.1"
    ds.Modality, ds.PatientID, ds.InstanceNumber = "CT", "BENCH", number
    block = ds.private_block(0x0019, "S2NODE BENCH", create=True)
    for offset in range(PRIVATE_ELEMENTS):
        block.add_new(offset, "LO", f"value {offset}")
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.add_new(0x7FE00010, "OW", stored.tobytes())
    return ds


def _file_of(ds: Dataset) -> bytes:
    head = file_head(Arrival(ds.SOPClassUID, ds.SOPInstanceUID, ExplicitVRLittleEndian, "", memoryview(b"")))
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = False, True
    write_dataset(out, ds)
    return head + out.getvalue()


def _durable_rate(source: Path, data_dir: Path, slices: int) -> float:
    spool = Spool(data_dir)
    with Ledger(data_dir / "ledger.sqlite3") as ledger:
        rate = _rate(source, slices, Receiver(spool, ledger, MOST_BYTES, time.time).take)
        [job] = ledger.jobs()
    if job.instances != slices:
        raise RuntimeError(f"{slices} instances were sent and {job.instances} were kept")
    return rate


def _throwaway_rate(source: Path, slices: int) -> float:
    return _rate(source, slices, lambda arrival: Answer(SUCCESS))


def _rate(source: Path, slices: int, store: Callable[[Arrival], Answer]) -> float:
    """Instances per second from the first request to the last answer, as the sender sees it."""
    listener = Listener(ListenSettings(port=_free_port()), store, MOST_BYTES)
    listener.start()
    try:
        sender = subprocess.run(
            [sys.executable, "-m", "node.bench", str(listener.port), str(source)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
        )
    finally:
        listener.stop()
    return slices / float(sender.stdout)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def send_timed(port: int, folder: Path) -> float:
    """Seconds to send every file of ``folder`` over one association and hear success for each.

    Opening the association and encoding are not counted. No library sends here: what is measured is the SCP,
    and a library's SCU would wait for its own threads.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as peer:
        peer.sendall(_association_request())
        if _read_pdu(peer)[0] != ASSOCIATE_AC:
            raise RuntimeError("the association was not accepted")
        messages = [_store_request(number, path) for number, path in enumerate(sorted(folder.iterdir()), 1)]
        started = time.perf_counter()
        for message in messages:
            peer.sendall(message)
            if SUCCESS_ELEMENT not in _read_pdu(peer):
                raise RuntimeError("an instance was not answered with success")
        seconds = time.perf_counter() - started
        peer.sendall(A_RELEASE_RQ().encode())
        _read_pdu(peer)
    return seconds


def _association_request() -> bytes:
    request = A_ASSOCIATE()
    request.application_context_name = UID("1.2.840.10008.3.1.1.1")  # PS3.7 A.2.1
    request.calling_ae_title, request.called_ae_title = "BENCH", ListenSettings().ae_title
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received = PDU_BYTES
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    request.user_information = [longest, implementation]
    context = build_context(CTImageStorage, ExplicitVRLittleEndian)
    context.context_id = CONTEXT_ID
    request.presentation_context_definition_list = [context]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return bytes(pdu.encode())


def _store_request(number: int, path: Path) -> bytes:
    """A C-STORE-RQ and its data set as the bytes of their PDUs."""
    meta = read_file_meta_info(path)
    request = C_STORE()
    request.MessageID, request.Priority = number, 0
    request.AffectedSOPClassUID = meta.MediaStorageSOPClassUID
    request.AffectedSOPInstanceUID = meta.MediaStorageSOPInstanceUID
    request.DataSet = BytesIO(path.read_bytes()[FILE_HEAD_BYTES + meta.FileMetaInformationGroupLength :])
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    return b"".join(_pdu_of(fragment) for fragment in message.encode_msg(CONTEXT_ID, PDU_BYTES))


def _pdu_of(fragment: P_DATA) -> bytes:
    pdu = P_DATA_TF()
    pdu.from_primitive(fragment)
    return bytes(pdu.encode())


def _read_pdu(peer: socket.socket) -> bytes:
    """One whole PDU (PS3.8 9.3.1); raises RuntimeError where the peer hangs up."""
    head = _read(peer, 6)
    return head + _read(peer, int.from_bytes(head[2:6], "big"))


def _read(peer: socket.socket, count: int) -> bytes:
    data = peer.recv(count, socket.MSG_WAITALL)
    if len(data) != count:
        raise RuntimeError("the node ended the association")
    return data


if __name__ == "__main__":
    sys.stdout.write(f"{send_timed(int(sys.argv[1]), Path(sys.argv[2]))}\n")
