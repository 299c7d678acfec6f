from __future__ import annotations

import pytest

from config.settings import ListenSettings
from node.peers import REJECTIONS, AllowList, Rejection

LISTS = ListenSettings(
    ae_title="S2NODE",
    allow_ae_titles=("SCANNER", "PACS"),
    allow_addresses=("10.1.0.0/16", "192.168.7.9", "2001:db8::/32"),
)


def rejection(listen: ListenSettings, **changes: str) -> Rejection | None:
    peer = {"called": "S2NODE", "calling": "SCANNER", "address": "10.1.2.3", **changes}
    return AllowList(listen).rejection(**peer)


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "192.168.7.9", "2001:db8::5", "::ffff:10.1.2.3", "2001:db8::5%eth0"]
)
def test_an_address_on_the_list_is_let_in(address: str) -> None:
    assert rejection(LISTS, address=address) is None


@pytest.mark.parametrize(
    "address", ["10.2.0.1", "192.168.7.8", "::1", "::ffff:10.2.0.1", "", "scanner.example"]
)
def test_any_other_address_is_not(address: str) -> None:
    assert rejection(LISTS, address=address) is REJECTIONS["address"]


@pytest.mark.parametrize("calling", ["", "scanner", "SCANNER2"])
def test_a_calling_title_that_is_not_on_the_list_is_rejected(calling: str) -> None:
    assert rejection(LISTS, calling=calling) is REJECTIONS["calling"]


def test_titles_are_compared_without_their_padding() -> None:
    assert rejection(LISTS, calling="  PACS ", called="S2NODE  ") is None


def test_a_call_for_somebody_else_is_rejected_even_with_empty_lists() -> None:
    assert rejection(ListenSettings(), calling="ANYONE", address="8.8.8.8") is None
    assert rejection(ListenSettings(), called="OTHER") is REJECTIONS["called"]


def test_every_rejection_is_one_the_standard_has() -> None:
    for given in REJECTIONS.values():
        assert (given.result, given.source) in {(1, 1), (2, 3)}
        assert given.reason in {1, 3, 7}
