"""How much memory one synthesis takes: ``python -m engine.bench_memory BUNDLE [SLICES ROWS COLUMNS]``.

The measure is the largest resident size of a process of its own that makes a body and runs the bundle on it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from engine.pipeline import open_engine
from engine.session import SessionPolicy
from engine.volume import Geometry, Shape3, Vec3, Volume

PROC_STATUS = Path("/proc/self/status")

LARGE: Shape3 = (400, 512, 512)
LARGE_SPACING_MM: Vec3 = (1.25, 0.78125, 0.78125)


@dataclass(frozen=True, slots=True)
class Memory:
    """What one synthesis took."""

    peak_bytes: int
    """Largest resident size of the process, the source's own array and the libraries with it."""
    source_bytes: int
    seconds: float
    """Wall clock of the synthesis."""
    stages: dict[str, float]


def measure_memory(
    bundle: Path,
    shape: Shape3 = LARGE,
    spacing_mm: Vec3 = LARGE_SPACING_MM,
    threads: int = 0,
    timeout_s: float = 3600,
) -> Memory:
    """Run the bundle on a body of ``shape`` in a fresh process. Raises CalledProcessError if that fails."""
    numbers = [*map(str, shape), *map(str, spacing_mm), str(threads)]
    command = [sys.executable, "-m", "engine.bench_memory", str(bundle), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout_s)
    return Memory(**json.loads(done.stdout))


def run(bundle: Path, shape: Shape3, spacing_mm: Vec3, threads: int) -> Memory:
    """Synthesize once in this process and read its peak."""
    engine = open_engine(bundle, SessionPolicy(threads=threads))
    volume = body(Geometry(shape, spacing_mm))
    started = time.perf_counter()
    synthesis = engine.synthesize(volume, seed=0)
    seconds = time.perf_counter() - started
    return Memory(peak_bytes(), volume.hu.nbytes, seconds, dict(synthesis.seconds))


def body(geometry: Geometry) -> Volume:
    """An elliptic body of noisy tissue in air, filling most of every slice as a large patient does."""
    _, rows, columns = geometry.shape
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None, :]
    plane = np.where((y / 0.8) ** 2 + (x / 0.95) ** 2 < 1, 40, -1000).astype(np.float32)
    hu = np.empty(geometry.shape, dtype=np.float32)
    rng = np.random.default_rng(0)
    for slab in hu:
        slab[:] = plane + np.float32(12) * rng.standard_normal(plane.shape, dtype=np.float32)
    return Volume(hu, geometry)


def peak_bytes() -> int:
    """Largest resident size of this process so far.

    Linux: ``VmHWM`` of proc(5), since ``ru_maxrss`` there remembers the parent's size too. macOS: bytes.
    """
    if PROC_STATUS.exists():
        fields = dict(line.split(":", 1) for line in PROC_STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: list[str]) -> None:
    """Print a :class:`Memory` as JSON."""
    folder, numbers = Path(arguments[0]), arguments[1:]
    shape: Shape3 = (int(numbers[0]), int(numbers[1]), int(numbers[2])) if numbers else LARGE
    spacing: Vec3 = (
        (float(numbers[3]), float(numbers[4]), float(numbers[5])) if numbers[3:] else LARGE_SPACING_MM
    )
    threads = int(numbers[6]) if numbers[6:] else 0
    json.dump(asdict(run(folder, shape, spacing, threads)), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
