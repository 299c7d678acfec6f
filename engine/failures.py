"""What ONNX Runtime raises, told apart and turned into the engine's own errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from engine.errors import EngineError, GraphTooLarge, SynthesisFailed

BROKEN_GRAPH = (
    ort_errors.InvalidProtobuf,
    ort_errors.InvalidGraph,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
)
RUNTIME_ERRORS = (
    ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.EPFail, ort_errors.EngineError,
    ort_errors.RuntimeException, ort_errors.NotFound, *BROKEN_GRAPH, RuntimeError, ValueError, MemoryError,
)  # fmt: skip
"""What ``onnxruntime`` raises; its own exceptions share no base class but Exception."""

NO_MEMORY = re.compile(
    r"out of memory|failed to allocate|smaller than requested bytes|ALLOC_FAILED|bad_alloc|bad allocation",
    re.IGNORECASE,
)
"""How ONNX Runtime, its arenas with a limit, CUDA, cuBLAS, cuDNN and C++ say that there was no memory."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that there was no memory."""
    return isinstance(error, MemoryError) or bool(NO_MEMORY.search(f"{error!r}"))


@contextmanager
def as_ours(what: str) -> Iterator[None]:
    """GraphTooLarge where memory was full at ``what``, SynthesisFailed for all else the runtime raises."""
    try:
        yield
    except EngineError:
        raise
    except RUNTIME_ERRORS as error:
        kind = GraphTooLarge if is_full(error) else SynthesisFailed
        raise kind(f"{what}: {error}") from error
