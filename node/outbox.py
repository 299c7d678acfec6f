"""The outbox: what the node made, a folder a series and a file an instance."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from node.ledger import Output
from node.outputs.encoding import Instance, OutputSet
from node.spool import Spool

WRITERS = 4
"""Files written at once: what is waited for is the disk's sync, and syncs share one."""


def put_all(spool: Spool, outputs: Sequence[OutputSet], *, job_id: int) -> list[Output]:
    """``put`` for every instance of a job, in their order."""
    with ThreadPoolExecutor(WRITERS, "outbox") as pool:
        futures = [
            pool.submit(put, spool, each, job_id=job_id, phase=made.phase, kind=made.kind)
            for made in outputs
            for each in made.instances
        ]
        return [future.result() for future in futures]


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
