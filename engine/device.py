"""Arrays that stay in a device's memory between the graphs of a tile, and a sampler's sums there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.failures import as_ours
from engine.volume import Float32

SUM = Path(__file__).with_name("weighted_sum.onnx")
"""``s = a x + b y``: a and b scalars, x and y of one shape with five axes."""


class Device:
    """The memory of one device; ``kind`` is ONNX Runtime's word for it: "cuda", or "cpu" for the host's.

    Whatever moves or adds arrays there raises GraphTooLarge where the memory is full.
    """

    def __init__(
        self,
        kind: str,
        index: int,
        options: ort.SessionOptions,
        providers: list[tuple[str, dict[str, str]]],
    ) -> None:
        self.kind, self.index = kind, index
        self._sum = ort.InferenceSession(SUM.read_bytes(), options, providers=providers, enable_fallback=0)

    def put(self, array: Float32 | Resident) -> Resident:
        """``array`` on this device, contiguous; what is there already is not copied."""
        if isinstance(array, Resident):
            return array
        with as_ours("an array to the device"):
            values = np.ascontiguousarray(array, dtype=np.float32)
            return Resident(ort.OrtValue.ortvalue_from_numpy(values, self.kind, self.index), self)

    def empty(self, shape: tuple[int, ...]) -> ort.OrtValue:
        """Room for float32 values."""
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self.kind, self.index)

    def weighted_sum(self, x: Resident, y: Resident) -> Resident:
        """x + y, each with its factor."""
        factors = {"a": np.float32(x.factor), "b": np.float32(y.factor)}
        with as_ours("a sum on the device"):
            return Resident(run_bound(self._sum, "s", {"x": x.stored, "y": y.stored}, self, factors), self)


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """``factor`` times ``stored``: a float32 array on a device that adds and scales as NumPy's do.

    A factor costs nothing until something is added or a graph asks. ``np.asarray`` brings it to the host.
    """

    stored: ort.OrtValue
    device: Device = field(repr=False)
    factor: float = 1.0

    __array_ufunc__ = None  # NumPy leaves ``array + resident`` to the methods below

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array's."""
        return tuple(self.stored.shape())

    def plain(self) -> ort.OrtValue:
        """The values themselves, the factor worked in."""
        if self.factor == 1.0:
            return self.stored
        return self.device.weighted_sum(self, Resident(self.stored, self.device, 0.0)).stored

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        with as_ours("an array from the device"):
            values: NDArray[Any] = self.plain().numpy()
        return values if dtype is None else values.astype(dtype, copy=False)

    def __add__(self, other: Float32 | Resident) -> Resident:
        return self.device.weighted_sum(self, self.device.put(other))

    __radd__ = __add__

    def __sub__(self, other: Float32 | Resident) -> Resident:
        return self.device.weighted_sum(self, -self.device.put(other))

    def __rsub__(self, other: Float32) -> Resident:
        return self.device.weighted_sum(self.device.put(other), -self)

    def __neg__(self) -> Resident:
        return self * -1.0

    def __mul__(self, factor: float) -> Resident:
        return Resident(self.stored, self.device, self.factor * float(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Resident:
        return self * (1.0 / float(divisor))


def as_array(resident: Resident) -> Float32:
    """To the type checker an array: whoever gets it adds, scales and hands it on, and no more."""
    return cast(Float32, resident)


def run_bound(
    session: ort.InferenceSession,
    output: str,
    inputs: Mapping[str, ort.OrtValue],
    device: Device,
    scalars: Mapping[str, Any] | None = None,
    into: ort.OrtValue | None = None,
) -> ort.OrtValue:
    """``output`` of one run whose arrays stay on ``device``; written over ``into`` where that is given."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, scalar in (scalars or {}).items():
        binding.bind_cpu_input(name, np.asarray(scalar))
    if into is None:
        binding.bind_output(output, device.kind, device.index)
    else:
        binding.bind_ortvalue_output(output, into)
    session.run_with_iobinding(binding)
    return binding.get_outputs()[0]
