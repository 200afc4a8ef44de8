"""Runs on eight fake devices that the tests of training share."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest


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
    """A folder with the finished workdirs `codec` and `lm`, as in `small_run`, of eight devices:
    the codec with batches over all of them, the language model with parameters split too."""

    def make(folder: Path) -> None:
        lm = plan("lm", folder / "lm", mesh=small.SPLIT)
        trainers.run([plan("codec", folder / "codec"), lm], devices=8)

    return once("eight", make)


@pytest.fixture(scope="session")
def eight_otherwise(trainers, plan, small, once) -> Path:
    """The first steps of `eight`, before discriminators join, each model on the other's mesh."""

    def make(folder: Path) -> None:
        run = {"steps": 3}
        codec = plan("plain", folder / "codec", mesh=small.SPLIT, run=run)
        trainers.run([codec, plan("lm", folder / "lm", run=run)], devices=8)

    return once("otherwise", make)
