"""Breathing between phases: organs below the diaphragm slide along the body, less the nearer the spine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.phantom.body import Build
from engine.phantom.shapes import Points
from engine.volume import Float32

STILL_MM, FREE_MM = 30.0, 95.0  # distance from the spine's axis where motion begins and where it is full
FORWARD_SHARE = 0.2  # motion to the front against motion along the body


@dataclass(frozen=True, slots=True)
class Breath:
    """How far the freest organs move along the body (mm, + toward the head) and to the front."""

    along_mm: float
    forward_mm: float

    @property
    def is_still(self) -> bool:
        """Whether nothing moves."""
        return self.along_mm == 0 and self.forward_mm == 0

    def displaced(self, points: Points, build: Build) -> Points:
        """The resting positions of what this breath has brought to ``points``."""
        if self.is_still:
            return points
        share = _freedom(points, build)
        z, y = points.z - self.along_mm * share, points.y + self.forward_mm * share
        reach = points.reach_mm + float(np.hypot(self.along_mm, self.forward_mm))
        return Points(points.axes, points.x, y, z, reach)


def _freedom(points: Points, build: Build) -> Float32:
    """0 on the spine, 1 far from it; less below, where the diaphragm is far."""
    away = np.sqrt(points.x**2 + (points.y - build.spine.y_mm) ** 2)
    near = np.clip((away - STILL_MM) / (FREE_MM - STILL_MM), 0.0, 1.0)
    high = np.clip((points.z + 150) / 200, 0.0, 1.0)
    return np.asarray(near * near * (3 - 2 * near) * (0.3 + 0.7 * high), np.float32)


def draw_breath(rng: np.random.Generator, most_mm: float, phase: int) -> Breath:
    """The breath of phase number ``phase`` of a patient; the first (unenhanced) phase is at rest."""
    shares = rng.uniform(-1, 1, size=8)
    along = float(most_mm * shares[phase]) if phase else 0.0
    return Breath(along, -along * FORWARD_SHARE) if along else Breath(0.0, 0.0)
