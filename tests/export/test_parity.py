"""What two answers are held against, without a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export import parity
from export.parity import HALF_TOLERANCE, ParityExceeded

RNG = np.random.default_rng(4)
WANTED = RNG.uniform(-0.2, 0.2, (1, 1, 12, 24, 24)).astype(np.float32)


class Answers:
    """A session that gives one answer to everything."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer

    def run(self, outputs: Any, inputs: Any) -> list[np.ndarray]:
        return [self.answer]


@pytest.fixture
def translator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A translator that torch runs to WANTED."""
    monkeypatch.setattr(parity, "example_tile", lambda model: WANTED)
    monkeypatch.setattr(parity, "in_torch", lambda module, **inputs: WANTED)
    data = SimpleNamespace(window_hu=(-200, 400))
    return SimpleNamespace(
        family="translator", config=SimpleNamespace(data=data), graphs=lambda: {"translator": None}
    )


def measured(translator: Any, answer: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(parity, "_session", lambda file: Answers(answer))
    return parity.measure(translator, {"translator": None}, HALF_TOLERANCE)


def test_a_variant_that_differs_by_rounding_is_as_alike_as_asked(
    translator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(translator, WANTED.astype(np.float16).astype(np.float32), monkeypatch)["whole"]
    assert whole["ssim"] > 0.9999
    assert whole["tolerance_ssim"] == 0.995


def test_a_variant_with_a_patch_that_lost_its_structure_is_refused(
    translator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = np.zeros_like(WANTED)
    monkeypatch.setattr(parity, "in_torch", lambda module, **inputs: flat)
    answer = flat.copy()
    grain = RNG.normal(0, 0.008, answer[..., :12].shape)
    answer[..., :12] = np.clip(grain, -0.016, 0.016)  # 4.8 HU at most, 1 HU in the mean: no figure objects
    with pytest.raises(ParityExceeded, match=r"^whole: SSIM 0\.\d+ under 0.995$"):
        measured(translator, answer, monkeypatch)
