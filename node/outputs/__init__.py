"""What a synthesis becomes in DICOM. A new kind is one module here and one entry in :data:`OUTPUTS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from pydicom.dataset import Dataset

from engine.synthesis import Synthesis
from node.outputs.context import NodeIdentity, OutputContext
from node.outputs.ct_series import make_ct_series
from node.outputs.encoding import to_bytes
from node.outputs.enhancement_map import make_enhancement_map
from node.series import SourceSeries

OutputMaker: TypeAlias = Callable[[SourceSeries, Synthesis, OutputContext], Iterable[Dataset]]
"""Makes the instances of one series, in their order. Pure: equal arguments give datasets of
equal bytes, UIDs included."""

OUTPUTS: dict[str, OutputMaker] = {
    "ct_series": make_ct_series,
    "enhancement_map": make_enhancement_map,
}
"""From the kind's name, as settings spell it, to its maker; `tests/contract/test_outputs.py` runs over it."""

__all__ = ["OUTPUTS", "NodeIdentity", "OutputContext", "OutputMaker", "to_bytes"]
