"""The conformance statement names what the code does: a test fails when one of them is changed alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom.sop_class import Verification

from config.settings import ArchivePeer
from node import private
from node.commitment import hear, wire
from node.destinations.answer import STORE_STATUSES
from node.ledger import Output
from node.outputs import OUTPUTS
from node.outputs.enhancement_map import LARGEST_STORED, OFFSET_HU
from node.outputs.phases import PHASE_STYLES
from node.peers import REJECTIONS
from node.pull.answer import RETRIEVE_STATUSES
from node.pull.query import contexts_of
from node.receive import STATUSES
from node.rejection.note import Grounds, Reason, identity_of, make_note
from node.scp import CT_CLASSES, PREFERRED_SYNTAXES
from node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

PAGE = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
PROPOSED = PAGE.partition("| abstract syntax |")[2].partition("\n\n")[0]


def test_our_implementation_is_named():
    assert IMPLEMENTATION_CLASS_UID in PAGE
    assert IMPLEMENTATION_VERSION_NAME in PAGE


@pytest.mark.parametrize("name", CT_CLASSES.values())
def test_every_class_the_node_is_for_is_named(name):
    assert name in PAGE


def is_proposed(uid):
    """Whether the page says that the node sends instances of this class: in the overview and as a context."""
    overview = next(line for line in PAGE.splitlines() if line.startswith(f"| Transfer | {uid.name}"))
    return overview.split("|")[3].startswith(" yes") and f"| {uid.name} | {uid} |" in PROPOSED


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_class_of_every_kind_of_output_is_proposed(kit, kind):
    series = kit.source()
    made = OUTPUTS[kind](series, kit.synthesis(series), kit.context())
    assert all(is_proposed(ds.SOPClassUID) for ds in made)


def test_the_class_of_rejection_notes_is_proposed(kit):
    file = kit.files()[0]
    rejected = Output(1, "venous", "ct_series", "1.2", "1.2.3", CTImageStorage, file, "")
    note = make_note(identity_of(file), [rejected], Grounds(Reason.SAFETY, "A test."), kit.context())
    assert is_proposed(note.SOPClassUID)


@pytest.mark.parametrize("retrieve", ["move", "get"])
def test_every_class_that_is_proposed_to_an_archive_is_named(retrieve):
    archive = ArchivePeer(name="archive", host="there", ae_title="ARCHIVE", retrieve=retrieve)
    for uid in {str(context.abstract_syntax) for context in contexts_of(archive)}:
        assert CT_CLASSES.get(uid, f"({uid})") in PAGE


def test_the_classes_of_storage_commitment_and_of_a_probe_are_named():
    assert f"({wire.PUSH_MODEL})" in PAGE
    assert f"| Verification | {Verification} |" in PROPOSED


@pytest.mark.parametrize("uid", PREFERRED_SYNTAXES)
def test_every_preferred_transfer_syntax_has_a_row(uid):
    assert f"| {uid} |" in PAGE


def test_preferred_transfer_syntaxes_are_in_order():
    places = [PAGE.index(f"| {uid} |") for uid in PREFERRED_SYNTAXES]
    assert places == sorted(places)


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_the_node_gives_has_a_row(status):
    assert f"| 0x{status:04X} |" in PAGE


@pytest.mark.parametrize("status", hear.STATUSES)
def test_every_status_of_storage_commitment_has_a_row(status):
    table = PAGE.partition("| commitment status |")[2].partition("\n\n")[0]
    assert f"| 0x{status:04X} |" in table


@pytest.mark.parametrize("row", wire.FAILURE_REASONS.values(), ids=lambda row: f"{row.code:04X}")
def test_every_failure_reason_is_in_the_line_of_its_cure(row):
    table = PAGE.partition("| failure reason |")[2].partition("\n\n")[0]
    words = {
        "SEND_AGAIN": "sends the instance again",
        "ASK_AGAIN": "asks again",
        "PERSON": "asks for a person",
    }
    line = next(line for line in table.splitlines() if words[row.cure] in line)
    assert f"0x{row.code:04X}" in line


@pytest.mark.parametrize("row", STORE_STATUSES, ids=lambda row: f"{row.first:04X}")
def test_every_status_a_peer_may_give_is_in_the_line_of_its_verdict(row):
    lines = {"DELIVERED": "has delivered", "WAIT": "tries again", "REFUSED": "asks for a person"}
    line = next(line for line in PAGE.splitlines() if lines[row.verdict] in line and line.startswith("| 0x"))
    within_warnings = row.first >= 0xB000 and row.last <= 0xBFFF
    assert ("0xB000–0xBFFF" if within_warnings else f"0x{row.first:04X}") in line


@pytest.mark.parametrize("row", RETRIEVE_STATUSES, ids=lambda row: f"{row.first:04X}")
def test_every_status_an_archive_may_give_is_in_the_line_of_its_verdict(row):
    table = PAGE.partition("| retrieve status |")[2].partition("\n\n")[0]
    words = {
        "DONE": "looks what came",
        "PENDING": "waits for the next answer",
        "WAIT": "tries again later",
        "REFUSED": "asks no more",
    }
    line = next(line for line in table.splitlines() if words[row.verdict] in line)
    assert f"0x{row.first:04X}" in line


@pytest.mark.parametrize("rejection", REJECTIONS.values(), ids=lambda one: one.words)
def test_every_rejection_of_an_association_has_a_row(rejection):
    assert f"| {rejection.result}, {rejection.source}, {rejection.reason} |" in PAGE


@pytest.mark.parametrize("offset", private.DICTIONARY)
def test_every_private_element_has_a_row(offset):
    vr, name = private.DICTIONARY[offset]
    assert f"| (0071,xx{offset:02X}) | {name} | {vr} |" in PAGE
    assert f"`{private.PRIVATE_CREATOR}` in group {private.PRIVATE_GROUP:04X}" in PAGE


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_kind_of_output_has_a_section(kind):
    assert f"(output kind `{kind}`)" in PAGE


@pytest.mark.parametrize("phase", PHASE_STYLES)
def test_every_phase_has_its_window(phase):
    style = PHASE_STYLES[phase]
    assert f"{style.window_center_hu}, {style.window_width_hu}, SYNTHETIC {phase.upper()}" in PAGE
    assert f"+ {style.number} {phase}" in PAGE


def test_the_stored_values_of_a_map_are_as_written():
    assert f"difference in HU + {OFFSET_HU}, clipped to 0 … {LARGEST_STORED}" in PAGE
