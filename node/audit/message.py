"""Audit messages as values and as XML (PS3.15 A.5.1: the schema; A.5.3: which fields each kind has)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no place for (2.2); headers come from anybody."""
LONGEST: Final = 256
"""Characters of a value: the longest of a header that goes here has 64."""


@dataclass(frozen=True, slots=True)
class Code:
    """A code of a terminology: DCM is PS3.16 D."""

    value: str
    system: str
    meaning: str


def _dcm(value: str, meaning: str) -> Code:
    return Code(value, "DCM", meaning)


APPLICATION_ACTIVITY: Final = _dcm("110100", "Application Activity")
INSTANCES_ACCESSED: Final = _dcm("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED: Final = _dcm("110104", "DICOM Instances Transferred")
EXPORT: Final = _dcm("110106", "Export")
SECURITY_ALERT: Final = _dcm("110113", "Security Alert")
APPLICATION_START: Final = _dcm("110120", "Application Start")
APPLICATION_STOP: Final = _dcm("110121", "Application Stop")
NODE_AUTHENTICATION: Final = _dcm("110126", "Node Authentication")
RESTRICTED_FUNCTION: Final = _dcm("110132", "Use of Restricted Function")
APPLICATION: Final = _dcm("110150", "Application")
LAUNCHER: Final = _dcm("110151", "Application Launcher")
DESTINATION: Final = _dcm("110152", "Destination Role ID")
SOURCE: Final = _dcm("110153", "Source Role ID")
DESTINATION_MEDIA: Final = _dcm("110154", "Destination Media")
STUDY_UID: Final = _dcm("110180", "Study Instance UID")
PATIENT_NUMBER: Final = Code("2", "RFC-3881", "Patient Number")
JOB_NUMBER: Final = Code("job", "99S2NODE", "Job number")
"""PS3.15 A.5.1.2.4 and CID 400 to 405 of PS3.16; the last is ours, for sites that name no patient."""


class Action(StrEnum):
    """EventActionCode."""

    CREATE = "C"
    READ = "R"
    DELETE = "D"
    EXECUTE = "E"


class Outcome(StrEnum):
    """EventOutcomeIndicator."""

    SUCCESS = "0"
    MINOR = "4"
    SERIOUS = "8"


@dataclass(frozen=True, slots=True)
class Participant:
    """A process or person: ``user`` as PS3.15 A.5.2.1 says, ``address`` where on the network."""

    user: str
    role: Code
    is_requestor: bool = False
    ae_title: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Thing:
    """What it was done with: a patient (type 1, role 1), a study (2, 3) or a job (2, 20)."""

    id: str
    id_type: Code
    type_code: str
    role: str
    name: str = ""
    instances: tuple[tuple[str, int], ...] = ()
    """(SOP class UID, number of instances)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One audit message; ``at`` is epoch seconds."""

    event: Code
    action: Action
    at: float
    participants: tuple[Participant, ...]
    things: tuple[Thing, ...] = ()
    outcome: Outcome = Outcome.SUCCESS
    types: tuple[Code, ...] = ()
    words: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Who keeps the account: AuditSourceID, and the site if it has a name."""

    id: str
    site: str = ""


def to_xml(message: Message, source: Source) -> bytes:
    """The message as UTF-8 XML on one line, valid by the schema of PS3.15 A.5.1.1."""
    root = Element("AuditMessage")
    _add_event(root, message)
    for participant in message.participants:
        _add_participant(root, participant)
    _add_source(root, source)
    for thing in message.things:
        _add_thing(root, thing)
    text: str = tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()


def _add_event(root: Element, message: Message) -> None:
    event = SubElement(
        root,
        "EventIdentification",
        EventActionCode=message.action,
        EventDateTime=local_iso(message.at),
        EventOutcomeIndicator=message.outcome,
    )
    _add_code(event, "EventID", message.event)
    for code in message.types:
        _add_code(event, "EventTypeCode", code)
    if message.words:
        SubElement(event, "EventOutcomeDescription").text = clean(message.words)


def _add_participant(root: Element, participant: Participant) -> None:
    attributes = {
        "UserID": clean(participant.user),
        "UserIsRequestor": "true" if participant.is_requestor else "false",
    }
    if participant.ae_title:
        attributes["AlternativeUserID"] = f"AETITLES={clean(participant.ae_title)}"
    if participant.address:
        attributes["NetworkAccessPointID"] = clean(participant.address)
        attributes["NetworkAccessPointTypeCode"] = "2" if _is_address(participant.address) else "1"
    element = SubElement(root, "ActiveParticipant", attributes)
    _add_code(element, "RoleIDCode", participant.role)


def _add_source(root: Element, source: Source) -> None:
    attributes = {"AuditSourceID": clean(source.id)}
    if source.site:
        attributes["AuditEnterpriseSiteID"] = clean(source.site)
    element = SubElement(root, "AuditSourceIdentification", attributes)
    SubElement(element, "AuditSourceTypeCode", {"csd-code": "4"})  # an application server process


def _add_thing(root: Element, thing: Thing) -> None:
    element = SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=clean(thing.id),
        ParticipantObjectTypeCode=thing.type_code,
        ParticipantObjectTypeCodeRole=thing.role,
    )
    _add_code(element, "ParticipantObjectIDTypeCode", thing.id_type)
    SubElement(element, "ParticipantObjectName").text = clean(thing.name)
    if not thing.instances:
        return
    description = SubElement(element, "ParticipantObjectDescription")
    for sop_class_uid, number in thing.instances:
        SubElement(description, "SOPClass", UID=clean(sop_class_uid), NumberOfInstances=str(number))


def _add_code(parent: Element, name: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.system, "originalText": code.meaning}
    SubElement(parent, name, attributes)


def clean(text: str) -> str:
    """``text`` on one line, of bounded length, of characters XML knows."""
    return " ".join(NOT_IN_XML.sub("\ufffd", text).split())[:LONGEST]


def local_iso(at: float) -> str:
    """A time of this machine's wall clock with its distance from UTC (PS3.15 A.5.2.5, xsd:dateTime)."""
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(timespec="milliseconds")


def _is_address(host: str) -> bool:
    return ":" in host or bool(re.fullmatch(r"[0-9.]+", host))


def counted(sop_class_uids: Iterator[str]) -> tuple[tuple[str, int], ...]:
    """How many instances there are of each SOP class."""
    found: dict[str, int] = {}
    for uid in sop_class_uids:
        found[uid] = found.get(uid, 0) + 1
    return tuple(sorted(found.items()))
