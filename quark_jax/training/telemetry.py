"""How fast a run goes, and what its time goes into.

A row of metrics.jsonl that has a loss has these too, measured since the row before (or since the
evaluation or checkpoint after it); the first row of a start has compiling in it.

    steps_per_second            steps that were completed
    tokens_per_second           targets that a language model learned from: codes, and ENDs; of all
                                devices, padding and prefixes left out
    audio_seconds_per_second    seconds of audio that a codec learned from, of all devices
    mfu                         share of the chips' bfloat16 peak (`quark_jax.hardware`) that the
                                model's operations make up (`flops`); only where the chip is known
    data_wait                   share of the time that the loop waited for a batch
    checkpoint_seconds          that the loop stood still for checkpoints; they are written while
                                it goes on
    hbm_peak_bytes              most that any device of the first process has had in use since the
                                start; only where the backend counts it
    goodput                     share of the wall time since the run's first start, over restarts,
                                that went into steps that were kept; what did not is starting, the
                                first step of each start, which compiles, evaluations, checkpoints,
                                steps that were not finite, and those after the last checkpoint that
                                a kill undid
    skipped_steps               left out so far because they were not finite
    skipped_recordings          that the first process could not read since its start

`Pace` keeps these; `fit` writes them.
"""

import json
import time
from collections.abc import Mapping
from os import PathLike

import jax
from etils import epath

from quark_jax.files import read_json, replacing
from quark_jax.training.flops import peak_flops

# Scalars of a step that are amounts of work; a row has how many there were in a second.
AMOUNTS = ("tokens", "audio_seconds")


class Pace:
    """The clock of a run that began at `begun`, seconds since the epoch, of which `productive` went
    into steps that were kept before this start."""

    def __init__(self, begun: float, productive: float):
        self.begun, self.productive = begun, productive
        self._peak = peak_flops()
        self._started = False  # whether the first step, which compiles, is over
        self._saving = 0.0
        self.restart()

    def restart(self) -> None:
        """Measure from here on."""
        self._since = self._last = time.monotonic()
        self._steps, self._waited, self._flops = 0, 0.0, 0.0
        self._amounts: dict[str, float] = {}

    def waited(self, seconds: float) -> None:
        """The loop waited for a batch."""
        self._waited += seconds

    def saved(self, seconds: float) -> None:
        """The loop stood still for a checkpoint."""
        self._saving += seconds

    def step(self, amounts: Mapping[str, float], flops: float, *, kept: bool) -> None:
        """A step is complete: it did `amounts` of work and the operations `flops`, over all
        devices."""
        now = time.monotonic()
        if kept and self._started:
            self.productive += now - self._last
        self._started, self._last = True, now
        self._steps += 1
        self._flops += flops
        for name, amount in amounts.items():
            self._amounts[name] = self._amounts.get(name, 0.0) + amount

    def row(self) -> dict[str, float]:
        """The numbers since the last row, which is begun anew."""
        passed = max(self._last - self._since, 1e-9)
        wall = max(time.time() - self.begun, 1e-9)
        numbers = {"steps_per_second": self._steps / passed}
        numbers |= {f"{name}_per_second": sum_ / passed for name, sum_ in self._amounts.items()}
        if self._peak and self._flops:
            numbers["mfu"] = self._flops / passed / self._peak
        numbers["data_wait"] = self._waited / max(time.monotonic() - self._since, 1e-9)
        numbers["checkpoint_seconds"] = self._saving
        if (used := _hbm_peak()) is not None:
            numbers["hbm_peak_bytes"] = used
        numbers["goodput"] = min(self.productive / wall, 1.0)
        self._saving = 0.0
        self.restart()
        return numbers


def begun(workdir: str | PathLike) -> float:
    """When the run in `workdir` was first started, in seconds since the epoch: it is written into
    begun.json there, once."""
    path = epath.Path(workdir) / "begun.json"
    if path.exists():
        return float(read_json(path, "remove it")["begun"])
    now = time.time()
    with replacing(path) as beside:
        beside.write_text(json.dumps({"begun": now}))
    return now


def _hbm_peak() -> int | None:
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if each and "peak_bytes_in_use" in each]
    return max(peaks, default=None)
