from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derive_uid, is_plausible_uid

words = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x1f"), max_size=20)


def test_a_derived_uid_is_pinned_for_ever():
    assert derive_uid("series", "1.2.3", "arterial") == "2.25.24913977179517361141102688798327452898"


@given(st.lists(words, max_size=4))
def test_a_derived_uid_is_valid_and_repeats(parts):
    uid = derive_uid("kind", *parts)
    assert UID(uid).is_valid
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", uid)
    assert uid == derive_uid("kind", *parts)
    assert is_plausible_uid(uid)


def test_parts_are_separated_and_ordered():
    made = {
        derive_uid("k", "a", "b"),
        derive_uid("k", "ab"),
        derive_uid("k", "b", "a"),
        derive_uid("ka", "b"),
    }
    assert len(made) == 4


def test_a_part_with_the_separator_is_refused():
    with pytest.raises(ValueError, match="separator"):
        derive_uid("kind", "a\x1fb")


@pytest.mark.parametrize("text", ["1.2.3", "1.02.3", "1.2.", "1..2", "2.25." + "1" * 39, "0", "9" * 64])
def test_uids_real_senders_write_are_plausible(text):
    assert is_plausible_uid(text)


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".1", "../1", "1/2", "1\\2", "1.2\n", "1.2\x00", "1.2 ", "٣.٤", "1.2a", "9" * 65]
)
def test_what_could_leave_a_folder_or_is_no_uid_is_not_plausible(text):
    assert not is_plausible_uid(text)


def test_the_implementation_names_itself_outside_2_25():
    assert UID(IMPLEMENTATION_CLASS_UID).is_valid
    assert not IMPLEMENTATION_CLASS_UID.startswith("2.25.")
    assert len(IMPLEMENTATION_VERSION_NAME) <= 16
