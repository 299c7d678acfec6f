"""Focal lesions and cysts in the liver, the kidneys and the pancreas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.phantom.enhancement import PHASES, Enhancement
from engine.phantom.organs import Layout
from engine.phantom.parts import Part, Texture, Within
from engine.phantom.shapes import Ellipsoid, draw_waves
from engine.volume import Vec3


@dataclass(frozen=True, slots=True)
class Focus:
    """One lesion or cyst: its tissue (a lesion kind, or ``cyst``), region, centre and radius."""

    kind: str
    region: str
    centre: Vec3
    radius_mm: float


LIVER_KINDS: tuple[str, ...] = ("hepatocellular", "hypovascular", "hypovascular", "haemangioma")


def draw_foci(rng: np.random.Generator, layout: Layout) -> tuple[Focus, ...]:
    """A patient's lesions and cysts: about four in five patients have a lesion, as many a cyst."""
    return (*_liver_lesions(rng, layout), *_other_lesions(rng, layout), *_cysts(rng, layout))


def _liver_lesions(rng: np.random.Generator, layout: Layout) -> Iterator[Focus]:
    kind = LIVER_KINDS[int(rng.integers(len(LIVER_KINDS)))]
    for _ in range(int(rng.choice([0, 1, 1, 2, 2, 3, 5]))):
        yield Focus(kind, "liver", _in_liver(rng, layout), float(rng.uniform(5, 19)))


def _other_lesions(rng: np.random.Generator, layout: Layout) -> Iterator[Focus]:
    if rng.random() < 0.12:
        yield Focus("pancreatic", "pancreas", layout.build.at(-27, -2, -8), float(rng.uniform(9, 14)))
    if rng.random() < 0.12:
        yield Focus(
            "renal",
            f"kidney {'right' if (side := int(rng.integers(2))) == 0 else 'left'}",
            _on_kidney(rng, layout, side),
            float(rng.uniform(9, 18)),
        )


def _cysts(rng: np.random.Generator, layout: Layout) -> Iterator[Focus]:
    for _ in range(int(rng.choice([0, 0, 1, 2, 3]))):
        yield Focus("cyst", "liver", _in_liver(rng, layout), float(rng.uniform(4, 16)))
    for _ in range(int(rng.choice([0, 1, 1, 2, 3]))):
        side = int(rng.integers(2))
        yield Focus(
            "cyst",
            f"capsule {('right', 'left')[side]}",
            _on_kidney(rng, layout, side),
            float(rng.uniform(5, 18)),
        )


def _in_liver(rng: np.random.Generator, layout: Layout) -> Vec3:
    x, y, z = (float(value) for value in rng.uniform((-110, -48, -8), (-52, 34, 80)))
    return layout.build.at(x, y, z)


def _on_kidney(rng: np.random.Generator, layout: Layout, side: int) -> Vec3:
    x, y, z = layout.kidney_centre[side]
    angle = float(rng.uniform(-1.0, 1.6))
    outward = -1 if side == 0 else 1
    return (
        x + outward * 22 * float(np.cos(angle)),
        y + 22 * float(np.sin(angle)),
        z + float(rng.uniform(-34, 34)),
    )


def focus_parts(
    foci: tuple[Focus, ...], enhancement: Enhancement, rng: np.random.Generator
) -> Iterator[Part]:
    """Paint the lesions and cysts, each clipped to its organ."""
    for focus in foci:
        radii = tuple(focus.radius_mm * float(f) for f in rng.uniform(0.88, 1.12, 3))
        ripple = draw_waves(rng, 0.06 * focus.radius_mm * (focus.kind != "cyst"), (12, 40), 3)
        shape = Ellipsoid(focus.centre, (radii[0], radii[1], radii[2]), ripple=ripple)
        texture = Texture(draw_waves(rng, 1.0, (6, 16), 4), dict.fromkeys(PHASES, 3.0))
        if focus.kind == "cyst":
            yield Part("cyst", enhancement.of("cyst"), shape, (Within(focus.region, 1.0),))
        else:
            yield Part(
                "lesion", enhancement.lesion(focus.kind), shape, (Within(focus.region),), texture=texture
            )
