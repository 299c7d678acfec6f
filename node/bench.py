"""How fast the node receives: instances per second kept durably, beside the same SCP that throws them away.

Slices of 512×512, over one association and over four, each sender a process of its own, the two SCPs in turn
within one run: what the machine and the network stack cost is in both figures, so their ratio is what keeping
costs.
"""

from __future__ import annotations

import math
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, cast

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
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
from engine.session import cores
from node.ledger import Ledger
from node.outputs.encoding import to_bytes
from node.receive import SUCCESS, Answer, Arrival, Receiver
from node.scp import Listener
from node.spool import Spool
from node.uids import IMPLEMENTATION_CLASS_UID

SLICES = 150
ROUNDS = 5
ASSOCIATIONS = 4
"""How many there are at once in the second half of each round."""
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


@dataclass(frozen=True, slots=True)
class Round:
    """Instances per second of one round: kept and thrown away, over one association and over four in all."""

    kept: float
    thrown: float
    kept_of_four: float
    thrown_of_four: float


def bench_receive(
    folder: Path = Path("build"), slices: int = SLICES, rounds: int = ROUNDS
) -> dict[str, object]:
    """Medians over ``rounds`` of ``slices`` instances each; ``folder`` says which disk is meant.

    ``ratio`` is the median of the rounds' own ratios: durable and throwing away, one right after the other.
    ``four_associations`` are totals, of a series each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-receive-") as name:
        sources = [Path(name) / f"slices{number}" for number in range(1 + ASSOCIATIONS)]
        write_slices(sources[0], slices)
        for number, source in enumerate(sources[1:], 1):
            write_slices(source, math.ceil(slices / ASSOCIATIONS), f"2.25.1{number}")
        measured = [_round(sources, Path(name) / f"data{number}") for number in range(rounds)]
    return {
        "instances_per_second": _median(one.kept for one in measured),
        "throwaway_instances_per_second": _median(one.thrown for one in measured),
        "ratio": round(statistics.median(one.kept / one.thrown for one in measured), 3),
        "four_associations": {
            "instances_per_second": _median(one.kept_of_four for one in measured),
            "throwaway_instances_per_second": _median(one.thrown_of_four for one in measured),
        },
        "machine": machine(),
    }


def machine() -> str:
    """This machine in words: the cores are those that this process may use."""
    mine = cores()
    return f"{mine} core{'s' if mine > 1 else ''}, {platform.machine()}, Python {platform.python_version()}"


def _median(figures: Iterable[float]) -> float:
    return round(statistics.median(figures), 1)


def _round(sources: Sequence[Path], data_dir: Path) -> Round:
    one, four = sources[:1], sources[1:]
    return Round(
        kept=_durable_rate(one, data_dir / "one"),
        thrown=_throwaway_rate(one),
        kept_of_four=_durable_rate(four, data_dir / "four"),
        thrown_of_four=_throwaway_rate(four),
    )


def write_slices(folder: Path, slices: int, series_instance_uid: str = "2.25.1") -> None:
    """CT slices of about 527 kB each in ``folder``, one series."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(slices):
        stored = rng.integers(-1000, 2000, (SIDE, SIDE), dtype=np.int16)
        (folder / f"{number:04}.dcm").write_bytes(to_bytes(_slice(series_instance_uid, number, stored)))


def _slice(series: str, number: int, stored: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{series}.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.2", series
    ds.Modality, ds.PatientID, ds.InstanceNumber = "CT", "BENCH", number
    block = ds.private_block(0x0019, "S2NODE BENCH", create=True)
    for offset in range(PRIVATE_ELEMENTS):
        block.add_new(offset, "LO", f"value {offset}")
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.add_new(0x7FE00010, "OW", stored.tobytes())
    return ds


def _durable_rate(sources: Sequence[Path], data_dir: Path) -> float:
    spool = Spool(data_dir)
    with Ledger(data_dir / "ledger.sqlite3") as ledger:
        found = rate(sources, Receiver(spool, ledger, MOST_BYTES, time.time).take)
        kept = sum(job.instances for job in ledger.jobs())
    sent = _slices_in(sources)
    if kept != sent:
        raise RuntimeError(f"{sent} instances were sent and {kept} were kept")
    return found


def _throwaway_rate(sources: Sequence[Path]) -> float:
    return rate(sources, throw_away)


def throw_away(arrival: Arrival) -> Answer:
    """Hear all of it and keep nothing."""
    if not isinstance(arrival.data, memoryview):
        for _ in arrival.data:
            pass
    return Answer(SUCCESS)


def _slices_in(sources: Sequence[Path]) -> int:
    return sum(len(list(source.iterdir())) for source in sources)


def rate(sources: Sequence[Path], store: Callable[[Arrival], Answer]) -> float:
    """Instances per second from the first request to the last answer, as the senders see it: one a source."""
    listener = Listener(ListenSettings(port=_free_port()), store, MOST_BYTES)
    listener.start()
    try:
        with ExitStack() as stack:
            senders = [stack.enter_context(_sender(listener.port, source)) for source in sources]
            for sender in senders:
                _line_of(sender)  # it is ready
            for sender in senders:
                _begin(sender)
            spans = [[float(word) for word in _line_of(sender).split()] for sender in senders]
    finally:
        listener.stop()
    return _slices_in(sources) / (max(end for _, end in spans) - min(start for start, _ in spans))


def _sender(port: int, source: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "node.bench", str(port), str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _begin(sender: subprocess.Popen[str]) -> None:
    begin = cast(IO[str], sender.stdin)
    begin.write("\n")
    begin.flush()


def _line_of(sender: subprocess.Popen[str]) -> str:
    """What the sender says next; raises RuntimeError where it came to an end instead."""
    line = cast(IO[str], sender.stdout).readline()
    if not line:
        raise RuntimeError("a sender failed")
    return line


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def send_timed(
    port: int, folder: Path, wait_for_others: Callable[[], object] = lambda: None
) -> tuple[float, float]:
    """Send every file of ``folder`` over one association and hear success for each; when it began and ended.

    The times are of the machine's monotonic clock. Opening the association and encoding are not counted. No
    library sends here: what is measured is the SCP, and a library's SCU would wait for its own threads.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as peer:
        peer.sendall(_association_request())
        if _read_pdu(peer)[0] != ASSOCIATE_AC:
            raise RuntimeError("the association was not accepted")
        messages = [_store_request(number, path) for number, path in enumerate(sorted(folder.iterdir()), 1)]
        wait_for_others()
        started = time.monotonic()
        for message in messages:
            peer.sendall(message)
            if SUCCESS_ELEMENT not in _read_pdu(peer):
                raise RuntimeError("an instance was not answered with success")
        ended = time.monotonic()
        peer.sendall(A_RELEASE_RQ().encode())
        _read_pdu(peer)
    return started, ended


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


def _ready() -> str:
    """Say so, and wait for the word to begin."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    return sys.stdin.readline()


if __name__ == "__main__":
    span = send_timed(int(sys.argv[1]), Path(sys.argv[2]), _ready)
    sys.stdout.write(f"{span[0]} {span[1]}\n")
