"""The phases a series may show, and how each looks on a screen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PhaseStyle:
    """``number`` sorts the phase's series behind its source; the window is a display preset in HU."""

    number: int
    window_center_hu: int
    window_width_hu: int


PHASE_STYLES: dict[str, PhaseStyle] = {
    "arterial": PhaseStyle(1, 100, 500),
    "venous": PhaseStyle(2, 70, 400),
}
"""From the phase's name to its style. A new phase needs its line here before an output can show it."""


def style_of(phase: str) -> PhaseStyle:
    """The style of ``phase``; raises ValueError for a phase that has none."""
    style = PHASE_STYLES.get(phase)
    if style is None:
        raise ValueError(f"phase {phase!r} has no style; known: {', '.join(PHASE_STYLES)}")
    return style
