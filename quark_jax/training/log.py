"""What a run tells while it goes on: the progress bar, and the rows of its metrics."""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any, NamedTuple

import grain
import jax
from tqdm import tqdm

from quark_jax.errors import UserError
from quark_jax.training.metrics import MetricWriter, Value
from quark_jax.training.telemetry import AMOUNTS, Pace, begun
from quark_jax.training.watchdog import Watchdog


class Pending(NamedTuple):
    """A step that is under way: its number, the scalars it will give, and the operations it takes
    over all devices."""

    number: int
    metrics: Mapping[str, jax.Array]
    flops: float


class RunLog:
    """The progress bar, the metrics, the watchdog, and when to give up. Every process has one; that
    of the first writes.

    A row is written `every` so many of the `steps`. `start` is the step that the run goes on after,
    None where it begins, and `notes` what the log had noted in the checkpoint there.
    """

    def __init__(
        self,
        workdir: str | PathLike,
        steps: int,
        every: int,
        skip_limit: int,
        start: int | None,
        notes: Mapping[str, Any],
        label: str,
    ):
        self.pending: Pending | None = None
        self._workdir, self._every, self._skip_limit = workdir, every, skip_limit
        writes = jax.process_index() == 0
        self._writer = MetricWriter(workdir, resumed=start) if writes else None
        now = begun(workdir) if writes and start is None else time.time()
        self._pace = Pace(notes.get("begun", now), notes.get("productive_seconds", 0.0))
        self._watchdog = Watchdog()
        if writes and start is not None:
            told = f"{workdir}: goes on after step {start}, the newest complete checkpoint"
            print(told, file=sys.stderr)
        self._unusable = 0
        self._label = label
        self._bar = tqdm(
            desc=f"{label}, compiling",
            initial=start or 0,
            total=steps,
            unit="step",
            dynamic_ncols=True,
            disable=not writes,
        )

    @property
    def notes(self) -> dict[str, float]:
        """What a checkpoint has to hold for goodput to go on."""
        return {"begun": self._pace.begun, "productive_seconds": self._pace.productive}

    def write(self, number: int, values: Mapping[str, Value]) -> None:
        """A row of step `number`."""
        if self._writer:
            self._writer.write(number, values)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in here is no part of a step."""
        self._watchdog.pause()
        yield
        self._pace.restart()
        self._watchdog.begin()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint is saved in here."""
        since = time.monotonic()
        yield
        self._pace.saved(time.monotonic() - since)

    def wait_for(self, batches: grain.DatasetIterator) -> Any:
        """The next batch."""
        since = time.monotonic()
        batch = next(batches)
        self._pace.waited(time.monotonic() - since)
        self._unusable = len(getattr(batches, "skipped", ()))
        return batch

    def report(self) -> None:
        """Wait for the pending step and write what it gave. Raises UserError where too many in a
        row were not finite."""
        if self.pending is None:
            return
        number, arrays, flops = self.pending
        self.pending = None
        metrics = {name: float(value) for name, value in arrays.items()}
        in_a_row = int(metrics.pop("skipped_in_a_row"))
        amounts = {name: metrics.pop(name) for name in AMOUNTS if name in metrics}
        self._pace.step(amounts, flops, kept=not in_a_row)
        self._watchdog.step(number)
        self._bar.set_description(self._label, refresh=False)
        self._bar.set_postfix(
            loss=f"{metrics['loss']:.3f}",
            **({"skipped": int(metrics["skipped_steps"])} if metrics["skipped_steps"] else {}),
            refresh=False,
        )
        self._bar.update()
        if number % self._every == 0:
            metrics |= self._pace.row() | {"skipped_recordings": self._unusable}
            self.write(number, {n: value for n, value in metrics.items() if math.isfinite(value)})
        if in_a_row >= self._skip_limit:
            raise UserError(
                f"{self._workdir}: loss or gradient was not finite in {in_a_row} steps in a row, "
                f"up to step {number}; the newest checkpoint is kept; lower the learning rate or "
                "look for damaged recordings, and begin again in another --workdir"
            )

    def close(self) -> None:
        """End the progress bar and the timers, and write what is left."""
        self._watchdog.pause()
        self._bar.close()
        if self._writer:
            self._writer.close()
