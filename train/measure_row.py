"""Measure one row of the comparison in a process of its own: ``python -m train.measure_row SPEC.json``.

It may be killed anywhere: what was measured is kept after every phantom, and the same command goes on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from config.base import Frozen
from engine.phantom import PhantomOptions, make_phantom
from engine.pipeline import open_engine
from engine.session import SessionPolicy
from engine.volume import Float32
from train.cases import Case, phantom_case
from train.evaluate import Shown, describe, overlaps, planes
from train.measure import Row, Zones, measure
from train.rows import Reads
from train.run import commit, machine

Image = Callable[[Case, str], tuple[Float32, Zones]]


class Spec(Frozen):
    """What is measured and where the result goes: ``out`` (JSON) and ``out`` with .npz (planes to show)."""

    row: str
    phase: str
    reads: Reads
    bundle: Path | None = None
    first_seed: int
    cases: PositiveInt
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    window_hu: tuple[float, float] = (-200.0, 400.0)
    trained: dict[str, Any] = Field(default_factory=dict)
    """What training says of itself; copied."""
    made_of: str = ""
    """What the figures follow from, as ``train.compare`` says it; copied."""
    out: Path


def measure_row(spec: Spec) -> None:
    """Run every case that is not measured yet and write the result, whole or not at all."""
    facts, image = _image(spec)
    begun = spec.out.with_suffix(".part.json")
    header = spec.model_dump(mode="json", exclude={"out"}) | {"facts": dict(facts)}
    rows, seconds = _measured(begun, header)
    needs_oracle = spec.reads in ("oracle", "limit")
    for seed in range(spec.first_seed + len(rows), spec.first_seed + spec.cases):
        case = phantom_case(make_phantom(seed, PhantomOptions(spec.shape, spec.spacing_mm)), needs_oracle)
        started = time.perf_counter()
        made, zones = image(case, spec.phase)
        seconds.append(time.perf_counter() - started)
        rows.append(measure(case, spec.phase, made, spec.window_hu, zones))
        if seed == spec.first_seed:
            save_planes(spec.out.with_suffix(".npz"), planes(case, spec.phase, made))
        write_json(begun, header | {"rows": rows, "seconds": seconds})
    ran = {"machine": machine(), "commit": commit()}
    write_json(spec.out, header | ran | {"rows": rows, "seconds": float(np.mean(seconds))})
    begun.unlink(missing_ok=True)


def _measured(begun: Path, header: Mapping[str, Any]) -> tuple[list[Row], list[float]]:
    """The rows and seconds of phantoms that an earlier process measured of the very same."""
    if not begun.exists():
        return [], []
    found = json.loads(begun.read_text())
    rows, seconds = found.pop("rows"), found.pop("seconds")
    return (rows, seconds) if found == json.loads(json.dumps(header)) else ([], [])


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(file)


def _image(spec: Spec) -> tuple[Mapping[str, Any], Image]:
    """What is measured, and the function that makes it of a case."""
    if spec.reads != "bundle":
        return {}, IMAGES[spec.reads]
    if spec.bundle is None:
        raise ValueError(f"row {spec.row}: a bundle is measured and none is named")
    engine = open_engine(spec.bundle, SessionPolicy(provider="cpu", threads=1))

    def synthesize(case: Case, phase: str) -> tuple[Float32, Zones]:
        hu = engine.synthesize(case.source, seed=case.seed).volume.hu
        return hu, overlaps(engine, case.source)

    return describe(engine), synthesize


def _identity(case: Case, phase: str) -> tuple[Float32, Zones]:
    return case.source.hu, ()


def _oracle(case: Case, phase: str) -> tuple[Float32, Zones]:
    assert case.oracle is not None
    return case.oracle.on_source[phase], ()


def _limit(case: Case, phase: str) -> tuple[Float32, Zones]:
    assert case.oracle is not None
    return case.oracle.noise_free[phase], ()


IMAGES: Mapping[str, Image] = {"identity": _identity, "oracle": _oracle, "limit": _limit}


def save_planes(file: Path, shown: list[Shown], step_hu: int = 1) -> None:
    """The planes of one case as whole numbers of ``step_hu``."""
    kind = np.int16 if step_hu == 1 else np.int8
    arrays = {
        f"{i}_{name}": np.rint(getattr(plane, name) / step_hu).astype(kind)
        for i, plane in enumerate(shown)
        for name in ("source", "truth", "made")
    }
    facts = {"aspects": np.array([plane.aspect for plane in shown]), "step_hu": np.array(step_hu)}
    np.savez_compressed(file, **facts, **arrays)  # type: ignore[arg-type]


def load_planes(file: Path) -> list[Shown]:
    """What :func:`save_planes` wrote."""
    with np.load(file) as found:
        step = np.float32(found["step_hu"])
        return [
            Shown(
                *(found[f"{i}_{name}"].astype(np.float32) * step for name in ("source", "truth", "made")),
                float(a),
            )
            for i, a in enumerate(found["aspects"])
        ]


if __name__ == "__main__":
    measure_row(Spec.model_validate_json(Path(sys.argv[1]).read_text()))
