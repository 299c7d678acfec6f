"""Whether a node is alive, and whether it can take and do work: /healthz and /readyz say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class WorkerSign:
    """One worker: whether its process is watched, runs, and has its models loaded."""

    is_watched: bool
    is_running: bool
    has_models: bool


@dataclass(frozen=True, slots=True)
class Signs:
    """What a node knows of itself at one moment."""

    lanes: Mapping[str, bool]
    """Whether each lane gave a sign of life lately, by its name."""
    workers: tuple[WorkerSign, ...]
    open_associations: int
    has_room: bool
    """Whether new series are taken: the disk is above its watermark."""
    refused: Mapping[int, int] = field(default_factory=dict)
    """Instances not answered with success since the start, by status."""

    def ailments(self) -> list[str]:
        """Why the process is not well, in words; empty where it is."""
        stuck = [f"lane {name} is stuck" for name, beats in self.lanes.items() if not beats]
        return stuck + ["a worker is not supervised" for worker in self.workers if not worker.is_watched]

    def obstacles(self, *, answers: bool) -> list[str]:
        """Why it cannot take or do work now, in words; ``answers``: whether the listener does."""
        found = self.ailments()
        if not answers:
            found.append("the listener does not answer")
        if not self.has_room:
            found.append("the disk is below its watermark: new series are refused")
        for number, worker in enumerate(self.workers):
            if not worker.is_running:
                found.append(f"worker {number} does not run")
            elif not worker.has_models:
                found.append(f"worker {number} has not loaded its models")
        return found
