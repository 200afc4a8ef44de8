"""Ctrl-C, wherever it comes."""

import gc
import os
import signal
import threading
import time
import weakref

import pytest

from quark_jax.commands import guarded, interruptible, wait_for_interrupt


def wait() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.01)
    raise AssertionError("not interrupted")


@pytest.fixture
def in_the_collector():
    """in_the_collector(number): that signal comes while JAX frees memory."""
    sent = []

    def _xla_gc_callback(phase: str, info: dict) -> None:
        if sent and phase == "start":
            signal.raise_signal(sent.pop())  # and it is handled in here

    def send(number: signal.Signals) -> None:
        sent.append(number)
        gc.collect()
        assert not sent

    gc.callbacks.append(_xla_gc_callback)
    yield send
    gc.callbacks.remove(_xla_gc_callback)


def test_an_interrupt_ends_the_command(capsys):
    before = signal.getsignal(signal.SIGINT)

    def run() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait()

    assert guarded(run) == 130
    assert capsys.readouterr().err.startswith("quark: interrupted")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_jax_frees_memory_is_not_lost(number, in_the_collector):
    """Python drops what is raised in a callback of its garbage collector."""
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible(number):
        in_the_collector(number)
        wait()
    assert signal.getsignal(number) is before


def test_an_interrupt_while_a_weak_set_forgets_is_not_lost():
    class Pending(list):
        def append(self, item) -> None:
            signal.raise_signal(signal.SIGINT)

    class Thing:
        pass

    things, thing = weakref.WeakSet(), Thing()
    things.add(thing)
    things._iterating, things._pending_removals = {None}, Pending()  # it forgets by append
    with pytest.raises(KeyboardInterrupt), interruptible():
        del thing
        wait()


def test_an_interrupt_that_comes_too_late_is_dropped(in_the_collector):
    """It is sent again, but not to what follows."""
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with interruptible():
            in_the_collector(signal.SIGINT)
        time.sleep(0.2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not heard


def test_a_signal_that_another_thread_gets_ends_the_wait():
    main = threading.get_ident()

    def send() -> None:
        time.sleep(1)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    too_late = threading.Timer(20, signal.pthread_kill, (main, signal.SIGTERM))
    with interruptible(signal.SIGTERM):
        threading.Thread(target=send).start()
        too_late.start()
        wait_for_interrupt()
        assert not too_late.finished.is_set()
        too_late.cancel()
