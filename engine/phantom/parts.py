"""A part: one shape painted with one tissue. A list of parts, painted in order, is a patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.phantom.shapes import Shape, Waves


@dataclass(frozen=True, slots=True)
class Within:
    """Only where a remembered region is at least ``depth_mm`` deep; ``ripple`` varies that depth."""

    region: str
    depth_mm: float = 0.0
    ripple: Waves | None = None


@dataclass(frozen=True, slots=True)
class Texture:
    """HU added inside a part: ``waves`` of unit height times ``hu[phase]``."""

    waves: Waves
    hu: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Part:
    """``shape`` (or, without one, the region of the first ``within``) painted over what is there.

    ``remember`` keeps this part's distance under a name for later parts' ``within``. ``moves`` is true for
    what follows the diaphragm. A part without a ``label`` is only remembered.
    """

    label: str
    hu: Mapping[str, float]
    shape: Shape | None = None
    within: tuple[Within, ...] = ()
    remember: str = ""
    moves: bool = True
    texture: Texture | None = None
