"""Paint a patient's parts on a window of a grid: edges one voxel wide, labels where a part covers half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.phantom.labels import LABELS
from engine.phantom.parts import Part, Within
from engine.phantom.shapes import (
    FAR_MM,
    WHOLE,
    Points,
    Window,
    is_empty,
)
from engine.volume import Float32

EDGE_VOXELS = 1.25  # width of an edge, in mean voxel sizes
_NO_PATTERN: Float32 = np.zeros((1, 1, 1), np.float32)


@dataclass(frozen=True, slots=True)
class Region:
    """A remembered distance, on the window where it was computed; further off it is ``FAR_MM``."""

    window: Window
    distance: Float32


@dataclass(frozen=True, slots=True)
class Canvas:
    """What is painted: HU by phase and labels, on fixed points and on points that follow the breathing."""

    fixed: Points
    moving: Points
    hu: Mapping[str, Float32]
    labels: NDArray[np.uint8]
    edge_mm: float
    regions: dict[str, Region] = field(default_factory=dict)


def paint(parts: Sequence[Part], canvas: Canvas) -> None:
    """Paint the parts in order."""
    for part in parts:
        window = _window_of(part, canvas)
        if not is_empty(window):
            _paint_part(part, canvas, window)


def _window_of(part: Part, canvas: Canvas) -> Window:
    points = canvas.moving if part.moves else canvas.fixed
    window = _resolved(WHOLE, points) if part.shape is None else points.window(part.shape.bounds)
    for within in part.within:
        region = canvas.regions.get(within.region)
        window = _shared(window, region.window) if region else (slice(0, 0),) * 3
    return window


def _resolved(window: Window, points: Points) -> Window:
    z, y, x = (slice(*part.indices(size)[:2]) for part, size in zip(window, points.shape, strict=True))
    return (z, y, x)


def _shared(a: Window, b: Window) -> Window:
    z, y, x = (slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return (z, y, x)


def _paint_part(part: Part, canvas: Canvas, window: Window) -> None:
    points = (canvas.moving if part.moves else canvas.fixed).at(window)
    distance = _distance(part, canvas, window, points)
    if part.remember:
        canvas.regions[part.remember] = Region(window, distance)
    cover = np.clip(0.5 - distance * (1 / canvas.edge_mm), 0.0, 1.0)
    if not cover.any():
        return
    pattern = _NO_PATTERN if part.texture is None else part.texture.waves.values(points)
    for phase, hu in canvas.hu.items():
        target, grain = hu[window], 0.0 if part.texture is None else part.texture.hu[phase]
        target += cover * (pattern * grain + part.hu[phase] - target)
    canvas.labels[window][cover >= 0.5] = LABELS[part.label]


def _distance(part: Part, canvas: Canvas, window: Window, points: Points) -> Float32:
    distance = np.full(points.shape, -FAR_MM, np.float32)
    if part.shape is not None:
        distance = np.maximum(distance, part.shape.distance(points))
    for within in part.within:
        np.maximum(distance, _depth(within, canvas, window, points), out=distance)
    return distance


def _depth(within: Within, canvas: Canvas, window: Window, points: Points) -> Float32:
    region = canvas.regions[within.region]
    z, y, x = (
        slice(part.start - home.start, part.stop - home.start)
        for part, home in zip(window, region.window, strict=True)
    )
    depth = region.distance[z, y, x] + within.depth_mm
    return depth if within.ripple is None else depth + within.ripple.values(points)
