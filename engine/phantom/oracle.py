"""The expected enhanced image of a phantom, given what its unenhanced scan shows.

A patient's level of enhancement, its timing and each tissue's scatter are drawn apart from everything in the
unenhanced scan, so the best that any method can know of a tissue's rise is its mean over the population:
m · E[level] · E[own] · E[timing factor], with E[level] following the body's size, which the scan shows.
Painting is linear in HU, so the phantom painted with expected tissues is the expected image, partial volume
included. The oracle is told the labels (the kind of a lesion, for one); a method has to find them.

Two images follow from it. ``on_source`` is the unenhanced scan, grain and all, with the expected rise added:
what a method does that leaves the texture alone. ``noise_free`` is the expectation itself, E[x_c | x_n]: no
method has a lower mean squared error; one that smooths may come nearer to it than ``on_source``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from engine.phantom.anatomy import Patient, draw_patient, parts_of
from engine.phantom.enhancement import (
    LEVEL_SD,
    MOST_TIMING,
    OWN_SD,
    PHASES,
    SIZE_POWER,
    TIMING_SD,
    TISSUES,
    VENOUS_TIMING,
    Enhancement,
    Tissue,
)
from engine.phantom.phantom import Phantom, PhantomOptions, render_patient
from engine.volume import Float32

ENHANCED = PHASES[1:]


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected enhanced images by phase, float32 HU on the phantom's grid."""

    on_source: Mapping[str, Float32]
    noise_free: Mapping[str, Float32]


def expected_images(phantom: Phantom) -> Expected:
    """Both expected images of a whole phantom, on its unenhanced scan's position of the diaphragm.

    With misregistration they are what a method would make that is not misled by it. Raises ValueError for a
    phantom without its unenhanced phase, or for a box cut from one.
    """
    if "ncct" not in phantom.phases:
        raise ValueError(f"the phantom holds {sorted(phantom.phases)} and no ncct to add the rise to")
    geometry = phantom.geometry
    options = PhantomOptions(geometry.shape, geometry.spacing_mm, noise_hu=0.0)
    clean = render_patient(expected_patient(draw_patient(phantom.seed)), options)
    if not np.allclose(clean.geometry.origin_mm, geometry.origin_mm):
        raise ValueError(f"origin {geometry.origin_mm} mm: this is a box of a phantom, not a whole one")
    source, native = phantom.phases["ncct"], clean.phases["ncct"]
    noise_free = {phase: clean.phases[phase] for phase in ENHANCED}
    return Expected({p: source + (noise_free[p] - native) for p in ENHANCED}, noise_free)


def expected_patient(patient: Patient) -> Patient:
    """The same anatomy and unenhanced attenuation, enhanced as the average patient of this size is."""
    enhancement = expected_enhancement(patient.enhancement.hu["ncct"], patient.build.relative_size)
    return replace(patient, enhancement=enhancement, parts=parts_of(patient, enhancement))


def expected_enhancement(native: Mapping[str, float], relative_size: float) -> Enhancement:
    """Mean attenuation over patients with these unenhanced values (HU) and this cross-section."""
    level = math.exp(LEVEL_SD**2 / 2) * math.pow(relative_size, SIZE_POWER)
    own = math.exp(OWN_SD**2 / 2)
    enhanced = {
        phase: {name: native[name] + rise_of(tissue, phase) * level * own for name, tissue in TISSUES.items()}
        for phase in ENHANCED
    }
    return Enhancement({"ncct": dict(native), **enhanced}, level, timing=0.0)


def residual_sd(tissue: str, phase: str, relative_size: float = 1.0) -> float:
    """SD over patients (HU) of a tissue's attenuation around its expectation: what nobody can know.

    SD of m · L · O · (1 + k T) with log-normal L and O and a clipped normal T, all independent.
    """
    scatter = LEVEL_SD**2 + OWN_SD**2
    k = VENOUS_TIMING if phase == "venous" else TISSUES[tissue].timing
    size_factor = math.pow(relative_size, SIZE_POWER)
    mean = rise_of(TISSUES[tissue], phase) * size_factor * math.exp(scatter / 2)
    return abs(mean) * math.sqrt(math.exp(scatter) * (1 + k**2 * timing_variance()) - 1)


def rise_of(tissue: Tissue, phase: str) -> float:
    """The table's typical rise in HU."""
    return {"arterial": tissue.arterial, "venous": tissue.venous}[phase]


def timing_variance() -> float:
    """Variance of a normal number of SD :data:`TIMING_SD` clipped at ± :data:`MOST_TIMING`."""
    a = MOST_TIMING / TIMING_SD
    density, beyond = math.exp(-(a**2) / 2) / math.sqrt(2 * math.pi), math.erfc(a / math.sqrt(2)) / 2
    return TIMING_SD**2 * (1 - 2 * beyond - 2 * a * density + 2 * a**2 * beyond)
