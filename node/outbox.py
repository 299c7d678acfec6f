"""The outbox: what the node made, a folder a series and a file an instance."""

from __future__ import annotations

import errno
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath
from threading import BoundedSemaphore
from types import TracebackType

from node.ledger import Output
from node.outputs.encoding import Instance
from node.spool import Spool

WRITERS = 4
"""Files written at once: what is waited for is the disk's sync, and syncs share one."""
WAITING = 32
"""Files in memory at most: whoever makes them faster than the disk takes them waits."""


class Outbox:
    """The files of one job, written while more are made; used in a ``with`` statement.

    Of a file that is written its row is kept and not its bytes.
    """

    def __init__(self, spool: Spool, job_id: int) -> None:
        self._spool = spool
        self._job_id = job_id
        self._pool = ThreadPoolExecutor(WRITERS, "outbox")
        self._room = BoundedSemaphore(WAITING)
        self._puts: list[Future[Output]] = []
        self._failed: BaseException | None = None

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, phase: str, kind: str, instance: Instance) -> None:
        """Begin to write one file; raises what ``Spool.place`` raised for an earlier one."""
        self._room.acquire()
        if self._failed is not None:
            self._room.release()
            raise self._failed
        future = self._pool.submit(self._kept, phase, kind, instance)
        future.add_done_callback(self._settle)
        self._puts.append(future)

    def _kept(self, phase: str, kind: str, instance: Instance) -> Output:
        with self._spool.keeping():  # nobody takes the folder away with an older file meanwhile
            return put(self._spool, instance, job_id=self._job_id, phase=phase, kind=kind)

    def _settle(self, future: Future[Output]) -> None:
        if not future.cancelled() and self._failed is None:
            self._failed = future.exception()
        self._room.release()

    def outputs(self) -> list[Output]:
        """A row for every file, in the order they were put, when all of them are safe.

        For the block of ``Spool.keeping`` that records them. Raises what ``Spool.place`` raises, and
        FileNotFoundError where a file was removed meanwhile: then it has to be made again.
        """
        outputs = [future.result() for future in self._puts]
        for output in outputs:
            if not output.path.exists():
                raise FileNotFoundError(errno.ENOENT, "a result was removed before it was recorded")
        return outputs


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
