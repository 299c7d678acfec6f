from __future__ import annotations

from node.clock import SetClock


class Hands:
    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000.0, 50.0

    def pass_s(self, seconds: float) -> None:
        self.wall, self.steady = self.wall + seconds, self.steady + seconds


def test_a_clock_that_was_set_says_by_how_much_and_says_it_once() -> None:
    hands = Hands()
    clock = SetClock(lambda: hands.wall, lambda: hands.steady)
    hands.pass_s(100)
    assert clock.moved_s() == 0
    hands.wall += 86_400
    hands.pass_s(0.5)
    assert clock.moved_s() == 86_400
    assert clock.moved_s() == 0
    hands.wall -= 2 * 86_400
    assert clock.moved_s() == -2 * 86_400


def test_small_corrections_are_none_however_many() -> None:
    hands = Hands()
    clock = SetClock(lambda: hands.wall, lambda: hands.steady)
    for _ in range(100):
        hands.wall += 0.4
        assert clock.moved_s() == 0
