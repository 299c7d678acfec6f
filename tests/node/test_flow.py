import sqlite3
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import RetrySettings
from engine.errors import BundleInvalid, ProviderMissing, SynthesisFailed, VolumeUnsupported
from node.errors import (
    REJECTION_CODES,
    DestinationRefused,
    DestinationUnreachable,
    NodeError,
    SeriesRejected,
)
from node.flow import (
    DISPOSITIONS,
    PARK_CODES,
    Action,
    Failure,
    attempt,
    disposition_of,
    retry_delay_s,
)
from node.spool import SpoolFull


@pytest.mark.parametrize(
    ("error", "action", "code"),
    [
        (SeriesRejected("HAS-CONTRAST", "the agent tag is filled"), Action.REJECT, "HAS-CONTRAST"),
        (VolumeUnsupported("two slices"), Action.REJECT, "VOLUME-UNSUPPORTED"),
        (SynthesisFailed("out of device memory"), Action.RETRY, "SYNTHESIS-FAILED"),
        (MemoryError(), Action.RETRY, "OUT-OF-MEMORY"),
        (FileNotFoundError(2, "No such file"), Action.RETRY, "DISK"),
        (OSError(28, "No space left on device"), Action.WAIT, "DISK"),
        (SpoolFull("no room"), Action.WAIT, "DISK"),
        (sqlite3.OperationalError("disk I/O error"), Action.WAIT, "DISK"),
        (BundleInvalid(Path("b"), "digest differs"), Action.PARK, "BUNDLE-INVALID"),
        (ProviderMissing("cuda", ("cpu",), "install it"), Action.PARK, "PROVIDER-MISSING"),
        (DestinationUnreachable("nobody answered"), Action.RETRY, "DELIVERY-REFUSED"),
        (DestinationRefused(0x0122, "no"), Action.PARK, "DELIVERY-REFUSED"),
        (NodeError("an error without a row"), Action.PARK, "BUG"),
        (KeyError("surprise"), Action.PARK, "BUG"),
    ],
)
def test_every_error_has_one_disposition(error, action, code):
    found = disposition_of(error)
    assert (found.action, found.code) == (action, code)


def test_every_code_a_job_can_stop_with_is_explained():
    for kind, disposition in DISPOSITIONS.items():
        known = REJECTION_CODES if disposition.action is Action.REJECT else PARK_CODES
        assert disposition.code in known or kind is SeriesRejected


def test_a_ledger_that_cannot_be_written_says_so_in_words():
    def step():
        raise sqlite3.OperationalError("database or disk is full")

    assert attempt(step).reason == "the ledger: database or disk is full"


def test_a_step_that_ends_well_hands_its_value_on():
    assert attempt(lambda: 7) == 7


def test_the_message_of_an_unforeseen_error_is_not_kept_because_it_may_name_a_patient():
    def step():
        raise ValueError("cannot parse 'DOE^JANE'")

    failure = attempt(step)
    assert isinstance(failure, Failure)
    assert "DOE" not in failure.reason + failure.trace
    assert failure.reason.startswith("ValueError < test_flow.py:")


def test_the_reason_of_a_disk_error_has_no_path():
    def step():
        raise OSError(28, "No space left on device", "/data/inbox/1.2.3.4.5.6/7.dcm")

    assert attempt(step).reason == "No space left on device"


def test_an_error_raised_on_purpose_keeps_its_words():
    def step():
        raise DestinationRefused(0xA900, "other SOP class")

    assert attempt(step).reason == "status 0xA900: other SOP class"


def test_a_rejection_keeps_its_reason_without_repeating_the_code():
    def step():
        raise SeriesRejected("TOO-FEW-SLICES", "3 slices, at least 8")

    assert attempt(step).reason == "3 slices, at least 8"


def test_waits_double_from_the_first_to_the_longest():
    retry = RetrySettings(first_s=15, factor=2, max_s=100, jitter=0)
    assert [retry_delay_s(n, retry, Random(0)) for n in (1, 2, 3, 4, 5, 100_000)] == [
        15,
        30,
        60,
        100,
        100,
        100,
    ]


@given(
    failures=st.integers(1, 10**6),
    first_s=st.floats(0.01, 1000),
    factor=st.floats(1, 10),
    jitter=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_a_wait_never_leaves_its_bounds(failures, first_s, factor, jitter, seed):
    retry = RetrySettings(first_s=first_s, factor=factor, max_s=3600, jitter=jitter)
    wait = retry_delay_s(failures, retry, Random(seed))
    assert first_s * (1 - jitter) - 1e-9 <= wait <= 3600 * (1 + jitter) + 1e-9
