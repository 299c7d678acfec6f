"""Hours of mixed load at 80 % of what the node can do, while it is killed and its archive comes and goes.

Capacity is measured first: how fast the node works off a backlog. Then several senders bring series of every
kind (see ``KINDS``) at 80 % of that, node and worker are killed and the archive turns bad at random moments,
and memory, threads, descriptors and files are looked at every few seconds. At the end everything is counted.
S2NODE_MINUTES says how long the load lasts, S2NODE_SOAK_SEED draws other moments.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from random import Random

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydicom.dataset import Dataset

from node.ledger import Ledger
from node.purge import DAY_S
from node.states import PURGEABLE, State

pytestmark = pytest.mark.peers

SEED = int(os.environ.get("S2NODE_SOAK_SEED", "1"))
LOAD = 0.8
SENDERS = 4
QUIET_S = 1.0
LATE_S = 8.0
"""A second wave comes within so many seconds: before, while and after the series is worked on."""
MOST_UNFINISHED = 40
"""Series under way beyond which the senders wait: a scanner room does so too when nothing comes back."""
UNFINISHED = (State.RECEIVING, State.SETTLED, State.READY, State.BUILT)
BIT_PRESERVING = "+B"
"""storescp keeps the data sets as they came."""

MIB = 1024**2
MOST_GAINED = {"memory": 64 * MIB, "descriptors": 16, "threads": 16}
"""What a process may have gained by the end, as the fit has it. One volume kept of each series, the least a
leak of pixels would be, is 192 KiB of the small series used here: 64 MiB after 340 series, part of two hours.
A descriptor or thread left behind by every fiftieth association passes 16 after 800."""
MOST_FILES_GAINED = 0.5
"""The same for the spool's files, as a part of those kept at a time: one file of 36 left behind by each tenth
series would be more in two hours."""


# what the senders bring

Wave = list[list[Dataset]]
"""Lists of slices that are sent at once, each over an association of its own."""


def plain(one: list[Dataset], other: list[Dataset]) -> list[Wave]:
    return [[one]]


def split(one: list[Dataset], other: list[Dataset]) -> list[Wave]:
    """Over two associations at once, with one slice on both."""
    return [[one[::2], [one[0], *one[1::2]]]]


def interleaved(one: list[Dataset], other: list[Dataset]) -> list[Wave]:
    """Two series of a study, slice by slice, on one association."""
    return [[[ds for pair in zip(one, other, strict=True) for ds in pair]]]


def repeated(one: list[Dataset], other: list[Dataset]) -> list[Wave]:
    return [[one], [one]]


def late(one: list[Dataset], other: list[Dataset]) -> list[Wave]:
    """The last slice comes when the rest has long been settled, or translated, or delivered."""
    return [[one[:-1]], [one[-1:]]]


def enhanced(one: list[Dataset], other: list[Dataset]) -> list[Wave]:
    """A series that says that contrast was given: rejected."""
    for ds in one:
        ds.ContrastBolusAgent = "IOHEXOL"
    return [[one]]


KINDS: dict[str, Callable[[list[Dataset], list[Dataset]], list[Wave]]] = {
    "plain": plain,
    "split": split,
    "interleaved": interleaved,
    "repeated": repeated,
    "late": late,
    "rejected": enhanced,
}
RESULTS = {"plain": 1, "split": 1, "interleaved": 2, "repeated": 1, "late": 2, "rejected": 0}
"""How many results of one visit are built, at most."""
DECK = ("plain", "late", "rejected", "interleaved", "repeated", "split", "plain", "plain", "late", "rejected")


@dataclass(frozen=True)
class Visit:
    """A patient's visit: its number says which series it has, its kind how they are sent."""

    number: int
    kind: str

    def waves(self, new_series: Callable[[int], list[Dataset]]) -> list[Wave]:
        """Its slices, made anew: equal visits have equal ones."""
        other = new_series(self.number)
        for ds in other:
            ds.SeriesInstanceUID = f"2.25.77.{self.number}.2"
            ds.SOPInstanceUID = f"{ds.SeriesInstanceUID}.{ds.InstanceNumber}"
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        return KINDS[self.kind](new_series(self.number), other)


class Load:
    """Senders that bring one visit after another, and its later waves when they are due.

    What was acknowledged is kept by series, and so is the visit it belongs to.
    """

    def __init__(self, rig, port, ledger, new_series, rng, first_number=0):
        self.rig, self.port, self.ledger, self.new_series, self.rng = rig, port, ledger, new_series, rng
        self.numbers = itertools.count(first_number)
        self.acknowledged: dict[str, set[str]] = defaultdict(set)
        self.visits: dict[str, Visit] = {}
        self.kinds: Counter[str] = Counter()
        self.held_back = 0
        self.errors: list[BaseException] = []
        self._waves: list[tuple[float, int, Visit, Wave]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self, deck: Sequence[str], results_per_s: float, until: Callable[[], bool]) -> None:
        """Bring visits that make ``results_per_s`` results until told to stop, and wait for the last wave.

        Kinds come in the order of the deck, which is shuffled before it is gone through again.
        """
        self._over.clear()
        self._source = self._visits(deck, results_per_s, until)
        threads = [threading.Thread(target=self._work) for _ in range(SENDERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _visits(
        self, deck: Sequence[str], results_per_s: float, until: Callable[[], bool]
    ) -> Iterator[Visit | None]:
        """The next visit that is due, or None where none is just now."""
        due, cards = time.monotonic(), list(deck)
        while not until():
            if time.monotonic() < due:
                yield None
                continue
            if len(self.ledger.jobs(UNFINISHED)) >= MOST_UNFINISHED:
                self.held_back += 1
                due = time.monotonic() + 1.0
                continue
            kind = cards.pop(0)
            if not cards:
                cards = self.rng.sample(deck, len(deck))
            due += RESULTS[kind] / results_per_s
            self.kinds[kind] += 1
            yield Visit(next(self.numbers), kind)

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                with self._lock:
                    todo = self._next()
                if todo is None:
                    time.sleep(0.02)
                else:
                    self._send(*todo)
        except BaseException as error:
            self.errors.append(error)
            self._over.set()

    def _next(self) -> tuple[Visit, Wave] | None:
        if self._waves and self._waves[0][0] <= time.monotonic():
            _, _, visit, wave = heapq.heappop(self._waves)
            return visit, wave
        visit = next(self._source, self)
        if visit is self:
            if not self._waves:
                self._over.set()
            return None
        if visit is None:
            return None
        at, waves = time.monotonic(), visit.waves(self.new_series)
        for wave in waves[1:]:
            at += self.rng.uniform(0, LATE_S)
            heapq.heappush(self._waves, (at, next(self._order), visit, wave))
        return visit, waves[0]

    def _send(self, visit: Visit, wave: Wave) -> None:
        threads = [threading.Thread(target=self._send_one, args=(visit, part)) for part in wave[1:]]
        for thread in threads:
            thread.start()
        self._send_one(visit, wave[0])
        for thread in threads:
            thread.join()

    def _send_one(self, visit: Visit, slices: list[Dataset]) -> None:
        """Send until all is acknowledged, whatever becomes of the node meanwhile.

        What comes after the node has let a series go would be a series of its own: it stays where it is.
        """
        sender = self.rig.Sender(self.port, slices)
        while sender.rest() and not self.errors and not self._was_purged(sender.uid):
            with suppress(OSError, RuntimeError):
                sender.send_some()
            with self._lock:
                for ds in slices:
                    if ds.SOPInstanceUID in sender.acknowledged:
                        self.acknowledged[ds.SeriesInstanceUID].add(ds.SOPInstanceUID)
                        self.visits[ds.SeriesInstanceUID] = visit
            time.sleep(0.02)

    def _was_purged(self, series_uid: str) -> bool:
        jobs = self.ledger.find_jobs(series_uid)
        return bool(jobs) and jobs[-1].state is State.PURGED


# what is done to the node


class Beside:
    """What goes on by itself while its ``with`` block runs, and ends early where that ends early."""

    def __init__(self):
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        raise NotImplementedError


class Mischief(Beside):
    """Kills and outages, one in each of ``times`` equal parts of the run and none in the last part."""

    def __init__(self, rig, victim, archive, rng, began, seconds, times):
        super().__init__()
        self.rig, self.victim, self.archive, self.rng, self.began = rig, victim, archive, rng, began
        self.times, self.part_s = times, seconds / (times + 1)
        self.done: list[tuple[float, float, str]] = []
        """When it began, when it ended, and what it was; seconds since the beginning."""

    def _run(self) -> None:
        kinds: list[str] = []
        for number in range(self.times):
            kinds = kinds or self.rng.sample(sorted(MISCHIEF), len(MISCHIEF))
            due = self.began + (number + self.rng.uniform(0, 0.5)) * self.part_s
            if self._over.wait(max(0.0, due - time.monotonic())):
                return
            at, kind = time.monotonic() - self.began, kinds.pop()
            MISCHIEF[kind](self, self.part_s)
            self.done.append((at, time.monotonic() - self.began, kind))

    def kill(self, part_s: float, whom: str) -> None:
        self.rig.until(self.victim.worker)
        self.victim.kill(whom)
        self.victim.revive()

    def away(self, part_s: float, options: Sequence[str] = ()) -> None:
        """The archive is gone, or does what its options say, and comes back."""
        self.archive.become(*options) if options else self.archive.stop()
        self._over.wait(self.rng.uniform(0.2, 0.4) * min(part_s, 60))
        self.archive.become(BIT_PRESERVING)


MISCHIEF = {
    "node killed": partial(Mischief.kill, whom="node"),
    "worker killed": partial(Mischief.kill, whom="worker"),
    "node and worker killed": partial(Mischief.kill, whom="both"),
    "archive vanished": Mischief.away,
    "archive refused": partial(Mischief.away, options=("--refuse",)),
    "archive broke off": partial(Mischief.away, options=(BIT_PRESERVING, "--abort-during")),
}


# what is looked at meanwhile


@dataclass(frozen=True)
class Sample:
    """One look; ``usage`` is by role, with the number of the process, for those that are there."""

    at_s: float
    usage: dict[str, tuple[int, dict[str, int]]]
    files: int
    unfinished: int


class Looks(Beside):
    """Looks every ``every_s`` seconds while the ``with`` block runs."""

    def __init__(self, rig, victim, ledger, began, every_s):
        super().__init__()
        self.rig, self.victim, self.ledger, self.began, self.every_s = rig, victim, ledger, began, every_s
        self.samples: list[Sample] = []

    def _run(self) -> None:
        while not self._over.wait(self.every_s):
            usage = {}
            for role, pid in (("node", self.victim.process.pid), ("worker", self.victim.worker())):
                with suppress(OSError):
                    if pid is not None:
                        usage[role] = (pid, self.rig.usage(pid))
            files = self.rig.spool_files(self.ledger.path.parent)
            unfinished = len(self.ledger.jobs(UNFINISHED))
            self.samples.append(Sample(time.monotonic() - self.began, usage, files, unfinished))


def slope_per_s(rows: Sequence[tuple[int, float, float]], warm_up_s: float) -> float | None:
    """The common slope of values (life, seconds, value) that begin anew with each life; least squares.

    The first ``warm_up_s`` seconds of each life are left out. None where nothing is left to fit.
    """
    above = below = 0.0
    for _, group in itertools.groupby(rows, key=lambda row: row[0]):
        points = np.array([row[1:] for row in group])
        points = points[points[:, 0] >= points[0, 0] + warm_up_s]
        if len(points) > 1:
            at_s, value = (points - points.mean(axis=0)).T
            above, below = above + at_s @ value, below + at_s @ at_s
    return above / below if below else None


def trends(samples: Sequence[Sample], warm_up_s: float) -> dict[tuple[str, str], float | None]:
    """By (role, what): the slope of what a process holds."""
    found = {}
    for role, what in itertools.product(("node", "worker"), MOST_GAINED):
        rows = [
            (each.usage[role][0], each.at_s, each.usage[role][1][what])
            for each in samples
            if role in each.usage
        ]
        found[role, what] = slope_per_s(rows, warm_up_s)
    return found


def draw(path, samples, mischief, title):
    """Memory, descriptors and threads, files and series under way over time, and what was done when."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, 1, sharex=True)
    for axis, what, unit in zip(axes, MOST_GAINED, (MIB, 1, 1), strict=False):
        for role in ("node", "worker"):
            rows = [(each.at_s / 60, each.usage[role]) for each in samples if role in each.usage]
            for _, life in itertools.groupby(rows, key=lambda row: row[1][0]):
                at, held = zip(*life, strict=True)
                color = {"node": "C0", "worker": "C1"}[role]
                axis.plot(at, [usage[what] / unit for _, usage in held], color=color, lw=1.2)
        axis.set_ylabel(f"{what}, MiB" if unit == MIB else what)
        axis.set_ylim(bottom=0)
    at = [each.at_s / 60 for each in samples]
    axes[3].plot(at, [each.files for each in samples], color="C2", lw=1.2)
    axes[3].set_ylabel("files in the spool", color="C2")
    under_way = axes[3].twinx()
    under_way.plot(at, [each.unfinished for each in samples], color="C3", lw=0.8)
    under_way.set_ylabel("series under way", color="C3")
    for began_s, ended_s, what in mischief:
        for axis in axes:
            if what.startswith("archive"):
                axis.axvspan(began_s / 60, ended_s / 60, color="0.85", lw=0)
            else:
                axis.axvline(began_s / 60, color="0.4", lw=0.8, ls=":")
    axes[0].set_title(f"{title}; blue: node, orange: worker; dotted: killed, grey: archive away", fontsize=10)
    axes[3].set_xlabel("minutes")
    figure.savefig(path, dpi=80, metadata={"Software": None})


# what is counted at the end


def count(rig, settings, ledger, load, places, sample, scratch):
    """What was lost, what is missing, what is there twice, what differs; see the figures' names."""
    lost = unfinished = misjudged = 0
    final, jobs = {}, []
    for uid, acknowledged in load.acknowledged.items():
        job = ledger.find_jobs(uid)[-1]
        held = {each.sop_instance_uid for each in ledger.instances(job.id)}
        outputs = ledger.outputs(job.id)
        lost += len(acknowledged - held)
        if load.visits[uid].kind == "rejected":
            codes = {each.code for each in ledger.events(job.id) if each.to_state is State.REJECTED}
            misjudged += bool(outputs) or codes != {"HAS-CONTRAST"}
            continue
        unfinished += len(outputs) != 2 * len(acknowledged)
        final |= {each.sop_instance_uid: each.sha256 for each in outputs}
        jobs.append((job.id, uid))
    shows = {name: rig.live(folder) for name, folder in places.items()}
    disk = shows["disk"]
    sent = {}
    for job_id, uid in load.rng.sample(jobs, min(len(jobs), sample)):
        sent[job_id] = as_sent(load, uid, scratch / str(job_id))
    expected = rig.undisturbed(settings, ledger, sent)
    return {
        "instances acknowledged": sum(map(len, load.acknowledged.values())),
        "acknowledged and lost": lost,
        "series with a result": len(jobs),
        "series without a whole result": unfinished,
        "series judged wrongly": misjudged,
        "results missing at a destination": sum(len(final.keys() - each.keys()) for each in shows.values()),
        "results live beyond one a series": sum(len(each.keys() - final.keys()) for each in shows.values()),
        "results that differ between ledger, archive and folder": sum(
            sha256(disk[uid].read_bytes()).hexdigest() != digest
            or rig.data_set(disk[uid]) != rig.data_set(shows["pacs"][uid])
            for uid, digest in final.items()
            if uid in disk and uid in shows["pacs"]
        ),
        "series compared with an undisturbed run": len(sent),
        "results that differ from an undisturbed run": sum(
            uid not in disk or disk[uid].read_bytes() != data for uid, data in expected.items()
        ),
    }


def as_sent(load, uid, folder):
    """The acknowledged slices of a series as files, made again."""
    visit = load.visits[uid]
    folder.mkdir(parents=True)
    paths = {}
    for ds in (ds for wave in visit.waves(load.new_series) for part in wave for ds in part):
        if ds.SOPInstanceUID in load.acknowledged[uid]:
            paths[ds.SOPInstanceUID] = folder / f"{ds.SOPInstanceUID}.dcm"
            ds.save_as(paths[ds.SOPInstanceUID], enforce_file_format=True)
    return list(paths.values())


def test_a_slope_is_found_within_each_life_however_high_it_begins():
    lives = [(1, 0, 50.0), (2, 100, 20.0), (3, 150, 90.0)]
    rows = [(pid, at + s, base + 0.25 * s) for pid, at, base in lives for s in range(0, 40, 5)]
    begun = [(pid, at - 1, 0.0) for pid, at, _ in lives]
    assert slope_per_s(sorted(rows + begun), warm_up_s=1) == pytest.approx(0.25)
    assert slope_per_s(rows, warm_up_s=60) is None


def test_a_leak_is_named_though_every_kill_gives_it_back():
    def held(at, memory):
        return {"memory": memory, "descriptors": 9 + at % 2, "threads": 11}

    samples = [
        Sample(
            at,
            {"node": (at // 300, held(at, MIB * (200 + at % 300 // 30))), "worker": (7, held(at, 0))},
            5,
            1,
        )
        for at in range(0, 1200, 5)
    ]
    slopes = trends(samples, warm_up_s=60)
    assert too_much(slopes, 7200) == ["memory of the node, slope an hour, MiB"]
    assert too_much(slopes, 1200) == []


def measured(rig, load, ledger, results):
    """Results a second while a backlog of plain series is worked off."""
    cards = itertools.count()
    load.run(["plain"], 1e9, lambda: next(cards) >= results)
    assert rig.until(lambda: not ledger.jobs(UNFINISHED), 60 + 60 * results), ledger.jobs(UNFINISHED)
    built = [
        event.at
        for job in ledger.jobs()
        for event in ledger.events(job.id)
        if (event.from_state, event.to_state) == (State.READY, State.BUILT)
    ]
    assert len(built) == results
    load.kinds.clear()
    return (results - 1) / (max(built) - min(built))


def is_let_go(ledger):
    """Whether every job was purged, and a purge has no files left to remove."""
    return not ledger.purgeable(PURGEABLE, time.time()) and not ledger.unfinished_purges()


def sections(port, archive, disk, kept_s):
    """The node's settings: an archive and a folder, and files that are let go ``kept_s`` seconds after."""
    kept = dict.fromkeys(("delivered_days", "rejected_days", "superseded_days"), kept_s / DAY_S)
    return {
        "listen": {"port": port},
        "settle": {"quiet_s": QUIET_S, "max_wait_s": 600, "check_s": 0.1},
        "worker": {"max_attempts": 100},
        "retry": {"first_s": 0.2, "max_s": 2, "max_attempts": 100_000, "break_after": 3, "probe_s": 1},
        "retention": {**kept, "check_s": 1},
        "destinations": [
            {"name": "pacs", "host": "127.0.0.1", "port": archive.port, "ae_title": archive.ae_title},
            {"name": "disk", "kind": "folder", "path": disk},
        ],
    }


@pytest.mark.timeout(0)
def test_hours_of_load_kills_and_outages_lose_nothing_and_leave_nothing_behind(
    rig, amount, figures, picture, quick_settings, storescp, new_series, free_port, tmp_path
):
    minutes = amount("MINUTES", short=1, full=120)
    is_long = minutes >= 10
    warm_up_s, kept_s = (60.0, 60.0) if is_long else (10.0, 20.0)
    disk, archive = tmp_path / "disk", storescp(BIT_PRESERVING)
    disk.mkdir()
    settings = quick_settings(**sections(free_port(), archive, disk, kept_s))
    data_dir = settings.storage.data_dir
    with Ledger(data_dir / rig.LEDGER_FILE) as ledger, rig.Victim(settings) as victim:
        load = Load(rig, settings.listen.port, ledger, new_series, Random(SEED))
        assert rig.until(victim.listens)
        capacity = measured(rig, load, ledger, results=40 if is_long else 6)
        began, seconds, times = time.monotonic(), 60.0 * minutes, max(len(MISCHIEF), 2 * minutes // 5)
        with (
            Looks(rig, victim, ledger, began, 5.0 if is_long else 1.0) as looks,
            Mischief(rig, victim, archive, Random(SEED), began, seconds, times) as mischief,
        ):
            load.run(
                DECK,
                LOAD * capacity,
                lambda: (
                    time.monotonic() > began + seconds
                    and load.kinds.keys() == KINDS.keys()
                    and mischief.is_over()
                ),
            )
        assert len(mischief.done) == times
        patience_s = 600 + seconds
        assert rig.until(lambda: not ledger.jobs(UNFINISHED), patience_s), ledger.jobs(UNFINISHED)
        assert rig.until(lambda: not ledger.superseded(), 60), "superseded results are not announced"
        assert rig.until(lambda: is_let_go(ledger), kept_s + patience_s), "something is kept for ever"
        rig.until(lambda: rig.spool_files(data_dir) == 0, 60)
        left = rig.spool_files(data_dir)
        assert victim.stop() == 0
        archive.stop()
        counted = count(
            rig,
            settings,
            ledger,
            load,
            {"pacs": archive.folder, "disk": disk},
            sample=200 if is_long else 20,
            scratch=tmp_path / "sent",
        )
        parked = len(ledger.jobs([State.PARKED]))

    slopes = trends(looks.samples, warm_up_s if is_long else math.inf)
    rows = [(0, each.at_s, each.files) for each in looks.samples if each.at_s <= seconds]
    files_slope = slope_per_s(rows, warm_up_s + kept_s if is_long else math.inf)
    kept = [each.files for each in looks.samples if each.at_s >= warm_up_s + kept_s] or [0]
    draw(
        picture("soak"),
        looks.samples,
        mischief.done,
        f"{minutes} min at {LOAD:.0%} of {60 * capacity:.0f} results a minute",
    )
    figures(
        "soak",
        {
            "minutes of load": minutes,
            "capacity, results a minute": round(60 * capacity, 1),
            "part of it asked for": LOAD,
            "visits by kind": dict(load.kinds),
            "times the senders waited for the node": load.held_back,
            "done to it": dict(Counter(what for *_, what in mischief.done)),
            **counted,
            "jobs parked": parked,
            **{words(role, what): in_words(slope, what) for (role, what), slope in slopes.items()},
            "memory of the node at most, MiB": most(looks.samples, "node"),
            "memory of the worker at most, MiB": most(looks.samples, "worker"),
            "files in the spool on average": round(float(np.mean(kept))),
            "files in the spool, slope an hour": in_words(files_slope, "files"),
            "files in the spool when everything was let go": left,
        },
    )
    assert {name: counted[name] for name in NONE} == dict.fromkeys(NONE, 0)
    assert (parked, left) == (0, 0)
    if is_long:  # a short one sees processes that begin and a spool that fills
        assert None not in (*slopes.values(), files_slope), "no process lived long enough to say"
        assert too_much(slopes, seconds) == []
        assert seconds * files_slope < MOST_FILES_GAINED * np.mean(kept)


def too_much(slopes, seconds):
    """What a process would gain in so many seconds beyond what it may."""
    return [words(*key) for key, slope in slopes.items() if seconds * slope >= MOST_GAINED[key[1]]]


def words(role, what):
    return f"{what} of the {role}, slope an hour" + (", MiB" if what == "memory" else "")


def in_words(slope, what):
    """A slope by the second as one by the hour; some lives are too short for one."""
    return "too short to say" if slope is None else round(3600 * slope / (MIB if what == "memory" else 1), 1)


NONE = (
    "acknowledged and lost",
    "series without a whole result",
    "series judged wrongly",
    "results missing at a destination",
    "results live beyond one a series",
    "results that differ between ledger, archive and folder",
    "results that differ from an undisturbed run",
)
"""What has to be 0."""


def most(samples, role):
    return round(max(each.usage[role][1]["peak"] for each in samples if role in each.usage) / MIB, 1)
