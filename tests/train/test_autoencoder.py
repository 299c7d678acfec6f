"""Stage 1's network and its switches."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.autoencoderkl import AEKLResBlock

from train.config import AutoencoderConfig
from train.s2ldm.autoencoder import FineBranch, SyncreticAutoencoder, depth_to_space, space_to_depth

SMALL = {
    "channels": (8, 8),
    "latent_channels": 4,
    "norm_groups": 4,
    "head_channels": 8,
    "quantizer": {"codes": 32},
}
X_N, X_C = torch.rand(2, 1, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def network(**changes: object) -> SyncreticAutoencoder:
    torch.manual_seed(0)
    return SyncreticAutoencoder(AutoencoderConfig.model_validate(SMALL | changes))


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 4)])
def test_space_to_depth_loses_nothing(patch: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 4, 8, 8)
    there = space_to_depth(x, patch)
    assert there.shape == (2, 3 * patch[0] * patch[1] * patch[2], 4 // patch[0], 8 // patch[1], 8 // patch[2])
    assert torch.equal(depth_to_space(there, patch), x)


def test_the_latent_has_the_promised_factor_and_channels() -> None:
    model = network()
    assert model.config.factor == (2, 4, 4)
    assert model.encode(X_N).shape == (1, 4, 2, 4, 4)


def test_painting_onto_the_source_begins_as_the_identity() -> None:
    model = network(source_skip="residual").eval()
    assert torch.equal(model.decode(model.encode(X_N), X_N), X_N)


def test_painting_with_blocks_at_the_exit_begins_as_the_identity_and_moves_them() -> None:
    model = network(source_skip="residual", exit_blocks=2)
    assert torch.equal(model.eval().decode(model.encode(X_N), X_N), X_N)
    torch.nn.init.normal_(model.exit.last.weight)
    (model.paint(model.encode(X_N), X_N) - X_C).square().mean().backward()
    blocks = [layer for layer in model.exit.merge if isinstance(layer, AEKLResBlock)]
    assert len(blocks) == 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for b in blocks for p in b.parameters())


def test_the_fine_branch_paints_the_same_vessel_alike_whatever_else_the_crop_holds() -> None:
    branch = FineBranch(channels=3, width=8, blocks=2, voxels=4).eval()
    torch.nn.init.normal_(branch.layers[-1].weight)
    seen = torch.randn(1, 3, 4, 8, 24)
    beside = seen.clone()
    beside[..., 16:] = 50.0
    with torch.no_grad():
        here, there = branch(seen), branch(beside)
    assert torch.equal(here[..., :10], there[..., :10])
    assert not torch.equal(here[..., 16:], there[..., 16:])


def test_the_papers_decoder_never_looks_at_the_source() -> None:
    model = network(source_skip="none").eval()
    latent = model.encode(X_C)
    assert torch.equal(model.decode(latent, X_N), model.decode(latent, X_C))


def test_one_encoder_serves_both_phases() -> None:
    out = network().eval()(X_N, X_C)
    assert torch.allclose(out.e_n, network().eval().encode(X_N), atol=1e-5)
    assert torch.allclose(out.e_c, network().eval().encode(X_C), atol=1e-5)


def test_a_plain_autoencoder_never_sees_the_source_embedding() -> None:
    out = network(syncretic=False)(X_N, X_C)
    assert out.e_n is None
    assert out.from_n is None


@pytest.mark.parametrize(("translate", "decoded"), [(0.0, False), (1.0, True)])
def test_the_source_embedding_is_decoded_only_where_translation_is_a_loss(
    translate: float, decoded: bool
) -> None:
    out = network(loss={"translate": translate})(X_N, X_C)
    assert out.e_n is not None
    assert (out.from_n is not None) == decoded


def test_quantize_both_decides_whether_the_codebook_sees_the_source() -> None:
    both, one = (network(quantizer={"codes": 32, "quantize_both": b}) for b in (True, False))
    assert len(both.train()(X_N, X_C).codes) == 2 * len(one.train()(X_N, X_C).codes)


@pytest.mark.parametrize("regularizer", ["vq", "kl", "none"])
def test_every_regularizer_trains_and_decodes(regularizer: str) -> None:
    model = network(quantizer={"codes": 32, "regularizer": regularizer})
    out = model.train()(X_N, X_C)
    (out.from_c.mean() + out.l_quan).backward()
    assert (out.codes is None) == (regularizer != "vq")
    assert model.encode(X_N).shape == (1, 4, 2, 4, 4)
    assert model.decode(model.encode(X_N), X_N).shape == X_N.shape


def test_quantize_at_decode_rounds_or_does_not() -> None:
    rounded, exact = (
        network(source_skip="none", quantizer={"codes": 4, "quantize_at_decode": q}) for q in (True, False)
    )
    latent = rounded.encode(X_C)
    assert torch.equal(exact.decode(latent, X_N), exact.paint(latent, X_N))
    assert not torch.equal(rounded.decode(latent, X_N), rounded.paint(latent, X_N))
