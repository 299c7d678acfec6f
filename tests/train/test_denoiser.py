"""The denoiser sees the source in the window of the model and, if asked to, in a narrow one."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from train.config import TrainConfig
from train.s2ldm.autoencoder import stretch
from train.s2ldm.denoiser import Denoiser


def with_window(config: TrainConfig, window_hu: tuple[float, float] | None) -> TrainConfig:
    values = config.model_dump()
    values["diffusion"] |= {"source_condition": "cells", "soft_window_hu": window_hu}
    return TrainConfig.model_validate(values)


def test_the_narrow_window_is_spread_over_the_whole_range() -> None:
    hu = torch.tensor([-200.0, -10.0, 40.0, 50.0, 90.0, 400.0])
    x = (hu + 200) / 300 - 1
    low, high = ((v + 200) / 300 - 1 for v in (-10.0, 90.0))
    torch.testing.assert_close(stretch(x, low, high), torch.tensor([-1.0, -1.0, 0.0, 0.2, 1.0, 1.0]))


def test_the_narrow_window_is_one_more_channel_for_every_voxel_of_a_cell(tiny: TrainConfig) -> None:
    plain, narrow = (
        Denoiser(with_window(tiny, w)).unet.conv_in.conv.in_channels for w in (None, (-10.0, 90.0))
    )
    cell = 1
    for n in tiny.autoencoder.factor:
        cell *= n
    assert narrow - plain == cell


@pytest.mark.parametrize("window", [(90.0, -10.0), (-300.0, 90.0), (0.0, 500.0), (40.0, 40.0)])
def test_a_narrow_window_outside_the_models_is_refused(
    tiny: TrainConfig, window: tuple[float, float]
) -> None:
    with pytest.raises(ValidationError, match="soft_window_hu"):
        with_window(tiny, window)


def test_the_digest_tells_windows_apart(tiny: TrainConfig) -> None:
    digests = {with_window(tiny, w).digest("diffusion") for w in (None, (-10.0, 90.0), (-20.0, 90.0))}
    assert len(digests) == 3


def test_weights_of_voxels_and_encoded_crops_exclude_each_other(tiny: TrainConfig) -> None:
    values = tiny.model_dump()
    values["diffusion"] |= {"local": 2.0, "encoded_crops": 4}
    with pytest.raises(ValidationError, match=r"diffusion\.local"):
        TrainConfig.model_validate(values)


def with_stem(config: TrainConfig, channels: int = 16) -> TrainConfig:
    values = with_window(config, (-10.0, 90.0)).model_dump()
    values["diffusion"] |= {"source_condition": "stem", "stem_channels": channels, "norm_groups": 8}
    return TrainConfig.model_validate(values)


def test_the_stem_tells_cells_apart_by_voxels_within_them_and_learns(tiny: TrainConfig) -> None:
    config = with_stem(tiny)
    denoiser = Denoiser(config)
    x = torch.zeros(1, 1, *config.data.crop)
    elsewhere = x.clone()
    elsewhere[..., 0, 0, 0] = 1.0
    seen, other = denoiser.look(x), denoiser.look(elsewhere)
    cells = [n // f for n, f in zip(config.data.crop, config.autoencoder.factor, strict=True)]
    assert seen.shape == (1, 16, *cells)
    assert not torch.equal(seen, other)
    torch.nn.init.normal_(denoiser.unet.out[2].conv.weight)
    z = torch.randn(1, config.autoencoder.latent_channels, *cells)
    denoiser(z, z, torch.zeros(1), elsewhere).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in denoiser.source.parameters() if p.ndim > 1)


def test_what_is_seen_of_the_source_can_be_looked_at_once_for_several_steps(tiny: TrainConfig) -> None:
    config = with_stem(tiny)
    denoiser = Denoiser(config).eval()
    torch.nn.init.normal_(denoiser.unet.out[2].conv.weight)
    x = torch.randn(1, 1, *config.data.crop)
    z = torch.randn(1, config.autoencoder.latent_channels, *denoiser.look(x).shape[2:])
    with torch.no_grad():
        for t in (torch.zeros(1), torch.full((1,), 0.5)):
            assert torch.equal(denoiser(z, z, t, x), denoiser.answer(z, z, t, denoiser.look(x)))


def test_a_stem_that_normalisation_cannot_split_is_refused(tiny: TrainConfig) -> None:
    with pytest.raises(ValidationError, match="stem_channels 12"):
        with_stem(tiny, 12)
