"""Several processes as one (torchrun): what a method needs to have the numbers of one with the whole batch.

The stages of the S²LDM have them, as a test shows; ``docs/training.md`` says what in other methods has not.
Every rank holds the same generators and draws for all ranks, then keeps its own part; a mean that is weighted
by the data is divided by the weight of all ranks. DDP then averages plain means. Without torchrun each
function is what its name says of one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mine(x: Tensor) -> Tensor:
    """This rank's rows of a tensor that holds the rows of all."""
    if world() == 1:
        return x
    size = len(x) // world()
    return x[dist.get_rank() * size : (dist.get_rank() + 1) * size]


def total(x: Tensor) -> Tensor:
    """Sum over ranks; no gradient passes."""
    if world() == 1:
        return x.detach()
    summed = x.detach().clone()
    dist.all_reduce(summed)
    return summed


def mean(x: Tensor) -> Tensor:
    """Mean over ranks; no gradient passes."""
    return total(x) / world()


def gather(x: Tensor, block: int) -> Tensor:
    """Rows of all ranks in the order of one process: x is k blocks (E_c's, E_n's …) of ``block`` rows."""
    if world() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x.detach().contiguous())
    blocks = [part.reshape(-1, block, *x.shape[1:]) for part in parts]
    return torch.cat(blocks, dim=1).reshape(-1, *x.shape[1:])


def randn(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """This rank's part of one normal draw; ``shape`` is this rank's, rows first."""
    whole = (shape[0] * world(), *shape[1:])
    return mine(torch.randn(whole, generator=generator, device=device))


def rand(size: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """This rank's part of one uniform draw."""
    return mine(torch.rand(size * world(), generator=generator, device=device))


def randn_like(x: Tensor, block: int) -> Tensor:
    """Normal numbers for k blocks of ``block`` rows, drawn as one process would."""
    if world() == 1:
        return torch.randn_like(x)
    whole = torch.randn((len(x) // block, world() * block, *x.shape[1:]), device=x.device, dtype=x.dtype)
    start = dist.get_rank() * block
    return whole[:, start : start + block].reshape(x.shape)


def first(value: float, device: torch.device) -> float:
    """Rank 0's number, on every rank."""
    if world() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, src=0)
    return float(shared)


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether some rank says yes; every rank gets the same answer."""
    return flag if world() == 1 else bool(total(torch.tensor(float(flag), device=device)) > 0)
