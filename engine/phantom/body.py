"""The body that holds the organs: build, outline, wall, diaphragm, lungs, skeleton and back muscles, table.

All lengths are in mm in LPS with the origin in the midline at the level of the first lumbar vertebra. Shapes
are written for a typical adult and scaled by the patient's :class:`Build`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.phantom.enhancement import PHASES, Enhancement
from engine.phantom.parts import Part, Texture, Within
from engine.phantom.shapes import (
    ENDLESS_MM,
    EVERYWHERE,
    Bounds,
    Common,
    Dome,
    Ellipsoid,
    HalfSpace,
    Points,
    Segment,
    Shape,
    Trunk,
    Tubes,
    Union,
    Without,
    draw_waves,
)
from engine.volume import Float32, Vec3

WALL_HALF_WIDTH_MM = 148.0  # outer face of the muscular wall
WALL_HALF_DEPTH_MM = 98.0
WALL_MM = 12.0
TYPICAL_FAT_MM = 16.0
SPINE_Y_MM = 45.0
VERTEBRA_MM = 34.0  # from one vertebra to the next
TRUNK_POWER = 2.35


@dataclass(frozen=True, slots=True)
class Build:
    """Body size: scale factors across, front to back and along; layers of fat; where the spine bends."""

    scale: Vec3
    fat_mm: float
    belly_mm: float
    bend_mm: float
    shift: Vec3

    def at(self, x: float, y: float, z: float) -> Vec3:
        """A typical adult's position in this patient."""
        return (x * self.scale[0], y * self.scale[1], z * self.scale[2])

    def radii(self, a: float, b: float, c: float) -> Vec3:
        """A typical adult's half-axes in this patient."""
        return self.at(a, b, c)

    @property
    def wall_width_mm(self) -> float:
        """Half width of the muscular wall."""
        return WALL_HALF_WIDTH_MM * self.scale[0]

    @property
    def wall_depth_mm(self) -> float:
        """Half depth of the muscular wall."""
        return WALL_HALF_DEPTH_MM * self.scale[1]

    @property
    def half_width_mm(self) -> float:
        """Half width of the body at the skin."""
        return self.wall_width_mm + self.fat_mm

    @property
    def half_depth_mm(self) -> float:
        """Half depth of the body at the skin."""
        return self.wall_depth_mm + self.fat_mm + self.belly_mm / 2

    @property
    def relative_size(self) -> float:
        """Cross-section against a typical adult's."""
        typical = (WALL_HALF_WIDTH_MM + TYPICAL_FAT_MM) * (WALL_HALF_DEPTH_MM + TYPICAL_FAT_MM)
        return self.half_width_mm * self.half_depth_mm / typical

    @property
    def spine(self) -> Spine:
        """The course of the spine."""
        return Spine(SPINE_Y_MM * self.scale[1], self.bend_mm)


@dataclass(frozen=True, slots=True)
class Spine:
    """Where the vertebral bodies' centres run: lordosis brings them forward in the lumbar part."""

    y_mm: float
    bend_mm: float

    def y_at(self, z_mm: float) -> float:
        """Centre at one height."""
        return self.y_mm + self.bend_mm * float(np.sin(2 * np.pi * (z_mm - 20) / 420))

    def along(self, z: Float32) -> Float32:
        """Centres at many heights."""
        return np.asarray(self.y_mm + self.bend_mm * np.sin((z - 20) * (2 * np.pi / 420)), np.float32)


def draw_build(rng: np.random.Generator) -> Build:
    """A patient's build from sex, frame and fatness."""
    is_male, fatness = rng.random() < 0.5, float(np.clip(rng.normal(0, 0.9), -1.4, 2.0))
    frame = 1.02 if is_male else 0.96
    width = frame + 0.03 * fatness + float(rng.normal(0, 0.015))
    depth = frame + 0.07 * fatness + float(rng.normal(0, 0.02))
    height = frame + float(rng.normal(0, 0.03))
    fat = float(np.clip(12 * np.exp(0.55 * fatness) * (1.0 if is_male else 1.3), 4, 30))
    shift = (float(rng.normal(0, 4)), float(rng.normal(0, 4)), float(rng.normal(0, 5)))
    belly = float(rng.uniform(0, 10)) * max(fatness, 0)
    return Build((width, depth, height), fat, belly, float(rng.uniform(3, 9)), shift)


def trunk_parts(build: Build, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Table, skin, fat, muscular wall and the cavity within; remembers ``wall`` and ``cavity``."""
    of = enhancement.of
    yield from _table_parts(build, enhancement)
    yield Part("skin", of("skin"), _skin(build), remember="skin", moves=False)
    yield Part("fat", of("fat"), within=(Within("skin", 2.0),), moves=False)
    wall = Trunk(build.wall_width_mm, build.wall_depth_mm, 0.0, TRUNK_POWER, _wall_profile(rng))
    yield Part("muscle", of("muscle"), wall, remember="wall", moves=False)
    yield Part("fat", of("fat"), _linea_alba(build), (Within("wall", 1.0),), moves=False)
    inner = Within("wall", WALL_MM, draw_waves(rng, 1.2, (70, 160), 3))
    yield Part("fat", of("fat"), within=(inner,), remember="cavity", moves=False)


def _skin(build: Build) -> Trunk:
    profile = ((-180.0, 1.03), (-60.0, 1.0), (60.0, 0.985), (180.0, 1.0))
    return Trunk(build.half_width_mm, build.half_depth_mm, -build.belly_mm / 4, 2.25, profile)


def _wall_profile(rng: np.random.Generator) -> tuple[tuple[float, float], ...]:
    waist = float(rng.uniform(0.93, 0.985))
    return ((-180.0, 1.0), (-60.0, waist), (40.0, 1.0), (180.0, 0.97))


def _linea_alba(build: Build) -> Shape:
    x, y, _ = build.at(5.0, -40.0, 0.0)
    return Slab((-x, -ENDLESS_MM, -ENDLESS_MM), (x, y, ENDLESS_MM))


def _table_parts(build: Build, enhancement: Enhancement) -> Iterator[Part]:
    """A shallow trough of foam in a skin of carbon fibre, just under the back."""
    top = build.half_depth_mm - build.belly_mm / 4 + 2
    bed, trough = (Ellipsoid((0, top - 48 + d, 0), (235, 48, ENDLESS_MM)) for d in (16, 0))
    low = HalfSpace((0, -1, 0), -(top - 20))
    carbon = dict.fromkeys(PHASES, 30.0)
    yield Part("table", carbon, Common((Without(bed, trough), low)), remember="table", moves=False)
    yield Part("table", enhancement.of("table"), within=(Within("table", 3.2),), moves=False)


@dataclass(frozen=True, slots=True)
class Slab:
    """A box with faces along the axes, from ``low`` to ``high`` (mm)."""

    low: Vec3
    high: Vec3

    @property
    def bounds(self) -> Bounds:
        """The box itself."""
        return Bounds(self.low, self.high)

    def distance(self, points: Points) -> Float32:
        """Largest distance beyond a face."""
        result: Float32 = np.full((1, 1, 1), -ENDLESS_MM, np.float32)
        for axis, low, high in zip((points.x, points.y, points.z), self.low, self.high, strict=True):
            result = np.maximum(result, np.maximum(low - axis, axis - high))
        return result


def chest_parts(build: Build, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Lung bases, mediastinum, heart, diaphragm and the fat below it; remembers ``abdomen``."""
    of = enhancement.of
    tilt = float(np.deg2rad(rng.uniform(12, 20)))
    low = HalfSpace((0, -float(np.sin(tilt)), -float(np.cos(tilt))), -build.scale[2] * 48)
    grain = Texture(draw_waves(rng, 1.0, (9, 28), 6), dict.fromkeys(PHASES, 22.0))
    yield Part("lung", of("lung"), low, (Within("cavity"),), moves=False, texture=grain)
    yield Part("fat", of("fat"), _mediastinum(build), (Within("cavity"),), remember="mediastinum")
    heart = Ellipsoid(
        build.at(28, -38, 142), build.radii(52, 42, 36), ripple=draw_waves(rng, 1.5, (60, 120), 3)
    )
    yield Part("heart", of("heart"), heart, (Within("cavity", 3.0),))
    domes = _diaphragm(build, rng)
    yield Part("muscle", of("muscle"), domes, (Within("cavity"),), remember="diaphragm")
    yield Part("fat", of("fat"), within=(Within("diaphragm", 2.5),), remember="abdomen")


def _mediastinum(build: Build) -> Shape:
    core = Ellipsoid(build.at(8, -8, 150), build.radii(40, 74, 120))
    return Common((core, HalfSpace((0, 0, -1), -build.scale[2] * 60)))


def _diaphragm(build: Build, rng: np.random.Generator) -> Shape:
    right = Dome(build.at(-62, -6, 38), build.radii(84, 84, 76 + float(rng.normal(0, 4))))
    left = Dome(build.at(62, -6, 34), build.radii(82, 82, 64 + float(rng.normal(0, 4))))
    tilt = float(np.deg2rad(14))
    below = HalfSpace((0, float(np.sin(tilt)), float(np.cos(tilt))), build.scale[2] * 44)
    return Union((right, left, below), 14.0, draw_waves(rng, 1.5, (50, 110), 3))


def skeleton_parts(build: Build, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Back muscles, vertebrae with discs and canal, ribs."""
    muscle = enhancement.of("muscle")
    yield Part("fat", enhancement.of("fat"), _back_fat(build), (Within("wall", 3.0),), moves=False)
    yield Part("muscle", muscle, _back_muscles(build, rng), (Within("wall", 1.0),), moves=False)
    yield from _spine_parts(build, enhancement, rng)
    yield from _rib_parts(build, enhancement, rng)


def _back_fat(build: Build) -> Tubes:
    return Tubes(tuple(_mirrored(build, ((38, 73, -200), (36, 76, 200)), (29, 27))), squash=1.35)


def _back_muscles(build: Build, rng: np.random.Generator) -> Union:
    bulk = float(rng.uniform(0.88, 1.12))
    back = Tubes(
        tuple(_mirrored(build, ((36, 73, -200), (34, 76, 200)), (28 * bulk, 23 * bulk))), squash=1.45
    )
    psoas = ((26, 46, 14), (34, 42, -30), (43, 38, -80), (52, 26, -150), (60, 10, -200))
    loin = ((66, 60, 18), (72, 58, -60), (78, 55, -150))
    widths = tuple(r * bulk for r in (6, 13, 20, 24, 24))
    flat = Tubes(tuple(_mirrored(build, loin, (9 * bulk, 13 * bulk, 15 * bulk))), squash=1.7)
    return Union((back, Tubes(tuple(_mirrored(build, psoas, widths))), flat))


def _mirrored(build: Build, course: tuple[Vec3, ...], radii: tuple[float, ...]) -> Iterator[Segment]:
    for side in (-1, 1):
        ends = [build.at(side * x, y, z) for x, y, z in course]
        for (a, b), (r0, r1) in zip(pairwise(ends), pairwise(radii), strict=True):
            yield Segment(a, b, r0, r1)


@dataclass(frozen=True, slots=True)
class Column:
    """An elliptic cylinder that follows the spine at ``offset_y_mm`` behind the vertebral centres."""

    spine: Spine
    offset_y_mm: float
    half_width_mm: float
    half_depth_mm: float

    @property
    def bounds(self) -> Bounds:
        """Bounded across, endless along."""
        y, bend = self.spine.y_mm + self.offset_y_mm, self.spine.bend_mm + self.half_depth_mm
        return Bounds(
            (-self.half_width_mm, y - bend, -ENDLESS_MM), (self.half_width_mm, y + bend, ENDLESS_MM)
        )

    def distance(self, points: Points) -> Float32:
        """Distance to the cylinder."""
        y = points.y - self.offset_y_mm - self.spine.along(points.z)
        gauge = np.sqrt((points.x * (1 / self.half_width_mm)) ** 2 + (y * (1 / self.half_depth_mm)) ** 2)
        return np.asarray((gauge - 1) * min(self.half_width_mm, self.half_depth_mm), np.float32)


@dataclass(frozen=True, slots=True)
class Bars:
    """A block at the same place on every vertebra, behind the centre; symmetric to the midline."""

    spine: Spine
    half_width_mm: float
    y_mm: tuple[float, float]
    level_mm: float
    half_height_mm: float
    period_mm: float

    @property
    def bounds(self) -> Bounds:
        """Bounded across, endless along."""
        bend = self.spine.bend_mm
        low, high = self.spine.y_mm + self.y_mm[0] - bend, self.spine.y_mm + self.y_mm[1] + bend
        return Bounds((-self.half_width_mm, low, -ENDLESS_MM), (self.half_width_mm, high, ENDLESS_MM))

    def distance(self, points: Points) -> Float32:
        """Largest distance beyond a face of the nearest block."""
        y = points.y - self.spine.along(points.z)
        across = np.maximum(
            np.abs(points.x) - self.half_width_mm, np.maximum(self.y_mm[0] - y, y - self.y_mm[1])
        )
        along = Level(self.level_mm, self.half_height_mm, self.period_mm).distance(points)
        return np.asarray(np.maximum(across, along), np.float32)


@dataclass(frozen=True, slots=True)
class Level:
    """Slabs across the body, repeated every ``period_mm`` along it."""

    level_mm: float
    half_height_mm: float
    period_mm: float

    @property
    def bounds(self) -> Bounds:
        """Endless."""
        return EVERYWHERE

    def distance(self, points: Points) -> Float32:
        """Distance to the nearest slab."""
        place = (points.z - self.level_mm) * (1 / self.period_mm)
        return np.asarray(np.abs(place - np.round(place)) * self.period_mm - self.half_height_mm, np.float32)


def _spine_parts(build: Build, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    of, spine, period = enhancement.of, build.spine, VERTEBRA_MM * build.scale[2]
    width, depth = 22 * build.scale[0], 16.5 * build.scale[0]
    body, level = (
        Column(spine, 0, width, depth),
        Level(float(rng.uniform(-17, 17)), 13.2 * build.scale[2], period),
    )
    back = depth + 8.5
    grain = Texture(draw_waves(rng, 1.0, (7, 20), 5), dict.fromkeys(PHASES, 14.0))
    yield Part("disc", of("disc"), Column(spine, 0, width - 1, depth - 1), moves=False)
    yield Part("bone", of("bone"), Common((body, level)), remember="vertebrae", moves=False)
    yield Part("marrow", of("marrow"), within=(Within("vertebrae", 1.8),), moves=False, texture=grain)
    yield Part("bone", of("bone"), _arch(spine, back, level, period), remember="arch", moves=False)
    yield Part("marrow", of("marrow"), within=(Within("arch", 2.2),), moves=False)
    yield Part("fat", of("fat"), Column(spine, back, 10.5, 8.5), moves=False)
    yield Part("canal", of("canal"), Column(spine, back, 9, 7), moves=False)


def _arch(spine: Spine, back: float, level: Level, period: float) -> Shape:
    ring = Common((Column(spine, back, 15, 12.5), Level(level.level_mm - 3, 11, period)))
    process = Bars(spine, 3.6, (back + 9, back + 32), level.level_mm - 8, 9, period)
    wings = Bars(spine, 38, (back - 3, back + 4.5), level.level_mm + 2, 5, period)
    facets = Bars(spine, 19, (back - 2, back + 9), level.level_mm - 16, 8, period)
    return Union((ring, process, wings, facets), 4.0)


def _rib_parts(build: Build, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    segments: list[Segment] = []
    drop = float(rng.uniform(58, 80)) * build.scale[2]
    for number, (z, reach_deg) in enumerate(
        ((22, 62), (54, 95), (86, 128), (118, 138), (150, 145), (182, 150))
    ):
        for side in (-1, 1):
            course = [
                _rib_point(build, side, a, z * build.scale[2], drop) for a in np.linspace(14, reach_deg, 12)
            ]
            width = 5.4 - 0.5 * (number == 0)
            segments += [Segment(a, b, width, width) for a, b in pairwise(course)]
    ribs = Tubes(tuple(segments))
    yield Part("bone", enhancement.of("bone"), ribs, (Within("skin", 4.0),), remember="ribs", moves=False)
    yield Part("marrow", enhancement.of("marrow"), within=(Within("ribs", 2.3),), moves=False)


def _rib_point(build: Build, side: int, angle_deg: float, z: float, drop: float) -> Vec3:
    angle = float(np.deg2rad(angle_deg))
    across, behind = float(np.sin(angle)), float(np.cos(angle))
    a, b = build.wall_width_mm - 5.5, build.wall_depth_mm - 5.5
    gauge = ((across / a) ** TRUNK_POWER + (abs(behind) / b) ** TRUNK_POWER) ** (-1 / TRUNK_POWER)
    return (side * across * gauge, behind * gauge, z - drop * (1 - behind) / 2)
