"""SIGTERM, by which clusters announce that a machine will be taken away."""

import signal

import jax
from jax.experimental import multihost_utils

from quark_jax.training.signals import Noted


class Termination(Noted):
    """A context in which SIGTERM does not end the process but is noted, for the loop to save its
    state and end by itself. Of several processes, any may get it: JAX's preemption service, which
    has a handler of its own, then names the step after which all of them stop."""

    def __init__(self):
        super().__init__(signal.SIGTERM, heard=jax.process_count() == 1)

    def after(self, step: int) -> bool:
        """Whether to stop after `step`. Several processes have to ask at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.noted
