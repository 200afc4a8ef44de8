"""Cutting pieces of one length out of recordings of any length."""

import logging
from collections.abc import Sequence

import numpy as np

from data_pipelines.manifests import Entry
from data_pipelines.simulation import fit, is_silent
from quark_jax.errors import UserError

_log = logging.getLogger(__name__)
_DRAWS = 4
_KEEP_BYTES = 1 << 28  # a small corpus is decoded once; of a large one the first part is


class Cutter:
    """Cuts of `samples` samples at `rate` Hz from `entries`; files that cannot be used are passed
    over in favour of the next one, and counted.

    Attributes:
        skipped: the corrupt and silent entries met so far in this process, and the reason of each.
    """

    def __init__(self, entries: Sequence[Entry], *, rate: int, samples: int):
        if not entries:
            raise UserError("no recordings to cut from; check the manifest and its split")
        self.entries = list(entries)
        self.rate = rate
        self.samples = samples
        self.skipped: dict[Entry, str] = {}
        self._kept: dict[Entry, np.ndarray] = {}
        self._room = _KEEP_BYTES

    def __getstate__(self) -> dict:
        """Without the waves: worker processes keep their own."""
        return self.__dict__ | {"_kept": {}, "_room": _KEEP_BYTES}

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, entry: Entry) -> np.ndarray | None:
        """The whole recording [samples], not to be written to; None if corrupt or silent."""
        if entry in self.skipped:
            return None
        if entry in self._kept:
            return self._kept[entry]
        try:
            wave = entry.read(self.rate)
            reason = "silent" if is_silent(wave) else None
        except UserError as error:
            reason = str(error).removeprefix(f"{entry.path}: ")
        if reason is not None:
            if self.skipped.setdefault(entry, reason) is reason:
                _log.warning("skipped %s: %s", entry.path, reason)
            return None
        wave.flags.writeable = False
        if wave.nbytes <= self._room:
            self._room -= wave.nbytes
            self._kept[entry] = wave
        return wave

    def random(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, Entry, int]:
        """A random audible cut of entry `index` (or of the first usable one after it).

        Returns:
            The cut float32 [samples]; its entry; and where it starts, in samples at `rate`.

        Raises:
            UserError: if no entry can be used.
        """
        entry, wave = self._usable(index)
        last = max(len(wave) - self.samples, 0)
        for _ in range(_DRAWS):
            start = int(rng.integers(last + 1))
            cut = fit(wave, self.samples, start)
            if not is_silent(cut):
                return cut, entry, start
        loudest = int(np.argmax(np.abs(wave)))
        start = min(max(loudest - self.samples // 2, 0), last)
        return fit(wave, self.samples, start), entry, start

    def _usable(self, index: int) -> tuple[Entry, np.ndarray]:
        for step in range(len(self.entries)):
            entry = self.entries[(index + step) % len(self.entries)]
            wave = self.read(entry)
            if wave is not None:
                return entry, wave
        first, reason = next(iter(self.skipped.items()))
        raise UserError(
            f"none of {len(self.entries)} recordings can be used; {first.path}: {reason}"
        )
