"""The abdomen's solid and hollow organs as parts, in the order in which they are painted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.phantom.body import Build
from engine.phantom.enhancement import PHASES, Enhancement
from engine.phantom.parts import Part, Texture, Within
from engine.phantom.shapes import (
    Ellipsoid,
    Float64,
    HalfSpace,
    Segment,
    Tubes,
    Union,
    Without,
    draw_waves,
    tilted,
)
from engine.volume import Vec3

INSIDE = (Within("cavity", 1.0), Within("abdomen", 1.0))
SIDES: tuple[tuple[str, int], ...] = (("right", -1), ("left", 1))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where this patient's organs sit and how large they are, as far as several organs must agree on it."""

    build: Build
    liver_size: float
    kidney_centre: tuple[Vec3, Vec3]
    hilum: Vec3
    spleen_size: float


def draw_layout(rng: np.random.Generator, build: Build) -> Layout:
    """Draw the shared positions."""
    right, left = (build.at(*_jittered(rng, p, 3.5)) for p in ((-61, 45, -26), (62, 46, -10)))
    hilum = build.at(*_jittered(rng, (-38, -12, 26), 3))
    liver = float(np.clip(rng.normal(1.06, 0.05), 0.97, 1.15))
    spleen = float(np.clip(np.exp(rng.normal(0.03, 0.12)), 0.87, 1.25))
    return Layout(build, liver, (right, left), hilum, spleen)


def _jittered(rng: np.random.Generator, position: Vec3, sd_mm: float) -> Vec3:
    x, y, z = (float(p + d) for p, d in zip(position, rng.normal(0, sd_mm, 3), strict=True))
    return (x, y, z)


def tube(course: Sequence[Vec3], radii: Sequence[float]) -> tuple[Segment, ...]:
    """Pieces along a smooth curve through ``course`` with radii between ``radii``."""
    nodes = np.column_stack([np.asarray(course, float), np.asarray(radii, float)])
    ends = [((x, y, z), r) for x, y, z, r in _catmull_rom(nodes).tolist()]
    return tuple(Segment(a, b, r0, r1) for (a, r0), (b, r1) in pairwise(ends))


def _catmull_rom(nodes: Float64, steps: int = 4) -> Float64:
    """The nodes with ``steps`` − 1 points between each two, on the Catmull–Rom spline through all of them."""
    padded = np.vstack([2 * nodes[0] - nodes[1], nodes, 2 * nodes[-1] - nodes[-2]])[:, None, :]
    p0, p1, p2, p3 = (padded[i : i + len(nodes) - 1] for i in range(4))
    t = (np.arange(1, steps + 1) / steps)[:, None]
    fine = p1 + t * (p2 - p0) / 2 + t**2 * (p0 - 2.5 * p1 + 2 * p2 - p3 / 2)
    fine = fine + t**3 * (-p0 / 2 + 1.5 * p1 - 1.5 * p2 + p3 / 2)
    return np.vstack([nodes[:1], fine.reshape(-1, nodes.shape[1])])


def liver_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Liver and gallbladder; remembers ``liver``."""
    build, size = layout.build, layout.liver_size
    right = Ellipsoid(build.at(-72, -2, 30), build.radii(64 * size, 80 * size, 82 * size))
    left = Ellipsoid(
        build.at(8, -52, 66),
        build.radii(float(rng.uniform(58, 82)), 34 * size, 34 * size),
        tilted(0, float(rng.uniform(5, 18)), 0),
    )
    hollow = Ellipsoid(build.at(-18, 18, -28), build.radii(50, 72, 62))
    body = Without(Union((right, left), 26.0), hollow, 10.0)
    shape = Union((body,), 0.0, draw_waves(rng, 1.8, (45, 110), 4))
    grain = Texture(draw_waves(rng, 1.0, (10, 40), 5), dict.fromkeys(PHASES, 2.0))
    yield Part("liver", enhancement.of("liver"), shape, INSIDE, remember="liver", texture=grain)
    yield from _gallbladder_parts(build, enhancement, rng)


def _gallbladder_parts(build: Build, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    centre = build.at(*_jittered(rng, (-52, -50, -14), 4))
    radii = (float(rng.uniform(9, 14)), float(rng.uniform(18, 26)), float(rng.uniform(11, 16)))
    bladder = Ellipsoid(centre, radii, tilted(-30, 10, 15))
    yield Part("bowel", enhancement.of("bowel"), bladder, INSIDE, remember="gallbladder")
    yield Part("gallbladder", enhancement.of("gallbladder"), within=(Within("gallbladder", 1.5),))


def spleen_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Spleen with its arterial moiré; remembers ``spleen``."""
    build, size = layout.build, layout.spleen_size
    bulk = Ellipsoid(
        build.at(*_jittered(rng, (100, 30, 52), 3)),
        build.radii(34 * size, 50 * size, 54 * size),
        tilted(20, 0, -18),
        draw_waves(rng, 1.2, (40, 90), 3),
    )
    hilum = Ellipsoid(build.at(58, 6, 50), build.radii(34, 40, 52))
    moire = Texture(draw_waves(rng, 1.0, (11, 30), 6), {"ncct": 1.5, "arterial": 13.0, "venous": 2.0})
    shape = Without(bulk, hilum, 8.0)
    yield Part("spleen", enhancement.of("spleen"), shape, INSIDE, remember="spleen", texture=moire)


def pancreas_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Pancreas, lobulated; thinner and more lobulated with age. Remembers ``pancreas``."""
    build, bulk = layout.build, float(rng.uniform(0.92, 1.25))
    course = ((-30, 0, -26), (-27, -2, -4), (-4, -16, 10), (24, -8, 20), (52, 12, 30), (80, 28, 40))
    radii = [r * bulk for r in (11, 15, 9.5, 10.5, 10.5, 8.5)]
    shape = Tubes(tube([build.at(*p) for p in course], radii), ripple=draw_waves(rng, 1.5, (12, 24), 5))
    yield Part("pancreas", enhancement.of("pancreas"), shape, INSIDE, remember="pancreas")


def kidney_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Both kidneys in their fat: cortex, medulla, sinus fat, renal pelvis, and the adrenals above them."""
    for (name, side), centre in zip(SIDES, layout.kidney_centre, strict=True):
        yield from _kidney(layout.build, enhancement, rng, name, side, centre)


def _kidney(
    build: Build, enhancement: Enhancement, rng: np.random.Generator, name: str, side: int, centre: Vec3
) -> Iterator[Part]:
    of, region, size = enhancement.of, f"kidney {name}", float(rng.uniform(0.97, 1.17))
    turn = tilted(-12, side * 12, side * 35)
    ripple = draw_waves(rng, 0.7, (25, 60), 3)
    kidney = Ellipsoid(centre, (25.5 * size, 29.5 * size, 53 * size), turn, ripple)
    sinus = _toward(centre, turn, (-side * 17.0, -4.0, 0.0))
    hollow = Ellipsoid(sinus, (17.0, 11.0, 24.0), turn, draw_waves(rng, 1.4, (14, 28), 4))
    pelvis = Ellipsoid(_toward(centre, turn, (-side * 22.0, -3.0, -4.0)), (9.0, 6.0, 11.0), turn)
    capsule = Ellipsoid(centre, (36 * size, 38 * size, 66 * size), turn)
    columns = Within(region, 9.5, draw_waves(rng, 2.8, (15, 24), 5))
    yield Part("fat", of("fat"), capsule, INSIDE, remember=f"capsule {name}")
    yield Part("renal_cortex", of("renal_cortex"), kidney, INSIDE, remember=region)
    yield Part("renal_medulla", of("renal_medulla"), within=(columns,))
    yield Part("fat", of("fat"), hollow, (Within(f"capsule {name}"),))
    yield Part("urine", of("urine"), pelvis, (Within(f"capsule {name}"),))
    yield Part("adrenal", of("adrenal"), _adrenal(build, side), INSIDE)


def _toward(centre: Vec3, turn: tuple[Vec3, Vec3, Vec3], local: Vec3) -> Vec3:
    x, y, z = (
        float(c + sum(axis[i] * step for axis, step in zip(turn, local, strict=True)))
        for i, c in enumerate(centre)
    )
    return (x, y, z)


def _adrenal(build: Build, side: int) -> Tubes:
    tip, top = (side * 34, 22, 46), (side * 38, 26, 34)
    limbs = [
        tube([build.at(*tip), build.at(*top), build.at(side * (38 + d), 42, 22)], (2, 3, 2)) for d in (-7, 9)
    ]
    return Tubes(limbs[0] + limbs[1])


def stomach_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Stomach and duodenum: wall, fluid, gas on top (the patient lies on the back)."""
    build, fill = layout.build, float(rng.uniform(0.75, 1.15))
    course = (
        (52, 14, 92),
        (64, 12, 74),
        (70, -16, 48),
        (58, -42, 22),
        (26, -56, 6),
        (-6, -50, 6),
        (-22, -36, 8),
    )
    radii = [r * fill for r in (17, 31, 29, 24, 19, 14, 10)]
    shape = Tubes(
        tube([build.at(*_jittered(rng, p, 2)) for p in course], radii), ripple=draw_waves(rng, 1, (30, 60), 3)
    )
    wall = float(rng.uniform(3.0, 4.5))
    yield from _hollow("stomach", "stomach", shape, wall, float(rng.uniform(-50, -15)), enhancement)
    arc = ((-24, -34, 8), (-42, -16, 2), (-45, -4, -24), (-32, 2, -46), (-6, 4, -48), (16, 0, -36))
    duodenum = Tubes(tube([build.at(*p) for p in arc], (11, 12, 12, 11, 10, 10)))
    yield from _hollow("bowel", "duodenum", duodenum, 2.5, -60.0, enhancement)


def _hollow(
    label: str, region: str, shape: Tubes, wall_mm: float, gas_level_mm: float, enhancement: Enhancement
) -> Iterator[Part]:
    """A wall, its content, and gas where y lies in front of ``gas_level_mm``."""
    of = enhancement.of
    gas = HalfSpace((0, 1, 0), gas_level_mm)
    yield Part(label, of(label), shape, INSIDE, remember=region)
    yield Part("gut_content", of("gut_content"), within=(Within(region, wall_mm),))
    yield Part("gut_gas", of("gut_gas"), gas, (Within(region, wall_mm),))


def bowel_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Small-bowel loops in the middle, the colon as a frame around them."""
    build = layout.build
    for number in range(9):
        shape = Tubes(
            tube(_loop(rng, build, number), rng.uniform(9, 14, 6).tolist()),
            ripple=draw_waves(rng, 0.8, (14, 30), 3),
        )
        level = float(rng.uniform(-90, -20)) * build.scale[1]
        yield from _hollow("bowel", f"loop {number}", shape, 2.2, level, enhancement)
    for name, course in _COLON.items():
        radii = rng.uniform(17, 24, len(course)).tolist()
        points = [build.at(*_jittered(rng, p, 4)) for p in course]
        shape = Tubes(tube(points, radii), ripple=draw_waves(rng, 1.8, (22, 40), 4))
        level = (min(y for _, y, _ in points) + float(rng.uniform(-12, 16))) * 1.0
        yield from _hollow("bowel", f"colon {name}", shape, 2.2, level, enhancement)


_COLON: dict[str, tuple[Vec3, ...]] = {
    "ascending": ((-98, 8, -170), (-104, 14, -120), (-106, 14, -80), (-98, -12, -52)),
    "transverse": ((-92, -30, -52), (-58, -58, -62), (0, -66, -72), (56, -60, -48), (92, -20, 6)),
    "descending": ((102, 14, 18), (110, 30, -20), (112, 30, -80), (104, 22, -130), (90, 6, -180)),
}


def _loop(rng: np.random.Generator, build: Build, number: int) -> list[Vec3]:
    """A wandering course of six points within the small bowel's part of the belly."""
    x, z = (-55, 0, 55)[number % 3], (-62, -98, -134)[number // 3]
    start = np.array([x, float(rng.uniform(-42, 2)), z])
    steps = rng.normal(0, 1, (5, 3)) * np.array([26, 18, 15])
    course = start + np.vstack([np.zeros(3), np.cumsum(steps, axis=0)])
    course = np.clip(course, (-84, -68, -170), (92, 16, -36))
    return [build.at(float(px), float(py), float(pz)) for px, py, pz in course]
