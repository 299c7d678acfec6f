"""One patient to measure on: the unenhanced scan, its true phases, and what is known of its anatomy.

Phantoms know everything: labels, where thin vessels run, the oracle. Pairs of real patients know their body,
and labels where the user has them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engine.body import find_body
from engine.errors import VolumeUnsupported
from engine.phantom import LABELS
from engine.phantom.calibre import thin_vessels
from engine.phantom.oracle import Expected, expected_images
from engine.phantom.phantom import Phantom
from engine.volume import Float32, Volume
from train.config import DataConfig, Phase
from train.metrics import Mask
from train.real import Pair, PairsUnusable, listed_pairs, onto, read_upright, same_place
from train.split import Side

LABEL_FILE = "labels.nii.gz"
"""Beside a pair's NCCT: numbers on its grid, which :data:`NAMES_FILE` of the pairs' folder explains."""
NAMES_FILE = "labels.json"
"""{"aorta": 22, …}, in the words of ``ORGANS`` and ``CONTROLS``; of other words nothing would be measured."""
ORGANS = ("aorta", "portal_vein", "liver", "renal_cortex", "spleen", "pancreas", "ivc")
CONTROLS = ("fat", "bone", "air", "muscle")
"""What must not change."""
MOST_LABEL = np.iinfo(np.uint8).max
OUTSIDE_BODY = ("air", "table")

Skip = Callable[[str, VolumeUnsupported], None]
"""Told of a case that a model cannot be measured on, by name, and why."""


@dataclass(frozen=True, slots=True)
class Case:
    """``phases[phase]`` (HU) and every mask lie on the source's grid; ``seed`` is the synthesis' noise.

    ``labels`` holds numbers that ``names`` explains. ``thin`` is thin vessels and what lies around them.
    """

    name: str
    seed: int
    source: Volume
    phases: Mapping[str, Float32]
    body: Mask
    labels: NDArray[np.uint8] | None = None
    names: Mapping[str, int] | None = None
    thin: tuple[Mask, Mask] | None = None
    oracle: Expected | None = None

    def region(self, name: str) -> Mask | None:
        """Where the label of that name is; None where it is unknown or nowhere."""
        if self.labels is None or self.names is None or name not in self.names:
            return None
        where = self.labels == self.names[name]
        return where if where.any() else None


def phantom_case(phantom: Phantom, with_oracle: bool = True) -> Case:
    """A whole phantom with its unenhanced phase as a case."""
    return Case(
        name=f"phantom {phantom.seed}",
        seed=phantom.seed,
        source=Volume(phantom.phases["ncct"], phantom.geometry),
        phases=phantom.phases,
        body=~np.isin(phantom.labels, [LABELS[name] for name in OUTSIDE_BODY]),
        labels=phantom.labels,
        names=LABELS,
        thin=thin_vessels(phantom),
        oracle=expected_images(phantom) if with_oracle else None,
    )


def refuse(case: str, error: VolumeUnsupported) -> None:
    """Where every case has to be measured. Raises PairsUnusable, with the case's name."""
    raise PairsUnusable(f"{case}: {error}")


def folder_cases(folder: Path, side: Side = "test", skip: Skip = refuse) -> Iterator[Case]:
    """The pairs of one side of a prepared folder's split, with labels where they lie beside the NCCT.

    Cases are called by their place in the list, not by patient; ``skip`` is told of one with nobody in it.
    Raises PairsUnusable where the list, a volume or a label file cannot be used, or the side is empty.
    """
    files = _files_of(folder, side)
    if not files:
        raise PairsUnusable(f"{folder}: no pair is on the {side} side of the split")
    names = _names(folder / NAMES_FILE)
    for number, (ncct, phases) in enumerate(files.items(), 1):
        source, name = read_upright(ncct), f"pair {number}"
        try:
            body = body_mask(source)
        except VolumeUnsupported as error:
            skip(name, error)
            continue
        yield Case(
            name=name,
            seed=number,
            source=source,
            phases={phase: onto(read_upright(pair.phase), source.geometry) for phase, pair in phases.items()},
            body=body,
            labels=_labels(ncct.parent / LABEL_FILE, source) if names else None,
            names=names,
        )


def body_mask(volume: Volume) -> Mask:
    """The patient without table and air, as the engine finds it less one sample of the rim that it leaves.

    VolumeUnsupported where there is nobody.
    """
    body = find_body(volume)
    mask: Mask = ndimage.binary_erosion(body.mask, np.ones((3, 3, 3)), border_value=1)
    for axis, (step, n) in enumerate(zip(body.step, volume.hu.shape, strict=True)):
        mask = mask.repeat(step, axis=axis).take(range(n), axis=axis)
    return mask


def _files_of(folder: Path, side: Side) -> dict[Path, dict[str, Pair]]:
    """Of each NCCT on that side the phases that it has; a list may lack the column of a phase."""
    found: dict[Path, dict[str, Pair]] = {}
    errors: list[PairsUnusable] = []
    for phase in get_args(Phase):
        try:
            pairs = listed_pairs(DataConfig(source="folder", folder=str(folder), phase=phase))
        except PairsUnusable as error:
            errors.append(error)
            continue
        for pair in pairs:
            if pair.side == side:
                found.setdefault(pair.ncct, {})[phase] = pair
    if len(errors) == len(get_args(Phase)):
        raise errors[0]
    return found


def _names(file: Path) -> Mapping[str, int] | None:
    if not file.is_file():
        return None
    try:
        names = {str(name): int(number) for name, number in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise PairsUnusable(f"{file}: not a JSON object of names and numbers: {error}") from None
    known = (*ORGANS, *CONTROLS)
    if unknown := [name for name in names if name not in known]:
        raise PairsUnusable(
            f"{file}: nothing is measured of {', '.join(unknown)}: the words are {', '.join(known)}"
        )
    return names


def _labels(file: Path, source: Volume) -> NDArray[np.uint8] | None:
    if not file.is_file():
        return None
    found = read_upright(file)
    if not same_place(found.geometry, source.geometry):
        raise PairsUnusable(
            f"{file}: {found.geometry.shape} voxels, or another place, than its NCCT, {source.geometry.shape}"
        )
    numbers = np.rint(found.hu)
    if numbers.min() < 0 or numbers.max() > MOST_LABEL:
        raise PairsUnusable(
            f"{file}: labels from {numbers.min():g} to {numbers.max():g}: they have to be 0 to {MOST_LABEL}"
        )
    return numbers.astype(np.uint8)
