"""The outbox: what the node made, a folder a series and a file an instance."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from types import TracebackType

from node.ledger import Output
from node.outputs.encoding import Instance
from node.spool import Spool

WRITERS = 4
"""Files written at once: what is waited for is the disk's sync, and syncs share one."""


class Outbox:
    """The files of one job, written while more are made; used in a ``with`` statement."""

    def __init__(self, spool: Spool, job_id: int) -> None:
        self._spool = spool
        self._job_id = job_id
        self._pool = ThreadPoolExecutor(WRITERS, "outbox")
        self._puts: list[tuple[Callable[[], Output], Future[Output]]] = []

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, phase: str, kind: str, instance: Instance) -> None:
        """Begin to write one file."""
        write = partial(put, self._spool, instance, job_id=self._job_id, phase=phase, kind=kind)
        self._puts.append((write, self._pool.submit(write)))

    def outputs(self) -> list[Output]:
        """A row for every file, in the order they were put, when all of them are safe.

        For the block of ``Spool.keeping`` that records them: a file that was taken for a stray meanwhile,
        since nobody had recorded it, is written again. Raises what ``Spool.place`` raises.
        """
        placed = [(write, future.result()) for write, future in self._puts]
        return [output if output.path.exists() else write() for write, output in placed]


def put(spool: Spool, instance: Instance, *, job_id: int, phase: str, kind: str) -> Output:
    """Make the file safe, the same again where it is there; the row that the ledger is to have of it.

    Raises what ``Spool.place`` raises.
    """
    name = f"{instance.sop_instance_uid}.dcm"
    placed = spool.place(instance.data, PurePosixPath("outbox") / instance.series_instance_uid / name)
    return Output(
        job_id=job_id,
        phase=phase,
        kind=kind,
        series_instance_uid=instance.series_instance_uid,
        sop_instance_uid=instance.sop_instance_uid,
        sop_class_uid=instance.sop_class_uid,
        path=placed.path,
        sha256=placed.sha256,
    )
