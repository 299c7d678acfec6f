import os
import socket

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
