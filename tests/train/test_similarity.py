"""Eq. 1 and eq. 3 as numbers, and the guards the paper does not have."""

from __future__ import annotations

import math

import pytest
import torch

from train.config import SimilarityConfig
from train.s2ldm.similarity import (
    adaptive_similarity,
    body_mask,
    bridge_weight,
    cosine,
    l_sim,
    similarity_mask,
)


@pytest.mark.parametrize("c", [-0.9, 0.0, 0.5, 0.99])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_equation_1_has_the_printed_value_inside_its_domain(c: float, gamma: float) -> None:
    expected = -(((1 - c) / 2) ** gamma) * math.log((1 + c) / 2)
    assert adaptive_similarity(torch.tensor(c, dtype=torch.float64), gamma).item() == pytest.approx(expected)


def test_equation_1_is_finite_at_opposite_embeddings() -> None:
    c = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    value = adaptive_similarity(c, gamma=1.0)
    value.backward()
    assert value.item() == pytest.approx(-math.log(1e-4))
    assert c.grad is not None
    assert c.grad.item() == pytest.approx(0.5 * math.log(1e-4))  # −4.6: the focal factor still pulls


def test_equation_1_pulls_hardest_where_the_phases_differ() -> None:
    c = torch.tensor([0.99, 0.9, 0.5, 0.0], requires_grad=True)
    adaptive_similarity(c, gamma=1.0).sum().backward()
    assert c.grad is not None
    assert (c.grad.diff() < 0).all()


@pytest.mark.parametrize(("c", "full_at"), [(0.9, 0.025), (0.0, 0.25), (-1.0, 0.5)])
def test_equation_3_reaches_one_at_a_quarter_of_the_dissimilarity(c: float, full_at: float) -> None:
    at = torch.tensor(c, dtype=torch.float64)
    assert similarity_mask(at, 0.0, alpha=2.0).item() == pytest.approx((1 + c) / 2)
    assert similarity_mask(at, full_at * 0.99, alpha=2.0).item() < 1.0
    assert similarity_mask(at, full_at, alpha=2.0).item() == pytest.approx(1.0)
    assert similarity_mask(at, 1.0, alpha=2.0).item() == 1.0


def test_the_bridge_keeps_the_curriculum_as_a_weight() -> None:
    c = torch.tensor([1.0, 0.0, -1.0])
    assert bridge_weight(c, 0.0, beta=2.0).tolist() == [1.0, 1.0, 1.0]
    assert bridge_weight(c, 0.25, beta=2.0).tolist() == [1.0, 1.5, 2.0]
    assert (
        bridge_weight(c, 0.5, beta=2.0).tolist()
        == bridge_weight(c, 1.0, beta=2.0).tolist()
        == [1.0, 2.0, 3.0]
    )


def test_cosine_is_taken_over_channels_or_over_space() -> None:
    e_n, e_c = torch.randn(2, 2, 4, 3, 3, 3)
    over_channels = torch.nn.functional.cosine_similarity(e_n, e_c, dim=1)[:, None]
    over_space = torch.nn.functional.cosine_similarity(e_n.flatten(2), e_c.flatten(2), dim=2)
    assert torch.allclose(cosine(e_n, e_c), over_channels, atol=1e-5)
    assert torch.allclose(cosine(e_n, e_c, "channel")[..., 0, 0, 0], over_space, atol=1e-5)


def test_cosine_of_nothing_has_a_gradient() -> None:
    e_n = torch.zeros(1, 4, 1, 1, 1, requires_grad=True)
    cosine(e_n, torch.zeros(1, 4, 1, 1, 1)).sum().backward()
    assert e_n.grad is not None
    assert torch.isfinite(e_n.grad).all()


def test_similarity_is_computed_in_full_precision_under_autocast() -> None:
    e_n, e_c = torch.randn(2, 1, 8, 2, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert cosine(e_n.bfloat16(), e_c.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("stop_grad", "reaches_target"), [("none", True), ("target", False)])
def test_stop_grad_keeps_the_enhanced_embedding_as_it_is(stop_grad: str, reaches_target: bool) -> None:
    e_n, e_c = (torch.randn(1, 4, 2, 2, 2, requires_grad=True) for _ in range(2))
    l_sim(e_n, e_c, SimilarityConfig(stop_grad=stop_grad)).backward()
    assert e_n.grad is not None
    assert (e_c.grad is not None) == reaches_target


def test_the_body_mask_leaves_air_out_of_the_mean() -> None:
    e_n, e_c = torch.randn(2, 1, 4, 1, 1, 2)
    body = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    alone = l_sim(e_n[..., :1], e_c[..., :1], SimilarityConfig())
    assert torch.allclose(l_sim(e_n, e_c, SimilarityConfig(), body), alone)


def test_a_cell_is_body_where_a_quarter_of_it_is_above_the_floor() -> None:
    x_n = torch.full((1, 1, 2, 4, 8), -1.0)
    x_n[..., 4:] = 0.0
    assert body_mask(x_n, (2, 4, 4)).flatten().tolist() == [0.0, 1.0]
