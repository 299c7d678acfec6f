"""Bring an enhanced scan onto the unenhanced one of the same study.

**Rigid** first, on bone: bones move as one while organs follow the breath, so Mattes' mutual information is
taken near bone, in the body. **Then deformable**: diffeomorphic demons, coarse to fine, on scans cut off at
20 HU from above and −200 HU from below, the body only. Cut off there, soft tissue is one value whether it
enhances or not, so demons' assumption of equal intensities holds, and what is left are the outlines contrast
does not change: fat, lung, gas, skin. B-splines driven by mutual information need no such cut, but took over
six minutes for their first level on one core where demons take one for all of theirs. The field fades out
towards bone, which the cut hides.

The rigid step runs on one thread, the other voxel by voxel: equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from engine.body import find_body
from engine.grid import model_grid, to_model, whole
from engine.volume import Float32, Geometry, Volume
from train.real import OUTSIDE_HU, to_image

Method = Literal["none", "rigid", "deformable"]
Progress = Callable[[float], None]

RIGID_HU = (-200.0, 700.0)
"""Window of the rigid step: bone has its full contrast."""
BONE_HU = 180.0
BONE_SIGMA_MM = 4.0
"""Bone is what is brighter after this smoothing; unenhanced, nothing else is."""
BONE_REACH_MM = 12.0
"""The rigid step looks this far around bone; the deformable field fades out over it."""
LEAST_VOXELS_NEAR_BONE = 8000
"""With fewer the whole body is looked at."""
SAMPLES = 20_000
"""Voxels the rigid step looks at, of those it may."""
ALIKE_HU = (-200.0, 20.0)
"""Window in which enhancement cannot be seen: soft tissue is at its upper end or above."""
LEVELS = ((4, 60), (2, 60), (1, 15))
"""Demons: voxels of the registration grid that make one, and iterations."""
FIELD_SIGMA_VOXELS = 2.0
LEAST_VOXELS = 8
"""A level needs as many along each axis."""
NEAR = 0.5
"""Where the bodies overlap less than this by the scanner's coordinates, centres are put together first."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scans:
    """Both scans on their registration grids, and the body in the fixed one."""

    fixed: Volume
    moving: Volume
    body: Mask


@dataclass(frozen=True, slots=True)
class Alignment:
    """``rigid`` and ``whole`` take a point of the fixed scan to where it is in the moving one."""

    rigid: sitk.Transform
    whole: sitk.Transform


def scans(fixed: Volume, moving: Volume, grid_mm: float) -> Scans:
    """Both on grids of ``grid_mm``, the fixed one cropped to its body. VolumeUnsupported without a body."""
    spacing = (grid_mm, grid_mm, grid_mm)
    grid = model_grid(fixed.geometry, find_body(fixed).box, spacing)
    coarse = Volume(to_model(fixed.hu, grid), grid.model)
    other = model_grid(moving.geometry, whole(moving.geometry), spacing)
    return Scans(coarse, Volume(to_model(moving.hu, other), other.model), body_mask(coarse))


def body_mask(volume: Volume) -> Mask:
    """The body at every voxel; nothing where there is none."""
    body = find_body(volume)
    mask = body.mask
    for axis, step in enumerate(body.step):
        mask = np.repeat(mask, step, axis=axis)
    slices, rows, columns = volume.hu.shape
    return mask[:slices, :rows, :columns]


def register(pair: Scans, method: Method, seed: int, progress: Progress = lambda fraction: None) -> Alignment:
    """Align the moving scan with the fixed one; ``seed`` chooses the voxels that the rigid step samples."""
    if method == "none":
        return Alignment(sitk.Transform(), sitk.Transform())
    rigid = _rigid(pair, seed)
    progress(0.2)
    if method == "rigid":
        return Alignment(rigid, rigid)
    field = _demons(pair, rigid, progress)
    return Alignment(rigid, sitk.CompositeTransform([rigid, sitk.DisplacementFieldTransform(field)]))


def moved(volume: Volume, transform: sitk.Transform, grid: Geometry, outside: float = OUTSIDE_HU) -> Float32:
    """``volume`` seen through ``transform`` on ``grid``, linearly; beyond its edges ``outside``."""
    resampled = sitk.Resample(to_image(volume), _frame(grid), transform, sitk.sitkLinear, outside)
    array: Float32 = sitk.GetArrayFromImage(resampled)
    return array


def covered(volume: Geometry, transform: sitk.Transform, grid: Geometry) -> Mask:
    """Voxels of ``grid`` that the scan on ``volume`` shows."""
    return moved(Volume(np.ones(volume.shape, np.float32), volume), transform, grid, 0.0) > 0.5


def displacement(transform: sitk.Transform, grid: Geometry) -> NDArray[np.float64]:
    """(slice, row, column, xyz) LPS millimetres from each voxel of ``grid`` to its image."""
    frame = _frame(grid)
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, frame.GetSize(), frame.GetOrigin(), frame.GetSpacing(),
        frame.GetDirection(),
    )  # fmt: skip
    array: NDArray[np.float64] = sitk.GetArrayFromImage(field)
    return array


def bone_mask(pair: Scans) -> Mask:
    """Bone of the fixed scan."""
    smooth = sitk.SmoothingRecursiveGaussian(to_image(pair.fixed), BONE_SIGMA_MM)
    return (sitk.GetArrayFromImage(smooth) > BONE_HU) & pair.body


def distance_mm(mask: Mask, grid: Geometry) -> Float32:
    """Distance from each voxel to the mask; 0 in it, far everywhere where it is empty."""
    if not mask.any():
        return np.full(mask.shape, 1e3, np.float32)
    image = _mask_image(mask, grid)
    outside = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(outside), 0).astype(np.float32)


def _rigid(pair: Scans, seed: int) -> sitk.Transform:
    fixed, moving = (sitk.Clamp(to_image(v), sitk.sitkFloat32, *RIGID_HU) for v in (pair.fixed, pair.moving))
    transform, looked_at = _start(pair), _looked_at(pair)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(_mask_image(looked_at, pair.fixed.geometry))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_share(looked_at), seed + 1)  # 0 would mean the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.02, 60, 0.5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    with _one_thread():
        method.Execute(fixed, moving)
    return transform


@contextmanager
def _one_thread() -> Iterator[None]:
    """ITK's metric sums in the order its threads end, whatever the method is told."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _looked_at(pair: Scans) -> Mask:
    bone = bone_mask(pair)
    near = (distance_mm(bone, pair.fixed.geometry) <= BONE_REACH_MM) & pair.body
    return near if near.sum() >= LEAST_VOXELS_NEAR_BONE else pair.body


def _share(looked_at: Mask) -> float:
    """How likely a voxel is sampled; ITK draws from the whole grid and drops what is outside the mask."""
    return float(np.clip(SAMPLES / max(int(looked_at.sum()), 1), 0.01, 1.0))


def _start(pair: Scans) -> sitk.Euler3DTransform:
    """The scanner's coordinates, or centre on centre where by them the bodies hardly meet."""
    transform = sitk.Euler3DTransform()
    transform.SetCenter(_centre(pair.body, pair.fixed.geometry))
    other = body_mask(pair.moving)
    image = Volume(other.astype(np.float32), pair.moving.geometry)
    met = moved(image, sitk.Transform(), pair.fixed.geometry, 0.0) > 0.5
    if (met & pair.body).sum() < NEAR * min(pair.body.sum(), other.sum()):
        here, there = transform.GetCenter(), _centre(other, pair.moving.geometry)
        transform.SetTranslation([b - a for a, b in zip(here, there, strict=True)])
    return transform


def _centre(mask: Mask, grid: Geometry) -> tuple[float, float, float]:
    z, y, x = (float(indices.mean()) for indices in np.nonzero(mask))
    return grid.position_of((z, y, x))


def _demons(pair: Scans, rigid: sitk.Transform, progress: Progress) -> sitk.Image:
    """The displacement field on the fixed grid, applied before ``rigid``."""
    grid = pair.fixed.geometry
    after = moved(pair.moving, rigid, grid)
    shown = covered(pair.moving.geometry, rigid, grid)
    fixed = _alike(pair.fixed.hu, pair.body & shown, grid)
    moving = _alike(after, body_mask(Volume(after, grid)) & shown, grid)
    fade = _fade(distance_mm(bone_mask(pair), grid))
    field: sitk.Image | None = None
    for number, (shrink, iterations) in enumerate(LEVELS):
        if min(grid.shape) < shrink * LEAST_VOXELS:
            continue
        field = _level(fixed, moving, shrink, iterations, field)
        field = _faded(sitk.Resample(field, fixed, sitk.Transform(), sitk.sitkLinear), fade)
        progress(0.2 + 0.8 * (number + 1) / len(LEVELS))
    return field or sitk.TransformToDisplacementField(
        sitk.Transform(), sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(),
        fixed.GetDirection(),
    )  # fmt: skip


def _level(
    fixed: sitk.Image, moving: sitk.Image, shrink: int, iterations: int, field: sitk.Image | None
) -> sitk.Image:
    small, other = (_shrunk(image, shrink) for image in (fixed, moving))
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(iterations)
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(FIELD_SIGMA_VOXELS)
    demons.SetIntensityDifferenceThreshold(1.0)
    if field is None:
        return demons.Execute(small, other)
    return demons.Execute(small, other, sitk.Resample(field, small, sitk.Transform(), sitk.sitkLinear))


def _shrunk(image: sitk.Image, shrink: int) -> sitk.Image:
    if shrink == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, shrink * image.GetSpacing()[0] / 2)
    return sitk.Shrink(smooth, [shrink] * 3)


def _alike(hu: Float32, mask: Mask, grid: Geometry) -> sitk.Image:
    low, high = ALIKE_HU
    return to_image(Volume(np.where(mask, np.clip(hu, low, high), low).astype(np.float32), grid))


def _fade(bone_mm: Float32) -> Float32:
    share = np.clip(bone_mm / BONE_REACH_MM, 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def _faded(field: sitk.Image, fade: Float32) -> sitk.Image:
    image = sitk.GetImageFromArray(sitk.GetArrayFromImage(field) * fade[..., None], isVector=True)
    image.CopyInformation(field)
    return image


def _frame(grid: Geometry) -> sitk.Image:
    return to_image(Volume(np.zeros(grid.shape, np.float32), grid))


def _mask_image(mask: Mask, grid: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.CopyInformation(_frame(grid))
    return image
