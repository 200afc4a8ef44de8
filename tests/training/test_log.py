"""What a run tells of itself, by a clock of the test's own."""

import math

import pytest

from quark_jax.training import log, telemetry
from quark_jax.training.log import Pending, RunLog
from quark_jax.training.metrics import read_metrics


class Watchdog(list):
    """Notes what it is told."""

    def begin(self) -> None:
        self.append("begin")

    def step(self, number: int) -> None:
        self.append(number)

    def pause(self) -> None:
        self.append("pause")


class Batches:
    """Half a second passes until there is one, and three recordings could not be read."""

    skipped = (0, 1, 2)

    def __init__(self, clock):
        self.clock = clock

    def __next__(self) -> str:
        self.clock.advance(0.5)
        return "batch"


@pytest.fixture
def watchdog(monkeypatch) -> Watchdog:
    watchdog = Watchdog()
    monkeypatch.setattr(log, "Watchdog", lambda: watchdog)
    return watchdog


@pytest.fixture
def begun(clock, watchdog, monkeypatch, tmp_path) -> RunLog:
    """A log with a row every two steps, on chips that do a million operations a second."""
    monkeypatch.setattr(log, "time", clock)
    monkeypatch.setattr(telemetry, "time", clock)
    monkeypatch.setattr(telemetry, "peak_flops", lambda: 1e6)
    made = RunLog(tmp_path, 8, 2, 5, None, {}, "toy")
    yield made
    made.close()


def steps(log: RunLog, clock, numbers: range, *, loss: float = 1.0) -> None:
    """Steps of a second, half of it waiting for the batch."""
    for number in numbers:
        assert log.wait_for(Batches(clock)) == "batch"
        clock.advance(0.5)
        lost = not math.isfinite(loss)
        metrics = {"loss": loss, "tokens": 60.0, "skipped_steps": lost, "skipped_in_a_row": lost}
        log.pending = Pending(number, metrics, 4e5)
        log.report()


def test_a_row_is_of_the_steps_alone(begun, clock, tmp_path):
    with begun.aside():
        clock.advance(100.0)
    steps(begun, clock, range(1, 3))
    with begun.aside():
        clock.advance(100.0)
        with begun.saving():
            clock.advance(7.0)
    steps(begun, clock, range(3, 5))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 4]
    assert [row["checkpoint_seconds"] for row in rows] == [0.0, 7.0]
    for row in rows:
        assert row["steps_per_second"] == 1.0 and row["tokens_per_second"] == 60.0
        assert row["data_wait"] == 0.5 and row["skipped_recordings"] == 3
        assert row["mfu"] == pytest.approx(0.4)
        assert "skipped_in_a_row" not in row and "tokens" not in row


def test_steps_that_are_left_out_were_no_use(begun, clock, tmp_path):
    steps(begun, clock, range(1, 4))
    steps(begun, clock, range(4, 7), loss=math.nan)
    assert begun.notes == {"begun": 1000.0, "productive_seconds": 2.0}  # the first one compiled
    last = read_metrics(tmp_path)[-1]
    assert "loss" not in last and last["skipped_steps"] == 1
    assert last["goodput"] == pytest.approx(2 / 6)


def test_the_bar_says_that_it_compiles_until_a_step_is_done(begun, clock):
    assert str(begun._bar).startswith("toy, compiling:   0%")
    steps(begun, clock, range(1, 3))
    assert str(begun._bar).startswith("toy:  25%")


def test_the_watchdog_hears_of_each_step_and_of_what_is_none(begun, watchdog, clock):
    with begun.aside():
        assert watchdog.pop() == "pause"
    steps(begun, clock, range(1, 3))
    begun.close()
    assert watchdog == ["begin", 1, 2, "pause"]
