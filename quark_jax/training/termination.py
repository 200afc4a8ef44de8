"""SIGTERM, by which clusters announce that a machine will be taken away."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class Termination:
    """A context in which SIGTERM does not end the process but is noted, for the loop to save its
    state and end by itself. Of several processes, any may get it: JAX's preemption service then
    names the step after which all of them stop."""

    def __init__(self):
        self._noted = False

    def after(self, step: int) -> bool:
        """Whether to stop after `step`. Several processes have to ask at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted

    def __enter__(self) -> "Termination":
        # The preemption service has a handler of its own; other threads get no signals.
        self._own = jax.process_count() == 1
        self._own &= threading.current_thread() is threading.main_thread()
        if self._own:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._own:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
