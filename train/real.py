"""Pairs of patients from a folder, brought onto the model grid, kept as int16.

``pairs.tsv``, as ``s2node train prepare`` writes it, says which volume is which::

    ncct                   arterial                   venous  patient  split
    pairs/p1/s1/ncct.nii.gz  pairs/p1/s1/arterial.nii.gz  -       p1       train

An entry is a volume file or a folder holding ``ct.nii.gz``, relative to ``pairs.tsv``; a phase that is
missing is ``-``. Columns of other names are let be. Written by hand, ``split`` may be left out: then one
patient is held out for validation, that of the last of the rows with the most phases. ``patient`` may not:
two scans of one patient would be learnt from and judged on. The enhanced volume is resampled onto the NCCT's
grid by the coordinates both have: ``prepare`` registers.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as remembered
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from engine.compose import box_mean
from engine.grid import model_grid, to_model, whole
from engine.volume import Float32, Geometry, Vec3, Volume
from train.config import PHASES, DataConfig
from train.disk import save_array
from train.split import SIDES, PatientOnTwoSides, Side, check_sides

LIST = "pairs.tsv"
ABSENT = "-"
OUTSIDE_HU = -1024.0
ENHANCED_HU = 40.0
CENTRES = 512
SAME_PLACE_MM = 0.1
PREPARED = 2
"""Raise it when the same files give other voxels: cached pairs are then made anew."""


class PairsUnusable(Exception):
    """The configured source cannot supply pairs; says which file and why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One line of the list: the files of NCCT and phase, whose they are, and the side of the split."""

    ncct: Path
    phase: Path
    patient: str
    side: Side


def folder_pairs(config: DataConfig, cache: Path, side: Side) -> list[Path]:
    """Stems of one side's cases, ``<stem>.npy`` (ncct, phase) and ``<stem>.centres.npy``; made if missing.

    Raises PairsUnusable where the list or a volume cannot be used, or the side is empty.
    """
    rows = listed_pairs(config)
    chosen = [row for row in rows if row.side == side]
    if not chosen:
        raise PairsUnusable(
            f"{Path(config.folder) / LIST}: {len(rows)} pairs with {config.phase}, none of them for {side}; "
            "more patients or another split are needed"
        )
    return [_prepare(config, cache, row.ncct, row.phase) for row in chosen]


def listed_pairs(config: DataConfig) -> list[Pair]:
    """Every pair of ``config.phase`` in the list. Raises PairsUnusable, for a patient on two sides too.

    A patient's side is that of all rows of the list, whichever phase they have: a network may learn both.
    """
    file = Path(config.folder) / LIST
    lines = _read_list(file, config.phase)
    if nobodys := [n for n, line in enumerate(lines, 2) if not _has(line, "patient")]:
        raise PairsUnusable(
            f"{file}: line {nobodys[0]} names no patient: write a pseudonym into a column patient, the same"
            " for all of one patient's pairs; else a model may be judged on whom it learnt from"
        )
    patients = [line["patient"] for line in lines]
    sides = _sides(lines, patients)
    if unknown := sorted(set(sides) - set(SIDES)):
        raise PairsUnusable(f"{file}: split {unknown[0]!r} is none of {', '.join(SIDES)}")
    try:
        check_sides(zip(patients, sides, strict=True))
    except PatientOnTwoSides as error:
        raise PairsUnusable(f"{file}: {error}") from None
    return [
        Pair(
            _volume_file(file.parent / line["ncct"]),
            _volume_file(file.parent / line[config.phase]),
            who,
            side,
        )  # type: ignore[arg-type]
        for line, who, side in zip(lines, patients, sides, strict=True)
        if _has(line, "ncct") and _has(line, config.phase)
    ]


def data_digest(config: DataConfig) -> str:
    """Sha256 of the bytes of every volume of the configured phase, whatever the files are called."""
    try:
        files = sorted({file for row in listed_pairs(config) for file in (row.ncct, row.phase)})
        contents = sorted(_content_digest(file) for file in files)
    except OSError as error:
        raise PairsUnusable(f"{error.filename}: {error.strerror}") from error
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def split_digest(config: DataConfig) -> str:
    """Sha256 of who is on which side."""
    rows = sorted({(row.patient, row.side) for row in listed_pairs(config)})
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_upright(file: Path) -> Volume:
    """A NIfTI, MetaImage or NRRD file, however its axes are stored: slices go upward, rows to the back,
    columns to the left, as the engine has them; a network knows no mirrored patient. Raises PairsUnusable.
    """
    try:
        image = sitk.DICOMOrient(sitk.ReadImage(str(file), sitk.sitkFloat32), "LPS")
        return to_volume(image)
    except (RuntimeError, ValueError) as error:
        raise PairsUnusable(f"{file}: {error}") from error


def same_place(one: Geometry, other: Geometry) -> bool:
    """Whether two grids have the same voxels at the same places, give or take ``SAME_PLACE_MM``."""
    corners = ((0.0, 0.0, 0.0), tuple(float(n - 1) for n in other.shape))
    apart = [
        np.linalg.norm(np.subtract(one.position_of(c), other.position_of(c)))  # type: ignore[arg-type]
        for c in corners
    ]
    return one.shape == other.shape and max(apart) <= SAME_PLACE_MM


def onto(moving: Volume, fixed: Geometry) -> Float32:
    """``moving`` on the grid of ``fixed``, linearly, by the coordinates both have; outside it is air."""
    image = to_image(moving)
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
    volume = read_upright(source)
    moved = onto(read_upright(target), volume.geometry)
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


def _content_digest(file: Path) -> str:
    stat = file.stat()
    return _digest_of_bytes(file, stat.st_size, stat.st_mtime_ns)


@remembered
def _digest_of_bytes(file: Path, size: int, mtime_ns: int) -> str:
    """Read once a process though several checks ask: the pairs of hundreds of patients take minutes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_list(file: Path, phase: str) -> list[dict[str, str]]:
    """All lines, with or without the phase."""
    try:
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except OSError as error:
        raise PairsUnusable(f"{file}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise PairsUnusable(f"{file}: {error}") from error
    if rows and not {"ncct", phase} <= rows[0].keys():
        raise PairsUnusable(f"{file}: columns {sorted(rows[0])} lack ncct or {phase}")
    return rows


def _sides(lines: Sequence[dict[str, str]], patients: Sequence[str]) -> list[str]:
    """As the list says; without a column, everybody learns but the last patient with the most phases."""
    if not lines or "split" in lines[0]:
        return [line.get("split") or "train" for line in lines]
    phases = [sum(_has(line, phase) for phase in PHASES) for line in lines]
    held_out = max(zip(phases, range(len(lines)), patients, strict=True))[2]
    return ["validation" if who == held_out else "train" for who in patients]


def _has(line: dict[str, str], column: str) -> bool:
    return line.get(column) not in {ABSENT, "", None}


def _volume_file(entry: Path) -> Path:
    return entry / "ct.nii.gz" if entry.is_dir() else entry


def _digest(config: DataConfig, *files: Path) -> str:
    try:
        facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    except FileNotFoundError as error:
        raise PairsUnusable(f"{error.filename}: named in {LIST} and not there") from None
    text = json.dumps([PREPARED, facts, config.spacing_mm, config.crop])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_image(volume: Volume) -> sitk.Image:
    """The volume as SimpleITK knows it, at its place in space."""
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.geometry.spacing_mm[::-1])
    image.SetOrigin(volume.geometry.origin_mm)
    image.SetDirection(volume.geometry.direction_matrix[:, ::-1].ravel().tolist())
    return image


def to_volume(image: sitk.Image) -> Volume:
    """The float32 image as the engine knows it. Raises ValueError where its axes are not at right angles."""
    x, y, z = np.array(image.GetDirection()).reshape(3, 3).T
    a, b, c = (float(s) for s in reversed(image.GetSpacing()))
    slices, rows, columns = reversed(image.GetSize())
    geometry = Geometry(
        (slices, rows, columns), (a, b, c), _vec(image.GetOrigin()), (_vec(z), _vec(y), _vec(x))
    )
    return Volume(sitk.GetArrayFromImage(image), geometry)


def _vec(values: NDArray[np.float64] | tuple[float, ...]) -> Vec3:
    x, y, z = (float(v) for v in values)
    return (x, y, z)
