"""What the fault experiments share: how big they are, where their figures go, a node that can be killed.

Each experiment has a short form, which is an ordinary test, and a full one (`make faults`, `make fuzz`): the
same code with greater numbers. Both say what they counted with ``figures``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE

from config.settings import Settings
from engine.session import SessionPolicy
from node.bench import machine
from node.build import build
from node.ledger import LEDGER_FILE, Ledger
from node.models import ModelStore
from node.outputs.context import context_of
from node.outputs.encoding import Instance
from node.worker import Engines, local_time

REPOSITORY = Path(__file__).resolve().parents[2]
IS_FULL = os.environ.get("S2NODE_FAULTS") == "full"
FIGURES = REPOSITORY / (Path("docs", "faults") if IS_FULL else Path("build", "faults"))
"""One JSON file an experiment; the page docs/faults.md shows those of the full forms."""
SERVE = (
    "import sys; from config.settings import Settings; from node.service import serve;"
    "sys.exit(serve(Settings.model_validate_json(sys.stdin.readline())))"
)

_told: list[tuple[str, Mapping[str, object]]] = []


@pytest.fixture(scope="session")
def amount() -> Callable[..., int]:
    """``amount("KILLS", short=6, full=1000)``: S2NODE_KILLS where it is set, else by the form that runs."""

    def choose(name: str, *, short: int, full: int) -> int:
        return int(os.environ.get(f"S2NODE_{name}", full if IS_FULL else short))

    return choose


@pytest.fixture(scope="session")
def figures() -> Callable[[str, Mapping[str, object]], None]:
    """``figures("kill", {"kills": 1000, "lost": 0})`` keeps what an experiment counted, and shows it."""

    def tell(experiment: str, counted: Mapping[str, object]) -> None:
        FIGURES.mkdir(parents=True, exist_ok=True)
        row = {"figures": dict(counted), "machine": machine()}
        text = json.dumps(row, indent=2, ensure_ascii=False)
        (FIGURES / f"{experiment}.json").write_text(text + "\n", encoding="utf-8")
        _told.append((experiment, counted))

    return tell


@pytest.fixture(scope="session")
def rounds() -> Callable[..., list[dict[str, Any]]]:
    """``rounds("kill-random", 10, play)`` is what ``play(0)`` to ``play(9)`` counted.

    In the full form every round is kept until the last one has ended: a run that was cut off goes on with
    the next one, as long as the product, the experiments and ``key`` are the same.
    """

    def run(experiment: str, times: int, play: Callable[[int], dict[str, Any]], key: str = "") -> list[Any]:
        kept = REPOSITORY / "build" / "faults" / f"{experiment}.rounds.json"
        of = f"{code_digest()} {key}"
        found = json.loads(kept.read_text()) if IS_FULL and kept.exists() else {}
        done = found.get("done", []) if found.get("of") == of else []
        for number in range(len(done), times):
            done.append(play(number))
            if IS_FULL:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps({"of": of, "done": done}))
        kept.unlink(missing_ok=True)
        return list(done)

    return run


def code_digest() -> str:
    """What tells one version of product and experiments from another."""
    digest = sha256()
    for folder in ("config", "engine", "node", "tests/faults"):
        for path in sorted(path for path in (REPOSITORY / folder).rglob("*") if path.suffix in {".py", ".c"}):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def picture() -> Callable[[str], Path]:
    """``picture("soak")`` is where an experiment draws its picture; the full forms' are shown on the page."""

    def place(experiment: str) -> Path:
        folder = REPOSITORY / Path("docs", "images") if IS_FULL else FIGURES
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{experiment}.png"

    return place


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of figures; with xdist the figures are in their files alone."""
    for experiment, counted in _told:
        terminalreporter.section(experiment)
        for name, value in counted.items():
            terminalreporter.line(f"{name:60} {value}")


def until(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    """What ``condition`` gave last: something true, or it was not true for ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    return condition()


def usage(pid: int) -> dict[str, int]:
    """Threads, bytes of memory now and at most, and descriptors that are not the ledger's (it keeps its
    connections: one for each that was needed at once). Raises OSError where the process is gone."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    if "VmRSS" not in status:
        raise ProcessLookupError(pid)
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            targets.append(str(link.readlink()))
    return {
        "threads": int(status["Threads"]),
        "memory": int(status["VmRSS"].split()[0]) * 1024,
        "peak": int(status["VmHWM"].split()[0]) * 1024,
        "descriptors": sum("ledger.sqlite3" not in target for target in targets),
    }


def spool_files(data_dir: Path) -> int:
    """How many files the node keeps, beside the ledger."""
    folders = ("inbox", "outbox", "quarantine", "tmp")
    return sum(len(names) for each in folders for _, _, names in os.walk(data_dir / each))


class Victim:
    """The node as processes of their own, in one group; none of them outlives the ``with`` block.

    ``environment`` is added to the processes' own, ``command`` starts a node that reads its settings.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str] | None = None,
        command: tuple[str, ...] = (sys.executable, "-c", SERVE),
    ) -> None:
        self.settings = settings
        self.environment = {**os.environ, **(environment or {})}
        self.command = command

    def __enter__(self) -> Victim:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=self.environment,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(self.settings.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()

    def kill(self, whom: str) -> None:
        """SIGKILL the "node", whose worker has to notice by itself, the "worker", or "both"."""
        if whom == "worker":
            worker = self.worker()
            if worker is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            return
        if whom == "both":
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.reap()

    def revive(self) -> None:
        """Start it again where it was killed; a worker is started by its node."""
        if self.process.returncode is not None:
            self.start()

    def stop(self) -> int:
        self.process.terminate()
        return self.reap()

    def reap(self) -> int:
        code = self.process.wait(60)
        assert self.process.stdin is not None
        self.process.stdin.close()
        return code

    def worker(self) -> int | None:
        """Process number of its worker; None where it has none just now."""
        with suppress(OSError):
            for children in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
                for pid in children.read_text().split():
                    if b"node.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        return int(pid)
        return None

    def listens(self) -> bool:
        """Whether it answers an association request."""
        probe = AE()
        probe.connection_timeout = 1
        probe.add_requested_context("1.2.840.10008.1.1")
        assoc = probe.associate("127.0.0.1", self.settings.listen.port, ae_title="S2NODE")
        established = assoc.is_established
        if established:
            assoc.release()
        return bool(established)


@dataclass
class Sender:
    """A modality: keeps what is not acknowledged and sends it again until it is."""

    port: int
    series: list[Dataset]
    acknowledged: set[str] = field(default_factory=set)
    statuses: list[int | None] = field(default_factory=list)

    @property
    def uid(self) -> str:
        return str(self.series[0].SeriesInstanceUID)

    def send_some(self, limit: int = 1000, pause_s: float = 0.0) -> None:
        """Send up to ``limit`` of what is not acknowledged; fewer where the node goes away."""
        ae = AE(ae_title="CT")
        ae.connection_timeout, ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 1, 5, 20, 20
        ae.add_requested_context(CTImageStorage)
        assoc = ae.associate("127.0.0.1", self.port, ae_title="S2NODE")
        for ds in self.rest()[:limit]:
            if not assoc.is_established:
                break
            status = assoc.send_c_store(ds).get("Status")
            self.statuses.append(status)
            if status == 0x0000:
                self.acknowledged.add(ds.SOPInstanceUID)
            time.sleep(pause_s)
        if assoc.is_established:
            assoc.release()

    def send_all(self, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while self.rest():
            assert time.monotonic() < end, "the node does not take the rest of the series"
            self.send_some()
            time.sleep(0.02)

    def rest(self) -> list[Dataset]:
        return [ds for ds in self.series if ds.SOPInstanceUID not in self.acknowledged]


def check_acknowledged(ledger: Ledger, senders: list[Sender]) -> None:
    """Every acknowledged instance is in the ledger and on the disk, whole."""
    for sender in senders:
        if not sender.acknowledged:
            continue
        instances = {i.sop_instance_uid: i for i in ledger.instances(ledger.find_jobs(sender.uid)[-1].id)}
        assert sender.acknowledged <= set(instances)
        for uid in sender.acknowledged:
            assert sha256(instances[uid].path.read_bytes()).hexdigest() == instances[uid].sha256


def undisturbed(
    settings: Settings, ledger: Ledger, sent: Mapping[int, Sequence[Path]] | None = None
) -> dict[str, bytes]:
    """The ledger's jobs built once, in this process: bytes by SOP Instance UID.

    They are built from the files the ledger has; with ``sent`` only the jobs it names, from its files.
    """
    engines = Engines(ModelStore(settings), SessionPolicy(provider="cpu", threads=1)).active()
    files: dict[str, bytes] = {}

    def keep(_phase: str, _kind: str, instance: Instance) -> None:
        files[instance.sop_instance_uid] = instance.data

    for job in ledger.jobs():
        if sent is not None and job.id not in sent:
            continue
        build(
            sent[job.id] if sent is not None else [each.path for each in ledger.instances(job.id)],
            engines=engines,
            context=context_of(settings, generation=job.generation, created=local_time(job.created_at)),
            rules=settings.intake,
            made=keep,
        )
    return files


EVIDENCE = "CurrentRequestedProcedureEvidenceSequence"
"""Where a rejection note says which instances it is about (PS3.3 C.17.2)."""


def data_set(path: Path) -> bytes:
    """The data set of a DICOM file, byte for byte, without its file meta information (PS3.10 7.1)."""
    data = path.read_bytes()
    return data[144 + int.from_bytes(data[140:144], "little") :]


def live(folder: Path) -> dict[str, Path]:
    """The results that a place shows: those it has and that no rejection note there names."""
    paths: dict[str, Path] = {}
    rejected: set[str] = set()
    for path in (path for path in folder.rglob("[!.]*") if path.is_file()):
        header = dcmread(
            path, specific_tags=["SOPInstanceUID", "Modality", EVIDENCE], stop_before_pixels=True
        )
        paths[str(header.SOPInstanceUID)] = path
        if header.Modality == "KO":
            rejected.add(str(header.SOPInstanceUID))
            rejected |= {
                str(item.ReferencedSOPInstanceUID)
                for study in header[EVIDENCE].value
                for series in study.ReferencedSeriesSequence
                for item in series.ReferencedSOPSequence
            }
    return {uid: path for uid, path in paths.items() if uid not in rejected}


@pytest.fixture(scope="session")
def rig() -> SimpleNamespace:
    """The pieces of an experiment: a node to kill, a sender, what they are measured and judged by."""
    return SimpleNamespace(
        Victim=Victim,
        Sender=Sender,
        until=until,
        usage=usage,
        spool_files=spool_files,
        check_acknowledged=check_acknowledged,
        undisturbed=undisturbed,
        live=live,
        data_set=data_set,
        LEDGER_FILE=LEDGER_FILE,
    )


def lacking(reason: str) -> None:
    """Skip, or fail where the machine is meant to have everything."""
    (pytest.fail if os.environ.get("S2NODE_REQUIRE_PEERS") == "1" else pytest.skip)(reason)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, str]]:
    """``shim(root)``: the environment of a process whose disk below ``root`` and whose clock are ours.

    The file that S2NODE_FAULT names is the block of struct fault in fault.c.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        lacking("needs a C compiler (Debian packages gcc and libc6-dev)")
    assert compiler is not None
    folder = tmp_path_factory.mktemp("shim")
    library, source = folder / "fault.so", Path(__file__).parent / "fault.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)

    def environment(root: Path) -> dict[str, str]:
        block = folder / f"{len(list(folder.iterdir()))}.block"
        block.write_bytes(bytes(4096))
        return {"LD_PRELOAD": str(library), "S2NODE_FAULT": str(block), "S2NODE_FAULT_ROOT": str(root)}

    return environment


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB of its own: a tmpfs."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a tmpfs here: not root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
