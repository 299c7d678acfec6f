"""Make a multi-phase abdomen of any shape and spacing from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engine.phantom.anatomy import STREAMS, Patient, draw_patient, stream, truth_of
from engine.phantom.breathing import Breath, draw_breath
from engine.phantom.enhancement import PHASES
from engine.phantom.labels import LABELS
from engine.phantom.noise import noise_field
from engine.phantom.render import EDGE_VOXELS, Canvas, paint
from engine.phantom.shapes import Points
from engine.volume import Float32, Geometry, Shape3, Vec3

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

LOWEST_HU = -1024.0
SIZE_NOISE_POWER = 0.8  # tube current modulation leaves part of the noise of a bigger body
SLAB_SLICES = 16  # slices painted at a time, so that working arrays stay small


@dataclass(frozen=True, slots=True)
class PhantomOptions:
    """Grid (slice, row, column), noise (SD in HU at a typical body's centre; 0 = none), breathing, phases.

    With ``misregistration_mm`` > 0 every phase but the unenhanced one is displaced by its own random breath
    of at most that length; labels lie on the unenhanced phase. Raises ValueError for what cannot be made.
    """

    shape: Shape3 = (96, 256, 256)
    spacing_mm: Vec3 = (3.0, 1.5, 1.5)
    noise_hu: float = 12.0
    misregistration_mm: float = 0.0
    phases: tuple[str, ...] = PHASES

    def __post_init__(self) -> None:
        Geometry(self.shape, self.spacing_mm)
        for name, value in (("noise_hu", self.noise_hu), ("misregistration_mm", self.misregistration_mm)):
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} {value} is not a finite number of at least 0")
        unknown = [phase for phase in self.phases if phase not in PHASES]
        if unknown or not self.phases or len(set(self.phases)) < len(self.phases):
            raise ValueError(f"phases {self.phases} are not one or more of {PHASES}, each once")


@dataclass(frozen=True, slots=True)
class Phantom:
    """Phases (float32 HU), labels (uint8, see LABELS), their grid, ``truth[phase][label]`` HU as drawn."""

    phases: Mapping[str, Float32]
    labels: NDArray[np.uint8]
    geometry: Geometry
    truth: Mapping[str, Mapping[str, float]]
    seed: int


def make_phantom(seed: int, options: PhantomOptions = PhantomOptions(), box: Box | None = None) -> Phantom:
    """The patient of ``seed`` on the grid of ``options``, or only the voxels of ``box`` of that grid.

    ``box`` holds (first, end) index pairs along slice, row, column of the full grid and gives the same
    voxels, noise included, as cropping the full phantom. Raises ValueError for a negative seed or a box
    outside the grid.
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative")
    return render_patient(draw_patient(seed), options, box)


def render_patient(patient: Patient, options: PhantomOptions, box: Box | None = None) -> Phantom:
    """A drawn patient on the grid of ``options``, or on ``box`` of it: see :func:`make_phantom`."""
    box = ((0, options.shape[0]), (0, options.shape[1]), (0, options.shape[2])) if box is None else box
    _check_box(box, options.shape)
    shape = (box[0][1] - box[0][0], box[1][1] - box[1][0], box[2][1] - box[2][0])
    phases = {phase: np.empty(shape, np.float32) for phase in options.phases}
    labels = np.empty(shape, np.uint8)
    for first, end in _slabs(box[0]):
        part = slice(first - box[0][0], end - box[0][0])
        views = {phase: array[part] for phase, array in phases.items()}
        _fill(patient, options, ((first, end), box[1], box[2]), views, labels[part])
    truth = truth_of(patient)
    drawn = {phase: truth[phase] for phase in options.phases}
    return Phantom(phases, labels, _geometry(options, box), drawn, patient.seed)


def _check_box(box: Box, shape: Shape3) -> None:
    for (first, end), size in zip(box, shape, strict=True):
        if not 0 <= first < end <= size:
            raise ValueError(f"box {box} is empty or leaves the grid of {shape}")


def _slabs(span: tuple[int, int]) -> list[tuple[int, int]]:
    return list(pairwise([*range(span[0], span[1], SLAB_SLICES), span[1]]))


def _geometry(options: PhantomOptions, box: Box) -> Geometry:
    z, y, x = (-spacing * (n - 1) / 2 for n, spacing in zip(options.shape, options.spacing_mm, strict=True))
    first = Geometry(options.shape, options.spacing_mm, (x, y, z)).position_of(
        (box[0][0], box[1][0], box[2][0])
    )
    return Geometry(
        (box[0][1] - box[0][0], box[1][1] - box[1][0], box[2][1] - box[2][0]), options.spacing_mm, first
    )


def _fill(
    patient: Patient,
    options: PhantomOptions,
    box: Box,
    phases: Mapping[str, Float32],
    labels: NDArray[np.uint8],
) -> None:
    """Paint one slab of slices and add its noise."""
    axes, edge = _axes(patient, options, box), EDGE_VOXELS * float(np.cbrt(np.prod(options.spacing_mm)))
    fixed = Points(axes, *_spread(axes), edge)
    for breath, members in _breaths(patient, options).items():
        hu = {phase: phases[phase] for phase in members}
        for array in hu.values():
            array[...] = patient.enhancement.hu["ncct"]["air"]
        sheet = labels if breath.is_still else np.zeros_like(labels)
        sheet[...] = LABELS["air"]
        moving = breath.displaced(fixed, patient.build)
        paint(patient.parts, Canvas(fixed, moving, hu, sheet, edge))
    _add_noise(patient, options, box, fixed, phases)


def _axes(patient: Patient, options: PhantomOptions, box: Box) -> tuple[Float32, Float32, Float32]:
    """Patient coordinates of the box's voxels along (z, y, x), cut from those of the full grid."""
    z, y, x = (
        ((np.arange(size) - (size - 1) / 2) * spacing - shift).astype(np.float32)[first:end]
        for (first, end), size, spacing, shift in zip(
            box, options.shape, options.spacing_mm, patient.build.shift[::-1], strict=True
        )
    )
    return (z, y, x)


def _spread(axes: tuple[Float32, Float32, Float32]) -> tuple[Float32, Float32, Float32]:
    z, y, x = axes
    return (x[None, None, :], y[None, :, None], z[:, None, None])


def _breaths(patient: Patient, options: PhantomOptions) -> dict[Breath, list[str]]:
    """Which phases share a position of the diaphragm; the resting one, of the labels, always comes first."""
    breaths: dict[Breath, list[str]] = {Breath(0.0, 0.0): []}
    draws = {
        phase: draw_breath(stream(patient.seed, "breathing"), options.misregistration_mm, i)
        for i, phase in enumerate(PHASES)
    }
    for phase in options.phases:
        breaths.setdefault(draws[phase], []).append(phase)
    return breaths


def _add_noise(
    patient: Patient, options: PhantomOptions, box: Box, points: Points, phases: Mapping[str, Float32]
) -> None:
    strength = options.noise_hu * _noise_profile(patient, points)
    for phase, hu in phases.items():
        if options.noise_hu:
            key = (patient.seed, STREAMS["noise"], PHASES.index(phase))
            np.add(hu, noise_field(key, box, options.spacing_mm) * strength, out=hu)
        np.maximum(hu, LOWEST_HU, out=hu)


def _noise_profile(patient: Patient, points: Points) -> Float32:
    """Noise against that at a typical body's centre: less toward the skin, where rays cross less tissue."""
    build = patient.build
    square = (points.x / build.half_width_mm) ** 2 + (points.y / build.half_depth_mm) ** 2
    radial = 0.35 + 0.65 * np.maximum(1 - 0.75 * square, 0.0)
    chest = 1 - 0.25 * np.clip((points.z - 80) / 50, 0.0, 1.0)
    return np.asarray(radial * chest * build.relative_size**SIZE_NOISE_POWER, np.float32)
