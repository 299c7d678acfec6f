"""What every test may ask for: real CT, DICOM peers of this machine and of our own, a quick bundle."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import trustme
from hypothesis import settings
from onnx import TensorProto, helper, save_model
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from config.intake import SeriesLimits
from config.settings import Settings
from engine.bundle import Manifest, digest_files, write_manifest
from engine.phantom import PhantomOptions, make_phantom
from engine.synthesis import Synthesis
from engine.volume import Geometry
from node.models import ModelStore
from node.outputs import NodeIdentity, OutputContext, to_bytes
from node.phantom_dicom import phantom_series
from node.series import SourceSeries, read_series

settings.register_profile("s2node", deadline=None, derandomize=True)
settings.load_profile("s2node")

SCRIPTS = Path(sys.prefix) / "bin"
os.environ["PATH"] = os.pathsep.join(
    folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder and Path(folder) != SCRIPTS
)
"""Without the environment's own scripts: pynetdicom installs a storescu, an echoscu and a findscu there."""

PEERS = ("storescu", "storescp", "echoscu", "findscu", "Orthanc")
REPOSITORY = Path(__file__).resolve().parents[1]
REJECTIONS = {"for now": (0x02, 0x03, 0x02), "for good": (0x01, 0x01, 0x07)}
"""Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21): transient, local limit exceeded;
permanent, called AE title not recognised."""


def missing_peers() -> list[str]:
    """The peer programs that are not on this machine; Debian puts Orthanc in /usr/sbin."""
    search = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    return [name for name in PEERS if shutil.which(name, path=search) is None]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("peers") is None or not (missing := missing_peers()):
        return
    reason = f"needs {', '.join(missing)} (Debian packages dcmtk and orthanc)"
    if os.environ.get("S2NODE_REQUIRE_PEERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def ct_dir() -> Path:
    """The folder of real CT series beside the repository, or the one S2NODE_TEST_CT names."""
    folder = Path(os.environ.get("S2NODE_TEST_CT", REPOSITORY.parent / "shared" / "ct"))
    if not folder.is_dir():
        pytest.skip(f"no real CT at {folder}: set S2NODE_TEST_CT to a folder of it")
    return folder


class StorePeer:
    """A real C-STORE SCP on loopback that answers as told: ``statuses`` in turn, then success.

    ``syntaxes`` are the transfer syntaxes it accepts for ``sop_classes``; a status of None breaks the
    association off; ``delay_s`` is the time it takes for one instance; ``calling`` whom it lets in.
    """

    def __init__(
        self,
        *,
        syntaxes: Sequence[str] = ALL_TRANSFER_SYNTAXES,
        sop_classes: Sequence[str] = (CTImageStorage,),
        statuses: Sequence[int | None] = (),
        delay_s: float = 0.0,
        calling: Sequence[str] = (),
        port: int = 0,
    ) -> None:
        self.ae_title = "PEER"
        self.received: list[Dataset] = []
        self.statuses = list(statuses)
        self.delay_s = delay_s
        self.associations = 0
        ae = AE(ae_title=self.ae_title)
        ae.require_called_aet = True
        ae.require_calling_aet = list(calling)
        ae.add_supported_context(Verification)
        for sop_class in sop_classes:
            ae.add_supported_context(sop_class, list(syntaxes))
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._count)]
        self._server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.port = int(self._server.socket.getsockname()[1])

    @property
    def uids(self) -> list[str]:
        """SOP Instance UIDs of what it took, in the order they came."""
        return [str(ds.SOPInstanceUID) for ds in self.received]

    def stop(self) -> None:
        """Stop listening and end what is open; harmless when stopped already."""
        if self._server.ae._servers:
            self._server.shutdown()

    def _count(self, event: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> int:
        time.sleep(self.delay_s)
        status = self.statuses.pop(0) if self.statuses else 0x0000
        if status is None:
            event.assoc.abort()
            return 0x0110
        if status in {0x0000, 0x0111} or 0xB000 <= status <= 0xBFFF:
            ds = event.dataset
            ds.file_meta = event.file_meta
            self.received.append(ds)
        return status


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """``free_port()`` is a TCP port of loopback that nobody listens on just now."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture
def store_peer() -> Iterator[Callable[..., StorePeer]]:
    """Starts peers with :class:`StorePeer`'s options and stops them after the test."""
    peers: list[StorePeer] = []

    def start(**options: Any) -> StorePeer:
        peers.append(StorePeer(**options))
        return peers[-1]

    yield start
    for peer in peers:
        peer.stop()


class Storescp:
    """DCMTK's storescp at ``port`` that keeps what it takes in ``folder``.

    Of a SOP Instance UID it keeps what came last; with "+uf" among ``always``, the options that it has
    whatever it becomes, everything that came. ``become`` starts it, and again with other options: a good one
    without, a bad one by its own switches. What it cannot be, another one is in its place: ``reject`` lets
    nobody in (its own ``--refuse`` gives no reason, and its ``--reject`` is for those that do not name their
    implementation), ``keep_unanswered`` breaks off once it has an instance (it removes such a one).
    """

    def __init__(self, folder: Path, port: int, always: Sequence[str] = ()) -> None:
        self.ae_title = "PEER"
        self.folder, self.port, self.always = folder, port, always
        self._process: subprocess.Popen[bytes] | None = None
        self._in_its_place: ThreadedAssociationServer | None = None
        folder.mkdir()

    def become(self, *options: str) -> Storescp:
        """End it where it runs, and start it with these options."""
        self.stop()
        named = ("-aet", self.ae_title, "-od", str(self.folder), str(self.port))
        command = ["storescp", *self.always, *options, *named]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(400):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.05)
        raise TimeoutError("storescp does not listen")

    def reject(self, how_long: str) -> None:
        """Answer every request for an association with one of :data:`REJECTIONS`."""

        def answer(event: evt.Event) -> None:
            event.assoc.acse.send_reject(*REJECTIONS[how_long])
            event.assoc.is_rejected = True
            event.assoc.kill()

        self._replace((evt.EVT_REQUESTED, answer))

    def keep_unanswered(self) -> None:
        """Keep the first instance of every association, and abort it instead of answering."""

        def keep(event: evt.Event) -> int:
            (self.folder / f"{uuid4()}.dcm").write_bytes(event.encoded_dataset())
            event.assoc.abort()
            return 0x0110

        self._replace((evt.EVT_C_STORE, keep))

    def _replace(self, *handlers: Any) -> None:
        self.stop()
        ae = AE(ae_title=self.ae_title)
        for sop_class in (Verification, CTImageStorage):
            ae.add_supported_context(sop_class, ALL_TRANSFER_SYNTAXES)
        self._in_its_place = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=list(handlers)
        )

    def stop(self) -> None:
        """Let it vanish, in the middle of whatever it is at."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._in_its_place is not None:
            self._in_its_place.shutdown()
        self._process = self._in_its_place = None

    def fall_silent(self) -> None:
        """Stop it in its tracks: the kernel takes connections, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def datasets(self) -> list[Dataset]:
        """Everything it keeps; what it had only begun to write when it vanished is nothing."""
        return [dcmread(path) for path in sorted(self.folder.iterdir()) if path.stat().st_size]


@pytest.fixture
def storescp(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Callable[..., Storescp]]:
    """``storescp("--refuse", always=["+uf"])`` is a :class:`Storescp` that runs so, until the test ends."""
    started: list[Storescp] = []

    def start(*options: str, always: Sequence[str] = ()) -> Storescp:
        started.append(Storescp(tmp_path / f"storescp{len(started)}", free_port(), always))
        return started[-1].become(*options)

    yield start
    for each in started:
        each.stop()


def ct_instance(number: int, series_instance_uid: str = "2.25.20") -> Dataset:
    """One small CT instance, enough for the network and the spool; not enough for a validator."""
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{series_instance_uid}.{number}"
    ds.StudyInstanceUID = "2.25.10"
    ds.SeriesInstanceUID = series_instance_uid
    ds.PatientName, ds.PatientID, ds.Modality = "DOE^JANE", "ID0017", "CT"
    ds.InstanceNumber = number
    ds.Rows = ds.Columns = 8
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 1, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = np.full((8, 8), number, np.int16).tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


@pytest.fixture
def ct_files(tmp_path: Path) -> list[Path]:
    """Four small CT instances of one series as files."""
    folder = tmp_path / "ct_files"
    folder.mkdir()
    paths = [folder / f"{number}.dcm" for number in range(1, 5)]
    for number, path in enumerate(paths, 1):
        ct_instance(number).save_as(path, enforce_file_format=True)
    return paths


class OutputsKit:
    """A small phantom series on disk and what is made of it: everything an output is a function of."""

    SHAPE = (6, 32, 40)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hu = np.random.default_rng(7).normal(40, 12, self.SHAPE).astype(np.float32)
        geometry = Geometry(self.SHAPE, (3.0, 1.5, 1.25), (-25.0, -24.0, -60.5))
        self.phantom = SimpleNamespace(seed=7, geometry=geometry, phases={"ncct": hu, "arterial": hu + 60})

    def files(self, edit: Callable[[Dataset], object] = lambda _: None, phase: str = "ncct") -> list[Path]:
        """The series as files, each dataset changed by ``edit`` first."""
        folder = self.folder / f"source{len(list(self.folder.glob('source*')))}"
        folder.mkdir()
        paths = []
        for index, ds in enumerate(phantom_series(self.phantom, phase)):
            edit(ds)
            paths.append(folder / f"{index}.dcm")
            paths[-1].write_bytes(to_bytes(ds))
        return paths

    def source(self, edit: Callable[[Dataset], object] = lambda _: None) -> SourceSeries:
        """The series as the reader gives it."""
        return read_series(self.files(edit), SeriesLimits())

    def synthesis(self, series: SourceSeries, phase: str = "arterial", **changes: Any) -> Synthesis:
        """A synthesis of ``series``: 30 HU more, and 1 more with every slice, by a model that never was."""
        more = np.arange(30, 30 + len(series.volume.hu), dtype=np.float32)[:, None, None]
        made = Synthesis(
            phase=phase,
            volume=series.volume.with_array(series.volume.hu + more),
            model_id=f"test-{phase}-1.0.0",
            model_name="S²LDM test",
            model_version="1.0.0",
            model_digest="ab" * 32,
            seed=5,
            steps=4,
            sampler="bridge",
            provider="cpu",
            tiles=1,
            seconds={"total": 0.1},
            findings=(),
        )
        return replace(made, **changes)

    def context(self, **changes: Any) -> OutputContext:
        """One job of one node."""
        node = NodeIdentity("2.25.4711", "S2NODE", "S2NODE", "CT-AI-1", ("0.1.0",))
        made = OutputContext(node, "cd" * 32, 1, datetime(2026, 1, 2, 3, 4, 5))
        return replace(made, **changes)


@pytest.fixture
def kit(tmp_path: Path) -> OutputsKit:
    """What an output is made from; see :class:`OutputsKit`."""
    return OutputsKit(tmp_path)


TILE = (8, 32, 32)


def write_translator(folder: Path, phase: str, gain: float = 0.25, version: str = "1.0.0") -> Path:
    """A real bundle that costs nothing to run: one graph, x_c = x + ``gain`` · relu(x), for ``phase``."""
    folder.mkdir(parents=True)
    shape = [1, 1, *TILE]
    nodes = [
        helper.make_node("Relu", ["x"], ["soft"]),
        helper.make_node("Mul", ["soft", "gain"], ["more"]),
        helper.make_node("Add", ["x", "more"], ["x_c"]),
    ]
    graph = helper.make_graph(
        nodes,
        "translator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("x_c", TensorProto.FLOAT, shape)],
        [helper.make_tensor("gain", TensorProto.FLOAT, [], [gain])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save_model(model, folder / "translator.onnx")
    manifest = {
        "format": 1, "family": "translator", "phase": phase, "model_id": f"gain-{phase}-{version}",
        "model_name": "gain", "model_version": version, "window_hu": [-200, 400], "spacing_mm": [5, 3, 3],
        "tile": TILE, "overlap": 0.25, "composition": {"detail": 1.0, "edge_hu": 20}, "parity": {},
        "graphs": {"translator": "translator.onnx"}, "files": digest_files(folder), "metrics": {},
        "run": {}, "intended_use": "tests", "licence": "none", "opset": 18,
        "created": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    write_manifest(folder, Manifest.model_validate(manifest))
    return folder


@pytest.fixture
def translator_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Writes quick real bundles: ``translator_bundle("arterial", gain=…, version=…)`` is a folder."""

    numbers = count()

    def write(phase: str, **options: Any) -> Path:
        return write_translator(tmp_path / "bundles" / f"{phase}-{next(numbers)}", phase, **options)

    return write


@pytest.fixture(scope="session")
def phantom_slices() -> list[Dataset]:
    """A small non-contrast series: 12 slices of 64 by 64 voxels, 5 mm by 6 mm."""
    options = PhantomOptions(shape=(12, 64, 64), spacing_mm=(5, 6, 6), noise_hu=5, phases=("ncct",))
    return phantom_series(make_phantom(3, options))


@pytest.fixture
def new_series(phantom_slices: list[Dataset]) -> Callable[[int], list[Dataset]]:
    """``new_series(n)``: the same slices as series n of study n, with UIDs of its own."""

    def make(number: int) -> list[Dataset]:
        series = [copy.deepcopy(ds) for ds in phantom_slices]
        for ds in series:
            ds.StudyInstanceUID = f"2.25.77.{number}"
            ds.SeriesInstanceUID = f"2.25.77.{number}.1"
            ds.SOPInstanceUID = f"2.25.77.{number}.1.{ds.InstanceNumber}"
            ds.file_meta = dcmread(BytesIO(to_bytes(ds))).file_meta
        return series

    return make


@pytest.fixture
def quick_settings(tmp_path: Path, translator_bundle: Callable[..., Path]) -> Callable[..., Settings]:
    """Settings of a node in a folder of its own that settles at once, with the quick bundles active."""

    def make(**sections: Any) -> Settings:
        base: dict[str, Any] = {
            "listen": {"port": 0},
            "storage": {"data_dir": tmp_path / "node", "min_free_bytes": 0},
            "settle": {"quiet_s": 1.0, "max_wait_s": 600, "check_s": 0.1},
            "intake": {"max_pixel_spacing_mm": 8},
            "engine": {"provider": "cpu", "threads": 1},
            "worker": {"lease_s": 20, "heartbeat_s": 1},
            "retry": {"first_s": 0.2, "max_s": 1},
        }
        for name, section in sections.items():
            base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
        settings = Settings.model_validate(base)
        models = ModelStore(settings)
        for phase in ("arterial", "venous"):
            models.activate(translator_bundle(phase))
        return settings

    return make


class Authority:
    """A certificate authority of a test, and files that ``[tls]`` can name."""

    def __init__(self, folder: Path, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> None:
        self.folder = folder
        self.key_type = key_type
        self.ca = trustme.CA(key_type=key_type)
        folder.mkdir(parents=True)
        self.file = folder / "authorities.pem"
        self.ca.cert_pem.write_to_path(self.file)

    def tls(
        self, *names: str, name: str = "node", believes: Path | None = None, **term: Any
    ) -> dict[str, Any]:
        """``[tls]`` of somebody with a certificate for ``names``, valid as ``term`` says."""
        made = self.ca.issue_cert(*(names or ("127.0.0.1", "localhost")), key_type=self.key_type, **term)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        key.chmod(0o600)
        return {"certificate": certificate, "key": key, "authorities": believes or self.file}


@pytest.fixture
def authority(tmp_path: Path) -> Callable[..., Authority]:
    """Makes certificate authorities: ``authority("ours")`` has a folder of that name."""
    return lambda name="ours", **options: Authority(tmp_path / "pki" / name, **options)
