"""A step that hangs says where."""

import time

import pytest

from quark_jax.training.watchdog import Watchdog


def hangs(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture
def watched(tmp_path):
    """A watchdog that bites after half a second, used to a millisecond, and what it has said."""
    path = tmp_path / "said"
    with path.open("w") as file:
        watchdog = Watchdog(least=0.4, file=file)
        watchdog.begin()
        for number in range(5):
            time.sleep(0.001)
            watchdog.step(number)
        yield watchdog, path.read_text
        watchdog.pause()


def test_all_stacks_once_while_the_step_hangs(watched):
    watchdog, said = watched
    time.sleep(0.05)  # fifty times the median, but soon over
    watchdog.step(5)
    assert said() == ""
    hangs(0.9)
    so_far = said()
    assert so_far.count(" in hangs\n") == 1 and "most recent call first" in so_far
    watchdog.step(6)
    assert said().startswith(so_far) and "\nstep 6 took " in said()
    time.sleep(0.01)
    watchdog.step(7)  # and goes on
    assert said().count(" took ") == said().count(" in hangs\n") == 1


def test_a_pause_may_last(watched):
    watchdog, said = watched
    watchdog.pause()
    hangs(0.8)
    watchdog.begin()
    time.sleep(0.01)
    watchdog.step(5)
    assert said() == ""
