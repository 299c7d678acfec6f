from __future__ import annotations

from datetime import UTC, datetime

import pytest

from node.outputs.context import NodeIdentity, OutputContext, ascii_text

NODE = NodeIdentity("2.25.1")


def context(**changes) -> OutputContext:
    return OutputContext(NODE, "cd" * 32, 1, datetime(2026, 1, 1, tzinfo=UTC), **changes)


def test_a_prefix_outside_ascii_is_refused():
    with pytest.raises(ValueError, match="not ASCII"):
        context(description_prefix="KI-künstlich")


def test_a_qualification_outside_the_standard_is_refused():
    with pytest.raises(ValueError, match="'CLEARED' is not one of"):
        context(content_qualification="CLEARED")


def test_a_node_without_a_version_is_refused():
    with pytest.raises(ValueError, match="software version"):
        NodeIdentity("2.25.1", software_versions=())


def test_the_serial_number_is_the_device_uid_where_none_is_given():
    assert NODE.device_serial_number == "2.25.1"
    assert NodeIdentity("2.25.1", serial_number="A7").device_serial_number == "A7"


@pytest.mark.parametrize(
    ("offset", "hour"), [("+0930", 9), ("-0100", 23), ("", 0), (None, 0), ("Z", 0), ("+9999", 0)]
)
def test_times_move_to_a_legal_offset_only(offset, hour):
    assert context().created_in(offset).hour == hour


@pytest.mark.parametrize(
    ("text", "expected"),
    [("S²LDM", "S2LDM"), ("a\\b", "a/b"), ("Größe", "Groe"), ("  x ", "x"), ("long", "lo")],
)
def test_texts_become_one_ascii_value(text, expected):
    assert ascii_text(text, 2 if text == "long" else 10) == expected
