"""Sample pictures of a run: source, model, truth and model − truth in HU, a row a held-out crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

DIFFERENCE_HU = 150.0
TITLES = ("source", "model", "truth", "model − truth")


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out crop, (1, 1, D, H, W) in [-1, 1] on the CPU, and its predictions by name."""

    x_n: Tensor
    x_c: Tensor
    shown: dict[str, Tensor]


def draw_samples(file: Path, samples: Sequence[Sample], window_hu: tuple[float, float], title: str) -> None:
    """Write a PNG of the middle slices; the model is the last of the predictions."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second that a run without pictures need not wait

    figure = Figure(figsize=(14, 3.2 * len(samples)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(samples), 4, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        model = list(sample.shown.values())[-1]
        source, made, truth = (_slice_hu(x, window_hu) for x in (sample.x_n, model, sample.x_c))
        for axis, name, image in zip(row, TITLES, (source, made, truth, made - truth), strict=True):
            _draw(axis, name, image, window_hu)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=70)


def _slice_hu(x: Tensor, window_hu: tuple[float, float]) -> Any:
    low, high = window_hu
    middle = x[0, 0, x.shape[2] // 2].clamp(-1, 1)
    return (low + (middle + 1) * (high - low) / 2).numpy()


def _draw(axis: Any, name: str, image: Any, window_hu: tuple[float, float]) -> None:
    difference = name == TITLES[-1]
    low, high = (-DIFFERENCE_HU, DIFFERENCE_HU) if difference else window_hu
    shown = axis.imshow(image, cmap="RdBu_r" if difference else "gray", vmin=low, vmax=high)
    axis.set_title(name)
    axis.set_axis_off()
    axis.figure.colorbar(shown, ax=axis, label="HU", shrink=0.8)
