"""Implicit shapes in patient millimetres: a signed distance, negative inside, evaluated on a window.

Positions here are (x, y, z) in LPS: +x left, +y posterior, +z head; arrays are (slice, row, column),
that is (z, y, x). Every value depends on the voxel's own position only (no sums over arrays, no matrix
products), so a window of the grid holds the same bits as the same voxels of the whole grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.volume import Float32, Shape3, Vec3

Window = tuple[slice, slice, slice]
Float64 = NDArray[np.float64]

FAR_MM = 1e3  # a distance that paints nothing
ENDLESS_MM = 1e4
WHOLE: Window = (slice(None), slice(None), slice(None))


@dataclass(frozen=True, slots=True)
class Bounds:
    """A box in (x, y, z) mm that holds a shape."""

    low: Vec3
    high: Vec3

    def grown(self, margin_mm: float) -> Bounds:
        """The same box with a margin on all six sides."""
        low = (self.low[0] - margin_mm, self.low[1] - margin_mm, self.low[2] - margin_mm)
        return Bounds(low, (self.high[0] + margin_mm, self.high[1] + margin_mm, self.high[2] + margin_mm))

    def joined(self, other: Bounds) -> Bounds:
        """The smallest box around both."""
        return Bounds(_vec(np.minimum(self.low, other.low)), _vec(np.maximum(self.high, other.high)))

    def shared(self, other: Bounds) -> Bounds:
        """The box both have in common, possibly empty."""
        return Bounds(_vec(np.maximum(self.low, other.low)), _vec(np.minimum(self.high, other.high)))


EVERYWHERE = Bounds((-ENDLESS_MM,) * 3, (ENDLESS_MM,) * 3)


def _vec(values: Sequence[float] | Float64) -> Vec3:
    x, y, z = (float(value) for value in values)
    return (x, y, z)


@dataclass(frozen=True, slots=True)
class Points:
    """Positions of a window of voxels.

    ``axes`` are the undisplaced (z, y, x) coordinates; ``x``, ``y``, ``z`` broadcast to ``shape`` and may be
    displaced by at most ``reach_mm`` less the soft edge, so a shape further off than that cannot be seen.
    """

    axes: tuple[Float32, Float32, Float32]
    x: Float32
    y: Float32
    z: Float32
    reach_mm: float

    @property
    def shape(self) -> Shape3:
        """Voxels along slice, row, column."""
        z, y, x = self.axes
        return (z.size, y.size, x.size)

    def window(self, bounds: Bounds) -> Window:
        """The voxels that may see something that lies within ``bounds``."""
        grown = bounds.grown(self.reach_mm)
        z, y, x = (
            slice(int(np.searchsorted(axis, low, "left")), int(np.searchsorted(axis, high, "right")))
            for axis, low, high in zip(self.axes, grown.low[::-1], grown.high[::-1], strict=True)
        )
        return (z, y, x)

    def at(self, window: Window) -> Points:
        """The positions of a part of these voxels."""
        z, y, x = (axis[part] for axis, part in zip(self.axes, window, strict=True))
        return Points(
            (z, y, x),
            part_of(self.x, window),
            part_of(self.y, window),
            part_of(self.z, window),
            self.reach_mm,
        )


def part_of(array: Float32, window: Window) -> Float32:
    """A window of an array that broadcasts along the axes where it has length one."""
    z, y, x = (slice(None) if size == 1 else part for size, part in zip(array.shape, window, strict=True))
    return array[z, y, x]


def is_empty(window: Window) -> bool:
    """Whether a window holds no voxel."""
    return any(part.stop <= part.start for part in window)


class Shape(Protocol):
    """Something with an inside."""

    @property
    def bounds(self) -> Bounds:
        """A box that holds the shape."""

    def distance(self, points: Points) -> Float32:
        """Signed distance in mm, negative inside, broadcastable to ``points.shape``."""


@dataclass(frozen=True, slots=True)
class Waves:
    """A smooth random field: the sum of oblique plane waves, each of amplitude ``height`` (mm or HU)."""

    height: float
    vectors: tuple[Vec3, ...]
    phases: tuple[float, ...]

    def values(self, points: Points) -> Float32:
        """The field at the points."""
        total = np.zeros((1, 1, 1), np.float32)
        for (kx, ky, kz), phase in zip(self.vectors, self.phases, strict=True):
            across, along = points.x * kx + points.y * ky, points.z * kz + phase
            total = total + (np.cos(across) * np.cos(along) - np.sin(across) * np.sin(along))
        return total * self.height


def draw_waves(
    rng: np.random.Generator, sd: float, wavelength_mm: tuple[float, float], count: int = 4
) -> Waves:
    """Random waves whose sum has the standard deviation ``sd`` over space."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    vectors = direction * 2 * np.pi / rng.uniform(*wavelength_mm, size=(count, 1))
    phases = tuple(float(phase) for phase in rng.uniform(0, 2 * np.pi, count))
    return Waves(float(sd * np.sqrt(2 / count)), tuple(_vec(row) for row in vectors), phases)


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """An ellipsoid; ``rotation`` holds its own axes as rows, ``ripple`` swells and dents its surface (mm)."""

    centre: Vec3
    radii: Vec3
    rotation: tuple[Vec3, Vec3, Vec3] | None = None
    ripple: Waves | None = None

    @property
    def bounds(self) -> Bounds:
        """A box that holds the ellipsoid with its ripples."""
        turn = np.eye(3) if self.rotation is None else np.asarray(self.rotation)
        half = np.sqrt(((turn * np.asarray(self.radii)[:, None]) ** 2).sum(axis=0))
        centre = np.asarray(self.centre)
        swell = 0.0 if self.ripple is None else self.ripple.height * len(self.ripple.phases)
        return Bounds(_vec(centre - half), _vec(centre + half)).grown(swell)

    def distance(self, points: Points) -> Float32:
        """First-order distance k(k−1)/|∇k²/2| with k the normalised radius."""
        square: Float32 = np.full((1, 1, 1), 1e-6, np.float32)
        slope = square * (1 / min(self.radii) ** 2)
        for offset, radius in zip(self._local(points), self.radii, strict=True):
            scaled = (offset * (1 / radius)) ** 2
            square, slope = square + scaled, slope + scaled * (1 / radius**2)
        flat: Float32 = (square - np.sqrt(square)) / np.sqrt(slope)
        return flat if self.ripple is None else flat + self.ripple.values(points)

    def _local(self, points: Points) -> tuple[Float32, Float32, Float32]:
        x, y, z = (p - c for p, c in zip((points.x, points.y, points.z), self.centre, strict=True))
        if self.rotation is None:
            return x, y, z
        u, v, w = (x * a + y * b + z * c for a, b, c in self.rotation)
        return u, v, w


def tilted(about_x_deg: float, about_y_deg: float, about_z_deg: float) -> tuple[Vec3, Vec3, Vec3]:
    """Rows: the axes of a frame turned about x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad([about_x_deg, about_y_deg, about_z_deg])):
        step, (i, j) = np.eye(3), ((1, 2), (2, 0), (0, 1))[axis]
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    first, second, third = (_vec(row) for row in turn.T)
    return first, second, third


@dataclass(frozen=True, slots=True)
class Segment:
    """A straight piece of a tube: from ``start`` to ``end`` (mm), its radius going from ``r0`` to ``r1``."""

    start: Vec3
    end: Vec3
    r0: float
    r1: float

    def distance(self, points: Points, squash: float) -> Float32:
        """Distance to the tapered capsule; ``squash`` > 1 flattens it from front to back."""
        x, y, z = points.x - self.start[0], (points.y - self.start[1]) * squash, points.z - self.start[2]
        dx, dy, dz = (b - a for a, b in zip(self.start, self.end, strict=True))
        dy *= squash
        scale = 1 / max(dx * dx + dy * dy + dz * dz, 1e-6)
        t = np.clip(x * (dx * scale) + y * (dy * scale) + z * (dz * scale), 0.0, 1.0)
        square = (x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2
        return np.asarray(np.sqrt(square) - (self.r0 + t * (self.r1 - self.r0)), np.float32)


@dataclass(frozen=True)
class Tubes:
    """A bundle of tube pieces, seen as one shape; ``ripple`` makes its surface lobulated."""

    segments: tuple[Segment, ...]
    squash: float = 1.0
    ripple: Waves | None = None
    _low: Float64 = field(init=False, repr=False, compare=False)
    _high: Float64 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = np.array([(s.start, s.end) for s in self.segments])
        radius = np.array([max(s.r0, s.r1) for s in self.segments])[:, None] + self._swell
        object.__setattr__(self, "_low", ends.min(axis=1) - radius)
        object.__setattr__(self, "_high", ends.max(axis=1) + radius)

    @property
    def _swell(self) -> float:
        return 0.0 if self.ripple is None else self.ripple.height * len(self.ripple.phases)

    @property
    def bounds(self) -> Bounds:
        """A box that holds all pieces."""
        return Bounds(_vec(self._low.min(axis=0)), _vec(self._high.max(axis=0)))

    def distance(self, points: Points) -> Float32:
        """Distance to the nearest piece; ``FAR_MM`` where none is near."""
        nearest = np.full(points.shape, FAR_MM, np.float32)
        for index in self._near(points):
            window = points.window(Bounds(_vec(self._low[index]), _vec(self._high[index])))
            if not is_empty(window):
                piece = self.segments[index].distance(points.at(window), self.squash)
                np.minimum(nearest[window], piece, out=nearest[window])
        return nearest if self.ripple is None else nearest + self.ripple.values(points)

    def _near(self, points: Points) -> NDArray[np.intp]:
        if 0 in points.shape:
            return np.zeros(0, np.intp)
        first = np.array([axis[0] for axis in points.axes[::-1]]) - points.reach_mm
        last = np.array([axis[-1] for axis in points.axes[::-1]]) + points.reach_mm
        return np.flatnonzero(np.all((self._high >= first) & (self._low <= last), axis=1))


@dataclass(frozen=True, slots=True)
class HalfSpace:
    """Everything where ``normal``·(x, y, z) < ``offset_mm``; ``normal`` has length one."""

    normal: Vec3
    offset_mm: float

    @property
    def bounds(self) -> Bounds:
        """A half space has no ends."""
        return EVERYWHERE

    def distance(self, points: Points) -> Float32:
        """Distance to the plane."""
        a, b, c = self.normal
        total: Float32 = np.zeros((1, 1, 1), np.float32)
        for factor, axis in ((a, points.x), (b, points.y), (c, points.z)):
            total = total + axis * factor if factor else total
        return total - self.offset_mm


@dataclass(frozen=True, slots=True)
class Trunk:
    """The body's outline: a superellipse whose size follows ``profile`` (z mm, factor) along the body."""

    half_width_mm: float
    half_depth_mm: float
    centre_y_mm: float
    power: float
    profile: tuple[tuple[float, float], ...]

    @property
    def bounds(self) -> Bounds:
        """Bounded across, endless along."""
        grow = max(factor for _, factor in self.profile)
        width, depth = self.half_width_mm * grow, self.half_depth_mm * grow
        low = (-width, self.centre_y_mm - depth, -ENDLESS_MM)
        return Bounds(low, (width, self.centre_y_mm + depth, ENDLESS_MM))

    def distance(self, points: Points) -> Float32:
        """Radial distance to the outline."""
        x, y = np.abs(points.x), np.abs(points.y - self.centre_y_mm)
        gauge = (x * (1 / self.half_width_mm)) ** self.power + (y * (1 / self.half_depth_mm)) ** self.power
        gauge = np.maximum(gauge, 1e-6) ** (1 / self.power)
        radius = np.sqrt(x * x + y * y)
        return np.asarray(radius - radius / gauge * self._factor(points.z), np.float32)

    def _factor(self, z: Float32) -> Float32:
        heights, factors = zip(*self.profile, strict=True)
        return np.asarray(np.interp(z, heights, factors), np.float32)


@dataclass(frozen=True, slots=True)
class Dome:
    """One half of the diaphragm: an ellipsoid's upper half standing on an endless cylinder."""

    centre: Vec3
    radii: Vec3

    @property
    def bounds(self) -> Bounds:
        """Bounded above and across."""
        (x, y, z), (a, b, c) = self.centre, self.radii
        return Bounds((x - a, y - b, -ENDLESS_MM), (x + a, y + b, z + c))

    def distance(self, points: Points) -> Float32:
        """The ellipsoid's distance with z held at its equator below it."""
        clamped = Points(
            points.axes, points.x, points.y, np.maximum(points.z, self.centre[2]), points.reach_mm
        )
        return Ellipsoid(self.centre, self.radii).distance(clamped)


@dataclass(frozen=True, slots=True)
class Union:
    """What lies in any of the shapes, their seams rounded over ``blend_mm``."""

    shapes: tuple[Shape, ...]
    blend_mm: float = 0.0
    ripple: Waves | None = None

    @property
    def bounds(self) -> Bounds:
        """A box that holds every shape."""
        total = self.shapes[0].bounds
        for shape in self.shapes[1:]:
            total = total.joined(shape.bounds)
        swell = 0.0 if self.ripple is None else self.ripple.height * len(self.ripple.phases)
        return total.grown(self.blend_mm / 4 + swell)

    def distance(self, points: Points) -> Float32:
        """The smallest distance, rounded by the polynomial smooth minimum."""
        nearest = self.shapes[0].distance(points)
        for shape in self.shapes[1:]:
            nearest = _smooth_minimum(nearest, shape.distance(points), self.blend_mm)
        return nearest if self.ripple is None else nearest + self.ripple.values(points)


@dataclass(frozen=True, slots=True)
class Common:
    """What lies in all of the shapes."""

    shapes: tuple[Shape, ...]

    @property
    def bounds(self) -> Bounds:
        """The box all shapes share."""
        total = self.shapes[0].bounds
        for shape in self.shapes[1:]:
            total = total.shared(shape.bounds)
        return total

    def distance(self, points: Points) -> Float32:
        """The largest distance."""
        furthest = self.shapes[0].distance(points)
        for shape in self.shapes[1:]:
            furthest = np.maximum(furthest, shape.distance(points))
        return furthest


@dataclass(frozen=True, slots=True)
class Without:
    """What lies in ``whole`` but not in ``cut``, the rim rounded over ``blend_mm``."""

    whole: Shape
    cut: Shape
    blend_mm: float = 0.0

    @property
    def bounds(self) -> Bounds:
        """The uncut shape's box."""
        return self.whole.bounds

    def distance(self, points: Points) -> Float32:
        """max(whole, −cut), rounded."""
        return -_smooth_minimum(-self.whole.distance(points), self.cut.distance(points), self.blend_mm)


def _smooth_minimum(a: Float32, b: Float32, blend_mm: float) -> Float32:
    if not blend_mm:
        return np.minimum(a, b)
    overlap = np.maximum(blend_mm - np.abs(a - b), 0.0)
    return np.asarray(np.minimum(a, b) - overlap * overlap * (0.25 / blend_mm), np.float32)
