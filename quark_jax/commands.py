"""How every command ends: with 0, in one line that a person can act on, or interrupted."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from quark_jax.errors import UserError


def guarded(run: Callable[[], None]) -> int:
    """`run`, with what a person can put right told in one line: 2; interrupted: 130."""
    logging.getLogger("absl").setLevel(logging.WARNING)  # the libraries' chatter
    try:
        with _interruptible():
            run()
    except UserError as error:
        print(f"quark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("quark: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C counts whenever it comes. JAX gives memory back in a callback of Python's garbage
    collector; Python drops what is raised in there, so that the signal has to be sent again."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code.co_name != "_xla_gc_callback":
            frame = frame.f_back
        if frame is None:
            raise KeyboardInterrupt
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():  # it gets no signals
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
