import os
import socket

import pytest

from config.settings import ListenSettings, TlsSettings
from node import watchdog
from node.watchdog import Pulse


def test_nothing_is_sent_where_systemd_does_not_listen():
    assert watchdog.notify("READY=1", {}) is False


def test_a_message_reaches_the_socket_systemd_named(tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        assert watchdog.notify("READY=1", {"NOTIFY_SOCKET": address})
        assert systemd.recv(100) == b"READY=1"


def test_an_abstract_socket_is_reached_too():
    name = f"s2node-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        assert watchdog.notify("WATCHDOG=1", {"NOTIFY_SOCKET": "@" + name})
        assert systemd.recv(100) == b"WATCHDOG=1"


def test_the_feed_comes_three_times_in_what_systemd_allows():
    assert watchdog.feed_every_s({"WATCHDOG_USEC": "30000000"}) == 10.0
    assert watchdog.feed_every_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 10.0


def test_there_is_no_feed_without_a_watchdog_or_for_another_process():
    assert watchdog.feed_every_s({}) is None
    assert watchdog.feed_every_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None


def test_a_lane_that_is_silent_for_too_long_is_named():
    pulses = {"settle": Pulse(limit_s=10, last=100), "deliver pacs": Pulse(limit_s=60, last=100)}
    assert watchdog.stuck(pulses, now=110) == []
    assert watchdog.stuck(pulses, now=111) == ["settle"]
    pulses["settle"].beat(111)
    assert watchdog.stuck(pulses, now=112) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_listener_that_answers_an_echo_is_well(store_peer, host):
    peer = store_peer(calling=["PACS"])
    listen = ListenSettings(
        ae_title="PEER", host=host, allow_ae_titles=["PACS"], allow_plain_text=True, allow_unknown_peers=True
    )
    assert watchdog.answers(listen, peer.port, TlsSettings())


def test_a_listener_that_rejects_us_is_well_too(store_peer):
    peer = store_peer(calling=["PACS"])
    assert watchdog.answers(ListenSettings(ae_title="PEER"), peer.port, TlsSettings())


def test_a_port_where_nobody_answers_is_not_well():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        assert not watchdog.answers(ListenSettings(), port, TlsSettings())
        deaf.listen()
        assert not watchdog.answers(ListenSettings(), port, TlsSettings(), timeout_s=0.2)
