"""What a run that hangs was doing."""

import faulthandler
import sys
import time
from collections import deque
from statistics import median
from typing import TextIO

_FACTOR = 10  # times the median
_MEASURED = 100  # last steps that the median is of
_FEWEST = 5  # steps before there is a median


class Watchdog:
    """Prints the stacks of all threads to stderr when a step takes ten times the median of the last
    hundred, and at least `least` seconds: once, and the run goes on. A step that compiles another
    program may take as long; the stacks tell. Every process has its own.

    The timer is faulthandler's, a thread in C: it runs also where a library hangs with Python's
    lock held. To set it costs milliseconds on a busy machine, so that it is set to a quarter more,
    and only again when that has passed.
    """

    def __init__(self, *, least: float = 10.0, file: TextIO | None = None):
        self._least, self._file = least, file or sys.__stderr__
        self._durations: deque[float] = deque(maxlen=_MEASURED)
        self._since = self._limit = 0.0
        self._due: float | None = None  # when the timer runs out

    def begin(self) -> None:
        """A step begins: after a pause."""
        self._since = time.monotonic()
        set_well = self._due is not None and self._due - self._since >= self._limit
        if set_well or len(self._durations) < _FEWEST:
            return
        self._limit = max(_FACTOR * median(self._durations), self._least)
        self._due = self._since + 1.25 * self._limit
        faulthandler.dump_traceback_later(1.25 * self._limit, file=self._file)

    def step(self, number: int) -> None:
        """Step `number` is complete, and the next begins."""
        now = time.monotonic()
        took = now - self._since
        if self._due is not None and now >= self._due:
            print(
                f"step {number} took {took:.1f} s, the median is {median(self._durations):.2g} s; "
                "what the threads did meanwhile stands above",
                file=self._file,
                flush=True,
            )
            self._due = None
        self._durations.append(took)
        self.begin()

    def pause(self) -> None:
        """What follows is no step, and may take any time."""
        faulthandler.cancel_dump_traceback_later()
        self._due = None
