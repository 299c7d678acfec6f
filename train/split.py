"""Which patients a model learns from, is watched on, and is judged on.

A patient's side is a hash of the patient and a seed: it stays when patients are added, and says nothing about
the scan. Shares are therefore only met on average.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, get_args

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = get_args(Side)
TRIES = 10_000
"""Seeds looked at for one that leaves no side empty."""


class PatientOnTwoSides(Exception):
    """One patient's scans lie on two sides of a split; says who and which."""


def side_of(patient: str, seed: int, validation: float, test: float) -> Side:
    """The side of a patient; ``validation`` and ``test`` are the shares of patients on those sides."""
    digest = hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    if drawn < test:
        return "test"
    return "validation" if drawn < test + validation else "train"


def check_sides(rows: Iterable[tuple[str, str]]) -> None:
    """Raises PatientOnTwoSides where (patient, side) rows put one patient on more than one side."""
    seen: dict[str, str] = {}
    for patient, side in rows:
        if seen.setdefault(patient, side) != side:
            raise PatientOnTwoSides(
                f"patient {patient} is on two sides, {seen[patient]} and {side}: a model would be judged on "
                "whom it learnt from; put all of a patient's pairs on one side"
            )


def seed_without_empty_side(patients: Iterable[str], validation: float, test: float) -> int | None:
    """The smallest seed that leaves no wanted side empty; None where there are too few patients."""
    several = sorted(set(patients))
    wanted = {
        side for side, share in zip(SIDES, (1 - validation - test, validation, test), strict=True) if share
    }
    if len(several) < len(wanted):
        return None
    for seed in range(TRIES):
        if {side_of(patient, seed, validation, test) for patient in several} >= wanted:
            return seed
    return None
