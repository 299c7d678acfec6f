"""The split is by patient, stable when patients are added, and never has one patient on two sides."""

from __future__ import annotations

import pytest

from train.split import PatientOnTwoSides, check_sides, seed_without_empty_side, side_of

PATIENTS = [f"p{number}" for number in range(2000)]


def test_sides_have_their_shares_and_another_seed_draws_others() -> None:
    sides = [side_of(patient, 0, 0.15, 0.25) for patient in PATIENTS]
    assert sides.count("test") / 2000 == pytest.approx(0.25, abs=0.03)
    assert sides.count("validation") / 2000 == pytest.approx(0.15, abs=0.03)
    assert sides != [side_of(patient, 1, 0.15, 0.25) for patient in PATIENTS]


def test_the_sides_are_the_same_today_and_tomorrow() -> None:
    assert [side_of(patient, 0, 0.15, 0.15) for patient in PATIENTS[:8]] == RECORDED


RECORDED = ["train", "validation", "validation", "train", "train", "train", "train", "train"]


def test_a_patient_on_two_sides_is_refused_by_name() -> None:
    check_sides([("a", "train"), ("a", "train"), ("b", "test")])
    with pytest.raises(PatientOnTwoSides, match="patient a is on two sides, train and test"):
        check_sides([("a", "train"), ("b", "test"), ("a", "test")])


def test_a_seed_is_proposed_that_leaves_no_side_empty() -> None:
    for patients in (PATIENTS[:2], PATIENTS[:3]):
        test = 0.15 if len(patients) == 3 else 0.0
        seed = seed_without_empty_side(patients, 0.15, test)
        assert seed is not None
        assert len({side_of(patient, seed, 0.15, test) for patient in patients}) == len(patients)
    assert seed_without_empty_side(PATIENTS[:2], 0.15, 0.15) is None
