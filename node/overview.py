"""The demo's picture: source, syntheses, the phantom's true phases and the differences, in three planes.

Rows are planes, columns are volumes on one grid, cut to the body. Grey is HU in the abdomen window; orange
and blue are differences in HU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray

from engine.volume import Float32, Geometry, Volume

WIDTH_HU, LEVEL_HU = 400.0, 40.0
"""Abdomen window: what grey means."""
DIFFERENCE_HU = 150.0
"""The strongest orange and blue."""
BODY_HU = -300.0
"""Above it there is body; the planes are chosen inside it."""
BODY_SHARE = 0.03
"""A row or column of voxels with a smaller share of body is cut off the picture."""

INK, PAPER = "#e8e8e8", "#101214"
DIVERGING = LinearSegmentedColormap.from_list(
    "difference", ["#7cc4ff", "#1a5fb4", "#000000", "#c64600", "#ffd27c"]
)
PLANES = ("axial", "coronal", "sagittal")
COLUMN_INCHES = 2.5
TITLE_INCHES, SCALE_INCHES = 0.75, 0.85
DPI = 110


@dataclass(frozen=True, slots=True)
class Panel:
    """One column: HU on the source's grid, or the difference of two volumes."""

    title: str
    hu: Float32
    is_difference: bool = False


def panels_of(
    source: Float32, syntheses: Mapping[str, Float32], truths: Mapping[str, Float32]
) -> list[Panel]:
    """The columns: the source, and for each phase synthesis, truth (or nothing) and difference.

    With a truth the difference is synthesis − truth, otherwise synthesis − source.
    """
    panels = [Panel("source (non-contrast)", source)]
    for phase, hu in syntheses.items():
        panels.append(Panel(f"SYNTHETIC {phase}", hu))
        if phase in truths:
            panels.append(Panel(f"true {phase}", truths[phase]))
            panels.append(Panel(f"synthetic − true\n{phase}", hu - truths[phase], is_difference=True))
        else:
            panels.append(Panel(f"synthetic − source\n{phase}", hu - source, is_difference=True))
    return panels


def draw_overview(
    path: Path, panels: Sequence[Panel], geometry: Geometry, at: Sequence[int], caption: str
) -> None:
    """Write the picture as PNG: every panel cut through the voxel ``at`` (slice, row, column)."""
    box = body_box(panels[0].hu)
    panels = [replace(panel, hu=panel.hu[box]) for panel in panels]
    geometry = replace(geometry, shape=panels[0].hu.shape)
    at = [index - (part.start or 0) for index, part in zip(at, box, strict=True)]
    figure, grid, tall = _sheet(len(panels), geometry)
    for row, plane in enumerate(PLANES):
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, panel, geometry, plane, at)
            axes.set_title(panel.title if row == 0 else "", color=INK, fontsize=10)
            axes.set_ylabel(plane if column == 0 else "", color=INK, fontsize=10)
    _scales(figure, tall)
    figure.suptitle(caption, color=INK, fontsize=11, y=1 - 0.1 / tall)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", facecolor=PAPER)


def _sheet(columns: int, geometry: Geometry) -> tuple[Figure, GridSpec, float]:
    """An empty figure, its grid of planes by columns to scale, and its height in inches."""
    sizes = [_size_mm(geometry, plane) for plane in PLANES]
    heights = [COLUMN_INCHES * height / width for width, height in sizes]
    tall = sum(heights) + TITLE_INCHES + SCALE_INCHES
    figure = Figure(figsize=(COLUMN_INCHES * columns + 0.4, tall), dpi=DPI, facecolor=PAPER)
    margins = {"left": 0.03, "right": 0.995, "top": 1 - TITLE_INCHES / tall, "bottom": SCALE_INCHES / tall}
    grid = figure.add_gridspec(
        len(PLANES), columns, height_ratios=heights, wspace=0.03, hspace=0.03, **margins
    )
    return figure, grid, tall


def body_box(source: Float32) -> tuple[slice, slice, slice]:
    """Every slice, and the rows and columns that hold more than a little body."""
    body = source > BODY_HU
    rows, columns = (_span(body.mean(axis=others)) for others in ((0, 2), (0, 1)))
    return (slice(None), rows, columns)


def _span(shares: NDArray[Any]) -> slice:
    inside = np.flatnonzero(shares > BODY_SHARE)
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(None)


def plane_centre(source: Float32, syntheses: Sequence[Float32]) -> tuple[int, int, int]:
    """The voxel (slice, row, column) through which the planes show most change inside the body."""
    body = source > BODY_HU
    change = sum((np.abs(hu - source) * body for hu in syntheses), np.zeros_like(source))
    if not change.any():
        change = body.astype(np.float32)
    if not change.any():
        return (source.shape[0] // 2, source.shape[1] // 2, source.shape[2] // 2)
    slices, rows, columns = (_middle(change, axis) for axis in range(3))
    return (slices, rows, columns)


def on_grid(volume: Volume, geometry: Geometry) -> Float32:
    """The volume's HU where its grid is ``geometry``; raises ValueError where it is another one."""
    if volume.geometry.shape != geometry.shape:
        raise ValueError(f"a volume of {volume.geometry.shape} voxels is not on a grid of {geometry.shape}")
    return volume.hu


def _middle(change: Float32, axis: int) -> int:
    """The plane across ``axis`` with the most change; noise spreads evenly, so the mean serves."""
    others = tuple(other for other in range(3) if other != axis)
    return int(np.argmax(change.mean(axis=others)))


def _size_mm(geometry: Geometry, plane: str) -> tuple[float, float]:
    """Width and height of a plane in mm."""
    slices, rows, columns = geometry.extent_mm
    return {"axial": (columns, rows), "coronal": (columns, slices), "sagittal": (rows, slices)}[plane]


def _cut(hu: Float32, plane: str, at: Sequence[int], head_is_last: bool) -> Float32:
    """A plane as rows of pixels; coronal and sagittal ones with the head up."""
    if plane == "axial":
        axial: Float32 = hu[at[0]]
        return axial
    cut: Float32 = hu[:, at[1]] if plane == "coronal" else hu[:, :, at[2]]
    return cut[::-1] if head_is_last else cut


def _draw(axes: Any, panel: Panel, geometry: Geometry, plane: str, at: Sequence[int]) -> None:
    pixels = _cut(panel.hu, plane, at, head_is_last=geometry.directions[0][2] > 0)
    width, height = _size_mm(geometry, plane)
    scale = _difference_scale() if panel.is_difference else _hu_scale()
    axes.imshow(
        pixels, cmap=scale.get_cmap(), norm=scale.norm, extent=(0, width, height, 0), interpolation="bilinear"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _hu_scale() -> ScalarMappable:
    return ScalarMappable(Normalize(LEVEL_HU - WIDTH_HU / 2, LEVEL_HU + WIDTH_HU / 2), "gray")


def _difference_scale() -> ScalarMappable:
    return ScalarMappable(Normalize(-DIFFERENCE_HU, DIFFERENCE_HU), DIVERGING)


def _scales(figure: Figure, tall: float) -> None:
    """The two HU scales below the planes of a figure ``tall`` inches high."""
    for left, scale, words in _scale_places():
        axes = figure.add_axes((left, 0.5 / tall, 0.3, 0.15 / tall))
        bar = figure.colorbar(scale, cax=axes, orientation="horizontal", extend="both")
        bar.set_label(words, color=INK, fontsize=9)
        axes.tick_params(colors=INK, labelsize=8)


def _scale_places() -> Iterator[tuple[float, ScalarMappable, str]]:
    yield 0.1, _hu_scale(), f"HU (W {WIDTH_HU:.0f} L {LEVEL_HU:.0f})"
    yield 0.6, _difference_scale(), "difference in HU"
