"""Instances that were tampered with, through listener, intake, reader and audit: a code for each, no more.

A sender gives them to the node's listener over associations, byte for byte; what is kept is settled and told
to an auditor. Seeds are phantoms, pydicom's own test files and, where it is there, real CT. Mutants are made
of bytes (flipped, cut, repeated, lengths that lie) and of elements (values no scanner writes). S2NODE_MUTANTS
says how many, S2NODE_FUZZ_SEED draws others. The last mutant lies in ``mutant.dcm`` of the test's folder.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import itertools
import logging
import os
import sys
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydicom import data, dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.misc import is_dicom
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.dsutils import encode

from config.settings import ListenSettings, Settings, StoreDestination
from node.audit.auditor import Auditor
from node.build import read_examined
from node.destinations.cstore import OnlyAnswers, associated, store
from node.errors import REJECTION_CODES, DestinationUnreachable
from node.flow import Failure, attempt
from node.header import HeaderRefused, read_header
from node.ledger import LEDGER_FILE, Ledger
from node.memory import share_freed_memory
from node.outputs import to_bytes
from node.receive import STATUSES, SUCCESS, UNFORESEEN, Arrival, Receiver
from node.scp import Scp, supported_contexts
from node.settle import settle_due
from node.spool import FOLDERS, Spool
from node.states import State

SEED = int(os.environ.get("S2NODE_FUZZ_SEED", "1"))
MOST_SEED_BYTES = 600_000
OF_A_REAL_SET = 4
"""Slices of each set of real CT."""
LONGEST_S = 5.0
"""Of this process's own time: what a busy machine adds is not the mutant's."""
HANGING_S = 30.0
"""Seconds by the clock after which a mutant that is still being looked at ends the run with its traceback: it
waits for something, or turns in a circle."""
NUMBER = 8
"""Digits at the end of a UID that say which mutant it is."""
FIRST = 10_000_001
TEST_FILES = Path(data.__file__).parent / "test_files"
"""What comes with pydicom; its own function would fetch more over the network."""
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    "1.2.840.10008.1.2.2",
    DeflatedExplicitVRLittleEndian,
)
OF_AN_ASSOCIATION = 50
"""Mutants that go over one; each may need a presentation context of its own, and there are 128."""
PDU_BYTES = (1024, 16_384, 131_072)
"""How long the sender's pieces may be: the header in many, the header in the first, all in one."""
MOST_GROWTH_BYTES = 128 * 1024**2
LENGTHS = (0, 1, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
PATHS = (b"../../../../etc/cron.d/x", b"/tmp/x", b"..", b"\x00", b"1.2/../../3", b"\\..\\..")
VALUES = {
    "Rows": (0, 1, 65535),
    "Columns": (0, 1, 65535),
    "NumberOfFrames": ("0", "-1", "2147483647"),
    "BitsAllocated": (0, 1, 7, 64, 65535),
    "BitsStored": (0, 17, 65535),
    "HighBit": (0, 65535),
    "SamplesPerPixel": (0, 3, 65535),
    "PixelRepresentation": (2, 65535),
    "PhotometricInterpretation": ("", "PALETTE COLOR", "YBR_FULL_422", "\x00"),
    "PixelSpacing": (["nan", "nan"], ["0", "0"], ["1e308", "1e-308"], ["-1", "-1"], ["1"]),
    "ImagePositionPatient": (["nan"] * 3, ["inf"] * 3, ["1e300"] * 3, ["1", "2"], []),
    "ImageOrientationPatient": (["0"] * 6, ["nan"] * 6, ["1"] * 6, ["1"] * 5),
    "RescaleSlope": ("nan", "0", "1e308", "-1e308"),
    "RescaleIntercept": ("inf", "1e308"),
    "SliceThickness": ("nan", "-5"),
    "InstanceNumber": ("99999999999", "-1", ""),
    "SpecificCharacterSet": ("no such set", ["ISO 2022 IR 87"] * 40),
    "ImageType": (["\x1b$B"] * 5, [], ["ORIGINAL"] * 5000),
    "ContrastBolusAgent": ("\x00" * 64, "NONE", ""),
    "SeriesDescription": ("%s%n" * 500, "\ud7ff" * 70),
    "AcquisitionDate": ("99999999", "x"),
}
"""What no scanner writes, by element."""


LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Those with a length of four bytes after two that are nothing (PS3.5 7.1.2)."""
SHORT_VRS = (
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
    b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
)  # fmt: skip
NO_VRS = (b"ZZ", b"pn", b"  ", b"\x00\x00")
UIDS = (0x00080016, 0x00080018, 0x0020000D, 0x0020000E)
"""Elements without which nothing is kept; all others are fair game."""
READ_HERE = tuple(
    int(Tag(keyword))
    for keyword in (*VALUES, "PatientID", "PatientName", "StudyDate", "PixelData", "Modality")
)
"""Elements that the node reads, or the audit names."""
CODES = {*REJECTION_CODES, "read", "VOLUME-UNSUPPORTED", "dropped"}
"""What may come of an instance that was kept."""
GRANTED = {
    (context.abstract_syntax, syntax)
    for context in supported_contexts(ListenSettings())
    for syntax in context.transfer_syntax
}
"""SOP classes and transfer syntaxes that the listener takes: others do not get as far as a C-STORE."""


@dataclass(frozen=True)
class Seed:
    """An instance that is well, and what else its series has."""

    name: str
    arrival: Arrival
    series_uid: bytes
    others: tuple[bytes, ...] = ()
    origin: str = "pydicom"


@dataclass(frozen=True)
class Mutant:
    """One mutant: its number, how it was made, and of what."""

    number: int
    way: str
    seed: Seed
    arrival: Arrival

    def written(self, folder: Path) -> Path:
        """The file to send: what follows its file meta information goes out as it lies."""
        path = folder / "mutant.dcm"
        path.write_bytes(self.arrival.head + self.arrival.data)
        return path


def numbered(uid: str, number: int) -> bytes:
    """A UID of the same length whose last digits are the mutant's number."""
    return uid[:-NUMBER].encode() + f"{number:0{NUMBER}}".encode()


def with_number(arrival: Arrival, seed: Seed, number: int) -> Arrival:
    """What came of the seed, under the UIDs of the ``number``-th mutant."""
    uid = numbered(seed.arrival.sop_instance_uid, number)
    data = bytes(arrival.data).replace(seed.arrival.sop_instance_uid.encode(), uid)
    data = data.replace(seed.series_uid, numbered(seed.series_uid.decode(), number))
    return replace(arrival, sop_instance_uid=uid.decode(), data=memoryview(data))


def seed_of(name: str, ds: Dataset) -> Seed | None:
    syntax = ds.file_meta.TransferSyntaxUID
    if (ds.SOPClassUID, syntax) not in GRANTED:
        return None
    uids = (ds.get("SeriesInstanceUID", ""), ds.get("SOPInstanceUID", ""))
    if any(len(uid) < NUMBER + 4 for uid in uids):
        return None
    data = encode(ds, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    if data is None or len(data) > MOST_SEED_BYTES:
        return None
    return Seed(
        name, Arrival(str(ds.SOPClassUID), uids[1], str(syntax), "FUZZ", memoryview(data)), uids[0].encode()
    )


def collected(phantom: list[Dataset]) -> list[Seed]:
    """Every seed that can be told apart by number and sent; what pydicom cannot write again is left out."""
    own = seeds_in(sorted(TEST_FILES.rglob("*.dcm")))
    return [phantom_seed(phantom)] * 6 + own + real_seeds()


def phantom_seed(phantom: list[Dataset]) -> Seed:
    slices = []
    for ds in phantom:
        ds.SeriesInstanceUID = "2.25.77.10000000"
        ds.StudyInstanceUID = "2.25.77.1"
        ds.SOPInstanceUID = f"2.25.77.{ds.InstanceNumber}.10000000"
        slices.append(ds)
    first = seed_of("phantom", slices[0])
    assert first is not None
    others = tuple(bytes(found.arrival.data) for ds in slices[1:] if (found := seed_of("phantom", ds)))
    return replace(first, others=others, origin="phantom")


def seeds_in(paths: Iterable[Path]) -> list[Seed]:
    """Those that pydicom can read and write again."""
    seeds = []
    for path in paths:
        with suppress(Exception):
            seeds.append(seed_of(path.name, dcmread(path)))
    return [seed for seed in seeds if seed is not None]


def real_seeds() -> list[Seed]:
    """A few slices of every set of real CT, where a folder of them is there."""
    folder = Path(os.environ.get("S2NODE_TEST_CT", Path(__file__).parents[3] / "shared" / "ct"))
    seeds = []
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = seeds_in(path for path in sorted(place.rglob("*")) if path.is_file() and is_dicom(path))
        for seed in found[:: max(1, len(found) // OF_A_REAL_SET)][:OF_A_REAL_SET]:
            seeds.append(replace(seed, name=f"{place.name} {seed.name}", origin="real CT"))
    return seeds


def mutate(seed: Seed, number: int, rng: Random) -> Mutant:
    """The ``number``-th mutant."""
    name = rng.choice(sorted(MUTATIONS))
    arrival = with_number(seed.arrival, seed, number)
    arrival = replace(arrival, data=memoryview(MUTATIONS[name](bytes(arrival.data), rng)))
    if rng.random() < 0.05:
        arrival = replace(arrival, transfer_syntax_uid=str(rng.choice(SYNTAXES)))
    return Mutant(number, name, seed, arrival)


def flipped_in_the_header(data: bytes, rng: Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        found[rng.randrange(min(len(found), 3000))] = rng.randrange(256)
    return bytes(found)


def flipped(data: bytes, rng: Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 16, 256))):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def without_a_piece(data: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 7, 300)) :]


def with_a_piece_again(data: bytes, rng: Random) -> bytes:
    start = rng.randrange(min(len(data), 3000))
    piece = data[start : start + rng.choice((2, 8, 200))]
    return data[:start] + piece * rng.choice((2, 50)) + data[start:]


def with_a_length_that_lies(data: bytes, rng: Random) -> bytes:
    at = 2 * rng.randrange(min(len(data), 3000) // 2)
    width = rng.choice((2, 4))
    lie = (rng.choice(LENGTHS) & (256**width - 1)).to_bytes(width, "little")
    return data[:at] + lie + data[at + width :]


def with_another_vr(data: bytes, rng: Random) -> bytes:
    found = [at for tag in READ_HERE if (at := data.find(written_tag(tag), 0, 3000)) >= 0]
    at = rng.choice(found or [0]) + 4
    return data[:at] + rng.choice(rng.choice((LONG_VRS, SHORT_VRS, NO_VRS))) + data[at + 2 :]


def written_tag(tag: int) -> bytes:
    return (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")


def with_a_path(data: bytes, rng: Random) -> bytes:
    path = rng.choice(PATHS)
    starts = [at for at in range(len(data[:3000])) if data[at : at + 4] in {b"2.25", b"1.2.", b"1.3."}]
    at = rng.choice(starts or [0])
    return data[:at] + path + data[at + len(path) :]


def with_nested_sequences(data: bytes, rng: Random) -> bytes:
    depth = rng.choice((2, 31, 40, 5000))
    opened = b"\x08\x00\x15\x11SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00" + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    return data[:200] + opened * depth + closed * rng.choice((depth, depth - 1, 0)) + data[200:]


def deflated_bomb(data: bytes, rng: Random) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeezer.compress(data[: rng.choice((100, 2000))] + bytes(2**24)) + squeezer.flush()


def with_a_value_no_scanner_writes(data: bytes, rng: Random) -> bytes:
    try:
        ds = read_dataset(BytesIO(data), False, True)
        for keyword in rng.sample(sorted(VALUES), rng.choice((1, 1, 3))):
            setattr(ds, keyword, rng.choice(VALUES[keyword]))
        return encode(ds, False, True) or data
    except Exception:  # pydicom will not write it: bytes then
        return flipped_in_the_header(data, rng)


MUTATIONS: dict[str, Callable[[bytes, Random], bytes]] = {
    each.__name__: each
    for each in (
        flipped_in_the_header, flipped, cut, without_a_piece, with_a_piece_again, with_a_length_that_lies,
        with_another_vr, with_a_path, with_nested_sequences, deflated_bomb, with_a_value_no_scanner_writes,
    )
}  # fmt: skip


class Watched:
    """Notes every file that Python opens for writing, and every folder it makes, outside ``allowed``."""

    def __init__(self) -> None:
        self.allowed: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.allowed is None or event not in {
            "open",
            "os.mkdir",
            "os.rename",
            "os.link",
            "sqlite3.connect",
        }:
            return
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & writes):
            return
        path = str(arguments[1] if event in {"os.rename", "os.link"} else arguments[0])
        if not os.path.abspath(path).startswith((self.allowed, "/dev/")):  # noqa: PTH100 (resolves no links)
            self.outside.append(event)


@pytest.fixture(scope="session")
def watched() -> Watched:
    return Watched()


def read(paths: list[Path], settings) -> str:
    """What intake and reader make of a series: a code, or "read"."""
    outcome = attempt(lambda: read_examined(paths, settings.intake))
    return outcome.disposition.code if isinstance(outcome, Failure) else "read"


def drawn(seeds: list[Seed], many: int, rng: Random) -> Iterator[list[Mutant]]:
    """The mutants, as many at a time as go over one association."""
    for first in range(FIRST, FIRST + many, OF_AN_ASSOCIATION):
        numbers = range(first, min(first + OF_AN_ASSOCIATION, FIRST + many))
        yield [mutate(rng.choice(seeds), number, rng) for number in numbers]


class InPieces(OnlyAnswers):
    """Sends pieces shorter than the peer would take."""

    def __init__(self, assoc: Association, pdu_bytes: int) -> None:
        super().__init__(assoc)
        self._pdu_bytes = pdu_bytes

    @property
    def maximum_pdu_size(self) -> int:
        return self._pdu_bytes


@contextmanager
def connected(port: int, mutants: list[Mutant], pdu_bytes: int) -> Iterator[Association]:
    """An association for these mutants, over which they go in pieces of at most so many bytes."""
    node = StoreDestination.model_validate(
        {"name": "node", "host": "127.0.0.1", "port": port, "ae_title": "S2NODE"}
    )
    kinds = {(each.arrival.sop_class_uid, each.arrival.transfer_syntax_uid) for each in mutants}
    with associated(node, [build_context(*kind) for kind in sorted(kinds)]) as assoc:
        assoc.dimse = InPieces(assoc, pdu_bytes)
        yield assoc


def answer_to(assoc: Association, path: Path) -> int | None:
    """The status of the C-STORE; None where the association ended instead."""
    try:
        return store(assoc, path, read_file_meta_info(path))
    except DestinationUnreachable:
        return None


class Behind:
    """What happens to an instance once it was answered for: settle judges its series, the audit names it."""

    def __init__(self, settings: Settings, ledger: Ledger, auditor: Auditor) -> None:
        self.settings, self.ledger, self.auditor = settings, ledger, auditor
        self.known: set[str] = set()

    def goes_wrong(self) -> list[str]:
        """Which jobs got neither READY nor a rejection, and why the audit stands still; each once."""
        settle_due(self.ledger, self.settings, time.time() + self.settings.settle.max_wait_s)
        self.auditor.write()
        left = self.ledger.jobs([State.RECEIVING, State.SETTLED, State.PARKED])
        found = {f"job {job.id} {job.state} {job.code}: {job.reason}" for job in left}
        found |= {f"audit: {reason}" for reason in self.auditor.troubles().values() if reason}
        new, self.known = found - self.known, found
        return sorted(new)


@dataclass
class Count:
    """What came of the mutants."""

    ways: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    bugs: list[tuple[int, str, str, str]] = field(default_factory=list)
    slowest_s: float = 0.0

    def answered(self, mutant: Mutant, status: int | None) -> None:
        words = "none" if status is None else f"0x{status:04X}"
        self.ways[mutant.way] += 1
        self.answers[words] += 1
        if status not in STATUSES or status == UNFORESEEN:
            self.bugs.append((mutant.number, mutant.way, mutant.seed.name, words))

    def judged(self, mutant: Mutant, code: str, later: list[str]) -> None:
        self.codes[code] += 1
        wrong = [*later] if code in CODES else [code, *later]
        self.bugs += [(mutant.number, mutant.way, mutant.seed.name, each) for each in wrong]


@pytest.mark.timeout(0)
def test_every_mutant_gets_an_answer_and_a_code_and_touches_nothing_else(
    rig, amount, figures, quick_settings, phantom_slices, new_series, tmp_path, watched, monkeypatch, request
):
    many = amount("MUTANTS", short=300, full=20_000)
    settings = quick_settings(storage={"max_instance_bytes": 2**25}, audit={"to_file": True})
    root = settings.storage.data_dir
    seeds = collected([dcmread_copy(ds) for ds in phantom_slices])
    rng, count, fallen, before = Random(SEED), Count(), [], None
    request.addfinalizer(partial(logging.disable, logging.root.manager.disable))
    logging.disable(logging.CRITICAL)  # pytest would keep every line
    share_freed_memory()  # as a node does when it starts
    monkeypatch.setattr(threading, "excepthook", lambda death: fallen.append(death.exc_type.__name__))
    with (
        Ledger(root / LEDGER_FILE) as ledger,
        closing(Auditor(settings, ledger)) as auditor,
        Scp(settings, ledger, Spool(root)) as scp,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        behind = Behind(settings, ledger, auditor)
        watched.allowed, threads = str(tmp_path), threading.active_count()
        for batch in drawn(seeds, many, rng):
            with connected(scp.port, batch, rng.choice(PDU_BYTES)) as assoc:
                for mutant in batch:
                    faulthandler.dump_traceback_later(HANGING_S, exit=True)
                    path, began = mutant.written(tmp_path), time.process_time()
                    status = answer_to(assoc, path)
                    count.answered(mutant, status)
                    if status == SUCCESS:
                        code = judged(ledger, tmp_path, mutant.seed, mutant.number, settings)
                        count.judged(mutant, code, behind.goes_wrong())
                    count.slowest_s = max(count.slowest_s, time.process_time() - began)
            before = before or memory_at_rest(rig)
        faulthandler.cancel_dump_traceback_later()
        watched.allowed = None
        sound = rig.Sender(scp.port, new_series(1))
        sound.send_all()
        rig.check_acknowledged(ledger, [sound])
        rig.until(lambda: threading.active_count() <= threads, 60)
        left, gained = threading.active_count() - threads, memory_at_rest(rig) - before
    figures(
        "fuzz",
        {
            "mutants": many,
            "seeds": dict(Counter(origin for _, origin in {(seed.name, seed.origin) for seed in seeds})),
            "how they were made": dict(count.ways),
            "associations": -(-many // OF_AN_ASSOCIATION),
            "answers": dict(count.answers),
            "codes of what was kept": dict(count.codes.most_common()),
            "without a code, or a bug": len(count.bugs),
            "written outside the spool": len(watched.outside),
            "slowest, s of our own time": round(count.slowest_s, 2),
            "threads that fell": len(fallen),
            "threads left behind": max(0, left),
            "memory gained, MiB": round(gained / 1024**2, 1),
            "sound slices acknowledged afterwards": len(sound.acknowledged),
        },
    )
    assert count.bugs == []
    assert watched.outside == []
    assert count.slowest_s < LONGEST_S
    assert fallen == []
    assert left <= 0
    assert gained < MOST_GROWTH_BYTES
    assert {path.name for path in root.iterdir() if path.is_dir()} == {*FOLDERS, "audit"}


def memory_at_rest(rig) -> int:
    """Bytes this process holds, without what glibc keeps of what was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return rig.usage(os.getpid())["memory"]


def judged(ledger: Ledger, tmp_path: Path, seed: Seed, number: int, settings) -> str:
    """The code of what was kept last, with the other slices of its seed beside it, under their UID."""
    jobs = ledger.jobs(limit=1)
    instances = ledger.instances(jobs[-1].id) if jobs else []
    if not instances:
        return "dropped"
    mutant = tmp_path / "judged.dcm"
    kept = instances[-1].path.read_bytes()
    mutant.write_bytes(kept.replace(numbered(seed.series_uid.decode(), number), seed.series_uid))
    others = [tmp_path / f"other{index}.dcm" for index in range(len(seed.others))]
    for path, other in zip(others, seed.others, strict=True):
        if not path.exists():
            dcmread_bytes(other).save_as(path, enforce_file_format=True)
    return read([mutant, *others], settings)


def dcmread_bytes(data: bytes) -> Dataset:
    ds = read_dataset(BytesIO(data), False, True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def dcmread_copy(ds: Dataset) -> Dataset:
    return dcmread(BytesIO(to_bytes(ds)))


@given(st.binary(max_size=4096), st.sampled_from(SYNTAXES))
def test_no_bytes_at_all_make_the_header_reader_fail_otherwise_than_in_words(data, syntax):
    try:
        read_header(memoryview(data), syntax)
    except HeaderRefused as refused:
        assert len(str(refused)) < 64


tags = st.one_of(st.sampled_from(READ_HERE), st.integers(0x00080000, 0xFFFFFFFF)).filter(
    lambda tag: tag not in UIDS
)
vrs = st.one_of(*map(st.sampled_from, (LONG_VRS, SHORT_VRS, NO_VRS)))


def element(tag: int, vr: bytes, value: bytes, lie: int | None = None) -> tuple[int, bytes]:
    """One element in Explicit VR Little Endian, whose length is true or ``lie``."""
    length = len(value) if lie is None else lie
    is_long = vr in LONG_VRS
    said = (
        b"\0\0" + (length & 0xFFFFFFFF).to_bytes(4, "little")
        if is_long
        else (length & 0xFFFF).to_bytes(2, "little")
    )
    return tag, written_tag(tag) + vr + said + value


def sequence(tag: int, items: list[list[tuple[int, bytes]]], is_open: bool) -> tuple[int, bytes]:
    """A sequence of items of elements, all of undefined length or all of a true one (PS3.5 7.5)."""
    ends = (b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0") if is_open else (b"", b"")
    written = b""
    for item in items:
        body = b"".join(data for _, data in sorted(item))
        length = 0xFFFFFFFF if is_open else len(body)
        written += b"\xfe\xff\x00\xe0" + length.to_bytes(4, "little") + body + ends[0]
    return element(tag, b"SQ", written + ends[1], 0xFFFFFFFF if is_open else None)


leaves = st.builds(element, tags, vrs, st.binary(max_size=40), st.sampled_from((None,) * 15 + LENGTHS))
elements = leaves | st.recursive(
    leaves,
    lambda inner: st.builds(sequence, tags, st.lists(st.lists(inner, max_size=3), max_size=3), st.booleans()),
    max_leaves=12,
)


@pytest.mark.timeout(0)
def test_a_series_with_any_elements_at_all_gets_a_code_and_the_audit_goes_on(
    amount, quick_settings, phantom_slices, tmp_path
):
    """The elements of a sound slice, with others in their places and between them.

    The first example once stopped the audit, the second one parked its series as a bug.
    """
    options = quick_settings(audit={"to_file": True})
    root = options.storage.data_dir
    seed = phantom_seed([dcmread_copy(ds) for ds in phantom_slices])
    sound = dict(pieces(seed.arrival))
    numbers = itertools.count(FIRST)
    with (
        Ledger(root / LEDGER_FILE) as ledger,
        closing(Auditor(options, ledger)) as auditor,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        behind = Behind(options, ledger, auditor)
        receiver = Receiver(Spool(root), ledger, 2**25, time.time)

        @examples(max_examples=amount("DATASETS", short=50, full=5000), database=None)
        @given(st.lists(elements, min_size=1, max_size=12))
        @example([element(int(Tag("PatientID")), b"ZZ", b"ID0017")])
        @example([sequence(int(Tag("SliceThickness")), [[element(0x00100010, b"FL", b"odd")]], False)])
        def holds(drawn: list[tuple[int, bytes]]) -> None:
            number = next(numbers)
            data = b"".join(piece for _, piece in sorted((sound | dict(drawn)).items()))
            answer = receiver.take(with_number(replace(seed.arrival, data=memoryview(data)), seed, number))
            assert answer.status in STATUSES and answer.status != UNFORESEEN
            if answer.status == SUCCESS:
                assert judged(ledger, tmp_path, seed, number, options) in CODES
                assert behind.goes_wrong() == []

        holds()


def pieces(arrival: Arrival) -> Iterator[tuple[int, bytes]]:
    """The elements of an instance, each as it is written."""
    for found in read_dataset(BytesIO(arrival.data), False, True):
        alone = Dataset()
        alone[found.tag] = found
        yield int(found.tag), encode(alone, False, True) or b""
