"""What a release has to reach is judged against the oracle on the same patients, and says its figures."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from engine.phantom import PhantomOptions, make_phantom
from train.bars import VESSELS, organ_contrast, release_bars
from train.cases import phantom_case
from train.evaluate import PhaseRows, add_case, as_json
from train.html import page
from train.measure import Row
from train.report import show_tables

COARSE = PhantomOptions(shape=(20, 64, 64), spacing_mm=(14.0, 6.0, 6.0), noise_hu=8.0)
FACTS = {"model_id": "test", "model_digest": "", "window_hu": (-200.0, 400.0), "provider": "cpu"}


@cache
def measured(phase: str) -> PhaseRows:
    """The oracle's own image, measured as a model's."""
    rows = PhaseRows(FACTS | {"phase": phase})
    for seed in (1, 2):
        case = phantom_case(make_phantom(seed, COARSE))
        assert case.oracle is not None
        add_case(rows, case, phase, case.oracle.on_source[phase])
    return rows


def reached(phase: str, model: list[Row]) -> dict[str, bool]:
    """By aim, whether it is reached."""
    return {bar["aim"]: bar["reached"] for bar in release_bars(phase, model, measured(phase).oracle)}


@pytest.mark.parametrize("phase", VESSELS)
def test_the_oracle_reaches_every_bar_that_the_truth_does_not_break(phase: str) -> None:
    bars = reached(phase, measured(phase).model)
    assert len(bars) == 6
    assert [aim for aim, ok in bars.items() if not ok and "fat, bone" not in aim] == []


@pytest.mark.parametrize("phase", VESSELS)
def test_the_source_as_it_is_misses_all_but_the_controls(phase: str) -> None:
    bars = reached(phase, measured(phase).identity)
    assert [ok for aim, ok in bars.items() if "fat, bone" in aim] == [True]
    missed = [aim for aim, ok in bars.items() if not ok]
    assert any(VESSELS[phase].replace("_", " ") in aim for aim in missed)
    assert any("above muscle" in aim for aim in missed)
    assert any("3 to 6 mm" in aim for aim in missed)


def changed(edit: Any) -> list[Row]:
    rows = copy.deepcopy(measured("venous").model)
    for row in rows:
        edit(row)
    return rows


def test_each_bar_falls_by_its_own_figure() -> None:
    def louder(row: Row) -> None:
        row["body"]["mae_hu_bundle_window"] *= 1.6

    def dimmer(row: Row) -> None:
        row["organs"]["portal_vein"]["made"] -= 200

    def brighter_fat(row: Row) -> None:
        row["controls"]["fat"] = (5.5, 5.5, 0.0)

    def thinner(row: Row) -> None:
        row["vessels"]["made"] *= 0.5

    words = {louder: "in the body", dimmer: "portal vein", brighter_fat: "fat, bone", thinner: "3 to 6 mm"}
    for edit, word in words.items():
        bars = reached("venous", changed(edit))
        assert [ok for aim, ok in bars.items() if word in aim] == [False], word


def test_contrast_is_what_an_organ_gained_beyond_muscle() -> None:
    liver = {"source": 50.0, "made": 110.0}
    row: Row = {"organs": {"liver": liver}, "controls": {"muscle": (7.0, 8.0, 7.0)}}
    assert organ_contrast([row]) == {"liver": 53.0}
    assert organ_contrast([{"organs": {"liver": liver}, "controls": {}}]) == {}


def test_an_organ_that_hardly_enhances_is_named_though_the_bright_ones_make_the_sum() -> None:
    def dull_pancreas(row: Row) -> None:
        pancreas = row["organs"]["pancreas"]
        pancreas["made"] -= 0.5 * (pancreas["made"] - pancreas["source"])

    bars = release_bars("venous", changed(dull_pancreas), measured("venous").oracle)
    total, least = (bar for bar in bars if "above muscle" in bar["aim"])
    assert total["reached"]
    assert not least["reached"]
    assert least["measured"].startswith("pancreas ")


def test_without_an_oracle_there_are_no_bars() -> None:
    assert release_bars("venous", measured("venous").model, []) == []
    assert release_bars("venous", [], []) == []


def test_the_spread_over_patients_is_that_of_n_minus_one() -> None:
    rows = measured("venous")
    psnr = [row["body"]["psnr"] for row in rows.model]
    spread = as_json({"venous": rows})["phases"]["venous"]["model_sd"]["psnr"]
    assert spread == pytest.approx(abs(psnr[0] - psnr[1]) / np.sqrt(2))


def test_tables_page_and_json_end_in_the_bars() -> None:
    found = {"venous": measured("venous")}
    result = as_json(found)
    assert len(result["phases"]["venous"]["bars"]) == 6
    console = Console(record=True, width=200)
    show_tables(result, console)
    text = console.export_text()
    assert "asked of a release" in text
    assert "venous: portal vein within 25 HU" in text
    assert "What a release has to reach" in page(found)
