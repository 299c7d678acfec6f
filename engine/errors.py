"""What the engine can refuse. Raisers state facts; ``node.flow.DISPOSITIONS`` decides what follows.

::

    EngineError
    ├── BundleInvalid      the folder is not a bundle this engine may run
    ├── ProviderMissing    the execution provider asked for is not there
    ├── VolumeUnsupported  the volume is outside what the model was made for
    ├── SynthesisFailed    the runtime gave up while computing
    └── GraphTooLarge      there was no memory for a graph or its arrays; a MemoryError too
"""

from __future__ import annotations

from pathlib import Path


class EngineError(Exception):
    """Root of every error the engine raises on purpose."""


class BundleInvalid(EngineError):
    """A bundle folder is damaged, incomplete or of a kind this engine does not know."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: not a usable bundle: {reason}")
        self.folder = folder
        self.reason = reason


class ProviderMissing(EngineError):
    """The execution provider that was asked for is absent, or ONNX Runtime silently fell back from it."""

    def __init__(self, asked: str, found: tuple[str, ...], cure: str) -> None:
        super().__init__(f"provider {asked!r} was asked for, found {', '.join(found) or 'none'}: {cure}")
        self.asked = asked
        self.found = found
        self.cure = cure


class VolumeUnsupported(EngineError):
    """The volume is outside the model's range: says what and by how much."""


class SynthesisFailed(EngineError):
    """The runtime failed while computing; carries its message."""


class GraphTooLarge(EngineError, MemoryError):
    """No memory, the GPU's or the host's, for a graph or its arrays; carries the runtime's message."""
