"""The codebook: nearest codes, straight-through gradients, moving averages, revival."""

from __future__ import annotations

import pytest
import torch

from train.s2ldm.quantizer import CHUNK, VectorQuantizer, perplexity


def quantizer(codes: int = 16, groups: int = 2, reseed_below: float = 0.0) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(4, codes, groups, decay=0.9, commitment=0.25, reseed_below=reseed_below)


def test_rows_and_back() -> None:
    latent = torch.randn(2, 4, 2, 3, 5)
    q = quantizer()
    assert torch.equal(q.unrows(q.rows(latent), latent.shape), latent)


def test_every_part_of_every_cell_becomes_its_nearest_code() -> None:
    q, latent = quantizer(), torch.randn(1, 4, 2, 2, 2)
    parts = latent.reshape(2, 2, 8)  # group, dimension, cell
    for group in range(2):
        for cell in range(8):
            distances = (q.codebook - parts[group, :, cell]).square().sum(1)
            got = q.lookup(latent).reshape(2, 2, 8)[group, :, cell]
            assert torch.equal(got, q.codebook[distances.argmin()])


def test_chunks_change_nothing() -> None:
    q, rows = quantizer(), torch.randn(CHUNK + 7, 2)
    assert torch.equal(q.nearest(rows), torch.cdist(rows, q.codebook).argmin(1))


def test_gradients_pass_straight_through_and_commitment_pulls() -> None:
    q = quantizer().eval()
    latent = torch.randn(1, 4, 2, 2, 2, requires_grad=True)
    out = q(latent)
    out.latent.sum().backward()
    assert torch.equal(latent.grad, torch.ones_like(latent))
    expected = 0.25 * (latent - q.lookup(latent)).square().mean()
    assert torch.allclose(out.loss, expected)


def test_the_codebook_follows_the_data_only_in_training() -> None:
    q, latent = quantizer(), torch.randn(1, 4, 4, 4, 4) + 5
    before = q.codebook.clone()
    q.eval()(latent)
    assert torch.equal(q.codebook, before)
    for _ in range(60):
        q.train()(latent)
    assert (q.lookup(latent) - latent).square().mean() < 0.5 * latent.var()


def test_dead_codes_are_moved_onto_the_batch() -> None:
    q = quantizer(reseed_below=0.5)
    q.train()(torch.randn(1, 4, 4, 4, 4))
    q.codebook[3] = 1e3
    q.cluster_sum[3], q.cluster_size[3] = 1e3, 0.1
    q(torch.randn(1, 4, 4, 4, 4))
    assert q.codebook[3].abs().max() < 10
    assert q.cluster_size[3] == 1.0


def test_it_stays_in_full_precision_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer()(torch.randn(1, 4, 2, 2, 2).bfloat16()).latent.dtype == torch.float32


def test_perplexity_counts_the_codes_in_use() -> None:
    assert perplexity(torch.arange(8), 8).item() == pytest.approx(8.0)
    assert perplexity(torch.zeros(8, dtype=torch.long), 8).item() == pytest.approx(1.0)
