"""A volume of Hounsfield units and the place in space where it lies; they travel together.

Axes are always (slice, row, column). Positions are millimetres in the patient's LPS frame
(PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Vec3 = tuple[float, float, float]
Shape3 = tuple[int, int, int]

ORTHONORMAL_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Geometry:
    """A regular grid in space.

    ``shape`` and ``spacing_mm`` are in (slice, row, column) order: ``spacing_mm[1]`` is the distance between
    rows, ``spacing_mm[2]`` between columns. ``directions`` holds the unit LPS vectors along which the slice,
    row and column *index* grows, in that order. ``origin_mm`` is the LPS centre of voxel (0, 0, 0).
    Raises ValueError where these do not describe a right-angled grid.
    """

    shape: Shape3
    spacing_mm: Vec3
    origin_mm: Vec3 = (0.0, 0.0, 0.0)
    directions: tuple[Vec3, Vec3, Vec3] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    frame_of_reference_uid: str | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape {self.shape} is not three positive counts")
        if min(self.spacing_mm) <= 0 or not np.all(np.isfinite(self.spacing_mm)):
            raise ValueError(f"spacing {self.spacing_mm} mm is not three positive lengths")
        gram = self.direction_matrix.T @ self.direction_matrix
        if not np.allclose(gram, np.eye(3), atol=ORTHONORMAL_TOLERANCE):
            raise ValueError(f"directions {self.directions} are not at right angles and of length one")

    @property
    def direction_matrix(self) -> NDArray[np.float64]:
        """(3, 3): columns are the slice, row and column directions in LPS."""
        return np.asarray(self.directions, dtype=np.float64).T

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): (slice, row, column, 1) index to LPS millimetres."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.direction_matrix * np.asarray(self.spacing_mm)
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def extent_mm(self) -> Vec3:
        """Edge-to-edge size of the grid along slice, row, column."""
        slices, rows, columns = (n * d for n, d in zip(self.shape, self.spacing_mm, strict=True))
        return (slices, rows, columns)

    def position_of(self, index: Vec3) -> Vec3:
        """LPS millimetres of a (slice, row, column) index, fractions allowed."""
        x, y, z, _ = self.affine @ np.array([*index, 1.0])
        return (float(x), float(y), float(z))


@dataclass(frozen=True, slots=True)
class Volume:
    """``hu[slice, row, column]`` float32 Hounsfield units on ``geometry``.

    Raises ValueError where the array and the grid disagree.
    """

    hu: Float32
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.hu.dtype != np.float32:
            raise ValueError(f"a volume is float32, not {self.hu.dtype}")
        if self.hu.shape != self.geometry.shape:
            raise ValueError(f"array {self.hu.shape} does not fit the grid {self.geometry.shape}")

    def with_array(self, hu: Float32) -> Volume:
        """The same place in space with other numbers; raises ValueError if the shape differs."""
        return replace(self, hu=hu)
