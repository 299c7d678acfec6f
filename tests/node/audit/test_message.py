"""Audit messages are what the standard's schema says (PS3.15 A.5.1.1)."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from node.alarm import Alert, AlertKind
from node.audit.account import Account
from node.audit.message import (
    APPLICATION,
    INSTANCES_TRANSFERRED,
    PATIENT_NUMBER,
    STUDY_UID,
    Action,
    Message,
    Participant,
    Source,
    Thing,
    clean,
    local_iso,
    to_xml,
)

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).with_name("audit-message.rng")))


def valid(xml: bytes) -> etree._Element:
    document = etree.fromstring(xml)
    SCHEMA.assertValid(document)
    return document


def transferred(**changes: str) -> Message:
    person = Thing(changes.get("number", "ID0017"), PATIENT_NUMBER, "1", "1", changes.get("name", "DOE^JANE"))
    study = Thing("2.25.1", STUDY_UID, "2", "3", instances=(("1.2.840.10008.5.1.4.1.1.2", 300),))
    return Message(
        INSTANCES_TRANSFERRED,
        Action.CREATE,
        1.8e9,
        (Participant("CT1", APPLICATION, True, "CT1", "10.0.0.7"), Participant("17", APPLICATION)),
        (study, person),
        words=changes.get("words", ""),
    )


def test_a_message_is_valid_and_on_one_line() -> None:
    xml = to_xml(transferred(words="two\nlines"), Source("S2NODE", "north"))
    root = valid(xml)
    assert b"\n" not in xml
    assert root.findtext("EventIdentification/EventOutcomeDescription") == "two lines"
    assert root.find("ParticipantObjectIdentification//SOPClass").get("NumberOfInstances") == "300"
    assert root.find("AuditSourceIdentification").get("AuditEnterpriseSiteID") == "north"
    assert [each.get("NetworkAccessPointTypeCode") for each in root.iter("ActiveParticipant")] == ["2", None]


@pytest.mark.parametrize(
    "hostile", ["\x1b$B;3ED\x1b(B^TAR\x00O", '<Audit &amp; "quoted">]]>', "\ud800\udfff", "x" * 100_000, ""]
)
def test_whatever_a_header_holds_the_message_is_valid(hostile: str) -> None:
    root = valid(to_xml(transferred(number=hostile, name=hostile, words=hostile), Source("S2NODE")))
    assert len(root.findall("ParticipantObjectIdentification")) == 2
    assert len(clean(hostile)) <= 256


def test_a_message_that_breaks_the_schema_is_noticed_by_this_test() -> None:
    broken = to_xml(transferred(), Source("S2NODE")).replace(b'EventActionCode="C"', b'EventActionCode="X"')
    assert not SCHEMA.validate(etree.fromstring(broken))


def test_times_carry_their_zone() -> None:
    assert local_iso(0.5)[-6] in "+-"
    assert ".500" in local_iso(0.5)


@pytest.mark.parametrize("kind", AlertKind)
def test_every_alert_start_and_stop_is_valid(kind: AlertKind, account: Account) -> None:
    alert = account.alert(Alert(kind, "words", "fe80::1", "CT1"), 3, 1.8e9)
    root = valid(to_xml(alert, account.source))
    assert root.find("EventIdentification").get("EventOutcomeIndicator") == "4"
    assert "3 times" in root.findtext("EventIdentification/EventOutcomeDescription")
    for starts, code in ((True, "110120"), (False, "110121")):
        root = valid(to_xml(account.activity(1.8e9, starts=starts), account.source))
        assert root.find("EventIdentification/EventTypeCode").get("csd-code") == code
