"""Where a phantom's vessels of a given diameter run, and what lies around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.phantom.anatomy import draw_patient
from engine.phantom.labels import LABELS
from engine.phantom.parts import Part
from engine.phantom.phantom import Phantom, PhantomOptions, render_patient
from engine.phantom.shapes import Segment, Tubes
from engine.volume import Float32

VESSELS = ("aorta", "arteries", "ivc", "portal_vein", "hepatic_veins", "renal_vessels")
THIN_MM = (3.0, 6.0)
SHELL_VOXELS = (1, 3)  # from the vessel to the first and to the last voxel of its surroundings, in the plane

Mask = NDArray[np.bool_]


def vessel_share(phantom: Phantom, diameter_mm: tuple[float, float] = THIN_MM) -> Float32:
    """The part of every voxel of a whole phantom, 0 to 1, that is vessel of a diameter within these bounds.

    The pieces are painted like everything else, so what lies in front of a vessel hides it here too.
    """
    patient = draw_patient(phantom.seed)
    marked = tuple(piece for part in patient.parts for piece in _marked(part, diameter_mm))
    geometry = phantom.geometry
    options = PhantomOptions(geometry.shape, geometry.spacing_mm, noise_hu=0.0, phases=("ncct",))
    painted = render_patient(replace(patient, parts=marked), options)
    return np.clip(painted.phases["ncct"], 0.0, 1.0)


def thin_vessels(phantom: Phantom, diameter_mm: tuple[float, float] = THIN_MM) -> tuple[Mask, Mask]:
    """Voxels that are mostly such vessel, and those around them in the plane that hold no vessel at all."""
    inside = vessel_share(phantom, diameter_mm) >= 0.5
    any_vessel = np.isin(phantom.labels, [LABELS[name] for name in VESSELS])
    nearest, farthest = SHELL_VOXELS
    around = _grown(inside, farthest) & ~_grown(any_vessel | inside, nearest)
    return inside, around & (phantom.labels != LABELS["air"])


def _marked(part: Part, diameter_mm: tuple[float, float]) -> Iterator[Part]:
    """The part as zeros; of a vessel its pieces of that diameter as ones, under those of another."""
    blank = replace(part, hu={"ncct": 0.0}, texture=None)
    yield blank
    if part.label in VESSELS and isinstance(part.shape, Tubes):
        low, high = diameter_mm
        is_thin = [low <= segment.r0 + segment.r1 <= high for segment in part.shape.segments]
        for wanted, value in ((True, 1.0), (False, 0.0)):
            kept = tuple(s for s, thin in zip(part.shape.segments, is_thin, strict=True) if thin is wanted)
            if kept and any(is_thin):
                yield replace(blank, hu={"ncct": value}, shape=_tubes(part.shape, kept), remember="")


def _tubes(whole: Tubes, segments: tuple[Segment, ...]) -> Tubes:
    return Tubes(segments, whole.squash, whole.ripple)


def _grown(mask: Mask, voxels: int) -> Mask:
    """The mask with ``voxels`` more on every side in the plane."""
    for _ in range(voxels):
        padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
        beside = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:]
        mask = mask | beside
    return mask
