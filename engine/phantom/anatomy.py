"""One patient: everything that a seed decides before a grid is laid over it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from engine.phantom.body import Build, chest_parts, draw_build, skeleton_parts, trunk_parts
from engine.phantom.enhancement import PHASES, Enhancement, draw_enhancement
from engine.phantom.lesions import Focus, draw_foci, focus_parts
from engine.phantom.organs import (
    Layout,
    bowel_parts,
    draw_layout,
    kidney_parts,
    liver_parts,
    pancreas_parts,
    spleen_parts,
    stomach_parts,
)
from engine.phantom.parts import Part
from engine.phantom.vessels import vessel_parts

STREAMS: dict[str, int] = {  # one random stream a theme, so that changing one leaves the others
    name: number
    for number, name in enumerate(
        (
            "build",
            "enhancement",
            "layout",
            "trunk",
            "chest",
            "skeleton",
            "bowel",
            "stomach",
            "spleen",
            "liver",
            "kidneys",
            "pancreas",
            "vessels",
            "foci",
            "lesions",
            "breathing",
            "noise",
        )
    )
}


@dataclass(frozen=True, slots=True)
class Patient:
    """A drawn patient: build, attenuation, layout, focal lesions, and the parts in painting order."""

    seed: int
    build: Build
    enhancement: Enhancement
    layout: Layout
    foci: tuple[Focus, ...]
    parts: tuple[Part, ...]


def stream(seed: int, theme: str) -> np.random.Generator:
    """The random numbers of one theme of one patient."""
    return np.random.default_rng((seed, STREAMS[theme]))


@lru_cache(maxsize=64)
def draw_patient(seed: int) -> Patient:
    """The patient of a seed, always the same; patients are immutable, so recent ones are kept."""
    build = draw_build(stream(seed, "build"))
    enhancement = draw_enhancement(stream(seed, "enhancement"), build.relative_size)
    layout = draw_layout(stream(seed, "layout"), build)
    foci = draw_foci(stream(seed, "foci"), layout)
    bare = Patient(seed, build, enhancement, layout, foci, ())
    return replace(bare, parts=parts_of(bare, enhancement))


def parts_of(patient: Patient, enhancement: Enhancement) -> tuple[Part, ...]:
    """The patient's anatomy with this attenuation, in painting order; no shape depends on attenuation."""
    seed, build, layout, foci = patient.seed, patient.build, patient.layout, patient.foci
    return (
        *trunk_parts(build, enhancement, stream(seed, "trunk")),
        *chest_parts(build, enhancement, stream(seed, "chest")),
        *bowel_parts(layout, enhancement, stream(seed, "bowel")),
        *stomach_parts(layout, enhancement, stream(seed, "stomach")),
        *spleen_parts(layout, enhancement, stream(seed, "spleen")),
        *liver_parts(layout, enhancement, stream(seed, "liver")),
        *kidney_parts(layout, enhancement, stream(seed, "kidneys")),
        *pancreas_parts(layout, enhancement, stream(seed, "pancreas")),
        *vessel_parts(layout, enhancement, stream(seed, "vessels")),
        *focus_parts(foci, enhancement, stream(seed, "lesions")),
        *skeleton_parts(build, enhancement, stream(seed, "skeleton")),
    )


def truth_of(patient: Patient) -> dict[str, dict[str, float]]:
    """Noise-free HU by phase and label, as drawn.

    ``ivc`` is the mean of its infrarenal and suprarenal blood; ``lesion`` the volume-weighted mean of the
    patient's lesions; labels that this patient does not have are absent.
    """
    return {phase: _truth_in(patient, phase) for phase in PHASES}


def _truth_in(patient: Patient, phase: str) -> dict[str, float]:
    truth = dict(patient.enhancement.hu[phase])
    truth["ivc"] = 0.35 * truth.pop("ivc_infrarenal") + 0.65 * truth.pop("ivc_suprarenal")
    kinds = [(focus.kind, focus.radius_mm**3) for focus in patient.foci]
    lesions = [(patient.enhancement.lesion(kind)[phase], size) for kind, size in kinds if kind != "cyst"]
    if lesions:
        truth["lesion"] = sum(hu * size for hu, size in lesions) / sum(size for _, size in lesions)
    if all(kind != "cyst" for kind, _ in kinds):
        del truth["cyst"]
    return truth
