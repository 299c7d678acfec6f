"""Each term of eq. 2 and each of its switches does what it says."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter

from train.s2ldm import losses


def step_edge() -> torch.Tensor:
    x = torch.full((1, 1, 8, 16, 16), -0.5)
    x[..., 8:] = 0.5
    return x


def test_x_f_none_is_the_enhanced_image_itself() -> None:
    x_c = torch.randn(1, 1, 4, 8, 8)
    assert losses.high_frequency_target(x_c, "none") is x_c


@pytest.mark.parametrize("kind", ["unsharp", "laplacian"])
def test_x_f_overshoots_at_an_edge_and_nowhere_else(kind: str) -> None:
    x_f = losses.high_frequency_target(step_edge(), kind)
    assert x_f[..., 8].max() > 0.55
    assert x_f[..., 7].min() < -0.55
    assert torch.allclose(x_f[..., :4], step_edge()[..., :4], atol=1e-3)
    assert torch.allclose(x_f[..., 12:], step_edge()[..., 12:], atol=1e-3)


def test_x_f_unsharp_adds_half_of_what_a_gaussian_of_one_voxel_removes() -> None:
    x_c = torch.randn(1, 1, 8, 12, 12)
    blurred = gaussian_filter(x_c[0, 0].numpy(), sigma=1.0, mode="nearest", truncate=3.0)
    expected = x_c[0, 0] + 0.5 * (x_c[0, 0] - torch.from_numpy(blurred))
    assert torch.allclose(losses.high_frequency_target(x_c, "unsharp")[0, 0], expected, atol=1e-4)


def test_reconstruction_is_l1_and_with_square_large_errors_speak_louder() -> None:
    painted, target = torch.tensor([0.0, 0.0]), torch.tensor([0.1, 1.0])
    assert losses.reconstruction(painted, target).item() == pytest.approx(0.55)
    assert losses.reconstruction(painted, target, square=2.0).item() == pytest.approx(0.55 + 1.01)


def test_reconstruction_weights_are_relative() -> None:
    painted, target = torch.tensor([0.0, 0.0]), torch.tensor([0.1, 1.0])
    weight = torch.tensor([1.0, 3.0])
    assert losses.reconstruction(painted, target, weight).item() == pytest.approx((0.1 + 3.0) / 4)
    assert losses.reconstruction(painted, target, 10 * weight).item() == pytest.approx((0.1 + 3.0) / 4)


def test_enhancement_weighs_one_more_a_hundred_hu() -> None:
    x_n = torch.zeros(1, 1, 5, 9, 9)
    x_c = x_n + 200.0 / 300.0  # 200 HU in a window of 600
    weight = losses.enhancement_weight(x_n, x_c, strength=1.5, window_width_hu=600.0)
    assert weight is not None
    assert torch.allclose(weight, torch.tensor(1 + 1.5 * 2.0), atol=1e-5)
    assert losses.enhancement_weight(x_n, x_c, strength=0.0, window_width_hu=600.0) is None


def test_a_vessel_in_an_enhancing_organ_weighs_more_than_the_organ() -> None:
    x_n = torch.zeros(1, 1, 9, 41, 41)
    organ = torch.full_like(x_n, 60.0)
    organ[..., 18:23, 18:23] = 120.0
    weight = losses.enhancement_weight(x_n, organ / 300.0, strength=0.0, window_width_hu=600.0, local=2.0)
    assert weight is not None
    assert weight[0, 0, 4, 0, 0].item() == pytest.approx(1.0)
    apart = 60.0 * (1 - 5 * 5 / (15 * 15))  # the middle is all vessel; a ninth of what is around it
    assert weight[0, 0, 4, 20, 20].item() == pytest.approx(1 + 2.0 * apart / 100, abs=0.02)


def test_the_frequency_loss_sees_blur_that_keeps_the_mean() -> None:
    sharp = torch.randn(1, 1, 2, 16, 16)
    blurred = torch.nn.functional.avg_pool3d(sharp, (1, 3, 3), 1, (0, 1, 1))
    assert losses.frequency_loss(sharp, sharp) == 0
    assert losses.frequency_loss(blurred, sharp) > 0.05


@pytest.mark.parametrize("kind", ["hinge", "least_squares"])
def test_the_adversaries_want_opposite_things(kind: str) -> None:
    real, fake = torch.full((1, 4), 2.0), torch.full((1, 4), -2.0)
    assert losses.discriminator_loss(real, fake, kind) < losses.discriminator_loss(fake, real, kind)
    assert losses.generator_loss(real, kind) < losses.generator_loss(fake, kind)


def test_the_hinge_has_no_hidden_activation() -> None:
    assert losses.discriminator_loss(torch.tensor([3.0]), torch.tensor([-3.0]), "hinge") == 0
    assert losses.discriminator_loss(
        torch.tensor([0.0]), torch.tensor([0.5]), "hinge"
    ).item() == pytest.approx(1.25)


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer() -> None:
    last = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    rec, adversarial = (6.0 * last).sum(), (2.0 * last).sum()
    assert losses.adaptive_weight(rec, adversarial, last).item() == pytest.approx(3.0, rel=1e-3)
    assert losses.adaptive_weight(rec, 0.0 * adversarial, last).item() == 1e4


def test_surroundings_are_averaged_as_one_box_would_be() -> None:
    x = torch.randn(1, 1, 6, 20, 9, generator=torch.Generator().manual_seed(0))
    box = torch.nn.functional.avg_pool3d(x, (5, 15, 9), 1, (2, 7, 4), count_include_pad=False)
    torch.testing.assert_close(losses._mean_around(x, (7, 15, 15)), box)


def test_the_error_of_contrast_sees_a_vein_but_neither_noise_nor_an_organ_s_level() -> None:
    rng = torch.Generator().manual_seed(0)
    target = 0.04 * torch.randn(1, 1, 12, 40, 40, generator=rng)
    vein = torch.zeros_like(target)
    vein[..., 18:22, 18:22] = 0.2
    error = losses.contrast_error
    noise, missed = error(torch.zeros_like(target), target), error(target - vein, target)
    assert noise < 0.1 * target.square().mean()
    assert missed > 3 * noise
    assert error(target + 0.3, target) < 1e-9
    weight = 1.0 + 9.0 * (vein > 0)
    assert error(target - vein, target, weight) > missed
    assert error(target, target, weight) == 0
