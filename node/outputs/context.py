"""Who makes the outputs, for which job, and when: what is in neither the series nor the synthesis."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.metadata import version

from config.settings import Settings
from node.uids import derive_uid

PRODUCT_VERSION = version("s2node")
OFFSET = re.compile(r"(?P<sign>[+-])(?P<hours>[01][0-9])(?P<minutes>[0-5][0-9])")


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """The node as equipment (PS3.3 C.7.5.1). ``device_uid`` stays the same while the installation lives.

    Raises ValueError without a software version.
    """

    device_uid: str
    manufacturer: str = "S2NODE"
    model_name: str = "S2NODE"
    station_name: str = "S2NODE"
    software_versions: tuple[str, ...] = (PRODUCT_VERSION,)
    serial_number: str = ""

    def __post_init__(self) -> None:
        if not self.software_versions:
            raise ValueError("a node has at least one software version")

    @property
    def device_serial_number(self) -> str:
        """The serial number, or the device UID where none was given."""
        return self.serial_number or self.device_uid


@dataclass(frozen=True, slots=True)
class OutputContext:
    """One job's facts. ``created`` is the job record's time, never the clock: a repeat is the same bytes.

    Series numbers are source number × ``series_number_factor`` + ``series_number_offset`` + the phase's own
    number. Raises ValueError where a text is not ASCII: outputs carry the source's SpecificCharacterSet, and
    only ASCII is in all of them.
    """

    node: NodeIdentity
    config_digest: str
    generation: int
    created: datetime
    series_number_factor: int = 100
    series_number_offset: int = 0
    description_prefix: str = "AI-SYNTHETIC"
    content_qualification: str = "RESEARCH"

    def __post_init__(self) -> None:
        if not self.description_prefix.isascii():
            raise ValueError(f"description prefix {self.description_prefix!r} is not ASCII")
        if self.content_qualification not in {"PRODUCT", "RESEARCH", "SERVICE"}:
            raise ValueError(
                f"content qualification {self.content_qualification!r} is not one of PS3.3 C.12.1"
            )

    def created_in(self, timezone_offset: str | None) -> datetime:
        """``created`` on the wall clock of ``±HHMM`` (PS3.3 C.12.1.1.8); unchanged if either has no zone."""
        offset = OFFSET.fullmatch(timezone_offset or "")
        if offset is None or self.created.tzinfo is None:
            return self.created
        sign = -1 if offset["sign"] == "-" else 1
        ahead = sign * timedelta(hours=int(offset["hours"]), minutes=int(offset["minutes"]))
        return self.created.astimezone(timezone(ahead))


def context_of(settings: Settings, *, generation: int, created: datetime) -> OutputContext:
    """What outputs say about the node and the job; ``created`` is the job record's time."""
    outputs = settings.outputs
    device_uid = outputs.device_uid or derive_uid("device", settings.listen.ae_title, outputs.station_name)
    return OutputContext(
        node=NodeIdentity(
            device_uid=device_uid,
            manufacturer=outputs.manufacturer,
            model_name=outputs.model_name,
            station_name=outputs.station_name,
        ),
        config_digest=settings.digest(),
        generation=generation,
        created=created,
        series_number_factor=outputs.series_number_factor,
        description_prefix=outputs.description_prefix,
    )


def ascii_text(text: str, limit: int) -> str:
    """``text`` as one ASCII value of at most ``limit`` characters: ² becomes 2, a backslash a slash."""
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return folded.replace("\\", "/")[:limit].strip()
