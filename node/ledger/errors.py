"""What the ledger refuses, in words.

::

    NodeError
    └── LedgerError
        ├── LedgerTooNew    a newer s2node wrote this file
        ├── LedgerUnusable  not a database of ours, or a disk that cannot hold one
        ├── JobUnknown      no such job
        ├── MoveRefused     the table of states has no such move
        └── StaleLease      somebody else has the job now
"""

from __future__ import annotations

from pathlib import Path

from node.errors import NodeError
from node.states import State


class LedgerError(NodeError):
    """Root of the ledger's errors."""


class LedgerTooNew(LedgerError):
    """The file was written by a newer version: reading on would lose what this version does not know."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(
            f"{path} has schema version {found}, and this s2node knows versions up to {known}: "
            "start the newer s2node that wrote it, or restore the copy made before the update"
        )
        self.found = found
        self.known = known


class LedgerUnusable(LedgerError):
    """The file is no ledger, or the filesystem cannot keep one."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used as the ledger: {reason}")


class JobUnknown(LedgerError):
    """No job has this number."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"there is no job {job_id}")
        self.job_id = job_id


class MoveRefused(LedgerError):
    """The table of states has no such move; the job stays where it is."""

    def __init__(self, job_id: int, from_state: State, to_state: State) -> None:
        super().__init__(f"job {job_id} is {from_state} and cannot become {to_state}")
        self.job_id = job_id
        self.from_state = from_state
        self.to_state = to_state


class StaleLease(LedgerError):
    """The job was superseded, moved or leased to another owner; what this owner made of it is not wanted."""

    def __init__(self, job_id: int, owner: str) -> None:
        super().__init__(f"job {job_id} is no longer leased to {owner}")
        self.job_id = job_id
        self.owner = owner
