"""A clock, and runs on eight fake devices, that the tests of training share."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest


class Clock:
    """In the place of a module's `time`: seconds pass where a test says so."""

    def __init__(self):
        self.now = 1000.0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def plan(small_run) -> Callable[..., dict]:
    """plan(kind, workdir, **changes): an item for tests/training/small.py, of the data that the
    runs of `small_run` had."""
    made = {"codec": str(small_run / "codec/model/codec"), "dataset": str(small_run / "tokens")}

    def make(kind: str, workdir: Path, **changes: Mapping) -> dict:
        return {"kind": kind, "workdir": str(workdir), **changes} | (made if kind == "lm" else {})

    return make


@pytest.fixture(scope="session")
def eight(trainers, plan, small, once) -> Path:
    """A folder with the finished workdirs `codec` and `lm`, as in `small_run`, of eight devices
    that share batches and parameters."""

    def make(folder: Path) -> None:
        plans = [plan(kind, folder / kind, mesh=small.SPLIT) for kind in ("codec", "lm")]
        trainers.run(plans, devices=8)

    return once("eight", make)
