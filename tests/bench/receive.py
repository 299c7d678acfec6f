"""Say where the time of a received instance goes.

    python tests/bench/receive.py [--folder DIR] [--slices N] [--rounds N]

One association, the benchmark's own slices and sender, the node's listener with clocks around its steps; the
same listener throwing the instances away beside it. Medians over all instances.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from node import bench, spool
from node.incoming import Incoming
from node.ledger import LEDGER_FILE, Ledger
from node.receive import Receiver
from node.spool import Draft, Spool

REPOSITORY = Path(__file__).resolve().parents[2]

STEPS = (
    ("heard", "first to last byte comes; meanwhile written, digested, its header read"),
    ("written", "the last piece is written"),
    ("file", "link, and fsync of the file"),
    ("folder", "fsync of the folder"),
    ("recorded", "transaction of the ledger"),
    ("answered", "the answer is made"),
    ("noticed", "pynetdicom's threads find the message, then the answer"),
    ("sent", "the answer goes out, the sender's next request comes"),
)
"""Every step of an instance, in order, and what happens in it."""

Stamps = dict[str, float]


class Clock:
    """When each step of each instance ended, and how long the processor worked for the node."""

    def __init__(self) -> None:
        self.instances: list[Stamps] = []
        self.processor_s = 0.0

    def stamp(self, step: str) -> None:
        """The newest instance came to the end of ``step``: on one association there is one at a time."""
        if self.instances:
            self.instances[-1][step] = time.monotonic()

    def milliseconds(self) -> dict[str, float]:
        """Median length of each step that all instances have."""
        lengths: dict[str, list[float]] = {}
        for this, following in zip(self.instances, self.instances[1:], strict=False):
            before = this["begun"]
            for step, _ in STEPS:
                end = following["begun"] if step == "sent" else this.get(step)
                if end is not None:
                    lengths.setdefault(step, []).append(1000 * (end - before))
                    before = end
        found = {step: median(values) for step, values in lengths.items()}
        return {**found, "processor": 1000 * self.processor_s / len(self.instances)}


@contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    """The product's steps say when they end."""

    def begun(original: Callable[..., Any], *given: Any, **named: Any) -> Any:
        clock.instances.append({"begun": time.monotonic()})
        return original(*given, **named)

    def after(step: str) -> Callable[..., Any]:
        def call(original: Callable[..., Any], *given: Any, **named: Any) -> Any:
            result = original(*given, **named)
            clock.stamp(step)
            return result

        return call

    def before(step: str) -> Callable[..., Any]:
        def call(original: Callable[..., Any], *given: Any, **named: Any) -> Any:
            clock.stamp(step)
            return original(*given, **named)

        return call

    places: list[tuple[Any, str, Callable[..., Any]]] = [
        (Incoming, "__init__", begun),
        (Incoming, "end", before("heard")),
        (Draft, "place", before("written")),
        (spool, "fsync_folder", before("file")),
        (Draft, "place", after("folder")),
        (Ledger, "record_instance", after("recorded")),
        (Incoming, "answered", before("answered")),
        (Incoming, "answer", after("noticed")),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, wrap in places:
        original = getattr(owner, name)
        setattr(owner, name, lambda *given, w=wrap, o=original, **named: w(o, *given, **named))
    began = time.process_time()
    try:
        yield
    finally:
        clock.processor_s += time.process_time() - began
        for owner, name, original in originals:
            setattr(owner, name, original)


def measure(folder: Path, slices: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of each step in milliseconds: kept, and thrown away."""
    kept, thrown = Clock(), Clock()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source = Path(name) / "slices"
        bench.write_slices(source, slices)
        for round_ in range(rounds):
            data_dir = Path(name) / f"data{round_}"
            place = Spool(data_dir)
            with Ledger(data_dir / LEDGER_FILE) as ledger, clocked(kept):
                bench.rate([source], Receiver(place, ledger, bench.MOST_BYTES, time.time).take)
            with clocked(thrown):
                bench.rate([source], bench.throw_away)
    return kept.milliseconds(), thrown.milliseconds()


def table(kept: dict[str, float], thrown: dict[str, float]) -> str:
    """The steps as rows, in milliseconds."""
    rows = [f"| {what} | {cell(kept, step)} | {cell(thrown, step)} |" for step, what in STEPS]
    return "\n".join(
        [
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "",
            "| step of one instance, one association | kept, ms | thrown away, ms |",
            "| --- | --- | --- |",
            *rows,
            f"| in all | {whole(kept):.2f} | {whole(thrown):.2f} |",
            f"| processor's time of the node | {kept['processor']:.2f} | {thrown['processor']:.2f} |",
        ]
    )


def whole(lengths: dict[str, float]) -> float:
    """All steps together."""
    return sum(lengths.get(step, 0.0) for step, _ in STEPS)


def cell(lengths: dict[str, float], step: str) -> str:
    return f"{lengths[step]:.2f}" if step in lengths else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build")
    parser.add_argument("--slices", type=int, default=bench.SLICES)
    parser.add_argument("--rounds", type=int, default=bench.ROUNDS)
    options = parser.parse_args()
    print(table(*measure(options.folder, options.slices, options.rounds)))


if __name__ == "__main__":
    main()
