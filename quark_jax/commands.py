"""How every command ends: with 0, in one line that a person can act on, or interrupted."""

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from absl import app, flags

from quark_jax.errors import Stopped, UserError


def guarded(run: Callable[[], None]) -> int:
    """`run`, with what a person can put right told in one line: 2; interrupted: 130. To have
    stopped when that was asked for, with everything saved, is 0, or what QUARK_STOPPED_EXIT says:
    to a scheduler 0 may mean that there is nothing left to do."""
    _quiet()
    try:
        with interruptible():
            run()
    except UserError as error:
        print(f"quark: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"quark: {stopped}; run the same command again to go on", file=sys.stderr)
        return int(os.environ.get("QUARK_STOPPED_EXIT", "0"))
    except KeyboardInterrupt:
        print("quark: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


# Without these libtpu, where it is installed, complains on a machine that is no TPU VM.
NO_TPU = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}


def _quiet() -> None:
    """Have the libraries tell no more than warnings, and nothing of a TPU that is not there."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    if "JAX_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("jax").setLevel(logging.WARNING)
    asked = "JAX_PLATFORMS" in os.environ or "JAX_FORCE_TPU_INIT" in os.environ
    there = any(any(Path("/dev").glob(chips)) for chips in ("accel*", "vfio/*"))
    if not asked and not there:
        os.environ.update({key: os.environ.get(key, value) for key, value in NO_TPU.items()})


def launch(run: Callable[[Sequence[str]], None]) -> None:
    """A program of `absl.flags`: `run` of the arguments that are no flags, as `guarded`. What is
    wrong with the flags or the config is told like that too; --help ends with 0."""
    app.run(lambda arguments: guarded(lambda: run(arguments[1:])), flags_parser=parse_flags)


def parse_flags(arguments: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> Sequence[str]:
    """Read flags, configs among them, from a command line that begins with the program's name; what
    is left of it. What is wrong is told in one line, and ends the program with 2."""
    try:
        rest = values(arguments)
        for value in values.flag_values_dict().values():
            getattr(value, "to_dict", None)  # of a file that was not found, this raises OSError
        return rest
    except SystemExit:
        raise SystemExit(0) from None  # absl ends with 1 where it was asked for --help
    except flags.Error as error:
        cause = error
        while cause.__context__ is not None:
            cause = cause.__context__
        # What a config refuses is there without the traceback.
        problem = str(cause if isinstance(cause, UserError) else error)
        if missing := re.findall(r"Flag (--\w+) must have a value", problem):
            problem = f"{', '.join(missing)}: not given; see {arguments[0]} --help"
    except AttributeError as error:
        name = re.search(r"\w+", str(error)).group()  # the rest is quoted twice over
        problem = f"the config has no field {name!r}; its file names them"
    except OSError as error:
        problem = f"--config: {str(error).splitlines()[-1].strip()}; give the file of a config"
    print(f"quark: {problem}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def interruptible(number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """In here signal `number` raises KeyboardInterrupt, whenever it comes. JAX gives memory back in
    a callback of Python's garbage collector, and weak sets forget in callbacks; Python drops what
    is raised in there, so that the signal has to be sent again. Only the main thread gets signals;
    in others this does nothing."""
    again: threading.Timer | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal again
        while frame is not None and not _in_callback(frame):
            frame = frame.f_back
        if frame is None:
            raise KeyboardInterrupt
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, interrupt)
    try:
        yield
    finally:
        if again is not None:  # what was interrupted has ended
            again.cancel()
        signal.signal(number, before)


def _in_callback(frame: FrameType) -> bool:
    """Whether `frame` may be a callback of the garbage collector or of a weak reference."""
    module = frame.f_globals.get("__name__")
    return frame.f_code.co_name == "_xla_gc_callback" or module in ("weakref", "_weakrefset")


def wait_for_interrupt() -> None:
    """Return at the KeyboardInterrupt that `interruptible` raises. A signal that the system gives
    to another thread wakes no main thread that waits for good; it is heard of between two sleeps.
    """
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(0.5)
