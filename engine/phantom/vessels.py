"""Arteries, caval, portal, hepatic and renal veins: tubes along splines, trees that branch in the liver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from engine.phantom.enhancement import PHASES, Enhancement
from engine.phantom.organs import Layout, tube
from engine.phantom.parts import Part, Within
from engine.phantom.shapes import Float64, HalfSpace, Segment, Tubes
from engine.volume import Vec3

SPLIT = 5  # generations of a tree
BRANCH_BEND = 0.25  # random turn of a branch along its way
THINNEST_MM = 0.9


def vessel_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """All vessels: veins first, so that arteries in front of them stay visible."""
    yield from _hepatic_vein_parts(layout, enhancement, rng)
    yield from _portal_parts(layout, enhancement, rng)
    yield from _renal_parts(layout, enhancement)
    yield from _ivc_parts(layout, enhancement, rng)
    yield from _artery_parts(layout, enhancement, rng)


def aorta_at(layout: Layout, z: float) -> Vec3:
    """The aorta's centre at a typical adult's height ``z``: on the spine's left front."""
    return _on_spine(layout, 9.0, -30.0, z)


def ivc_at(layout: Layout, z: float) -> Vec3:
    """The inferior vena cava's centre: right of the aorta, moving forward into the liver above."""
    forward = -27.0 - 0.20 * max(z - 20, 0)
    return _on_spine(layout, -20.0, forward, z)


def _on_spine(layout: Layout, x: float, y: float, z: float) -> Vec3:
    build = layout.build
    px, py, pz = build.at(x, y, z)
    return (px, py + build.spine.y_at(pz), pz)


def _aorta_course(layout: Layout) -> list[Vec3]:
    return [aorta_at(layout, z) for z in (200, 150, 100, 60, 20, -20, -60, -100)]


def _artery_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    calibre = float(rng.uniform(0.85, 1.2))
    radii = [r * calibre for r in (11.5, 11, 10.5, 10.5, 9.5, 8.8, 8.3, 8.0)]
    yield Part(
        "arteries", enhancement.of("arteries"), Tubes((*_arteries(layout), *_mesentery(layout, rng, 5.0)))
    )
    yield Part("aorta", enhancement.of("aorta"), Tubes(tube(_aorta_course(layout), radii)))


def _arteries(layout: Layout) -> Iterator[Segment]:
    at = layout.build.at
    root = aorta_at(layout, 24)
    yield from tube([root, _forward(root, 16, 4), _forward(root, 24, 4)], (4, 3.6, 3.4))
    trunk = _forward(root, 24, 4)
    yield from tube([trunk, at(30, -2, 34), at(56, 20, 36), at(78, 22, 46)], (3.2, 2.8, 2.6, 2.2))
    yield from tube([trunk, at(-12, -20, 22), layout.hilum], (3.0, 2.6, 2.2))
    superior = aorta_at(layout, 8)
    yield from tube(
        [superior, _forward(superior, 16, -2), at(8, -12, -26), at(4, -14, -100)], (4, 3.6, 3.4, 2.2)
    )
    for side, centre in zip((-1, 1), layout.kidney_centre, strict=True):
        yield from tube(_to_kidney(aorta_at(layout, -12), centre, side, 6.0), (3.2, 2.9, 2.5))
    fork = aorta_at(layout, -100)
    for side in (-1, 1):
        yield from tube([fork, at(side * 22, 18, -132), at(side * 44, 16, -190)], (6.5, 5.5, 5))


def _forward(position: Vec3, front_mm: float, down_mm: float) -> Vec3:
    return (position[0], position[1] - front_mm, position[2] - down_mm)


def _to_kidney(root: Vec3, centre: Vec3, side: int, behind_mm: float) -> list[Vec3]:
    gate = (centre[0] - side * 22.0, centre[1] - 12.0 + behind_mm / 2, centre[2] + 2.0)
    middle = ((root[0] + gate[0]) / 2, (root[1] + gate[1]) / 2, (root[2] + gate[2]) / 2)
    return [root, middle, gate]


def _renal_parts(layout: Layout, enhancement: Enhancement) -> Iterator[Part]:
    right, left = layout.kidney_centre
    cava = ivc_at(layout, -14)
    short = tube(_to_kidney(cava, right, -1, -4.0), (5.5, 5, 4.5))
    gate, front = (left[0] - 22.0, left[1] - 16.0, left[2] + 2.0), _forward(aorta_at(layout, -8), 15.5, 0)
    long = tube([cava, front, (gate[0] - 14, (gate[1] + front[1]) / 2, gate[2]), gate], (5.5, 4.5, 5, 4.5))
    yield Part("renal_vessels", enhancement.of("renal_vessels"), Tubes(short + long))


def _ivc_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """The cava below the renal veins carries late blood; above them it is mixed with early renal blood."""
    calibre, flat = float(rng.uniform(0.85, 1.15)), float(rng.uniform(1.1, 1.6))
    levels = (130, 105, 70, 30, -10, -50, -90, -112)
    radii = [r * calibre for r in (12, 13, 13, 12.5, 12, 10.5, 10, 10)]
    shape = Tubes(tube([ivc_at(layout, z) for z in levels], radii), squash=1.0)
    yield Part("ivc", enhancement.of("ivc_infrarenal"), _squashed(shape, flat), remember="ivc")
    steps = 6
    for step in range(1, steps + 1):
        above = HalfSpace((0, 0, -1), -layout.build.scale[2] * (-16 + 5.0 * step))
        yield Part("ivc", _mixed(enhancement, step / steps), above, (Within("ivc"),))


def _squashed(shape: Tubes, flat: float) -> Tubes:
    return Tubes(shape.segments, squash=flat)


def _mixed(enhancement: Enhancement, share: float) -> dict[str, float]:
    low, high = enhancement.of("ivc_infrarenal"), enhancement.of("ivc_suprarenal")
    return {phase: low[phase] + share * (high[phase] - low[phase]) for phase in PHASES}


def _portal_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    at, hilum = layout.build.at, layout.hilum
    meeting = at(-2, 0, 6)
    trunk = tube([meeting, at(-16, -6, 14), hilum], (6.8, 6.8, 6.5))
    splenic = tube([meeting, at(26, 4, 18), at(54, 24, 30), at(78, 30, 44)], (5, 4.8, 4.4, 3.6))
    mesenteric = tube([meeting, at(-6, -8, -26), at(-6, -10, -60), at(-2, -12, -110)], (5.6, 5.4, 5, 3))
    blood = enhancement.of("portal_vein")
    yield Part("portal_vein", blood, Tubes(trunk + splenic + mesenteric + _mesentery(layout, rng, -6.0)))
    yield Part("portal_vein", blood, Tubes(tuple(_portal_tree(layout, rng))), (Within("liver", -1.0),))


def _mesentery(layout: Layout, rng: np.random.Generator, x: float) -> tuple[Segment, ...]:
    """Branches from the superior mesenteric vessels into the mesentery, thinning toward the bowel."""
    segments: list[Segment] = []
    for z in (-34, -50, -66, -82, -98):
        side = float(rng.choice((-1.0, 1.0)))
        aim = np.array((side, float(rng.uniform(-0.7, 0.1)), float(rng.uniform(-0.9, 0.1))))
        segments += _grow(rng, layout.build.at(x, -12, z), aim, 26.0, float(rng.uniform(1.8, 2.6)), 3)
    return tuple(segments)


def _portal_tree(layout: Layout, rng: np.random.Generator) -> Iterator[Segment]:
    at, hilum = layout.build.at, layout.hilum
    right, left = at(-66, 0, 34), at(-14, -40, 52)
    yield from tube([hilum, right], (6.2, 5.4))
    yield from tube([hilum, at(-24, -28, 38), left], (5.6, 4.8, 4.4))
    for aim in ((-0.5, -0.7, 0.3), (-0.6, 0.7, 0.3), (-0.4, 0.4, -0.8), (-0.3, -0.6, -0.7)):
        yield from _grow(rng, right, np.array(aim), 30.0, 4.2, SPLIT)
    for aim in ((0.8, -0.4, 0.5), (0.9, -0.1, -0.2), (-0.3, -0.8, 0.4)):
        yield from _grow(rng, left, np.array(aim), 24.0, 3.3, SPLIT - 1)


def _hepatic_vein_parts(layout: Layout, enhancement: Enhancement, rng: np.random.Generator) -> Iterator[Part]:
    """Right, middle and left hepatic vein from the cava near the dome, with their tributaries."""
    segments: list[Segment] = []
    mouth = ivc_at(layout, 96)
    for target, radius in (((-96, 16, 58), 5.0), ((-52, -34, 56), 4.6), ((6, -48, 78), 4.2)):
        end = layout.build.at(*target)
        middle = (
            *(float(m + d) for m, d in zip(_between(mouth, end, 0.5), rng.normal(0, 3, 3), strict=True)),
        )
        segments += tube(
            [mouth, (middle[0], middle[1], middle[2] + 4), end], (radius + 1, radius, radius * 0.75)
        )
        for share in (0.45, 0.75, 1.0):
            away = np.asarray(end) - np.asarray(mouth) + rng.normal(0, 26, 3) + np.array([0, 0, -25])
            segments += _grow(rng, _between(mouth, end, share), away, 26.0, radius * 0.62, SPLIT - 1)
    yield Part(
        "hepatic_veins", enhancement.of("hepatic_veins"), Tubes(tuple(segments)), (Within("liver", 1.0),)
    )


def _between(a: Vec3, b: Vec3, share: float) -> Vec3:
    x, y, z = (p + share * (q - p) for p, q in zip(a, b, strict=True))
    return (x, y, z)


def _grow(
    rng: np.random.Generator,
    start: Sequence[float],
    aim: Sequence[float] | Float64,
    length: float,
    radius: float,
    left: int,
) -> list[Segment]:
    """A branch of two bent pieces that splits into two thinner ones, ``left`` generations in all."""
    direction = np.asarray(aim, float) / np.linalg.norm(aim)
    here, segments, thin = np.asarray(start, float), [], radius * 0.82
    for r0, r1 in ((radius, (radius + thin) / 2), ((radius + thin) / 2, thin)):
        direction = direction + rng.normal(0, BRANCH_BEND, 3)
        direction /= np.linalg.norm(direction)
        there = here + direction * length / 2
        segments.append(Segment(_position(here), _position(there), r0, r1))
        here = there
    if left > 1 and thin * 0.8 > THINNEST_MM:
        side = _across(direction, rng.normal(0, 1, 3))
        side /= np.linalg.norm(side) + 1e-9
        for sign, spread, share in ((1, 0.45, 0.84), (-1, 0.75, 0.7)):
            turned = direction + sign * spread * side
            segments += _grow(rng, _position(here), turned, length * 0.8, thin * share, left - 1)
    return segments


def _across(a: Float64, b: Float64) -> Float64:
    return a[[1, 2, 0]] * b[[2, 0, 1]] - a[[2, 0, 1]] * b[[1, 2, 0]]


def _position(values: Float64) -> Vec3:
    x, y, z = values.tolist()
    return (x, y, z)
