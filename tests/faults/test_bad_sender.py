"""Senders that do harm: bare connects, garbage, half handshakes, cut PDUs, and a crowd of honest ones.

The node's receiving half runs in a process of its own, whose memory, threads and descriptors are read from
outside. S2NODE_CONNECTS and S2NODE_ASSOCIATIONS say how many connects and associations.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from random import Random

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RQ, A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)

from config.settings import Settings, StoreDestination
from node.errors import NodeError
from node.ledger import Ledger
from node.scu import echo

LISTEN = (
    "import sys; from config.settings import Settings; from node.ledger import LEDGER_FILE, Ledger;"
    "from node.scp import Scp; from node.spool import Spool;"
    "settings = Settings.model_validate_json(sys.stdin.readline()); spool = Spool.of(settings.storage);"
    "ledger = Ledger(spool.root / LEDGER_FILE);"
    "scp = Scp(settings, ledger, spool); scp.__enter__(); sys.stdin.read()"
)
"""The node's receiving half; ends with its standard input."""

CROWD = 50
AT_ONCE = 16
MOST_GROWTH_BYTES = 64 * 1024**2
SEED = int(os.environ.get("S2NODE_SENDER_SEED", "1"))


@pytest.mark.timeout(0)
def test_senders_that_do_harm_cost_no_acknowledged_instance_and_leave_nothing_behind(
    rig, amount, figures, tmp_path, free_port
):
    port = free_port()
    patience = {"acse_timeout_s": 3, "network_timeout_s": 5, "dimse_timeout_s": 5}
    crowd = dict.fromkeys(
        ("max_associations", "max_associations_per_address", "max_associations_per_ae_title"), CROWD + AT_ONCE
    )
    settings = Settings.model_validate(
        {
            "listen": {"port": port, **patience, **crowd},
            "storage": {"data_dir": tmp_path / "node", "min_free_bytes": 0},
        }
    )
    with rig.Victim(settings, command=(sys.executable, "-c", LISTEN)) as victim:
        assert rig.until(victim.listens)
        told = attack(victim, settings, rig, amount, tmp_path)
        with Ledger(settings.storage.data_dir / rig.LEDGER_FILE) as ledger:
            rig.check_acknowledged(ledger, told.pop("senders"))
    figures("bad-sender", told)
    assert (told["instances lost"], told["threads left behind"], told["descriptors left behind"]) == (0, 0, 0)
    assert told["memory gained, MiB"] < MOST_GROWTH_BYTES / 1024**2
    assert told["echoes refused afterwards"] == 0


def attack(victim, settings, rig, amount, folder):
    """A crowd, then everything bad while an honest sender goes on, then the crowd again: what there was
    after the first crowd and after the second is compared."""
    port, pid = settings.listen.port, victim.process.pid
    senders = crowd_of(rig, port, first=0)
    rest(rig, pid)
    before = rig.usage(pid)
    honest = rig.Sender(port, series(900, 40))
    going_on = threading.Thread(target=lambda: all_of(honest, pause_s=0.05))
    going_on.start()
    done = harm(port, amount)
    going_on.join()
    senders += [honest, *crowd_of(rig, port, first=CROWD)]
    assert rig.until(lambda: rig.usage(pid)["threads"] <= before["threads"], 60), "threads stay behind"
    after = rest(rig, pid)
    acknowledged = sum(len(sender.acknowledged) for sender in senders)
    return {
        **done,
        "senders at once": CROWD,
        "instances acknowledged": acknowledged,
        "instances lost": sum(len(sender.rest()) for sender in senders),
        "threads left behind": max(0, after["threads"] - before["threads"]),
        "descriptors left behind": max(0, after["descriptors"] - before["descriptors"]),
        "memory before, MiB": round(before["memory"] / 1024**2, 1),
        "memory gained, MiB": round((after["memory"] - before["memory"]) / 1024**2, 1),
        "memory at most, MiB": round(after["peak"] / 1024**2, 1),
        "echoes refused afterwards": sum(not victim.listens() for _ in range(3)),
        "senders": senders,
    }


def rest(rig, pid):
    """The process's usage once its threads have come to rest."""

    def calm():
        first = rig.usage(pid)["threads"]
        threading.Event().wait(0.5)
        return rig.usage(pid)["threads"] == first

    rig.until(calm, 60)
    return rig.usage(pid)


# honest senders


def series(number, instances):
    return [instance(f"1.2.840.{number}", index) for index in range(1, instances + 1)]


def instance(series_uid, number):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{series_uid}.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.840", series_uid
    ds.Modality, ds.InstanceNumber = "CT", number
    ds.Rows = ds.Columns = 64
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 1, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.add_new("PixelData", "OW", bytes([number % 256]) * (2 * 64 * 64))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def crowd_of(rig, port, first):
    """CROWD senders at once, each with a series of its own, until all is acknowledged."""
    senders = [rig.Sender(port, series(first + number, 2)) for number in range(CROWD)]
    with ThreadPoolExecutor(CROWD) as pool:
        list(pool.map(all_of, senders))
    return senders


def all_of(sender, pause_s=0.0):
    while sender.rest():
        with suppress(OSError, RuntimeError):
            sender.send_some(pause_s=pause_s)


# those that do harm


def harm(port, amount):
    """Every kind of harm, AT_ONCE at a time; how often each."""
    rng = Random(SEED)
    connects = amount("CONNECTS", short=150, full=10_000)
    associations = amount("ASSOCIATIONS", short=48, full=5_000)
    times = {
        bare_connect: connects,
        associate_and_release: associations,
        half_handshake: connects // 5,
        garbage: connects // 5,
        cut_pdu: associations // 2,
        killed_mid_slice: associations // 2,
        stall: AT_ONCE,
    }
    todo = [kind for kind, count in times.items() for _ in range(count)]
    rng.shuffle(todo)
    outcomes = Counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for kind, outcome in pool.map(lambda kind: (kind, attempt(kind, port, rng)), todo):
            outcomes[kind, outcome] += 1
    counted = {WORDS[kind]: count for kind, count in times.items()}
    return {**counted, "associations accepted": outcomes[associate_and_release, "accepted"]}


def attempt(kind, port, rng):
    with suppress(OSError):
        return kind(port, Random(rng.random()))
    return "connection lost"


@contextmanager
def connected(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:
        yield wire


def bare_connect(port, rng):
    with connected(port):
        return "closed"


def half_handshake(port, rng):
    with connected(port) as wire:
        wire.sendall(REQUEST[: rng.randrange(1, len(REQUEST))])
        return "closed"


def garbage(port, rng):
    with connected(port) as wire:
        wire.sendall(
            bytes([rng.choice(b"\x01\x02\x04\x05\x07G\x16")]) + rng.randbytes(rng.randrange(1, 4000))
        )
        return "closed"


def associate_and_release(port, rng):
    with connected(port) as wire:
        wire.sendall(REQUEST)
        if read_pdu(wire)[:1] != ACCEPTED:
            return "rejected"
        wire.sendall(A_RELEASE_RQ().encode())
        read_pdu(wire)
        return "accepted"


def cut_pdu(port, rng):
    """An association, then the beginning of something else, and away."""
    with connected(port) as wire:
        wire.sendall(REQUEST)
        read_pdu(wire)
        whole = rng.choice([STORE, A_RELEASE_RQ().encode(), A_ABORT_RQ_BYTES, REQUEST, rng.randbytes(600)])
        wire.sendall(whole[: rng.randrange(1, len(whole))])
        return "closed"


def killed_mid_slice(port, rng):
    """A sender whose machine goes away in the middle of a slice: the connection is reset, not closed."""
    with connected(port) as wire:
        wire.sendall(REQUEST)
        read_pdu(wire)
        wire.sendall(STORE[: rng.randrange(len(STORE) // 2, len(STORE) - 1)])
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "reset"


def stall(port, rng):
    """Says the beginning of something and then nothing, until the node hangs up."""
    with connected(port) as wire:
        wire.sendall(REQUEST[: rng.choice([0, 1, 5, 60])])
        while wire.recv(4096):
            pass
        return "sent away"


WORDS = {
    bare_connect: "bare connects",
    associate_and_release: "associations",
    half_handshake: "half association requests",
    garbage: "connections with garbage",
    cut_pdu: "PDUs cut off",
    killed_mid_slice: "senders killed in the middle of a slice",
    stall: "peers that fall silent",
}


def read_pdu(wire):
    head = read(wire, 6)
    return head + read(wire, struct.unpack(">L", head[2:])[0]) if len(head) == 6 else head


def read(wire, length):
    data = b""
    while len(data) < length and (more := wire.recv(length - len(data))):
        data += more
    return data


def association_request():
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "BAD", "S2NODE"
    context = build_context(CTImageStorage, [ExplicitVRLittleEndian])
    context.context_id = 1
    request.presentation_context_definition_list = [context]
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16_384
    implementation.implementation_class_uid = "1.2.3.4"
    request.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return pdu.encode()


def store_request():
    """A C-STORE of one slice as the bytes of its PDUs; it is never sent whole."""
    ds = instance("1.2.840.666", 1)
    encoded = DicomBytesIO()
    encoded.is_implicit_VR, encoded.is_little_endian = False, True
    write_dataset(encoded, ds)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, ds.SOPInstanceUID
    request.DataSet = BytesIO(encoded.getvalue())
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    pdus = []
    for fragment in message.encode_msg(1, 4096):
        pdus.append(P_DATA_TF())
        pdus[-1].from_primitive(fragment)
    return b"".join(pdu.encode() for pdu in pdus)


def abort_request():
    pdu = A_ABORT_RQ()
    pdu.source, pdu.reason_diagnostic = 0, 0
    return pdu.encode()


ACCEPTED = b"\x02"
REQUEST, STORE, A_ABORT_RQ_BYTES = association_request(), store_request(), abort_request()


# over TLS


@pytest.mark.timeout(0)
def test_peers_that_break_off_tls_leave_nothing_behind(rig, amount, figures, tmp_path, free_port, authority):
    port, ours = free_port(), authority("ours")
    settings = Settings.model_validate(
        {
            "listen": {"port": port, "tls": True, "acse_timeout_s": 5},
            "tls": ours.tls(),
            "storage": {"data_dir": tmp_path / "node", "min_free_bytes": 0},
        }
    )
    peer = StoreDestination.model_validate(
        {"name": "node", "host": "127.0.0.1", "port": port, "ae_title": "S2NODE", "tls": ours.tls(name="ct1")}
    )

    def answers():
        with suppress(NodeError):
            echo(peer)
            return True
        return False

    connects = amount("TLS_CONNECTS", short=60, full=2_000)
    with rig.Victim(settings, command=(sys.executable, "-c", LISTEN)) as victim:
        assert rig.until(answers)
        before = rest(rig, victim.process.pid)
        rng = Random(SEED)
        kinds = [rng.choice([bare_connect, half_tls, half_tls, half_handshake]) for _ in range(connects)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda kind: attempt(kind, port, rng), kinds))
        assert rig.until(lambda: rig.usage(victim.process.pid)["threads"] <= before["threads"], 60)
        assert rig.until(answers)
        after = rest(rig, victim.process.pid)
        echo_s = echo_beside_silent_peers(port, answers)
    counted = {
        "connects that break off": connects,
        "echo while three peers are silent, ms": round(echo_s * 1000),
        "threads left behind": max(0, after["threads"] - before["threads"]),
        "descriptors left behind": max(0, after["descriptors"] - before["descriptors"]),
        "memory gained, MiB": round((after["memory"] - before["memory"]) / 1024**2, 1),
    }
    figures("bad-sender-tls", counted)
    assert (counted["threads left behind"], counted["descriptors left behind"]) == (0, 0)
    assert counted["memory gained, MiB"] < MOST_GROWTH_BYTES / 1024**2


def echo_beside_silent_peers(port, answers):
    """Seconds an echo takes, handshakes and all, while three peers say nothing or half of something."""
    beginnings = (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40))
    with ExitStack() as opened:
        silent = [opened.enter_context(connected(port)) for _ in beginnings]
        for wire, beginning in zip(silent, beginnings, strict=True):
            wire.sendall(beginning)
        began = time.perf_counter()
        assert answers()
        took_s = time.perf_counter() - began
        assert all(is_open(wire) for wire in silent), "they were still there"
    return took_s


def is_open(wire):
    wire.setblocking(False)
    with suppress(BlockingIOError):
        return bool(wire.recv(1))
    return True


def half_tls(port, rng):
    """The beginning of a handshake, or something that looks like one."""
    with connected(port) as wire:
        wire.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(rng.randrange(0, 600)))
        return "closed"
