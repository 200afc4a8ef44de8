"""A step that hangs says where."""

import io
import time

import pytest

from quark_jax.training import watchdog as module
from quark_jax.training.watchdog import Watchdog


class Timer:
    """In the place of faulthandler: when it will print, by the test's own clock."""

    def __init__(self, clock):
        self.clock, self.due, self.set = clock, None, 0

    def dump_traceback_later(self, seconds: float, *, file) -> None:
        self.due, self.set = self.clock.now + seconds, self.set + 1

    def cancel_dump_traceback_later(self) -> None:
        self.due = None


@pytest.fixture
def timer(clock, monkeypatch) -> Timer:
    timer = Timer(clock)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "faulthandler", timer)
    return timer


def work(watchdog, clock, seconds: float, numbers: range) -> None:
    for number in numbers:
        clock.advance(seconds)
        watchdog.step(number)


def test_the_limit_is_ten_medians_of_the_last_hundred_steps(clock, timer):
    watchdog = Watchdog(least=0.5, file=io.StringIO())
    watchdog.begin()
    work(watchdog, clock, 1.0, range(4))
    assert timer.due is None  # too few to tell
    work(watchdog, clock, 1.0, range(4, 5))
    assert timer.due == clock.now + 12.5
    work(watchdog, clock, 1.0, range(5, 7))
    assert timer.due == clock.now + 10.5 and timer.set == 1  # as yet there are ten seconds
    work(watchdog, clock, 1.0, range(7, 200))
    assert timer.due - clock.now >= 10 and timer.set < 100
    work(watchdog, clock, 0.05, range(200, 360))  # fewer than those that took long
    assert timer.due <= clock.now + 1.25 * 0.5


def test_a_step_that_took_long_is_told_once(clock, timer):
    said = io.StringIO()
    watchdog = Watchdog(file=said)
    watchdog.begin()
    work(watchdog, clock, 1.0, range(5))
    work(watchdog, clock, 12.4, range(5, 6))
    assert said.getvalue() == ""
    work(watchdog, clock, 20.0, range(6, 7))
    assert said.getvalue().startswith("step 6 took 20.0 s, the median is 1 s; what the threads did")
    work(watchdog, clock, 1.0, range(7, 20))
    assert said.getvalue().count("\n") == 1 and timer.due > clock.now  # and goes on


def test_a_pause_may_last(clock, timer):
    said = io.StringIO()
    watchdog = Watchdog(file=said)
    watchdog.begin()
    work(watchdog, clock, 1.0, range(5))
    for seconds in (0.5, 1000.0):
        watchdog.pause()
        assert timer.due is None
        clock.advance(seconds)
        watchdog.begin()
        assert timer.due == clock.now + 12.5
    work(watchdog, clock, 1.0, range(5, 6))
    assert said.getvalue() == ""


def test_all_stacks_while_the_step_hangs(clock, tmp_path, monkeypatch):
    """By faulthandler's own timer, after a second."""
    monkeypatch.setattr(module, "time", clock)
    path = tmp_path / "said"

    def hangs() -> None:
        until = time.monotonic() + 60
        while "most recent call first" not in path.read_text() and time.monotonic() < until:
            time.sleep(0.05)

    with path.open("w") as file:
        watchdog = Watchdog(least=0.8, file=file)
        watchdog.begin()
        work(watchdog, clock, 0.001, range(5))
        hangs()
        watchdog.pause()
    assert path.read_text().count(" in hangs\n") == 1
