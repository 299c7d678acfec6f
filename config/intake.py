"""What the node takes: the limits checked before anything is decoded, and the rules a series must meet.

Every number here is a setting with its unit; ``node/intake.py`` holds the rules and ``docs/intake.md`` what
they measured on real series.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from config.base import Frozen

MIB = 1024**2
GIB = 1024**3


class SeriesLimits(Frozen):
    """Sizes and tolerances of reading; beyond a size a series is TOO-LARGE before it is decoded."""

    max_files: int = Field(default=4_000, ge=1)
    """Most files of one series."""
    max_file_bytes: int = Field(default=2 * GIB, ge=1024)
    """Largest file, in bytes."""
    max_inflated_bytes: int = Field(default=512 * MIB, ge=1024)
    """Most bytes a file in the Deflated transfer syntax may inflate to."""
    max_elements: int = Field(default=200_000, ge=1_000)
    """Most elements and items of a file, those within sequences too; a frame of a multi-frame file has 30."""
    max_header_bytes: int = Field(default=512 * MIB, ge=1024**2)
    """Most bytes of memory that the headers of a series may take: 256 an element and its value. Values of
    more than 64 kB that the node has no use for are not held."""
    max_rows: int = Field(default=2_048, ge=1)
    """Most rows of a slice."""
    max_columns: int = Field(default=2_048, ge=1)
    """Most columns of a slice."""
    max_slices: int = Field(default=2_000, ge=1)
    """Most slices (frames of all files together)."""
    max_voxels: int = Field(default=512 * 512 * 1_600, ge=1)
    """Most voxels of the whole volume; one voxel takes 4 bytes of memory."""
    position_tolerance_mm: float = Field(default=0.06, ge=0, le=1)
    """How far a slice may lie off the regular grid, in mm; real headers round positions to 0.1 mm."""
    position_tolerance_share: float = Field(default=0.01, ge=0, le=0.25)
    """The same as a share of the slice spacing; the larger of the two counts."""
    max_shear: float = Field(default=0.01, ge=0, le=0.2)
    """Tangent of the gantry tilt (sideways shift of a slice over its distance from the first); 0.01: 0.6°."""
    orientation_tolerance: float = Field(default=1e-3, ge=0, le=0.1)
    """How much a direction cosine may differ between the slices of a series."""
    spacing_tolerance_share: float = Field(default=1e-3, ge=0, le=0.1)
    """How much PixelSpacing may differ between the slices of a series, as a share."""


class IntakeSettings(Frozen):
    """Which series the node translates. What is outside is rejected with a stable code, never guessed at."""

    min_slices: int = Field(default=8, ge=1)
    """Fewest slices (TOO-FEW-SLICES)."""
    min_kvp: float = Field(default=80.0, ge=0)
    """Lowest tube voltage in kV (KVP-OUT-OF-RANGE); series that state none pass with a finding."""
    max_kvp: float = Field(default=150.0, ge=0)
    """Highest tube voltage in kV (KVP-OUT-OF-RANGE)."""
    min_slice_spacing_mm: float = Field(default=0.3, gt=0)
    """Smallest distance between slices in mm (SPACING-OUT-OF-RANGE)."""
    max_slice_spacing_mm: float = Field(default=7.5, gt=0)
    """Largest distance between slices in mm (SPACING-OUT-OF-RANGE)."""
    min_pixel_spacing_mm: float = Field(default=0.2, gt=0)
    """Smallest distance between rows or columns in mm (SPACING-OUT-OF-RANGE)."""
    max_pixel_spacing_mm: float = Field(default=3.0, gt=0)
    """Largest distance between rows or columns in mm (SPACING-OUT-OF-RANGE)."""
    max_slice_thickness_mm: float = Field(default=10.0, gt=0)
    """Thickest slice in mm (SPACING-OUT-OF-RANGE); series that state none pass."""
    refused_body_parts: tuple[str, ...] = (
        "HEAD",
        "BRAIN",
        "SKULL",
        "NECK",
        "HAND",
        "FOOT",
        "KNEE",
        "ANKLE",
        "WRIST",
    )
    """BodyPartExamined values that are refused (BODY-PART); the tag is often missing or wrong."""
    max_enhanced_share: float = Field(default=0.015, gt=0, le=1)
    """Largest share of soft tissue above 80 HU (smoothed, away from bone) that is taken for unenhanced
    (HAS-CONTRAST); docs/intake.md holds what was measured."""
    max_vessel_mm2: float = Field(default=40.0, gt=0)
    """Largest mean area in mm² above 130 HU in front of the spine, where aorta and vena cava run
    (HAS-CONTRAST)."""
    min_soft_tissue_ml: float = Field(default=100.0, ge=0)
    """With less soft tissue than this, in ml, a series passes with a finding: contrast cannot be judged."""
    limits: SeriesLimits = SeriesLimits()
    """Sizes and tolerances of reading."""

    @model_validator(mode="after")
    def _ordered(self) -> IntakeSettings:
        for name in ("kvp", "slice_spacing_mm", "pixel_spacing_mm"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise PydanticCustomError(
                    "impossible_value",
                    "{cure}",
                    {"key": f"min_{name}", "cure": f"write at most max_{name} ({high})"},
                )
        return self
