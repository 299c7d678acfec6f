"""How much of a volume looks enhanced: what the pixels say where the tags say nothing.

Unenhanced soft tissue ends at about 75 HU; enhanced vessels, kidneys, spleen and, later, liver lie above.
Two things are measured, on voxels of about 3 mm so that noise, kernel and slice thickness matter little:

- the share of soft tissue above :data:`ENHANCED_HU`, bone and what is near it set aside;
- the area above :data:`VESSEL_HU` in front of the spine, where aorta and vena cava run.

The spine is found from its posterior elements: nothing but bone is bright behind the spinal canal, whatever
was injected. ``docs/intake.md`` holds what both measured on real series and on phantoms.

Arrays are ``[slice, row, column]`` of an upright patient, rows growing towards the back; masks are boolean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813

from engine.body import filled
from engine.volume import Float32, Vec3, Volume
from node.morphology import Mask, Radius, closed, dilated, eroded, mostly, opened
from node.orientation import axes_to_flip

VOXEL_MM = 3.0
"""Edge of the voxels everything is measured on."""
ENHANCED_HU = 80.0
"""Smoothed soft tissue above it is enhanced: blood without contrast is below 60, liver below 75."""
VESSEL_HU = 130.0
"""Smoothed tissue above it in front of the spine is a vessel full of contrast."""
BODY_HU = -250.0
"""What is denser and hangs together is the body."""
COMPACT_BONE_HU = 450.0
"""Bone that needs no further sign."""
BONE_HU = 200.0
"""What is this bright and near compact bone is bone."""
POSTERIOR_BONE_HU = 180.0
"""The same behind the spinal canal."""
METAL_HU = 900.0
"""No vessel is as bright as this on average."""

LEAN_HU = -30.0
"""What is denser is not fat; its outline is the body wall, however thick the fat around it is."""
WALL_MM = 15.0
"""Thickness of the body wall, which is not measured: ribs, costal cartilage and their muscles."""
BONE_REACH_MM = 12.0
"""How far from compact bone bone is looked for."""
GAP_MM = 6.0
"""Gaps in bone that are closed, so that marrow is inside."""
MARGIN_MM = 4.0
"""Distance kept from bone, for partial volume."""
AIR_MM = 24.0
"""Air kept around the body."""
POOL_MM = 9.0
"""What is as bright as compact bone over a ball of this radius is a heart or aneurysm."""

BACK_MM, BACK_SHARE, BACK_HALF_MM = 80.0, 0.33, 35.0
"""Where posterior elements are looked for: depth from the back in mm and as share of the body; half width."""
SPINE_WINDOW_MM = 20.0
"""The spine's place is an average over this far up and down."""
SPINE_FRONT_MM, SPINE_HALF_MM = 62.0, 28.0
"""From the posterior elements' centre to well in front of the vertebral bodies; half a vertebra's width."""
VESSELS_BACK_MM, VESSELS_DEPTH_MM, VESSELS_HALF_MM = 55.0, 70.0, 45.0
"""Where aorta and vena cava run: from this far in front of that centre, this deep, this wide either side."""
MIN_SPINE_MM2 = 100.0
"""Posterior elements smaller than this in a window are not believed."""


@dataclass(frozen=True, slots=True)
class Enhancement:
    """What was measured.

    ``enhanced_share``: share of soft tissue above 80 HU. ``vessel_mm2``: mean area above 130 HU in front of
    the spine, 0 where no spine was found. ``soft_tissue_ml``: what the share is a share of.
    """

    enhanced_share: float
    vessel_mm2: float
    soft_tissue_ml: float


def measure_enhancement(volume: Volume) -> Enhancement:
    """Measure a volume whose slices are axial; shares of nothing are 0."""
    grid, body = _cropped(*_with_body(_coarse(volume)))
    spine = _find_spine(grid, body)
    soft = _inner(grid, body) & ~_bone(grid, spine) & mostly(grid.hu > 0)
    enhanced = _opened(grid, soft & mostly(grid.hu >= ENHANCED_HU), VOXEL_MM)
    count = int(soft.sum())
    return Enhancement(
        enhanced_share=float(enhanced.sum()) / count if count else 0.0,
        vessel_mm2=_vessel_mm2(grid, spine),
        soft_tissue_ml=count * grid.voxel_ml,
    )


# --- the grid everything is measured on ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Grid:
    """Means over blocks of about 3 mm, and the blocks' size in mm."""

    hu: Float32
    spacing_mm: Vec3

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000

    @property
    def pixel_mm2(self) -> float:
        return self.spacing_mm[1] * self.spacing_mm[2]

    def voxels(self, mm: float, axis: int) -> int:
        """How many voxels along an axis make ``mm``; none along slices where there is only one."""
        return round(mm / self.spacing_mm[axis]) if self.hu.shape[axis] > 1 else 0


def _coarse(volume: Volume) -> _Grid:
    hu = np.flip(volume.hu, axes_to_flip(volume.geometry))
    blocks = [
        min(size, max(1, round(VOXEL_MM / spacing)))
        for size, spacing in zip(hu.shape, volume.geometry.spacing_mm, strict=True)
    ]
    means = _block_means(hu, blocks)
    spacing = tuple(s * b for s, b in zip(volume.geometry.spacing_mm, blocks, strict=True))
    return _Grid(means, (spacing[0], spacing[1], spacing[2]))


def _block_means(hu: Float32, blocks: list[int]) -> Float32:
    """Means over blocks of whole voxels, a slab at a time; what does not fill a block is left out."""
    slices, rows, columns = (size // block for size, block in zip(hu.shape, blocks, strict=True))
    means = np.empty((slices, rows, columns), dtype=np.float32)
    for at in range(slices):
        slab = hu[at * blocks[0] : (at + 1) * blocks[0], : rows * blocks[1], : columns * blocks[2]]
        total = np.clip(slab, -1024, 3000).sum(axis=0)  # axis by axis: all at once takes five times as long
        total = total.reshape(rows, blocks[1], -1).sum(axis=1)
        total.reshape(rows, columns, blocks[2]).sum(axis=2, out=means[at])
    means /= np.float32(np.prod(blocks))
    return means


def _ball(grid: _Grid, mm: float) -> Radius:
    return (grid.voxels(mm, 0), grid.voxels(mm, 1), grid.voxels(mm, 2))


def _disc(grid: _Grid, mm: float) -> Radius:
    return (0, grid.voxels(mm, 1), grid.voxels(mm, 2))


def _apply(mask: Mask, operation: Callable[[sitk.Image], sitk.Image]) -> Mask:
    image = operation(sitk.GetImageFromArray(mask.astype(np.uint8)))
    return np.asarray(sitk.GetArrayFromImage(image) > 0)


def _opened(grid: _Grid, mask: Mask, mm: float) -> Mask:
    """Opening by a ball; the first and last slices are mirrored, so that it does not end with the volume."""
    radius = _ball(grid, mm)
    pad = [min(r, size) for r, size in zip(radius, mask.shape, strict=True)]
    inner = tuple(slice(p, p + size) for p, size in zip(pad, mask.shape, strict=True))
    return opened(np.pad(mask, [(p, p) for p in pad], mode="symmetric"), radius)[inner]


# --- anatomy ------------------------------------------------------------------------------------


def _with_body(grid: _Grid) -> tuple[_Grid, Mask]:
    """The largest thing denser than air, without table and clothes, its holes (lungs, bowel) filled."""
    dense = opened(grid.hu > BODY_HU, _ball(grid, GAP_MM))
    return grid, filled(_apply(dense, _largest)) if dense.any() else dense


def _cropped(grid: _Grid, body: Mask) -> tuple[_Grid, Mask]:
    """Rows and columns of the body only, with air around it wherever the image holds some."""
    if not body.any():
        return grid, body
    rows, columns = (np.flatnonzero(body.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    box = tuple(
        slice(
            max(0, int(found[0]) - grid.voxels(AIR_MM, axis)), int(found[-1]) + grid.voxels(AIR_MM, axis) + 1
        )
        for axis, found in ((1, rows), (2, columns))
    )
    kept = (slice(None), *box)
    return _Grid(grid.hu[kept], grid.spacing_mm), body[kept]


def _largest(image: sitk.Image) -> sitk.Image:
    return sitk.RelabelComponent(sitk.ConnectedComponent(image), sortByObjectSize=True) == 1


def _inner(grid: _Grid, body: Mask) -> Mask:
    """What is inside the body wall."""
    lean = _opened(grid, body & mostly(grid.hu > LEAN_HU), GAP_MM)
    if not lean.any():
        return lean
    wall = _disc(grid, WALL_MM)
    return eroded(filled(closed(_apply(lean, _largest), wall)), wall)


@dataclass(frozen=True, slots=True)
class _Spine:
    """Posterior elements, the box around the vertebrae, and the box in front of them."""

    posterior: Mask
    vertebrae: Mask
    vessels: Mask


def _find_spine(grid: _Grid, body: Mask) -> _Spine:
    posterior = _back(grid, body) & (grid.hu > POSTERIOR_BONE_HU)
    vertebrae, vessels = np.zeros_like(body), np.zeros_like(body)
    reach = grid.voxels(SPINE_WINDOW_MM, 0)
    for at in range(len(body)):
        window = posterior[max(0, at - reach) : at + reach + 1]
        if window.sum() * grid.pixel_mm2 < MIN_SPINE_MM2:
            continue
        _, rows, columns = np.nonzero(window)
        centre = (float(rows.mean()), float(np.median(columns)))
        _draw_box(grid, vertebrae[at], centre, SPINE_FRONT_MM, np.inf, SPINE_HALF_MM)
        _draw_box(
            grid, vessels[at], centre, VESSELS_BACK_MM + VESSELS_DEPTH_MM, -VESSELS_BACK_MM, VESSELS_HALF_MM
        )
    return _Spine(posterior, vertebrae, vessels)


def _draw_box(
    grid: _Grid, mask: Mask, centre: tuple[float, float], front_mm: float, back_mm: float, half_mm: float
) -> None:
    """Set rows from ``front_mm`` before to ``back_mm`` behind the centre, columns to either side."""
    row, column = centre
    first = max(0, round(row - front_mm / grid.spacing_mm[1]))
    end = mask.shape[0] if np.isinf(back_mm) else max(0, round(row + back_mm / grid.spacing_mm[1]))
    half = half_mm / grid.spacing_mm[2]
    mask[first:end, max(0, round(column - half)) : round(column + half) + 1] = True


def _back(grid: _Grid, body: Mask) -> Mask:
    """Where only the spine's posterior elements are bright: behind, and near the midline."""
    back = np.zeros_like(body)
    half = round(BACK_HALF_MM / grid.spacing_mm[2])
    for at, one in enumerate(body):
        rows, columns = np.nonzero(one)
        if len(rows):
            last, middle = int(rows.max()), int(np.median(columns))
            depth = int(min(BACK_SHARE * (last - rows.min()), BACK_MM / grid.spacing_mm[1]))
            back[at, last - depth : last + 1, max(0, middle - half) : middle + half] = True
    return back & body


def _bone(grid: _Grid, spine: _Spine) -> Mask:
    """Bone with its marrow, closed, filled and with a margin."""
    compact = grid.hu > COMPACT_BONE_HU
    pool = _opened(grid, compact & (grid.hu < METAL_HU), POOL_MM)
    vessels = spine.vessels & ~spine.vertebrae & (grid.hu < METAL_HU)
    never = pool | vessels
    seeds = (compact & ~dilated(pool, _ball(grid, VOXEL_MM)) & ~vessels) | spine.posterior
    near = dilated(seeds, _ball(grid, BONE_REACH_MM))
    bone = seeds | ((grid.hu > BONE_HU) & near & ~never)
    bone |= _connected(spine.vertebrae & (mostly(grid.hu > ENHANCED_HU) | bone) & ~pool, spine.posterior)
    whole = filled(closed(bone, _disc(grid, GAP_MM))) & ~never
    return dilated(whole, _ball(grid, MARGIN_MM)) & ~pool


def _connected(mask: Mask, seeds: Mask) -> Mask:
    """The parts of ``mask`` that hang together with ``seeds``."""
    image = sitk.GetImageFromArray((mask | seeds).astype(np.uint8))
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(image))
    kept = np.unique(labels[seeds])
    return np.asarray(mask & np.isin(labels, kept[kept > 0]))


def _vessel_mm2(grid: _Grid, spine: _Spine) -> float:
    """Mean area a slice of bright, compact things in front of the spine."""
    slices = int(spine.vessels.any(axis=(1, 2)).sum())
    bright = spine.vessels & mostly(grid.hu >= VESSEL_HU) & (grid.hu < METAL_HU)
    count = opened(bright, _disc(grid, MARGIN_MM)).sum()
    return float(count) * grid.pixel_mm2 / slices if slices else 0.0
