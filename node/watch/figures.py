"""What Prometheus reads: made from the ledger, the disk and the node itself at the moment it asks.

Nothing is kept between two readings, so nothing is lost by a restart; what is counted as it happens is in
``chronicle``. Labels hold states, codes, names of destinations and of models: no patient, no UID.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.settings import Settings
from engine.bundle import MANIFEST
from engine.errors import BundleInvalid
from node.commitment.hear import asks
from node.destinations.answer import store_status
from node.ledger import Ledger
from node.models import ModelStore
from node.receive import STATUSES, SUCCESS
from node.states import State
from node.watch.signs import Signs

PARTS: Final = ("inbox", "outbox", "quarantine", "tmp", "models", "audit")
"""Folders of the data folder whose size is told."""
MEASURE_EVERY_S: Final = 60.0
"""Seconds between two walks over the spool: it may hold a million files."""

REFUSALS: Final = frozenset(STATUSES) - {SUCCESS}
"""Answers to a C-STORE but success: told from the start, so that the first is seen as a rise."""

Gauges = Mapping[tuple[str, ...], float]


class Figures(Collector):
    """All that can be read at one moment; ``look`` is the node's view of itself, ``now`` epoch seconds."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        look: Callable[[], Signs],
        more: Iterable[Callable[[], Iterable[Metric]]] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._look = look
        self._more = tuple(more)
        self._now = now
        self._models = ModelStore(settings)
        self._size = Size(settings.storage.data_dir)

    def describe(self) -> list[Metric]:
        """Nothing beforehand: a registry would otherwise read everything when it is made."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every figure; called for each reading, in a thread of the server."""
        yield from self._of_the_ledger()
        yield from self._of_the_destinations()
        yield from self._of_the_commitments()
        yield from self._of_the_disk()
        yield from self._of_the_node()
        yield from self._of_the_models()
        for part in self._more:
            yield from part()

    def _of_the_ledger(self) -> Iterator[Metric]:
        found, now = self._ledger.figures(), self._now()
        yield gauge("s2node_jobs", "Jobs by state.", ["state"], by_name(found.jobs))
        ages = {state: max(0.0, now - at) for state, at in found.oldest.items()}
        words = "Age of the job that has been longest in a state, in seconds."
        yield gauge("s2node_oldest_job_seconds", words, ["state"], by_name(ages))
        yield gauge("s2node_instances", "Received instances that are kept.", [], {(): found.instances})
        names = [destination.name for destination in self._settings.destinations]
        refused = by_name({**dict.fromkeys(names, 0), **found.refused})
        words = "Jobs that a destination refused."
        yield gauge("s2node_deliveries_refused", words, ["destination"], refused)
        yield self._answers(found.answers)
        words = "What was counted since the ledger was made."
        yield counter("s2node_counted", words, ["what"], by_name(self._ledger.counters()))

    def _of_the_destinations(self) -> Iterator[Metric]:
        names = [destination.name for destination in self._settings.destinations]
        standing = {each.breaker.destination: each for each in self._ledger.destinations(names)}
        waiting = {name: each.jobs for name, each in standing.items()}
        words = "Jobs that wait for a destination."
        yield gauge("s2node_deliveries_waiting", words, ["destination"], by_name(waiting))
        owed = {name: self._age_s(each.oldest_at) for name, each in standing.items()}
        words = "Age of the job that a destination has been owed longest, in seconds; 0 where there is none."
        yield gauge("s2node_oldest_delivery_seconds", words, ["destination"], by_name(owed))
        left_alone = {name: each.breaker.opened_at is not None for name, each in standing.items()}
        words = "Whether a destination is left alone but for a probe."
        yield gauge("s2node_breaker_open", words, ["destination"], by_name(left_alone))
        failures = {name: each.breaker.failures for name, each in standing.items()}
        words = "Failures of a destination in a row."
        yield gauge("s2node_destination_failures", words, ["destination"], by_name(failures))

    def _of_the_commitments(self) -> Iterator[Metric]:
        names = [each.name for each in self._settings.destinations if asks(each)]
        waiting = {name: self._ledger.commitments_waiting(name) for name in names}
        jobs = {name: count for name, (count, _) in waiting.items()}
        words = "Jobs that a destination has and has not committed."
        yield gauge("s2node_commitments_waiting", words, ["destination"], by_name(jobs))
        ages = {name: self._age_s(since) for name, (_, since) in waiting.items()}
        words = "Seconds since the oldest of them was delivered; 0 where there is none."
        yield gauge("s2node_oldest_commitment_seconds", words, ["destination"], by_name(ages))

    def _age_s(self, since: float | None) -> float:
        return 0.0 if since is None else max(0.0, self._now() - since)

    def _answers(self, found: Mapping[tuple[str, int], int]) -> Metric:
        sums: dict[tuple[str, ...], float] = {}
        for (destination, status), count in found.items():
            key = (destination, store_status(status).verdict.lower())
            sums[key] = sums.get(key, 0) + count
        words = "Instances by the destination's last answer."
        return counter("s2node_delivered_instances", words, ["destination", "outcome"], sums)

    def _of_the_disk(self) -> Iterator[Metric]:
        storage = self._settings.storage
        disk = os.statvfs(storage.data_dir)
        free = disk.f_bavail * disk.f_frsize
        yield gauge("s2node_disk_free_bytes", "Free bytes of the spool's disk.", [], {(): free})
        words = "Free bytes below which senders are refused."
        yield gauge("s2node_disk_reserved_bytes", words, [], {(): storage.min_free_bytes})
        sizes = self._size.now()
        parts = {part: size for part, (_, size) in sizes.items()}
        counts = {part: count for part, (count, _) in sizes.items()}
        yield gauge("s2node_spool_bytes", "Bytes of the spool's folders.", ["part"], by_name(parts))
        yield gauge("s2node_spool_files", "Files of the spool's folders.", ["part"], by_name(counts))

    def _of_the_node(self) -> Iterator[Metric]:
        signs = self._look()
        words = "Associations open now."
        yield gauge("s2node_open_associations", words, [], {(): signs.open_associations})
        refused = {f"0x{status:04X}": signs.refused.get(status, 0) for status in {*REFUSALS, *signs.refused}}
        words = "Instances not answered with success, by status."
        yield counter("s2node_instances_refused", words, ["status"], by_name(refused))
        most = self._settings.listen.max_associations
        yield gauge("s2node_max_associations", "Associations that may be open.", [], {(): most})
        words = "Whether a lane gave a sign of life lately."
        yield gauge("s2node_lane_up", words, ["lane"], by_name(signs.lanes))
        running = {str(number): worker.is_running for number, worker in enumerate(signs.workers)}
        yield gauge("s2node_worker_up", "Whether a worker process runs.", ["worker"], by_name(running))
        loaded = {str(number): worker.has_models for number, worker in enumerate(signs.workers)}
        yield gauge("s2node_worker_ready", "Whether a worker has its models.", ["worker"], by_name(loaded))
        yield gauge("s2node_info", "The version of s2node.", ["version"], {(version("s2node"),): 1})

    def _of_the_models(self) -> Iterator[Metric]:
        words = "The model in use, by phase."
        labels = ["phase", "model", "digest"]
        yield gauge("s2node_model_info", words, labels, dict.fromkeys(self._in_use(), 1.0))

    def _in_use(self) -> Iterator[tuple[str, ...]]:
        try:
            for phase, folder in self._models.active().items():
                manifest = (folder / MANIFEST).read_bytes()
                yield phase, str(json.loads(manifest)["model_id"]), sha256(manifest).hexdigest()[:12]
        except (BundleInvalid, OSError, ValueError, KeyError):  # the worker says so; a reading must not fail
            return


class Size:
    """Files and bytes of the spool's folders, walked at most every ``every_s`` seconds."""

    def __init__(
        self, root: Path, every_s: float = MEASURE_EVERY_S, elapsed: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._every_s = every_s
        self._elapsed = elapsed
        self._measured_at = float("-inf")
        self._found: dict[str, tuple[int, int]] = {}

    def now(self) -> Mapping[str, tuple[int, int]]:
        """By folder: files and bytes."""
        if self._elapsed() - self._measured_at >= self._every_s:
            self._found = {part: measure(self._root / part) for part in PARTS}
            self._measured_at = self._elapsed()
        return self._found


def measure(folder: Path) -> tuple[int, int]:
    """Files below ``folder`` and their bytes; what vanishes meanwhile is not counted."""
    files = size = 0
    todo = [os.fspath(folder)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        files, size = files + 1, size + entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return files, size


def by_name(values: Mapping[State, float] | Mapping[str, float]) -> Gauges:
    """Values with one label."""
    return {(str(name),): value for name, value in values.items()}


def gauge(name: str, words: str, labels: list[str], values: Gauges) -> Metric:
    """Numbers that go up and down."""
    family = GaugeMetricFamily(name, words, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), float(value))
    return family


def counter(name: str, words: str, labels: list[str], values: Gauges) -> Metric:
    """Numbers that only go up; Prometheus sees ``name`` with ``_total``."""
    family = CounterMetricFamily(name, words, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), float(value))
    return family
