"""The doctor looks whether each archive takes our questions, and says what no question can tell."""

import pytest

from config.settings import Settings
from node.doctor import Level, check
from node.pull.query import FIND


def findings(*archives, **listen):
    settings = Settings.model_validate({"archives": archives, "listen": listen})
    return [(found.level, found.what) for found in check("archives", settings, 1.8e9)]


def test_without_archives_all_is_well():
    assert findings() == [(Level.OK, "none to fetch from: [[archives]]")]


@pytest.mark.parametrize(
    ("retrieve", "words"),
    [
        ("get", "archive: answers a C-ECHO, offers C-FIND and C-GET"),
        (
            "move",
            "archive: answers a C-ECHO, offers C-FIND and C-MOVE; whether it knows S2NODE as a move"
            " destination only `s2node fetch` shows",
        ),
    ],
)
def test_an_archive_that_offers_what_is_wanted_is_fine(holder, retrieve, words):
    assert findings(holder([]).entry(retrieve=retrieve)) == [(Level.OK, words)]


def test_an_archive_that_refuses_a_c_echo_is_a_warning(holder):
    assert findings(holder([], echo=0x0122).entry()) == [
        (Level.WARNING, "archive: status 0x0122: archive answered the C-ECHO")
    ]


def test_a_list_that_keeps_the_archive_out_is_a_warning_for_c_move_alone(holder):
    peer = holder([])
    found = findings(peer.entry(), allow_ae_titles=["CT"], store_ae_titles=["CT"])
    assert [level for level, _ in found] == [Level.OK, Level.WARNING, Level.WARNING]
    assert "listen.allow_ae_titles lacks HOLDER" in found[1][1]
    assert "listen.store_ae_titles lacks HOLDER" in found[2][1]
    assert [level for level, _ in findings(peer.entry(retrieve="get"), allow_ae_titles=["CT"])] == [Level.OK]


def test_an_archive_that_lacks_the_service_or_is_silent_is_a_warning(holder):
    found = findings(holder([], models=[FIND]).entry())
    assert found == [
        (
            Level.WARNING,
            "archive: no presentation context: archive offers no C-MOVE in the study root model to S2NODE",
        )
    ]
    gone = holder([])
    gone.stop()
    assert [level for level, _ in findings(gone.entry())] == [Level.WARNING]
