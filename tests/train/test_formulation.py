"""What the denoiser is asked under each reading of eq. 4."""

from __future__ import annotations

import pytest
import torch

from engine.schedule import scaled_linear
from train.config import DiffusionConfig
from train.s2ldm.formulation import alpha_bar, loss, pose, sampler_spec
from train.s2ldm.similarity import bridge_weight, cosine, similarity_mask

E_N, E_C = torch.randn(2, 3, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
DDIM = {"name": "ddim", "steps": 4}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_bridge_lies_between_the_embeddings_and_asks_for_their_difference() -> None:
    problem = pose(DiffusionConfig(), E_N, E_C, 0.5, seeded())
    t = problem.t.reshape(-1, 1, 1, 1, 1)
    assert torch.allclose(problem.z_t, (1 - t) * E_N + t * E_C)
    assert torch.equal(problem.target, E_C - E_N)
    assert torch.equal(problem.source, E_N)
    assert torch.equal(problem.weight, bridge_weight(cosine(E_N, E_C), 0.5, 2.0))


def test_the_bridge_with_sigma_is_noisy_between_and_exact_at_its_ends() -> None:
    still, noisy = (pose(DiffusionConfig(sigma=s), E_N, E_C, 0.5, seeded()) for s in (0.0, 0.5))
    t = still.t.reshape(-1, 1, 1, 1, 1)
    noise = torch.randn(E_C.shape, generator=seeded())
    assert torch.allclose(noisy.z_t - still.z_t, 0.5 * (t * (1 - t)).sqrt() * noise, atol=1e-6)


def test_a_share_of_the_bridges_questions_is_posed_at_its_start() -> None:
    many = torch.zeros(400, 1, 1, 1, 1)
    t = pose(DiffusionConfig(start_share=0.75), many, many, 0.5, seeded()).t
    assert 0.7 < (t == 0).double().mean() < 0.8
    assert 0.9 < t.max() <= 1.0
    assert (pose(DiffusionConfig(start_share=1.0), many, many, 0.5, seeded()).t == 0).all()


@pytest.mark.parametrize("progress", [0.0, 0.1, 1.0])
def test_conditional_diffuses_the_enhanced_and_sees_the_masked_source(progress: float) -> None:
    config = DiffusionConfig(formulation="conditional", sampler=DDIM)
    problem = pose(config, E_N, E_C, progress, seeded())
    a = alpha_bar(config, torch.device("cpu"))[(problem.t * 1000).round().long()].reshape(-1, 1, 1, 1, 1)
    noise = torch.randn(E_C.shape, generator=seeded())
    assert torch.allclose(problem.z_t, a.sqrt() * E_C + (1 - a).sqrt() * noise, atol=1e-5)
    assert torch.allclose(problem.source, E_N * similarity_mask(cosine(E_N, E_C), progress, 2.0))
    assert torch.allclose(problem.target, noise)


def test_literal_diffuses_the_masked_source_and_holds_no_enhanced_image() -> None:
    config = DiffusionConfig(formulation="literal", sampler=DDIM)
    late, other = (pose(config, E_N, e_c, 1.0, seeded()) for e_c in (E_C, torch.zeros_like(E_C)))
    assert torch.equal(late.z_t, other.z_t)  # S is one: eq. 4 as printed never sees E_c
    early = pose(config, E_N, E_C, 0.0, seeded())
    assert not torch.equal(early.z_t, late.z_t)


def test_without_the_mask_the_source_is_whole_from_the_start() -> None:
    config = DiffusionConfig(formulation="conditional", sampler=DDIM, mask={"enabled": False})
    assert torch.equal(pose(config, E_N, E_C, 0.0, seeded()).source, E_N)
    assert pose(DiffusionConfig(mask={"enabled": False}), E_N, E_C, 0.5).weight is None


def test_v_prediction_asks_for_the_rotated_target() -> None:
    config = DiffusionConfig(formulation="conditional", prediction="v", sampler=DDIM)
    problem = pose(config, E_N, E_C, 1.0, seeded())
    a = alpha_bar(config, torch.device("cpu"))[(problem.t * 1000).round().long()].reshape(-1, 1, 1, 1, 1)
    back = a.sqrt() * problem.z_t - (1 - a).sqrt() * problem.target
    assert torch.allclose(back, E_C, atol=1e-5)


def test_training_and_service_share_one_noise_schedule() -> None:
    config = DiffusionConfig(formulation="conditional", sampler=DDIM, timesteps=50)
    spec = sampler_spec(config)
    service = scaled_linear(spec.T, spec.beta_start, spec.beta_end).alpha_bar
    assert alpha_bar(config, torch.device("cpu")).tolist() == pytest.approx(service.tolist())


@pytest.mark.parametrize(("norm", "expected"), [("l1", 2.0), ("l2", 5.0), ("both", 7.0)])
def test_the_norm_of_the_answer(norm: str, expected: float) -> None:
    problem = pose(DiffusionConfig(mask={"enabled": False}), E_N, E_C, 0.0)
    off = torch.where(torch.arange(4).reshape(1, 4, 1, 1, 1) % 2 == 0, 1.0, 3.0)
    assert loss(DiffusionConfig(norm=norm), problem.target + off, problem).item() == pytest.approx(
        expected, rel=1e-4
    )


def test_the_bridge_weight_makes_dissimilar_cells_count() -> None:
    problem = pose(DiffusionConfig(), E_N, E_C, 1.0)
    assert problem.weight is not None
    worst = problem.weight == problem.weight.max()
    best = problem.weight == problem.weight.min()
    wrong = [loss(DiffusionConfig(), problem.target + where.float(), problem) for where in (worst, best)]
    assert wrong[0] > wrong[1]


@pytest.mark.parametrize(
    ("formulation", "reaches"),
    [("literal", {"early": True, "late": False}), ("conditional", {"early": True, "late": True}),
     ("bridge", {"early": True, "late": True})],
)  # fmt: skip
def test_the_enhanced_embedding_enters_only_where_the_formulation_lets_it(
    formulation: str, reaches: dict[str, bool]
) -> None:
    config = DiffusionConfig(formulation=formulation, sampler={} if formulation == "bridge" else DDIM)
    for when, progress in (("early", 0.0), ("late", 1.0)):
        e_c = E_C.clone().requires_grad_()
        problem = pose(config, E_N, e_c, progress, seeded())
        loss(config, problem.z_t.sum() + problem.source.sum() + 0 * problem.target, problem).backward()
        assert e_c.grad is not None
        assert bool(e_c.grad.any()) == reaches[when]


def test_cells_that_weigh_more_are_heard_more() -> None:
    config = DiffusionConfig(norm="l1", mask={"enabled": False})
    problem = pose(config, E_N, E_C, 0.5)
    answer = problem.target.clone()
    answer[..., 0] += 1.0
    cells = torch.ones_like(answer[:, :1])
    share = 1 / answer.shape[-1]
    assert loss(config, answer, problem, cells).item() == pytest.approx(share, rel=1e-4)
    cells[..., 0] = 9.0
    assert loss(config, answer, problem, cells).item() == pytest.approx(9 * share / (1 + 8 * share), rel=1e-4)
