"""Ctrl-C, wherever it comes."""

import gc
import os
import signal
import time

from quark_jax.commands import guarded


def wait() -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        time.sleep(0.01)
    raise AssertionError("not interrupted")


def test_an_interrupt_ends_the_command(capsys):
    before = signal.getsignal(signal.SIGINT)

    def run() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait()

    assert guarded(run) == 130
    assert capsys.readouterr().err.startswith("quark: interrupted")
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_while_jax_frees_memory_is_not_lost():
    """Python drops what is raised in a callback of its garbage collector."""
    sent = []

    def _xla_gc_callback(phase: str, info: dict) -> None:
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
            time.sleep(0.01)  # the signal is handled in here

    def run() -> None:
        gc.callbacks.append(_xla_gc_callback)
        try:
            gc.collect()
            wait()
        finally:
            gc.callbacks.remove(_xla_gc_callback)

    assert guarded(run) == 130
    assert sent
