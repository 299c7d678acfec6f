"""The old model and the new one on the same patients: is any organ worse than chance explains?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from train.cases import ORGANS
from train.evaluate import PhaseRows, interval
from train.html import html_table
from train.measure import Row
from train.statistics import mean

NEGLIGIBLE_HU = 0.1
"""A difference that nobody can see, since outputs hold whole numbers of HU."""
BODY = "body"
"""Counts like an organ, so that pairs without labels are judged too: mean |error| of its voxels."""


@dataclass(frozen=True, slots=True)
class Change:
    """One region: mean absolute error over patients before and after, the difference and its interval."""

    region: str
    patients: int
    before_hu: float
    after_hu: float
    difference_hu: float
    low_hu: float
    high_hu: float

    @property
    def is_worse(self) -> bool:
        """Whether the whole interval of the difference lies above zero and above what counts as none."""
        return self.low_hu > NEGLIGIBLE_HU


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of each region; the new model is accepted where none is worse."""

    changes: tuple[Change, ...]

    @property
    def worse(self) -> tuple[str, ...]:
        """The regions that speak against the new model."""
        return tuple(change.region for change in self.changes if change.is_worse)

    @property
    def accepted(self) -> bool:
        """Whether the new model may be exported."""
        return not self.worse

    @property
    def organs(self) -> int:
        """How many organs were judged: none where no pair of the test side has labels."""
        return sum(change.region != BODY for change in self.changes)

    @property
    def sentence(self) -> str:
        """For people."""
        if not self.accepted:
            return f"Worse beyond the interval in {', '.join(self.worse).replace('_', ' ')}: not exported."
        if not self.organs:
            return (
                "Not worse beyond the interval in the body as a whole: exported. No organ was judged, since"
                " the pairs have no labels: a person has to look before it is put to use."
            )
        return f"Not worse beyond the interval in the body and the {self.organs} organs judged: exported."


def judge(old: PhaseRows, new: PhaseRows) -> Verdict:
    """Paired by patient: 95 % bootstrap interval of the mean of |new error| − |old error|.

    An organ's error is that of its mean HU. Raises ValueError where the two saw different patients.
    """
    if old.cases != new.cases:
        raise ValueError(f"{old.cases} and {new.cases} are not the same patients in the same order")
    regions = [BODY, *(name for name in ORGANS if any(name in row["organs"] for row in old.model))]
    return Verdict(tuple(_change(name, old.model, new.model) for name in regions))


def _change(name: str, old: Sequence[Row], new: Sequence[Row]) -> Change:
    error: Callable[[Row], float | None] = (
        _body_error if name == BODY else lambda row: _organ_error(row, name)
    )
    pairs = [(b, a) for b, a in zip(map(error, old), map(error, new), strict=True) if None not in (b, a)]
    before, after = np.array(pairs, np.float64).T
    low, high = interval(after - before, mean)
    return Change(
        name, len(pairs), float(before.mean()), float(after.mean()), float((after - before).mean()), low, high
    )


def _body_error(row: Row) -> float:
    return float(row["body"]["mae_hu_bundle_window"])


def _organ_error(row: Row, name: str) -> float | None:
    organ = row["organs"].get(name)
    return None if organ is None else abs(organ["made"] - organ["truth"])


def verdict_html(verdict: Verdict, old_id: str, new_id: str) -> str:
    """The head of the comparison's page."""
    head = ("region", "patients", f"{old_id}, HU", f"{new_id}, HU", "difference, HU", "95 % interval", "")
    body = [
        (
            change.region.replace("_", " "),
            str(change.patients),
            *(f"{value:.2f}" for value in (change.before_hu, change.after_hu)),
            f"{change.difference_hu:+.2f}",
            f"{change.low_hu:+.2f} to {change.high_hu:+.2f}",
            "worse" if change.is_worse else "",
        )
        for change in verdict.changes
    ]
    return f"<h2>Verdict</h2><p><b>{verdict.sentence}</b></p>{html_table([head, *body])}{_NOTE}"


_NOTE = f"""<p class="note">Absolute error of each organ's mean HU, and of the body's voxels, over patients
that neither model learnt from. A region is worse where the whole interval of the difference, paired by
patient, lies above zero by more than {NEGLIGIBLE_HU} HU. With few patients an interval says little: look at
the pictures.</p>"""
