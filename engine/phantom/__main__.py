"""Time the phantom on this machine: ``python -m engine.phantom --time``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from engine.phantom import PhantomOptions, make_phantom


def _seconds(make: Callable[[int], object], seeds: range) -> list[float]:
    taken = []
    for seed in seeds:
        start = time.perf_counter()
        make(seed)
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    """Print seconds for a whole phantom and for a training crop, a new patient each time."""
    parser = argparse.ArgumentParser(prog="python -m engine.phantom", description=__doc__)
    parser.add_argument("--time", action="store_true", required=True, help="measure and print")
    parser.parse_args()
    options = PhantomOptions()
    whole = _seconds(lambda seed: make_phantom(seed, options), range(3))
    crop = _seconds(
        lambda seed: make_phantom(seed, options, ((40, 56), (96, 160), (64, 128))), range(100, 120)
    )
    again = _seconds(
        lambda seed: make_phantom(100, options, ((30, 46), (96, 160), (seed, seed + 64))), range(60, 80)
    )
    print(f"seconds for three phases, median and maximum; whole phantom {options.shape}, crop (16, 64, 64)")
    for name, taken in (("whole", whole), ("crop, new patient", crop), ("crop, same patient", again)):
        print(f"{name}: {np.median(taken):.3f}, {max(taken):.3f}")


if __name__ == "__main__":
    main()
