"""The demonstration: a study is sent to a node by C-STORE and comes back to an archive, all on this machine.

Nothing here is special to the demonstration: the archive, the node, its worker process, the models and the
network are what `s2node serve` runs. Only the study is a phantom, unless a folder is given.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset

from config.intake import SeriesLimits
from config.settings import (
    ListenSettings,
    LogSettings,
    Settings,
    SettleSettings,
    StorageSettings,
    StoreDestination,
    WorkerSettings,
)
from engine.phantom import Phantom, PhantomOptions, make_phantom, organ_means
from engine.volume import Float32
from node import scu
from node.archive import Archive
from node.errors import NodeError
from node.ledger import Job, Ledger
from node.models import ModelStore
from node.outputs.encoding import to_bytes
from node.overview import draw_overview, on_grid, panels_of, plane_centre
from node.phantom_dicom import phantom_series
from node.series import read_series
from node.service import Node
from node.states import State
from node.verify import verify

ARCHIVE_AE = "ARCHIVE"
NODE_AE = "S2NODE"
SENDER_AE = "SCANNER"
QUIET_S = 2.0
"""Settling time: the sender is on this machine and does not pause."""
COMMITMENT_S = 30.0
"""Most seconds that are waited for the archive to commit; the demo does not depend on it."""
LOOK_S = 0.25
"""Seconds between two looks at the ledger."""
ENDED = frozenset({State.DELIVERED, State.COMMITTED, State.PURGED, State.REJECTED, State.PARKED})
SHOWN_ORGANS = ("aorta", "portal_vein", "liver", "spleen", "renal_cortex", "muscle", "fat")

Watch = Callable[[str, float], None]
"""Hears what is going on (sending, a job's state) and how far it is, 0 to 1."""


class DemoFailed(NodeError):
    """The series did not come back; says where it stopped."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What to send and where to write.

    Without a ``folder`` a phantom is made of ``seed`` and ``options``. ``models`` are bundle folders to use
    instead of the shipped ones; ``limit_s`` bounds the wait for the series in seconds.
    """

    out: Path
    folder: Path | None = None
    seed: int = 9100
    options: PhantomOptions = field(default_factory=PhantomOptions)
    models: tuple[Path, ...] = ()
    limit_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class Returned:
    """One synthetic series as the archive holds it."""

    phase: str
    kind: str
    series_instance_uid: str
    source_series_uid: str
    study_instance_uid: str
    paths: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.paths[0].parent


@dataclass(frozen=True, slots=True)
class Journey:
    """Every series the node judged, what came back, and the source files by series UID."""

    jobs: tuple[Job, ...]
    returned: tuple[Returned, ...]
    sources: Mapping[str, tuple[Path, ...]]
    limits: SeriesLimits


@dataclass(frozen=True, slots=True)
class OrganRow:
    """Mean HU of one organ in the phantom: in the source, in the synthesis and in the true phase."""

    phase: str
    organ: str
    source_hu: float
    synthetic_hu: float
    true_hu: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came of the demonstration. ``jobs`` are all series the node judged, translated or not."""

    jobs: tuple[Job, ...]
    returned: tuple[Returned, ...]
    organs: tuple[OrganRow, ...]
    overview: Path | None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def in_state(self, state: State) -> list[Job]:
        """The jobs that ended in ``state``."""
        return [job for job in self.jobs if job.state is state]


def run_demo(plan: DemoPlan, watch: Watch) -> DemoResult:
    """Send a study through a node and wait until every series of it is judged, and back where it is ours.

    Writes below ``plan.out``: sent/ (the phantom), archive/, node/ and overview.png; what an earlier run left
    there is removed. Raises DemoFailed where something was lost, DestinationUnreachable where nothing could
    be sent, OSError where the folder cannot be written.
    """
    started = time.monotonic()
    _clear(plan)
    phantom, paths = _study(plan)
    prepared = time.monotonic()
    journey = _travel(plan, paths, watch)
    finished = time.monotonic()
    overview, organs = _compare(plan.out, journey, phantom)
    seconds = {"prepare": prepared - started, "journey": finished - prepared}
    return DemoResult(journey.jobs, journey.returned, tuple(organs), overview, seconds)


def _travel(plan: DemoPlan, paths: Sequence[Path], watch: Watch) -> Journey:
    """Archive and node up, the study sent, everything waited for, node and archive down."""
    with Archive(plan.out / "archive", ae_title=ARCHIVE_AE) as archive:
        settings = demo_settings(plan.out / "node", archive.port)
        for model in plan.models:
            ModelStore(settings).activate(model)
        with Node(settings) as node:
            archive.introduce(NODE_AE, "127.0.0.1", node.port)
            _send(node, paths, watch)
            jobs = wait_for_jobs(node, plan.limit_s, watch)
            came = [job for job in jobs if node.ledger.outputs(job.id)]
            returned = [back for job in came for back in _fetch(node.ledger, job, archive)]
            sources = {
                job.series_instance_uid: tuple(one.path for one in node.ledger.instances(job.id))
                for job in came
            }
            jobs = _committed(node, jobs)
    return Journey(tuple(jobs), tuple(returned), sources, settings.intake.limits)


def demo_settings(data_dir: Path, archive_port: int) -> Settings:
    """A node on a free port of this machine that delivers to the archive."""
    archive = StoreDestination(
        name="archive",
        host="127.0.0.1",
        port=archive_port,
        ae_title=ARCHIVE_AE,
        calling_ae_title=NODE_AE,
        associations=2,
        commitment="request",
        commitment_wait_s=0,
    )
    return Settings(
        listen=ListenSettings(ae_title=NODE_AE, port=0),
        storage=StorageSettings(data_dir=data_dir.absolute(), min_free_bytes=256 * 1024**2),
        settle=SettleSettings(quiet_s=QUIET_S, max_wait_s=4 * QUIET_S, check_s=0.5),
        worker=WorkerSettings(heartbeat_s=1.0),
        destinations=(archive,),
        log=LogSettings(level="warning"),
    )


def _clear(plan: DemoPlan) -> None:
    """Remove what an earlier run left; raises DemoFailed where that is the folder to be sent."""
    for name in ("sent", "archive", "node"):
        old = plan.out / name
        if plan.folder is not None and plan.folder.resolve().is_relative_to(old.resolve()):
            raise DemoFailed(
                f"{plan.folder} is what an earlier demo left and goes away: choose another --out"
            )
        shutil.rmtree(old, ignore_errors=True)


def _study(plan: DemoPlan) -> tuple[Phantom | None, list[Path]]:
    """The files to send: those of the folder, or of a phantom written to sent/."""
    if plan.folder is not None:
        return None, scu.dicom_files(plan.folder)
    phantom = make_phantom(plan.seed, plan.options)
    sent = plan.out / "sent"
    sent.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(phantom_series(phantom), start=1):
        path = sent / f"{number:04d}.dcm"
        path.write_bytes(to_bytes(ds))
        paths.append(path)
    return phantom, paths


def _send(node: Node, paths: Sequence[Path], watch: Watch) -> None:
    watch("sending", 0.0)
    sent = scu.send(
        local_peer("node", node.port, NODE_AE), paths, lambda done: watch("sending", done / len(paths))
    )
    if not sent.stored or scu.NO_ANSWER in sent.outcomes:
        answers = "; ".join(f"{count} × {scu.outcome_words(what)}" for what, count in sent.outcomes.items())
        raise DemoFailed(
            f"the node stored {sent.stored} of {len(paths)} files: {answers or 'no DICOM instance in them'}"
        )


def local_peer(name: str, port: int, ae_title: str) -> StoreDestination:
    """A peer on this machine as the sender calls it."""
    return StoreDestination(
        name=name, host="127.0.0.1", port=port, ae_title=ae_title, calling_ae_title=SENDER_AE
    )


def wait_for_jobs(node: Node, limit_s: float, watch: Watch) -> list[Job]:
    """The jobs when all of them have ended; raises DemoFailed where the node gives up or time runs out."""
    deadline = time.monotonic() + limit_s
    while True:
        jobs = [job for job in node.ledger.jobs() if job.state is not State.SUPERSEDED]
        for job in jobs:
            watch(f"series {job.id} {_words(job)}", _share(job))
        if jobs and all(job.state in ENDED for job in jobs):
            return jobs
        if node.ended.is_set():
            raise DemoFailed("the models cannot run on this machine; the lines above say why")
        if time.monotonic() > deadline:
            open_jobs = ", ".join(f"series {job.id} is {job.state}" for job in jobs if job.state not in ENDED)
            raise DemoFailed(f"not back after {limit_s:.0f} s: {open_jobs or 'nothing reached the ledger'}")
        time.sleep(LOOK_S)


def _committed(node: Node, jobs: Sequence[Job]) -> list[Job]:
    """The jobs as they stand when the archive has answered for what it took, or has had time to."""
    deadline = time.monotonic() + COMMITMENT_S
    now = [node.ledger.job(job.id) for job in jobs]
    while any(job.state is State.DELIVERED for job in now) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        now = [node.ledger.job(job.id) for job in jobs]
    return now


STAGES: Mapping[State, tuple[str, float, float]] = {
    State.RECEIVING: ("receiving", 0.0, 0.05),
    State.SETTLED: ("settled", 0.05, 0.1),
    State.READY: ("synthesis", 0.1, 0.95),
    State.BUILT: ("delivering", 0.95, 1.0),
}
"""What a state is called on the screen, and the part of the bar it fills."""


def _words(job: Job) -> str:
    return STAGES[job.state][0] if job.state in STAGES else str(job.state)


def _share(job: Job) -> float:
    if job.state not in STAGES:
        return 1.0
    _, first, last = STAGES[job.state]
    return first + (last - first) * (job.progress if job.state is State.READY else 0.0)


def _fetch(ledger: Ledger, job: Job, archive: Archive) -> list[Returned]:
    """The job's series as the archive answers for them; raises DemoFailed where one is missing or wrong."""
    peer = local_peer("archive", archive.port, ARCHIVE_AE)
    expected: dict[str, list[str]] = {}
    labels: dict[str, tuple[str, str]] = {}
    for output in ledger.outputs(job.id):
        expected.setdefault(output.series_instance_uid, []).append(output.sop_instance_uid)
        labels[output.series_instance_uid] = (output.phase, output.kind)
    found = {
        match.SeriesInstanceUID: match for match in scu.find(peer, _series_query(job.study_instance_uid))
    }
    returned = []
    for uid, instances in expected.items():
        phase, kind = labels[uid]
        held = int(found[uid].NumberOfSeriesRelatedInstances) if uid in found else 0
        if held != len(instances):
            raise DemoFailed(f"the archive holds {held} of {len(instances)} instances of the {phase} {kind}")
        paths = tuple(archive.path_of(instance) for instance in instances)
        back = Returned(phase, kind, uid, job.series_instance_uid, job.study_instance_uid, paths)
        _check(back)
        returned.append(back)
    return returned


def _series_query(study_instance_uid: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = "SERIES"
    query.StudyInstanceUID = study_instance_uid
    query.SeriesInstanceUID = ""
    query.SeriesDescription = ""
    query.NumberOfSeriesRelatedInstances = ""
    return query


def _check(back: Returned) -> None:
    """Every file says that it is synthetic, of which phase, and made from the series that was sent."""
    for path in back.paths:
        verdict = verify(path)
        problems = list(verdict.problems)
        if not verdict.ours:
            problems.append("it does not carry our marks")
        if verdict.phase != back.phase:
            problems.append(f"its phase is {verdict.phase}")
        if verdict.source_series_uid != back.source_series_uid:
            problems.append("its source is another series")
        if problems:
            raise DemoFailed(f"{path.name} of the {back.phase} {back.kind}: {'; '.join(problems)}")


def _compare(out: Path, journey: Journey, phantom: Phantom | None) -> tuple[Path | None, list[OrganRow]]:
    """The picture of the first translated series, and of a phantom the organs' HU beside the truth."""
    series = [back for back in journey.returned if back.kind == "ct_series"]
    if not series:
        return None, []
    first = series[0].source_series_uid
    source = read_series(journey.sources[first], journey.limits).volume
    syntheses = {
        back.phase: on_grid(read_series(back.paths, journey.limits).volume, source.geometry)
        for back in series
        if back.source_series_uid == first
    }
    truths = {phase: phantom.phases[phase] for phase in syntheses} if phantom else {}
    subject = f"Phantom, seed {phantom.seed}." if phantom else "Source series as sent."
    caption = f"SYNTHETIC IMAGES, NOT ACQUIRED. Research use only, not for diagnosis. {subject}"
    path = out / "overview.png"
    at = plane_centre(source.hu, list(syntheses.values()))
    draw_overview(path, panels_of(source.hu, syntheses, truths), source.geometry, at, caption)
    return path, _organ_rows(source.hu, syntheses, phantom) if phantom else []


def _organ_rows(source: Float32, syntheses: Mapping[str, Float32], phantom: Phantom) -> list[OrganRow]:
    before = organ_means(source, phantom.labels)
    rows = []
    for phase, hu in syntheses.items():
        after = organ_means(hu, phantom.labels)
        truth = organ_means(phantom.phases[phase], phantom.labels)
        rows += [
            OrganRow(phase, organ, before[organ], after[organ], truth[organ])
            for organ in SHOWN_ORGANS
            if organ in before
        ]
    return rows
