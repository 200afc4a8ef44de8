"""Signals that are noted, for the training loop to act on between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Noted:
    """A context in which signal `number` does nothing but set `noted`; the handler from before is
    put back at its end. Python gives signals to the main thread: in another, nothing is noted, nor
    is where it is not to be `heard`."""

    def __init__(self, number: signal.Signals, *, heard: bool = True):
        self.noted = False
        self._number = number
        self._own = heard and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._own:
            self._before = signal.signal(self._number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._own:
            signal.signal(self._number, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
