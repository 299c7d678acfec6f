"""Every setting of the node: its name, its unit, its default and what it may be.

Read :class:`Settings` from the bottom up: one section of the TOML file is one class here, and the text under
a field is what `s2node init`, `s2node config schema` and the administrator's guide print about it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from config.base import Frozen
from config.intake import IntakeSettings
from config.refresh import RefreshSettings

GIB = 1024**3

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Days = Annotated[float, Field(ge=0, le=36_500)]


def impossible(key: str, cure: str) -> PydanticCustomError:
    """The error of a rule over several keys: blames ``key`` of the section and says what to write instead."""
    return PydanticCustomError("impossible_value", "{cure}", {"key": key, "cure": cure})


def _ae_title(text: str) -> str:
    """A DICOM AE title (PS3.5 6.2, VR AE): 1 to 16 printable characters, no backslash, not blank."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", text) or not text.strip():
        raise ValueError("write 1 to 16 printable ASCII characters, no backslash")
    return text.strip()


def _network(text: str) -> str:
    """An address or a block of addresses in CIDR notation."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("write an address or a block such as 10.1.2.0/24") from None
    return text


def _uid_or_empty(text: str) -> str:
    """A DICOM UID (PS3.5 9.1), or nothing."""
    if text and not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", text):
        raise ValueError("write a DICOM UID: digits and dots, no leading zeros, or leave it empty")
    if len(text) > 64:
        raise ValueError("write at most 64 characters")
    return text


def _folder(path: Path) -> Path:
    """A folder with ``~`` replaced by the user's home."""
    return path.expanduser()


AETitle = Annotated[str, AfterValidator(_ae_title)]
Network = Annotated[str, AfterValidator(_network)]
Uid = Annotated[str, AfterValidator(_uid_or_empty)]
Folder = Annotated[Path, AfterValidator(_folder)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
Ascii = Annotated[str, Field(min_length=1, pattern=r"^[ -\[\]-~]*$")]
"""Printable ASCII without backslash: outputs carry the source's character set, and all sets hold ASCII."""


def default_data_dir() -> Path:
    """``$XDG_DATA_HOME/s2node``, or ``~/.local/share/s2node`` where that is not set."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "s2node"


def is_loopback(host: str) -> bool:
    """Whether nothing outside this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TlsSettings(Frozen):
    """Certificates for DICOM over TLS, as PEM files. Peers must show one too, both ways."""

    certificate: Literal[""] | Folder = ""
    """Certificate of this node, with those between it and its authority after it."""
    key: Literal[""] | Folder = ""
    """Private key of that certificate, without a pass phrase; readable by the node's user alone."""
    authorities: Literal[""] | Folder = ""
    """Certificates of the authorities that peers' certificates come from. No others are believed."""
    revoked: Literal[""] | Folder = ""
    """Revocation lists of all these authorities. Empty: revocation is not looked at."""
    warn_days: int = Field(default=30, ge=0, le=3650)
    """Days before a certificate runs out from which `s2node doctor` warns."""

    @property
    def is_filled(self) -> bool:
        """Whether TLS can be spoken with these files."""
        return bool(self.certificate and self.key and self.authorities)

    @model_validator(mode="after")
    def _all_three_or_none(self) -> TlsSettings:
        if self.is_filled or not (self.certificate or self.key or self.authorities or self.revoked):
            return self
        missing = next(name for name in ("certificate", "key", "authorities") if not getattr(self, name))
        raise impossible(missing, "name the file: certificate, key and authorities belong together")


def _true_or_false(value: object) -> object:
    if not isinstance(value, bool | dict | TlsSettings):
        raise ValueError("write true or false")  # noqa: TRY004 - pydantic's word for a value that is wrong
    return value


PeerTls = Annotated[bool | TlsSettings, BeforeValidator(_true_or_false)]
"""``tls = true`` of a peer, which is given the files of ``[tls]`` when the settings are read."""


class ListenSettings(Frozen):
    """Where the node listens for C-ECHO and C-STORE, and whom it answers."""

    ae_title: AETitle = "S2NODE"
    """AE title of the node (1 to 16 characters). Associations called to another title are refused."""
    host: str = "127.0.0.1"
    """Address to listen on. 127.0.0.1 is this machine only; 0.0.0.0 is every interface."""
    port: int = Field(default=11112, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""
    max_associations: int = Field(default=25, ge=1, le=1000)
    """Associations open at the same time; one more is refused."""
    max_associations_per_address: int = Field(default=20, ge=1, le=1000)
    """Associations one address may have open, and connections of it that have not asked for one yet."""
    max_associations_per_ae_title: int = Field(default=10, ge=1, le=1000)
    """Associations one calling AE title may have open from one address."""
    max_pdu_bytes: int = Field(default=131_072, ge=4096, le=4_194_304)
    """Largest protocol data unit accepted, in bytes."""
    max_in_flight_bytes: int = Field(default=2 * GIB, ge=1024 * 1024)
    """Bytes of instances that may be in memory at once, over all associations, before they are on the disk.
    The association that would exceed them is read no further until there is room, and aborted where there is
    none for dimse_timeout_s; one of storage.max_instance_bytes always fits."""
    network_timeout_s: Seconds = 60.0
    """Seconds of silence on an open association after which it is closed."""
    acse_timeout_s: Seconds = 30.0
    """Seconds to wait for an association to be requested or released."""
    dimse_timeout_s: Seconds = 60.0
    """Seconds to wait for the rest of a DIMSE message, and one more for every 16 KiB of it that have come."""
    other_classes: Literal["store", "refuse"] = "store"
    """Instances that are not CT images: "store" takes them and rejects their series with a code, "refuse"
    offers no presentation context."""
    allow_ae_titles: tuple[AETitle, ...] = ()
    """Calling AE titles that may associate. Empty: any."""
    allow_addresses: tuple[Network, ...] = ()
    """Addresses or blocks (CIDR) that may associate. Empty: any."""
    store_ae_titles: tuple[AETitle, ...] = ()
    """Calling AE titles that may store. Empty: all that may associate."""
    store_addresses: tuple[Network, ...] = ()
    """Addresses or blocks that may store. Empty: all that may associate."""
    echo_ae_titles: tuple[AETitle, ...] = ()
    """Calling AE titles that may send a C-ECHO. Empty: all that may associate."""
    echo_addresses: tuple[Network, ...] = ()
    """Addresses or blocks that may send a C-ECHO. Empty: all that may associate."""
    allow_unknown_peers: bool = False
    """Lets allow_ae_titles and allow_addresses stay empty although the node listens beyond this machine."""
    tls: bool = False
    """Listens for TLS, with the certificates of [tls]; plain text is then refused. 2762 is the registered
    port."""
    allow_plain_text: bool = False
    """Lets the node listen beyond this machine without TLS, on a network that is protected by other means."""

    @model_validator(mode="after")
    def _guarded_beyond_loopback(self) -> ListenSettings:
        if is_loopback(self.host):
            return self
        if not (self.tls or self.allow_plain_text):
            raise impossible(
                "host",
                "this address is reachable from other machines and DICOM is sent as plain text: "
                'write tls = true and fill [tls], or host = "127.0.0.1", '
                "or allow_plain_text = true if the network is protected",
            )
        if not (self.allow_ae_titles or self.allow_addresses or self.allow_unknown_peers):
            raise impossible(
                "host",
                "this address is reachable from other machines: fill allow_ae_titles or allow_addresses, "
                "or write allow_unknown_peers = true",
            )
        return self


class StorageSettings(Frozen):
    """Where the node keeps what it has received and made."""

    data_dir: Folder = Field(default_factory=default_data_dir)
    """Folder of the inbox, the outbox, the quarantine, the models and the ledger. One node, one folder, on a
    local disk."""
    min_free_bytes: int = Field(default=2 * GIB, ge=0)
    """Free bytes to keep on that disk; below it C-STORE answers 0xA700 (out of resources)."""
    new_series_factor: float = Field(default=1.5, ge=1, le=100)
    """While less than min_free_bytes times this is free, a new series is answered 0xA700, and those that have
    begun are finished."""
    resume_factor: float = Field(default=2.0, ge=1, le=100)
    """After that, new series are taken again once min_free_bytes times this is free."""
    max_instance_bytes: int = Field(default=GIB, ge=1024)
    """Largest instance accepted, in bytes; a larger one is answered with 0xA700."""


class SettleSettings(Frozen):
    """When a series counts as complete."""

    quiet_s: float = Field(default=30.0, ge=0, le=86_400)
    """Seconds without a new slice after which a series with regular geometry is complete."""
    max_wait_s: float = Field(default=900.0, ge=0, le=604_800)
    """Seconds a series with irregular geometry may wait for missing slices before it is judged as it is."""
    check_s: Seconds = 1.0
    """Seconds between two looks at the series that are being received."""

    @model_validator(mode="after")
    def _waits_at_least_the_quiet_time(self) -> SettleSettings:
        if self.max_wait_s < self.quiet_s:
            raise impossible("max_wait_s", f"write at least quiet_s, {self.quiet_s:g}")
        return self


class EngineSettings(Frozen):
    """How the models run."""

    provider: Literal["auto", "cuda", "tensorrt", "openvino", "cpu"] = "auto"
    """ONNX Runtime execution provider. "auto" takes the best one found; any other that is absent is an error
    at start."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of one model run; 0 shares the cores that the node may use among worker.count workers."""
    devices: tuple[Annotated[int, Field(ge=0, le=255)], ...] = Field(default=(0,), min_length=1)
    """Numbers of the GPUs. Each worker takes one, in this order and over again; see worker.count."""
    cuda_graph: bool = False
    """With provider "cuda", record once what a model asks of the GPU and replay it: less waiting for the CPU,
    more memory held."""
    bundles_dir: Literal[""] | Folder = ""
    """Folder with further model bundles, one folder each. Empty: only the shipped ones and those under
    data_dir/models."""
    phases: tuple[Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")], ...] = ()
    """Phases to make, such as ["venous"]. Empty: every phase that has a model."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of the models' noise. The same input, model and seed give the same output."""
    memory_bytes: int = Field(default=0, ge=0)
    """Most GPU memory each model may take, in bytes, in equal parts for its graphs; 0 is no limit. A worker
    holds a model a phase. With provider "tensorrt" it bounds what an engine's layers work in, not its weights
    and results: leave room."""


class WorkerSettings(Frozen):
    """The worker process that turns a series into syntheses."""

    lease_s: Seconds = 60.0
    """Seconds after which a job whose worker has fallen silent is given to another."""
    heartbeat_s: Seconds = 10.0
    """Seconds between two signs of life of a worker."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Attempts after which a job whose worker died is parked."""
    count: int = Field(default=1, ge=1, le=64)
    """Worker processes. One a GPU of engine.devices; one on a machine without."""

    @model_validator(mode="after")
    def _heartbeat_fits_the_lease(self) -> WorkerSettings:
        if self.heartbeat_s * 2 > self.lease_s:
            raise impossible("heartbeat_s", f"write at most half of lease_s, {self.lease_s / 2:g}")
        return self


class OutputSettings(Frozen):
    """What a synthesis becomes in DICOM, and the name it carries."""

    kinds: tuple[Literal["ct_series", "enhancement_map"], ...] = Field(default=("ct_series",), min_length=1)
    """What is written for each phase: "ct_series" a CT series, "enhancement_map" a map of the change against
    the source."""
    series_number_factor: int = Field(default=100, ge=1, le=10_000)
    """SeriesNumber of an output: that of the source times this, plus 1, 2, …"""
    description_prefix: Ascii = Field(default="AI-SYNTHETIC", max_length=24)
    """First words of SeriesDescription. It must say that the series is synthetic."""
    manufacturer: Ascii = Field(default="s2node", max_length=64)
    """Manufacturer in the equipment module of an output."""
    model_name: Ascii = Field(default="S2LDM virtual contrast node", max_length=64)
    """ManufacturerModelName in the equipment module of an output."""
    station_name: Ascii = Field(default="S2NODE", max_length=16)
    """StationName of an output (16 characters at most)."""
    device_uid: Uid = ""
    """UID of this node as a device. Empty: derived from the AE title and the station name. Change it and
    outputs get new UIDs."""

    @model_validator(mode="after")
    def _says_that_it_is_synthetic(self) -> OutputSettings:
        if "SYNTHETIC" not in self.description_prefix.upper():
            raise impossible(
                "description_prefix", 'write words that contain SYNTHETIC, such as "AI-SYNTHETIC"'
            )
        if len(set(self.kinds)) != len(self.kinds):
            raise impossible("kinds", "name each kind once")
        return self


class StoreDestination(Frozen):
    """A peer that finished series are sent to by C-STORE. Without any destination they stay in the outbox."""

    kind: Literal["cstore"] = "cstore"
    """"cstore": a DICOM peer."""
    name: Name = Field(examples=["pacs"])
    """Name of the destination in logs and in `s2node jobs show` (letters, digits, - and _)."""
    host: str = Field(min_length=1, examples=["pacs.example.org"])
    """Host name or address of the peer."""
    port: Port = 104
    """TCP port of the peer."""
    ae_title: AETitle = Field(examples=["PACS"])
    """AE title of the peer."""
    calling_ae_title: AETitle = "S2NODE"
    """AE title the node calls itself towards this peer."""
    tls: PeerTls = False
    """Speaks TLS with this peer, with the certificates of [tls]."""
    tls_name: str = Field(default="", max_length=253)
    """Name or address that the peer's certificate has to carry. Empty: host."""
    connect_timeout_s: Seconds = 10.0
    """Seconds to wait for the TCP connection."""
    acse_timeout_s: Seconds = 30.0
    """Seconds to wait for the association to be accepted or released."""
    dimse_timeout_s: Seconds = 60.0
    """Seconds to wait for the answer to one C-STORE."""
    network_timeout_s: Seconds = 60.0
    """Seconds of silence after which the association is given up."""
    max_pdu_bytes: int = Field(default=131_072, ge=4096, le=4_194_304)
    """Largest protocol data unit accepted from the peer, in bytes."""
    associations: int = Field(default=1, ge=1, le=8)
    """Associations over which a job is sent at the same time, as far as the peer accepts them. Two shorten
    the wait where the peer takes its time over each slice; a peer that serves one at a time needs 1."""
    commitment: Literal["none", "request", "query"] = "none"
    """Whether the peer is asked to answer for what it took: "none" ends with DELIVERED, "request" asks for
    storage commitment (or queries, where the peer does not offer it), "query" asks by C-FIND whether every
    instance is there. What is answered for is COMMITTED and may be purged."""
    commitment_wait_s: float = Field(default=5.0, ge=0, le=86_400)
    """Seconds between the end of a delivery and the first question."""
    commitment_timeout_s: Seconds = 600.0
    """Seconds to wait for the report of a storage commitment; then it is asked for again, with the waits of
    [retry] added."""
    commitment_resends: int = Field(default=3, ge=0, le=100)
    """Times a job is sent again because the peer lacks instances it had accepted; after that it is parked."""
    fallback: Name | Literal[""] = ""
    """Name of another destination that gets a job too where this one has not taken it for after_hours, and at
    once where this one refuses it for good. It gets nothing else. Empty: none."""
    after_hours: float = Field(default=4.0, gt=0, le=8760)
    """Hours a job waits for this destination before it goes to the fallback too."""
    rejection_notes: bool = True
    """Whether the peer gets a rejection note (IHE IOCM, a Key Object Selection) for a result that was
    superseded or recalled. The new result waits for the note. False: both results are there."""


class FolderDestination(Frozen):
    """A folder that finished series are written to, as DICOM files."""

    kind: Literal["folder"] = "folder"
    """"folder": files on a disk."""
    name: Name = Field(examples=["folder"])
    """Name of the destination in logs and in `s2node jobs show` (letters, digits, - and _)."""
    path: Folder = Field(examples=["/srv/synthetic"])
    """Folder to write to; one folder a series is made in it."""
    fallback: Name | Literal[""] = ""
    """Name of another destination that gets a job too where this one has not taken it for after_hours. It
    gets nothing else. Empty: none."""
    after_hours: float = Field(default=4.0, gt=0, le=8760)
    """Hours a job waits for this destination before it goes to the fallback too."""
    rejection_notes: bool = True
    """Whether a rejection note (IHE IOCM, a Key Object Selection) is written there for a result that was
    superseded or recalled. The new result waits for the note. False: both results are there."""


def _kind_of(value: object) -> str:
    """The ``kind`` a destination names; a table without one is a C-STORE peer."""
    kind = value.get("kind", "cstore") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


Destination = Annotated[
    Annotated[StoreDestination, Tag("cstore")] | Annotated[FolderDestination, Tag("folder")],
    Discriminator(_kind_of),
]


class Requester(Frozen):
    """A sender that may ask the node for storage commitment. Others that ask are refused."""

    ae_title: AETitle = Field(examples=["CT1"])
    """AE title the sender calls itself; each may be listed once."""
    addresses: tuple[Network, ...] = ()
    """Addresses or blocks (CIDR) the sender may ask from. Empty: any that may associate."""
    host: str = Field(min_length=1, examples=["ct1.example.org"])
    """Host name or address the report goes to."""
    port: Port = 104
    """TCP port the report goes to."""
    tls: PeerTls = False
    """Speaks TLS with this peer, with the certificates of [tls]."""
    tls_name: str = Field(default="", max_length=253)
    """Name or address that the peer's certificate has to carry. Empty: host."""
    timeout_s: Seconds = 30.0
    """Seconds to wait for the connection, for the association and for the answer to the report."""


class ArchivePeer(Frozen):
    """An archive that series are fetched from: by `s2node fetch`, and by the node itself where it is told to
    complete series that came without all their slices."""

    name: Name = Field(examples=["archive"])
    """Name of the archive in logs and for `s2node fetch` (letters, digits, - and _)."""
    host: str = Field(min_length=1, examples=["pacs.example.org"])
    """Host name or address of the archive."""
    port: Port = 104
    """TCP port of the archive."""
    ae_title: AETitle = Field(examples=["PACS"])
    """AE title of the archive."""
    calling_ae_title: AETitle = "S2NODE"
    """AE title the node calls itself towards this archive."""
    tls: PeerTls = False
    """Speaks TLS with this archive, with the certificates of [tls]."""
    tls_name: str = Field(default="", max_length=253)
    """Name or address that the archive's certificate has to carry. Empty: host."""
    retrieve: Literal["move", "get"] = "move"
    """How instances come: "move" by C-MOVE to listen.ae_title, which the archive has to know with our address
    and port; "get" by C-GET, over the connection that the node opens."""
    completes: Literal["none", "own", "any"] = "none"
    """Which series it is asked about when they are quiet, so that slices that did not come are fetched first:
    "own" those that it sent itself, "any" those of every sender, "none" no series."""
    completes_attempts: int = Field(default=5, ge=1, le=1000)
    """Tries at one series that lead to nothing, with the waits of [retry] between them, after which it is
    judged as it is."""
    connect_timeout_s: Seconds = 10.0
    """Seconds to wait for the TCP connection."""
    acse_timeout_s: Seconds = 30.0
    """Seconds to wait for the association to be accepted or released."""
    dimse_timeout_s: Seconds = 300.0
    """Seconds to wait for the next answer. Some archives say nothing until a C-MOVE is over."""
    max_pdu_bytes: int = Field(default=131_072, ge=4096, le=4_194_304)
    """Largest protocol data unit accepted from the archive, in bytes."""


class RetrySettings(Frozen):
    """How a delivery, a storage commitment or its report that failed for the moment is tried again."""

    first_s: Seconds = 15.0
    """Seconds before the second attempt."""
    factor: float = Field(default=2.0, ge=1, le=10)
    """Each further wait is this many times the one before."""
    max_s: Seconds = 3600.0
    """Longest wait between two attempts, in seconds."""
    jitter: float = Field(default=0.1, ge=0, le=1)
    """Share by which a wait is lengthened or shortened at random, so that many nodes do not knock at once (0
    to 1)."""
    max_attempts: int = Field(default=50, ge=1, le=100_000)
    """Attempts at one destination after which the job is parked."""
    break_after: int = Field(default=3, ge=1, le=1000)
    """Failures in a row, of whatever jobs, after which a destination is left alone: only a C-ECHO (for a
    folder, a look) goes there until it is answered. No job loses an attempt meanwhile."""
    probe_s: Seconds = 30.0
    """Seconds between two such C-ECHOs, lengthened or shortened by jitter."""

    @model_validator(mode="after")
    def _longest_is_not_shorter_than_first(self) -> RetrySettings:
        if self.max_s < self.first_s:
            raise impossible("max_s", f"write at least first_s, {self.first_s:g}")
        return self


class WatchSettings(Frozen):
    """Where the node tells how it is over HTTP: /metrics, /healthz, /readyz. No patient data."""

    enabled: bool = False
    """Whether it does."""
    host: str = "127.0.0.1"
    """Address to listen on. It is plain HTTP and asks for no password."""
    port: int = Field(default=9112, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""
    allow_remote: bool = False
    """Lets ``host`` be an address that other machines can reach."""

    @model_validator(mode="after")
    def _stays_on_this_machine(self) -> WatchSettings:
        if not (is_loopback(self.host) or self.allow_remote):
            raise impossible(
                "host",
                "this address is reachable from other machines, and whoever asks is answered: "
                'write host = "127.0.0.1", or allow_remote = true',
            )
        return self


class AuditSettings(Frozen):
    """DICOM audit messages (PS3.15 A.5): to a file, to syslog over TLS, or both. They name patients."""

    to_file: bool = False
    """Writes them to data_dir/audit/messages.log, one a line, readable by the node's user alone."""
    file_bytes: int = Field(default=67_108_864, ge=4096)
    """Size in bytes at which that file is put aside as messages.log.1 and a new one begun."""
    files: int = Field(default=50, ge=1, le=10_000)
    """Files put aside that are kept; the oldest is removed."""
    syslog_host: str = Field(default="", max_length=253)
    """Host of the audit repository, as its certificate names it (RFC 5424 over RFC 5425, with the
    certificates of [tls]). Empty: none."""
    syslog_port: Port = 6514
    """TCP port of the audit repository."""
    syslog_timeout_s: Seconds = 10.0
    """Seconds to wait for the connection, for each answer, and for the end."""
    max_waiting: int = Field(default=100_000, ge=1, le=10_000_000)
    """Messages kept in data_dir/audit/waiting for a repository that is away; what happens to jobs after that
    is sent from the ledger, later."""
    identities: Literal["patient", "job"] = "patient"
    """"patient": patient ID, patient's name and study UID, as the standard demands; "job": only the job's
    number in their place."""
    site: str = Field(default="", max_length=64, pattern=r"^[ -~]*$")
    """AuditEnterpriseSiteID: the name of the hospital or network, if it has several."""

    @property
    def is_wanted(self) -> bool:
        """Whether anybody is to have the messages."""
        return self.to_file or bool(self.syslog_host)


class RetentionSettings(Frozen):
    """What the node removes by itself. A number counts days since a job came to where it stands; 0 keeps its
    files until `s2node purge`. Rows and history stay in any case."""

    committed_days: Days = 0.0
    """Received and made files of COMMITTED jobs."""
    delivered_days: Days = 0.0
    """Files of DELIVERED jobs: nobody has answered for these."""
    rejected_days: Days = 0.0
    """Files of REJECTED jobs."""
    parked_days: Days = 0.0
    """Files of PARKED jobs: what was made of them is lost."""
    recalled_days: Days = 0.0
    """Files of RECALLED jobs."""
    superseded_days: Days = 0.0
    """Files of SUPERSEDED jobs that no later generation shares."""
    quarantine_days: Days = 0.0
    """Instances in quarantine."""
    identity_days: Days = 0.0
    """Patient and study of purged jobs, which the node keeps (no pixels) for a recall."""
    check_s: Seconds = 3600.0
    """Seconds between two looks for what is old enough, and for made files that no job has."""


class LogSettings(Frozen):
    """What the node writes to standard error. Never a patient's name, number, date or UID."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important event that is logged."""
    format: Literal["json", "text"] = "text"
    """"json": one object a line, for a collector; "text": for people."""


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(each, dict) for each in value)


def _with_files(peer: object, files: object) -> object:
    """A peer's table as it was written, with ``tls = true`` replaced by the files."""
    return {**peer, "tls": files} if isinstance(peer, dict) and peer.get("tls") is True else peer


class Settings(Frozen):
    """Everything one node needs to know. Valid when it exists."""

    listen: ListenSettings = ListenSettings()
    tls: TlsSettings = TlsSettings()
    storage: StorageSettings = Field(default_factory=StorageSettings)
    settle: SettleSettings = SettleSettings()
    intake: IntakeSettings = IntakeSettings()
    engine: EngineSettings = EngineSettings()
    worker: WorkerSettings = WorkerSettings()
    outputs: OutputSettings = OutputSettings()
    destinations: tuple[Destination, ...] = ()
    """Where finished series are sent. Without one, they stay in the outbox."""
    requesters: tuple[Requester, ...] = ()
    """Senders that may ask for storage commitment, and where their reports go."""
    archives: tuple[ArchivePeer, ...] = ()
    """Where series are fetched from."""
    retry: RetrySettings = RetrySettings()
    refresh: RefreshSettings = RefreshSettings()
    retention: RetentionSettings = RetentionSettings()
    log: LogSettings = LogSettings()
    watch: WatchSettings = WatchSettings()
    audit: AuditSettings = AuditSettings()

    @model_validator(mode="before")
    @classmethod
    def _gives_peers_the_certificates(cls, written: Any) -> Any:
        """``tls = true`` of a peer becomes the files of ``[tls]``: who calls a peer needs nothing else."""
        if not isinstance(written, dict):
            return written
        files = written.get("tls", TlsSettings())
        return {
            key: [_with_files(each, files) for each in value] if _is_list_of_tables(value) else value
            for key, value in written.items()
        }

    @model_validator(mode="after")
    def _has_certificates_for_tls(self) -> Settings:
        peers = [peer for section in vars(self).values() if isinstance(section, tuple) for peer in section]
        needs = self.listen.tls or any(getattr(peer, "tls", False) for peer in peers)
        if needs and not self.tls.is_filled:
            raise impossible("tls", "name the files certificate, key and authorities: tls = true needs them")
        return self

    @model_validator(mode="after")
    def _has_certificates_for_the_audit(self) -> Settings:
        if self.audit.syslog_host and not self.tls.is_filled:
            words = "name the files certificate, key and authorities: audit.syslog_host needs them"
            raise impossible("tls", words)
        return self

    @model_validator(mode="after")
    def _names_each_destination_once(self) -> Settings:
        names = [destination.name for destination in self.destinations]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise impossible(
                "destinations", f"give every destination a name of its own: {', '.join(repeated)}"
            )
        return self

    @model_validator(mode="after")
    def _names_each_archive_once(self) -> Settings:
        names = [archive.name for archive in self.archives]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise impossible("archives", f"give every archive a name of its own: {', '.join(repeated)}")
        return self

    @model_validator(mode="after")
    def _has_the_fallbacks_it_names(self) -> Settings:
        may_be = {destination.name for destination in self.destinations if not destination.fallback}
        wrong = sorted({each.fallback for each in self.destinations} - may_be - {""})
        if wrong:
            cure = "name as fallback a destination that is there and has no fallback of its own"
            raise impossible("destinations", f"{cure}, not {', '.join(wrong)}")
        return self

    @property
    def first_destinations(self) -> tuple[str, ...]:
        """Names of the destinations that every job goes to: those that are nobody's fallback."""
        fallbacks = {destination.fallback for destination in self.destinations}
        return tuple(each.name for each in self.destinations if each.name not in fallbacks)

    @model_validator(mode="after")
    def _names_each_requester_once(self) -> Settings:
        titles = [requester.ae_title for requester in self.requesters]
        repeated = sorted({title for title in titles if titles.count(title) > 1})
        if repeated:
            raise impossible("requesters", f"list every ae_title once: {', '.join(repeated)}")
        return self

    def digest(self) -> str:
        """Sha256 (hex) of the settings that change what a synthesis contains; part of every output's UID.

        Speed, places and limits of the engine are left out, and so is ``outputs.kinds``, which is a part of
        the UID by itself: a second kind of output leaves the UIDs of the first as they were.
        """
        relevant = {
            "engine": self.engine.model_dump(mode="json", include={"provider", "seed"}),
            "outputs": self.outputs.model_dump(mode="json", exclude={"kinds"}),
            "intake": self.intake.model_dump(mode="json"),
        }
        text = json.dumps(relevant, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
