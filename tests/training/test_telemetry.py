"""Speed and goodput by a clock of the test's own."""

import json
from types import SimpleNamespace

import pytest

from quark_jax.errors import UserError
from quark_jax.training import telemetry
from quark_jax.training.telemetry import Pace, begun


@pytest.fixture(autouse=True)
def by_the_clock(clock, monkeypatch):
    monkeypatch.setattr(telemetry, "time", clock)


def work(clock, pace, seconds, count=1, *, kept=True):
    for _ in range(count):
        clock.advance(seconds)
        pace.step({"tokens": 60.0}, 3e12, kept=kept)


def test_speed_since_the_last_row(clock, monkeypatch):
    monkeypatch.setattr(telemetry, "peak_flops", lambda: 4e12)
    pace = Pace(1000.0, 0.0)
    work(clock, pace, 2.0, 3)
    clock.advance(1.0)
    pace.waited(1.0)
    work(clock, pace, 1.0)
    row = pace.row()
    assert row["steps_per_second"] == 4 / 8
    assert row["tokens_per_second"] == 4 * 60 / 8
    assert row["mfu"] == pytest.approx(4 * 3e12 / 8 / 4e12)
    assert row["data_wait"] == 1 / 8
    pace.saved(3.0)
    pace.restart()
    work(clock, pace, 0.5)
    row = pace.row()
    assert row["steps_per_second"] == 2.0
    assert row["checkpoint_seconds"] == 3.0
    work(clock, pace, 0.5)
    assert pace.row()["checkpoint_seconds"] == 0.0


def test_a_cpu_has_no_peak_and_counts_no_memory(clock):
    pace = Pace(1000.0, 0.0)
    work(clock, pace, 1.0)
    assert set(pace.row()) == {
        *("steps_per_second", "tokens_per_second", "data_wait", "checkpoint_seconds", "goodput")
    }


def test_memory_is_that_of_the_fullest_device(clock, monkeypatch):
    devices = [
        SimpleNamespace(memory_stats=lambda used=used: {"peak_bytes_in_use": used})
        for used in (5, 9, 7)
    ]
    monkeypatch.setattr(telemetry.jax, "local_devices", lambda: devices)
    pace = Pace(1000.0, 0.0)
    work(clock, pace, 1.0)
    assert pace.row()["hbm_peak_bytes"] == 9


def test_goodput_over_a_kill(clock):
    pace = Pace(1000.0, 0.0)
    work(clock, pace, 10.0)  # compiles
    work(clock, pace, 1.0, 4)
    work(clock, pace, 1.0, kept=False)
    assert pace.row()["goodput"] == pytest.approx(4 / 15)
    clock.advance(5.0)  # evaluates
    pace.restart()
    work(clock, pace, 1.0, 2)
    saved = pace.begun, pace.productive
    work(clock, pace, 1.0, 8)  # is lost
    clock.advance(70.0)
    pace = Pace(*saved)
    work(clock, pace, 10.0)
    work(clock, pace, 1.0, 10)
    assert clock.now == 1120.0
    assert pace.row()["goodput"] == pytest.approx((6 + 10) / 120)


def test_when_a_run_began_is_written_once(clock, tmp_path):
    assert begun(tmp_path) == 1000.0
    clock.advance(50.0)
    assert begun(tmp_path) == 1000.0
    assert json.loads((tmp_path / "begun.json").read_text()) == {"begun": 1000.0}
    (tmp_path / "begun.json").write_text("")
    with pytest.raises(UserError, match=r"begun\.json: not JSON"):
        begun(tmp_path)
