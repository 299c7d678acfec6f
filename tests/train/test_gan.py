"""The parts the adversarial methods share: shapes, known answers, known fields."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from monai.networks.blocks import Convolution
from torch import nn

from train.gan.adversary import (
    Discriminator,
    ImagePool,
    discriminator_loss,
    fooling_loss,
    verdict_loss,
)
from train.gan.config import AdamConfig
from train.gan.generators import ResNetGenerator, UNetGenerator, halvings
from train.gan.player import enlist, improve, rate
from train.gan.registration import Registration, centre_crop, quiet_warp, smoothness

SIZES = {2: (16, 32), 3: (8, 16, 16)}


@pytest.mark.parametrize("dims", [2, 3])
def test_the_resnet_keeps_the_size_and_the_range(dims: int) -> None:
    network = ResNetGenerator(dims, 3, channels=4, blocks=2)
    x_c = network(torch.randn(2, 3, *SIZES[dims]))
    assert x_c.shape == (2, 1, *SIZES[dims])
    assert float(x_c.detach().abs().max()) <= 1


def test_the_published_resnet_has_nine_blocks_reflected_borders_and_its_published_size() -> None:
    with torch.device("meta"):
        network = ResNetGenerator(2, 1)
    modules = list(network.modules())
    assert sum(isinstance(m, nn.ReflectionPad2d) for m in modules) == 2 + 9 * 2
    assert sum(isinstance(m, nn.InstanceNorm2d) for m in modules) == 3 + 9 * 2 + 2
    assert not any(m.affine for m in modules if isinstance(m, nn.InstanceNorm2d))
    assert sum(p.numel() for p in network.parameters()) == 11_365_633


def test_a_reflected_border_makes_no_edge_on_a_constant_image() -> None:
    first = ResNetGenerator(2, 1, channels=4, blocks=1).layers[:2]
    convolved = first[1].conv(first[0](torch.ones(1, 1, 16, 16)))
    assert torch.allclose(convolved, convolved[..., :1, :1].expand_as(convolved), atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_unet_halves_what_is_even_and_keeps_the_size(dims: int) -> None:
    strides = halvings(SIZES[dims], 8)
    network = UNetGenerator(dims, 1, strides, channels=4)
    assert network(torch.randn(2, 1, *SIZES[dims])).shape == (2, 1, *SIZES[dims])


def test_halvings_end_at_one_voxel_or_at_an_odd_size() -> None:
    assert halvings((256, 256), 8) == [(2, 2)] * 8
    assert halvings((16, 96, 96), 8) == [(2, 2, 2)] * 4 + [(1, 2, 2)]
    assert halvings((32, 32), 3) == [(2, 2)] * 3


def test_the_published_unet_has_eight_levels_and_three_that_drop_out() -> None:
    with torch.device("meta"):
        network = UNetGenerator(2, 1, halvings((256, 256), 8))
    assert len(network.down) == len(network.up) == 8
    assert sum(isinstance(m, nn.Dropout) for m in network.modules()) == 3
    assert 54e6 < sum(p.numel() for p in network.parameters()) < 55e6


def test_the_patchgan_of_three_layers_judges_seventy_pixels() -> None:
    network = Discriminator(2, 1, channels=4).patches
    convolutions = [m.conv for m in network.modules() if isinstance(m, Convolution)]
    seen = 1
    for convolution in reversed(convolutions):
        seen = (seen - 1) * convolution.stride[0] + convolution.kernel_size[0]
    assert seen == 70
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("dims", [2, 3])
def test_a_scalar_discriminator_says_one_number_an_image(dims: int) -> None:
    x = torch.randn(2, 1, *((32, 32) if dims == 2 else (8, 32, 32)))
    patches, scalar = Discriminator(dims, 1, 4), Discriminator(dims, 1, 4, scalar=True)
    scalar.load_state_dict(patches.state_dict())
    assert patches(x).ndim == dims + 2
    assert scalar(x).shape == (2, 1)
    assert torch.allclose(scalar(x), patches(x).flatten(2).mean(2))


def test_losses_are_zero_for_a_perfect_verdict_and_known_for_a_shrug() -> None:
    logits = torch.full((2, 1, 3, 3), 0.5)
    assert float(verdict_loss(torch.ones(2, 1), True, "least_squares")) == 0
    assert float(verdict_loss(logits, True, "least_squares")) == pytest.approx(0.25)
    assert float(verdict_loss(torch.zeros(2, 1), False, "bce")) == pytest.approx(math.log(2))
    assert float(verdict_loss(torch.tensor([[100.0]]), True, "bce")) == pytest.approx(0)
    assert float(verdict_loss(torch.tensor([[-1000.0]]), True, "bce")) == pytest.approx(1000)


def test_a_discriminator_learns_nothing_from_the_maker_of_fakes() -> None:
    judge, fake = Discriminator(2, 1, 4), torch.randn(1, 1, 32, 32, requires_grad=True)
    discriminator_loss(judge, torch.randn(1, 1, 32, 32), fake, "least_squares").backward()
    assert fake.grad is None
    fooling_loss(judge, fake, "least_squares").backward()
    assert fake.grad is not None


def test_the_pool_gives_new_fakes_until_it_is_full_and_then_old_ones_half_of_the_time() -> None:
    torch.manual_seed(0)
    pool = ImagePool(50)
    numbers = [float(pool.query(torch.full((1, 1, 2, 2), float(i)))[0, 0, 0, 0]) for i in range(400)]
    assert numbers[:50] == list(range(50))
    old = sum(number != i for i, number in enumerate(numbers) if i >= 50) / 350
    assert 0.4 < old < 0.6
    assert len(pool.images) == 50


def test_a_pool_of_nothing_keeps_nothing() -> None:
    pool, fakes = ImagePool(0), torch.randn(2, 1, 2, 2, requires_grad=True)
    assert torch.equal(pool.query(fakes), fakes)
    assert pool.images == []
    assert not pool.query(fakes).requires_grad


def test_a_restored_pool_goes_on_as_if_nothing_had_happened() -> None:
    pool, again = ImagePool(3), ImagePool(3)
    pool.query(torch.randn(3, 1, 2, 2))
    again.load_state_dict(pool.state_dict())
    fakes = torch.randn(4, 1, 2, 2)
    torch.manual_seed(5)
    first = pool.query(fakes)
    torch.manual_seed(5)
    assert torch.equal(again.query(fakes), first)


@pytest.mark.parametrize("dims", [2, 3])
def test_registration_begins_with_next_to_no_flow(dims: int) -> None:
    x = torch.randn(1, 1, *SIZES[dims])
    found = Registration(dims, (4, 4, 4, 4))(x, x.flip(-1))
    assert found.flow.shape == (1, dims, *SIZES[dims])
    assert float(found.flow.detach().abs().max()) < 0.01
    assert torch.allclose(found.warped, x, atol=0.05)


def test_a_flow_of_one_voxel_shifts_by_one_voxel_along_its_axis() -> None:
    x, flow = torch.arange(24.0).reshape(1, 1, 4, 6), torch.zeros(1, 2, 4, 6)
    flow[:, 1] = 1.0
    assert torch.allclose(quiet_warp()(x, flow)[..., :-1], x[..., 1:], atol=1e-4)


def test_smoothness_is_zero_for_a_shift_and_known_for_a_shear() -> None:
    ramp = torch.arange(8.0).expand(8, 8)
    assert float(smoothness(torch.ones(1, 2, 8, 8))) == 0
    sheared = torch.stack([0.5 * ramp, torch.zeros(8, 8)])[None]
    assert float(smoothness(sheared)) == pytest.approx(0.5**2 / 2)
    whole = torch.stack([0.5 * torch.arange(6.0).expand(6, 6, 6), *torch.zeros(2, 6, 6, 6)])[None]
    assert float(smoothness(whole)) == pytest.approx(0.5**2 / 3)


def test_registration_finds_a_known_shift() -> None:
    torch.manual_seed(0)
    coarse = torch.randn(1, 1, 6, 6)
    moving = nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    fixed = moving.roll(-1, dims=-1)
    network = Registration(2, (8, 8, 8, 8))
    adam = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        adam.zero_grad()
        found = network(moving, fixed)
        loss = (found.warped - fixed).abs().mean() + 0.01 * smoothness(found.flow)
        loss.backward()
        adam.step()
    inner = network(moving, fixed).flow[0, :, 6:-6, 6:-6].detach()
    assert float(inner[1].mean()) == pytest.approx(1.0, abs=0.25)
    assert float(inner[0].mean()) == pytest.approx(0.0, abs=0.25)


def test_the_centre_crop_is_the_centre_of_every_slice() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(centre_crop(x, 0.5), x[..., 2:6, 2:6])
    assert centre_crop(torch.zeros(1, 1, 3, 8, 8), 0.25).shape == (1, 1, 3, 2, 2)


def half(scaler: torch.amp.GradScaler) -> Fabric:
    return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))


def test_in_fp16_gradients_are_clipped_as_they_are_and_not_as_they_were_scaled() -> None:
    fabric = half(torch.amp.GradScaler("cpu", init_scale=2.0**8))
    for clip, left in ((1.0, 1.0), (100.0, 3.0)):
        player = enlist(fabric, nn.Linear(1, 1, bias=False), AdamConfig())
        loss = 3 * player.network(torch.ones(1, 1)).float().sum()
        improve(fabric, [player], loss, AdamConfig(clip=clip), 0.0)
        assert float(player.bare.weight.grad) == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize("overflow", [False, True], ids=["growth", "back-off"])
def test_the_players_of_one_loss_are_unscaled_by_one_scale_in_fp16(overflow: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    fabric = half(scaler)
    torch.manual_seed(0)
    players = [enlist(fabric, nn.Linear(1, 1, bias=False), AdamConfig()) for _ in range(2)]
    before = players[0].bare.weight.detach().clone()
    first, second = (player.network(torch.ones(1, 1)).float().sum() for player in players)
    loss = 3 * second + first * (float("inf") if overflow else 2.0)
    assert float(improve(fabric, players, loss, AdamConfig(), 0.0)) == float(overflow)
    assert float(players[1].bare.weight.grad) == 3.0
    assert torch.equal(players[0].bare.weight, before) == overflow
    assert scaler.get_scale() == 2.0 ** (7 if overflow else 9)


def test_the_rate_is_held_and_then_falls_in_a_line_to_nothing() -> None:
    config = AdamConfig(lr=1.0, hold=0.5)
    assert [rate(config, progress) for progress in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]
    assert rate(AdamConfig(lr=1.0, hold=1.0), 1.0) == 1.0
