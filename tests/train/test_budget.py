"""Schedules follow the further spent of steps and minutes; signals ask, the loop ends."""

from __future__ import annotations

import math
import os
import signal

import pytest

from train.budget import Budget, learning_rate, stop_on_signal
from train.config import LoopConfig, OptimiserConfig


def test_progress_is_whichever_is_further_spent() -> None:
    loop = LoopConfig(steps=100, max_minutes=10.0)
    assert Budget(loop, step=50, elapsed_s=60).progress == 0.5
    assert Budget(loop, step=10, elapsed_s=300).progress == 0.5
    assert Budget(loop, step=10, elapsed_s=601).spent
    assert not Budget(LoopConfig(steps=100), step=99, elapsed_s=1e9).spent


def test_time_left_is_told_from_the_pace_so_far() -> None:
    assert Budget(LoopConfig(steps=100), step=25, elapsed_s=50).left_s == pytest.approx(150)
    assert Budget(LoopConfig(steps=100)).left_s == math.inf


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    config = OptimiserConfig(lr=1.0, warmup=0.1, final_lr=0.01)
    assert 0 < learning_rate(config, 0.0) < 0.02
    assert learning_rate(config, 0.1) == pytest.approx(0.976, abs=0.01)
    assert learning_rate(config, 0.5) == pytest.approx(0.505)
    assert learning_rate(config, 1.0) == pytest.approx(0.01)


def test_a_constant_rate_stays() -> None:
    config = OptimiserConfig(lr=2e-6, schedule="constant", warmup=0.0)
    assert {learning_rate(config, p) for p in (0.0, 0.5, 1.0)} == {2e-6}


def test_a_termination_signal_is_a_request_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
    assert signal.getsignal(signal.SIGTERM) is before
