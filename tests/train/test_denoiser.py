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
