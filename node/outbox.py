"""The outbox: what the node made, a folder a series and a file an instance."""

from __future__ import annotations

from pathlib import PurePosixPath

from node.ledger import Output
from node.outputs.encoding import Instance
from node.spool import Spool


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
