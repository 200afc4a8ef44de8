"""Several processes train as one, end together, and go on as another number of them."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from quark_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
MESH = {"data": 1, "fsdp": 4, "tensor": 2}  # parameters and batches are spread over the processes
HEARTBEAT = 15  # seconds
LIMIT = 240  # seconds that nothing here may take


class Job:
    """launch/local.py with a training of the small language model, on eight devices in all."""

    def __init__(self, item: Mapping, processes: int, trainers):
        workdir = Path(item["workdir"])
        self._log = workdir.parent / "job.log"
        command = [
            *(ROOT / "launch" / "local.py", f"--processes={processes}"),
            # It leaves it to JAX to end the others.
            *(f"--devices={8 // processes}", f"--grace={2 * LIMIT}", "--"),
            ROOT / "launch" / "train_lm.py",
            f"--config={ROOT}/tests/training/small.py:{json.dumps(item)}",
            f"--workdir={workdir}",
        ]
        changes = {"PYTHONPATH": str(ROOT), "QUARK_HEARTBEAT_SECONDS": str(HEARTBEAT)}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=os.environ | trainers.cache | changes,
                stdout=log,
                stderr=log,
            )

    def said(self) -> str:
        return self._log.read_text()

    def signal_one(self, number: signal.Signals) -> None:
        """Send a signal to one of the processes, any of them."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        children = [int(child) for child in listed.split()]
        assert len(children) == 2
        index = random.SystemRandom().randrange(2)
        print(f"{number.name} to process {index}")
        os.kill(sorted(children)[index], number)

    def ends(self, code: int = 0) -> None:
        assert self.process.wait(LIMIT) == code, self.said()


def losses(workdir: Path) -> list[float]:
    """By step; each is there once, as are the evaluations."""
    rows = read_metrics(workdir)
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, 13))
    assert [row["step"] for row in rows if "loss" not in row] == [0, 6, 12]
    return [row["loss"] for row in training]


def test_two_processes_are_one_whatever_ends_them(trainers, plan, wait_until, tmp_path):
    """Stopped by SIGTERM to one of them, then one killed by SIGKILL, then finished by a single
    process: with the losses and the model of a run of one process that nothing interrupted."""
    workdir = tmp_path / "broken"

    def job(processes: int, workdir: Path = workdir) -> Job:
        return Job(plan("lm", workdir, mesh=MESH), processes, trainers)

    def written(step: int) -> Callable[[], bool]:
        return lambda: any(row["step"] >= step for row in read_metrics(workdir))

    stopped = job(2)
    wait_until(written(1), stopped.process, stopped.said)
    stopped.signal_one(signal.SIGTERM)
    stopped.ends()
    steps = re.findall(r"stopped after step (\d+), which is saved", stopped.said())
    assert len(steps) == 2 and len(set(steps)) == 1, stopped.said()
    assert (workdir / "checkpoints" / steps[0]).is_dir()

    killed = job(2)
    eighth = workdir / "checkpoints" / "8"
    wait_until(lambda: eighth.is_dir() and written(9)(), killed.process, killed.said)
    killed.signal_one(signal.SIGKILL)
    before = time.monotonic()
    killed.ends(128 + signal.SIGKILL)
    print(f"the other one was ended after {time.monotonic() - before:.1f} s")
    saved = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()]
    assert max(saved) == 8

    job(1).ends()
    job(1, tmp_path / "whole").ends()
    whole = losses(tmp_path / "whole")
    assert losses(workdir) == pytest.approx(whole, rel=0, abs=1e-5)
    differ = max(abs(a - b) for a, b in zip(losses(workdir), whole, strict=True))
    print(f"losses differ by at most {differ:.1e}")
