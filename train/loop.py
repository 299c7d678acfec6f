"""The loop that every stage of every method runs in.

A method says what one step is and what its pictures are; this file starts Fabric, resumes or refuses, hands
out crops, keeps to the budget, writes checkpoints (every few minutes, at the end, on SIGTERM), measures the
held-out crops and writes the run card. A stage's file calls ``train`` with its ``Plan`` and reads on its own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from lightning.fabric import Fabric, wrappers
from torch import Tensor, nn
from torch.optim import Optimizer

from train import checkpoint as ckpt
from train import ranks
from train.ahead import Ahead, Batches
from train.budget import Budget, Every, StopRequest, learning_rate, stop_on_signal
from train.config import DataConfig, LoopConfig, OptimiserConfig, RunConfig
from train.data import Pairs, data_digest, split_digest, training_pairs, validation_pairs
from train.onednn import WholeGradients
from train.pictures import Sample, draw_samples
from train.run import Monitor, commit, machine, now_utc, peak_memory, write_card

log = logging.getLogger(__name__)


class Method(Protocol):
    """What a stage gives the loop: its networks and optimisers, already set up by ``fabric.setup``."""

    def states(self) -> dict[str, Any]:
        """Everything a resumed run needs, by name: state dictionaries, tensors, numbers."""
        ...

    def restore(self, states: Mapping[str, Any]) -> None:
        """Put it all back; strict."""
        ...

    def begin(self, pairs: Pairs, resumed: bool) -> Batches:
        """Before the first step of this process: measure what must be known; return ``pairs`` or better.

        ``resumed``: the states of another run were put back.
        """
        ...

    def step(self, progress: float, *batch: Tensor) -> dict[str, Tensor]:
        """One step of every optimiser at ``progress`` = τ/𝒯; detached scalars to be shown, by name."""
        ...

    def show(self, x_n: Tensor, x_c: Tensor, seed: int, *phase: Tensor) -> dict[str, Tensor]:
        """Predictions of x_c for held-out crops, by name, in [-1, 1], fp32; called without gradients.

        ``phase`` (B,) comes where both are learnt.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What the run card shall say besides: at least ``parameters`` by part."""
        ...


class Parts:
    """``states`` and ``restore`` of a method whose ``parts`` have both, and whose ``numbers`` are plain.

    A part that is None is left out, and a list of parts is a list of states.
    """

    __slots__ = ()
    parts: ClassVar[tuple[str, ...]]
    numbers: ClassVar[tuple[str, ...]] = ()

    def states(self) -> dict[str, Any]:
        """State of every part, for the checkpoint."""
        parts = {name: getattr(self, name) for name in self.parts}
        states = {name: _state_of(part) for name, part in parts.items() if part is not None}
        return states | {name: getattr(self, name) for name in self.numbers}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Put every part back; strict."""
        for name in self.parts:
            if getattr(self, name) is not None:
                _put_back(getattr(self, name), states[name])
        for name in self.numbers:
            setattr(self, name, states[name])


def _state_of(part: Any) -> Any:
    return [each.state_dict() for each in part] if isinstance(part, list) else part.state_dict()


def _put_back(part: Any, state: Any) -> None:
    if not isinstance(part, list):
        part.load_state_dict(state)
        return
    for each, of_it in zip(part, state, strict=True):
        each.load_state_dict(of_it)


@dataclass(frozen=True, slots=True)
class Plan:
    """``config.digest(stage)`` guards the checkpoints; ``loop`` is this stage's part of ``config``."""

    stage: str
    config: RunConfig
    loop: LoopConfig

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.stage} {self.config.data.phase}"


@dataclass(frozen=True, slots=True)
class Run:
    """A started run: all that ``steps`` needs, ready."""

    plan: Plan
    fabric: Fabric
    method: Method
    budget: Budget
    batches: Batches
    held_out: Pairs
    monitor: Monitor
    out: Path
    data: Mapping[str, str]
    """Digests of what is learnt from and of the split, as ``identity`` says them."""

    @property
    def file(self) -> Path:
        """The checkpoint."""
        return self.out / ckpt.NAME


def train(
    plan: Plan,
    build: Callable[[Fabric], Method],
    out: Path,
    cache: Path,
    resume: bool = False,
    start_from: Mapping[str, Any] | None = None,
) -> Path:
    """Train until the budget is spent or a stop is asked for; returns the checkpoint's path.

    ``start_from`` are the states of a finished run: the same networks go on, on a budget of their own. Raises
    CheckpointUnusable where there is nothing to resume, or something would be overwritten.
    """
    config, budget, started = plan.config, Budget(plan.loop), now_utc()
    fabric = start(plan.loop)
    out.mkdir(parents=True, exist_ok=True)
    method = build(fabric)
    pick_up(out / ckpt.NAME, resume, plan, fabric, method, budget)
    if start_from is not None and not resume:
        method.restore(start_from)
    with Monitor(out, budget, plan.title, config.record, fabric.is_global_zero) as monitor:
        pairs = training_pairs(config.data, cache, lambda n, of: log.info("case %d of %d", n, of))
        held_out = validation_pairs(config.data, cache)
        batches = method.begin(pairs, resume or start_from is not None)
        if fabric.device.type != "cpu":
            batches = Ahead(batches)
        data = identity(config.data)
        run = Run(plan, fabric, method, budget, batches, held_out, monitor, out, data)
        with stop_on_signal() as stop, WholeGradients():
            steps(run, stop)
    if fabric.is_global_zero:
        write_card(out, card(run, pairs, started))
    fabric.barrier()
    return run.file


def start(loop: LoopConfig) -> Fabric:
    """A Fabric on whatever accelerator there is, seeded alike on every rank.

    ``threads`` > 0 bounds the CPU's. Under torchrun every process is a rank of DDP: NCCL on GPUs, else gloo.
    """
    if loop.threads:
        torch.set_num_threads(loop.threads)
    fabric = Fabric(accelerator="auto", precision=loop.precision, **_places())
    fabric.seed_everything(loop.seed, verbose=False)
    fabric.launch()
    return fabric


def _places() -> dict[str, Any]:
    """One device, or what torchrun says of machines and processes."""
    if not dist.is_torchelastic_launched():
        return {"devices": 1}
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return {"devices": here, "num_nodes": everywhere // here, "strategy": "ddp"}


def steps(run: Run, stop: StopRequest) -> None:
    """Steps until the budget is spent; a checkpoint every few minutes, at the end and on request."""
    record = run.plan.config.record
    save_due, picture_due = Every(run.plan.loop.checkpoint_minutes), Every(record.picture_minutes)
    while not ranks.any_of(run.budget.spent or bool(stop), run.fabric.device):
        values = one_step(run)
        if run.budget.step % run.plan.loop.log_steps == 0:
            run.monitor.record(shared(run, values))
        if record.picture_steps and run.budget.step % record.picture_steps == 0:
            draw_now(run)
        if save_due():
            keep(run, with_picture=picture_due())
    keep(run, with_picture=record.picture_minutes > 0 or record.picture_steps > 0)


def one_step(run: Run) -> dict[str, Tensor]:
    """Draw, step, count: the time of a step is all of it."""
    began, loop = time.monotonic(), run.plan.loop
    batch = run.batches.batch(loop.seed, run.budget.step, loop.batch * ranks.world())
    mine = (run.fabric.to_device(ranks.mine(x)) for x in batch)
    values = run.method.step(run.budget.progress, *mine)
    run.budget.step += 1
    elapsed_s = run.budget.elapsed_s + time.monotonic() - began
    run.budget.elapsed_s = ranks.first(elapsed_s, run.fabric.device)
    return values


def shared(run: Run, values: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of this step, over all ranks."""
    return {name: float(ranks.mean(run.fabric.to_device(value))) for name, value in values.items()}


def keep(run: Run, with_picture: bool) -> None:
    """Write the checkpoint of this moment and measure the held-out crops; rank 0's business alone.

    In this order: whoever is told to end may be killed before everything is measured and recorded.
    """
    if not run.fabric.is_global_zero:
        return
    save(run)
    samples = held_out_samples(run, run.plan.loop.validation_crops)
    run.monitor.record(validate(samples))
    if with_picture:
        draw(run, samples)


def draw_now(run: Run) -> None:
    """A sample picture of this moment, and nothing else; rank 0's business alone."""
    if run.fabric.is_global_zero:
        draw(run, held_out_samples(run, min(run.plan.config.record.pictures, run.plan.loop.validation_crops)))


def draw(run: Run, samples: Sequence[Sample]) -> None:
    """The step's sample picture; one that is there already is of the same step."""
    config, step = run.plan.config, run.budget.step
    file = run.out / "pictures" / f"step-{step:07d}.png"
    if file.exists():
        return
    shown = samples[: config.record.pictures]
    draw_samples(file, shown, config.data.window_hu, f"{run.plan.title}, step {step}")
    run.monitor.picture(file)


@torch.no_grad()
def held_out_samples(run: Run, count: int) -> list[Sample]:
    """Fixed crops of cases never learnt from, and what the method makes of them."""
    samples = []
    for i in range(count):
        x_n, x_c, *phase = (run.fabric.to_device(x) for x in run.held_out.batch(1, i, 1))
        shown = run.method.show(x_n, x_c, i, *phase)
        samples.append(Sample(x_n.cpu(), x_c.cpu(), {name: x.cpu() for name, x in shown.items()}))
    return samples


def validate(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean PSNR (range = window) of the source as it is and of every prediction."""
    sums: dict[str, float] = {}
    for sample in samples:
        for name, x in ({"identity": sample.x_n} | sample.shown).items():
            sums[name] = sums.get(name, 0.0) + psnr(x, sample.x_c)
    return {f"psnr/{name}": value / len(samples) for name, value in sums.items()}


def psnr(x: Tensor, reference: Tensor) -> float:
    """Decibels for tensors in [-1, 1]; x is clamped first."""
    return float(-10 * torch.log10((x.clamp(-1, 1) - reference).square().mean() / 4))


def set_rate(optimiser: Optimizer, config: OptimiserConfig, progress: float) -> Tensor:
    """Give every group of ``optimiser`` the rate of this moment; returns it, to be shown."""
    rate = learning_rate(config, progress)
    for group in optimiser.param_groups:
        group["lr"] = rate
    return torch.tensor(rate)


def descend(fabric: Fabric, network: nn.Module, optimiser: Optimizer, clip: float) -> Tensor:
    """Clip and step, unless a gradient is not a number; returns 1 where the step was skipped.

    fp16's scaler skips by itself, and has to be asked for a step to come down from what overflowed.
    """
    return descend_together(fabric, [(network, optimiser)], clip)


def descend_together(fabric: Fabric, movers: Sequence[tuple[nn.Module, Optimizer]], clip: float) -> Tensor:
    """``descend`` of several networks down one loss; returns how many steps were skipped.

    fp16's scaler is updated once, after all: Fabric does it after each, and would unscale the next network's
    gradients by another number than their loss was scaled by.
    """
    norms = [fabric.clip_gradients(n, o, max_norm=clip, error_if_nonfinite=False) for n, o in movers]
    finite = [norm is None or bool(torch.isfinite(norm)) for norm in norms]
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    for (_, optimiser), good in zip(movers, finite, strict=True):
        if scaler is not None:
            scaler.step(optimiser.optimizer)
        elif good:
            optimiser.step()
    if scaler is not None:
        scaler.update()
    return torch.tensor(float(finite.count(False)), device=fabric.device)


@contextmanager
def measuring_gradients() -> Iterator[None]:
    """Where ``torch.autograd.grad`` looks at a gradient and moves nothing.

    Under mixed precision Fabric's networks refuse every backward that is not ``fabric.backward``, this too.
    """
    wrappers._in_fabric_backward = True
    try:
        yield
    finally:
        wrappers._in_fabric_backward = False


def count_parameters(parts: Mapping[str, nn.Module]) -> dict[str, int]:
    """Trained and frozen numbers of each part, for the run card."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def pick_up(file: Path, resume: bool, plan: Plan, fabric: Fabric, method: Method, budget: Budget) -> None:
    """Resume from ``file``, or see that nothing there would be overwritten. Raises CheckpointUnusable."""
    if not resume:
        if file.exists():
            raise ckpt.CheckpointUnusable(file, "exists already: add --resume or choose another --out")
        return
    found = ckpt.load(file, plan.stage)
    ckpt.require_same(file, found, plan.config.digest(plan.stage))
    require_same_patients(file, found, plan.config.data)
    method.restore(found.states)
    fabric.strategy.precision.load_state_dict(dict(found.extras.get("precision", {})))
    budget.step, budget.elapsed_s = found.step, found.elapsed_s
    ckpt.restore_rng(found.rng)


def identity(config: DataConfig) -> dict[str, str]:
    """Digests of all that is learnt from and of who is on which side. Raises PairsUnusable."""
    return {"digest": data_digest(config), "split_digest": split_digest(config)}


def require_same_patients(file: Path, found: ckpt.Checkpoint, config: DataConfig) -> None:
    """Refuse another split than ``found`` was learnt by: a model would be watched on whom it has learnt.

    Where volumes changed it is said. Checkpoints of earlier versions know neither and go on. Raises
    CheckpointUnusable.
    """
    known: Mapping[str, str] | None = found.extras.get("data")
    if known is None:
        return
    now = identity(config)
    if known["split_digest"] != now["split_digest"]:
        raise ckpt.CheckpointUnusable(
            file,
            f"was learnt by another split of the patients ({known['split_digest'][:12]}, now"
            f" {now['split_digest'][:12]}): put back the list it was learnt by, or begin with stage 1",
        )
    if known["digest"] != now["digest"]:
        log.warning("%s: the volumes have changed since (%s, now %s)", file, known["digest"], now["digest"])


def save(run: Run) -> None:
    """Write the checkpoint of this moment; ``extras`` has the state of fp16's scaler and ``identity``."""
    plan, budget, precision = run.plan, run.budget, run.fabric.strategy.precision.state_dict()
    ckpt.save(
        run.file,
        ckpt.Checkpoint(
            stage=plan.stage,
            config=plan.config.model_dump_json(),
            digest=plan.config.digest(plan.stage),
            step=budget.step,
            elapsed_s=budget.elapsed_s,
            total_steps=budget.loop.steps,
            max_minutes=budget.loop.max_minutes,
            states=run.method.states(),
            rng=ckpt.rng_state(),
            extras={"data": dict(run.data)} | ({"precision": precision} if precision else {}),
        ),
    )


def card(run: Run, pairs: Pairs, started: str) -> dict[str, Any]:
    """The run card: what was trained, on what, for how long, how it ended."""
    config, budget = run.plan.config, run.budget
    seconds = budget.elapsed_s / max(budget.step, 1)
    return {
        "stage": run.plan.stage,
        "phase": config.data.phase,
        "config": config.model_dump(mode="json"),
        "config_digest": config.digest(run.plan.stage),
        "steps": budget.step,
        "minutes": round(budget.elapsed_s / 60, 2),
        "seconds_a_step": round(seconds, 4),
        "seeds": {"loop": run.plan.loop.seed, "first_case": config.data.first_seed},
        "commit": commit(),
        "ranks": ranks.world(),
        "finished": budget.spent,
        "started": started,
        "ended": now_utc(),
        "latest": run.monitor.latest,
        "data": dict(run.data),
        "training_cases": len(pairs.cases),
        "validation_cases": len(run.held_out.cases),
        "machine": machine(),
        "peak_memory": peak_memory(),
    } | run.method.facts()
