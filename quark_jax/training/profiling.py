"""Profiles of a few steps, when they are asked for."""

import signal
import tempfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax
from etils import epath

from quark_jax.errors import UserError
from quark_jax.training.signals import Noted


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps are profiled, beside those after a SIGUSR1."""

    first: int = 0  # step, counted from 1; 0: none
    steps: int = 5

    def __post_init__(self):
        if self.first < 0 or self.steps < 1:
            raise UserError(
                f"run.profile: {self.steps} steps from step {self.first}; set at least 1, from at "
                "least 0"
            )


class Profiler(Noted):
    """A context in which steps are profiled into `workdir`/profile, where TensorBoard's profile
    plug-in (xprof) finds them: `config.steps` from step `config.first`, on the first process, and
    as many after each SIGUSR1, on the process that gets it. In a pod of Kubernetes, whose process 1
    is the training: kubectl exec POD -- sh -c 'kill -USR1 1'.
    """

    def __init__(self, workdir: str | PathLike, config: ProfileConfig):
        super().__init__(signal.SIGUSR1)
        self._target = epath.Path(workdir) / "profile"
        self._config = config
        self._last: int | None = None  # step of the profile that is being taken
        self._folder: tempfile.TemporaryDirectory | None = None

    def begin(self, number: int) -> None:
        """Step `number` is next."""
        by_step = number == self._config.first and jax.process_index() == 0
        if self._last is not None or not (by_step or self.noted):
            return
        self.noted = False
        self._last = number + self._config.steps - 1
        self._folder = tempfile.TemporaryDirectory()
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it would slow the steps down
        jax.profiler.start_trace(self._folder.name, profiler_options=options)

    def ends(self, number: int) -> bool:
        """Whether step `number` is the last of a profile: `write` it when the step is complete."""
        return number == self._last

    def write(self) -> None:
        """End the profile that is being taken."""
        jax.profiler.stop_trace()
        self._last = None
        with self._folder as folder:  # buckets are no folders that XLA writes to
            for path in Path(folder).rglob("*"):
                if path.is_file():
                    target = self._target / path.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._last is not None:
            self.write()
