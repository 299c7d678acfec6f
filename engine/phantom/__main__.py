"""Time the phantom on this machine: ``python -m engine.phantom --time``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from engine.phantom import Phantom, PhantomOptions, make_phantom


def _seconds(make: Callable[[int], object], seeds: range) -> list[float]:
    taken = []
    for seed in seeds:
        start = time.process_time()
        make(seed)
        taken.append(time.process_time() - start)
    return taken


def _crop(seed: int, first_column: int) -> Phantom:
    return make_phantom(seed, box=((40, 56), (96, 160), (first_column, first_column + 64)))


def main() -> None:
    """Print processor seconds for whole phantoms and for training crops, of new patients and of one."""
    parser = argparse.ArgumentParser(prog="python -m engine.phantom", description=__doc__)
    parser.add_argument("--time", action="store_true", required=True, help="measure and print")
    parser.add_argument("--repeat", type=int, default=10, help="how often each is made")
    repeat = parser.parse_args().repeat
    taken = {
        "whole": _seconds(make_phantom, range(repeat)),
        "crop, new patient": _seconds(lambda seed: _crop(seed, 64), range(1000, 1000 + repeat)),
        "crop, same patient": _seconds(lambda column: _crop(1000, column), range(60, 60 + repeat)),
    }
    print(f"processor seconds, three phases: whole {PhantomOptions().shape}, crop (16, 64, 64)")
    for name, seconds in taken.items():
        print(f"{name}: median {np.median(seconds):.3f}, most {max(seconds):.3f}")


if __name__ == "__main__":
    main()
