"""Pairs of real patients: volumes written by ``s2node convert``, brought onto the model grid, kept as int16.

``pairs.tsv`` in the data folder says which volume is which, since a converted volume carries no header::

    ncct       arterial   venous
    case-0001  case-0002  case-0003

An entry is a folder holding ``ct.nii.gz`` or a volume file, relative to ``pairs.tsv``; a phase a patient does
not have is ``-``. The enhanced volume is resampled onto the NCCT's own grid by the scanner's coordinates:
register beforehand where the patient moved. The last row is held out for validation.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from engine.compose import box_mean
from engine.grid import model_grid, to_model, whole
from engine.volume import Float32, Geometry, Vec3, Volume
from train.config import DataConfig
from train.disk import save_array

LIST = "pairs.tsv"
ABSENT = "-"
OUTSIDE_HU = -1024.0
ENHANCED_HU = 40.0
CENTRES = 512


class PairsUnusable(Exception):
    """The configured source cannot supply pairs; says which file and why."""


def folder_pairs(config: DataConfig, cache: Path) -> list[Path]:
    """Stems of cases, ``<stem>.npy`` (ncct, phase) and ``<stem>.centres.npy``; prepares what is missing.

    Raises PairsUnusable where the list or a volume cannot be used, or fewer than two patients are left.
    """
    folder = Path(config.folder)
    rows = _read_list(folder / LIST, config.phase)
    if len(rows) < 2:
        raise PairsUnusable(
            f"{folder / LIST}: {len(rows)} patients with {config.phase}; at least 2 are needed"
        )
    return [_prepare(config, cache, source, target) for source, target in rows]


def read_volume(path: Path) -> Volume:
    """A NIfTI, MetaImage or NRRD file in LPS. Raises PairsUnusable."""
    try:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
        return Volume(sitk.GetArrayFromImage(image), _geometry(image))
    except (RuntimeError, ValueError) as error:
        raise PairsUnusable(f"{path}: {error}") from error


def onto(moving: Volume, fixed: Geometry) -> Float32:
    """``moving`` on the grid of ``fixed``, linearly, by the coordinates both have; outside it is air."""
    image = sitk.GetImageFromArray(moving.hu)
    _place(image, moving.geometry)
    size = [int(n) for n in reversed(fixed.shape)]
    resampled = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, fixed.origin_mm, fixed.spacing_mm[::-1],
        fixed.direction_matrix[:, ::-1].ravel().tolist(), OUTSIDE_HU, sitk.sitkFloat32,
    )  # fmt: skip
    array: Float32 = sitk.GetArrayFromImage(resampled)
    return array


def enhanced_centres(ncct: Float32, phase: Float32, rng: np.random.Generator) -> NDArray[np.int16]:
    """(1, n, 3) voxels where the smoothed phase lies 40 HU above the smoothed NCCT; none: (0, 1, 3)."""
    where = np.flatnonzero(box_mean(phase, (1, 1, 1)) - box_mean(ncct, (1, 1, 1)) > ENHANCED_HU)
    if not len(where):
        return np.zeros((0, 1, 3), np.int16)
    chosen = np.unravel_index(rng.choice(where, CENTRES), ncct.shape)
    return np.stack(chosen, axis=1).astype(np.int16)[None]


def _prepare(config: DataConfig, cache: Path, source: Path, target: Path) -> Path:
    stem = cache / f"real-{_digest(config, source, target)}"
    if stem.with_suffix(".npy").exists():
        return stem
    cache.mkdir(parents=True, exist_ok=True)
    volume = read_volume(source)
    moved = onto(read_volume(target), volume.geometry)
    grid = model_grid(volume.geometry, whole(volume.geometry), config.spacing_mm)
    ncct, phase = to_model(volume.hu, grid), to_model(moved, grid)
    if any(n < c for n, c in zip(ncct.shape, config.crop, strict=True)):
        raise PairsUnusable(
            f"{source}: {ncct.shape} voxels on the model grid are less than a crop {config.crop}"
        )
    centres = enhanced_centres(ncct, phase, np.random.default_rng(0))
    save_array(stem.with_suffix(".centres.npy"), centres)
    save_array(stem.with_suffix(".npy"), np.rint(np.stack([ncct, phase])).clip(-2000, 4000).astype(np.int16))
    return stem


def _read_list(file: Path, phase: str) -> list[tuple[Path, Path]]:
    try:
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except OSError as error:
        raise PairsUnusable(f"{file}: {error.strerror}") from error
    if rows and not {"ncct", phase} <= rows[0].keys():
        raise PairsUnusable(f"{file}: columns {sorted(rows[0])} lack ncct or {phase}")
    return [
        (_volume_file(file.parent / row["ncct"]), _volume_file(file.parent / row[phase]))
        for row in rows
        if ABSENT not in (row["ncct"], row[phase])
    ]


def _volume_file(entry: Path) -> Path:
    return entry / "ct.nii.gz" if entry.is_dir() else entry


def _digest(config: DataConfig, *files: Path) -> str:
    try:
        facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    except FileNotFoundError as error:
        raise PairsUnusable(f"{error.filename}: named in {LIST} and not there") from None
    text = json.dumps([facts, config.spacing_mm, config.crop])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _geometry(image: sitk.Image) -> Geometry:
    x, y, z = np.array(image.GetDirection()).reshape(3, 3).T
    a, b, c = (float(s) for s in reversed(image.GetSpacing()))
    slices, rows, columns = reversed(image.GetSize())
    return Geometry((slices, rows, columns), (a, b, c), _vec(image.GetOrigin()), (_vec(z), _vec(y), _vec(x)))


def _place(image: sitk.Image, geometry: Geometry) -> None:
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction_matrix[:, ::-1].ravel().tolist())


def _vec(values: NDArray[np.float64] | tuple[float, ...]) -> Vec3:
    x, y, z = (float(v) for v in values)
    return (x, y, z)
