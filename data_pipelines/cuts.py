"""Cutting pieces of one length out of recordings of any length."""

import errno
import logging
from collections.abc import Sequence

import numpy as np

from data_pipelines.manifests import Entry, Unreachable, in_bucket
from data_pipelines.simulation import fit, is_silent
from quark_jax.errors import UserError

_log = logging.getLogger(__name__)
_DRAWS = 4
_KEEP_BYTES = 1 << 28  # of recordings that have to be decoded whole, the first ones are kept
_LASTING = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP)
)


def why_unusable(entry: Entry, error: UserError) -> str:
    """The reason of `error`, which was raised for `entry`, if it is one that lasts.

    Raises:
        Unreachable: if it may not: network, memory, open files, a disk that does not answer. To
            pass over a recording for that would make examples differ from run to run.
    """
    if isinstance(error, Unreachable):
        raise error
    if not in_bucket(entry.path):  # libsndfile does not tell damage from a file it cannot read
        try:
            with entry.path.open("rb") as file:
                while file.read(1 << 20):
                    pass
        except OSError as fault:
            if fault.errno not in _LASTING:
                raise Unreachable(
                    f"{entry.path}: cannot be read ({fault.strerror}); free what is short, or "
                    "take the recording out of the manifest"
                ) from fault
    return str(error).removeprefix(f"{entry.path}: ")


class Cutter:
    """Cuts of `samples` samples at `rate` Hz from `entries`; files that cannot be used are passed
    over in favour of the next one, and counted. All methods raise `Unreachable` where that may be
    different another time.

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
        self._lengths: dict[Entry, int | None] = {}
        self._kept: dict[Entry, np.ndarray] = {}
        self._room = _KEEP_BYTES

    def __getstate__(self) -> dict:
        """Without the waves: worker processes keep their own."""
        return self.__dict__ | {"_kept": {}, "_room": _KEEP_BYTES}

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, entry: Entry) -> np.ndarray | None:
        """The whole recording [samples], not to be written to; None if corrupt or silent."""
        if entry in self._kept:
            return self._kept[entry]
        if entry in self.skipped:
            return None
        try:
            wave = entry.read(self.rate)
        except UserError as error:
            return self._skip(entry, why_unusable(entry, error))
        if is_silent(wave):
            return self._skip(entry, "silent")
        wave.flags.writeable = False
        if wave.nbytes <= self._room:
            self._room -= wave.nbytes
            self._kept[entry] = wave
        return wave

    def random(
        self, index: int, rng: np.random.Generator, among: Sequence[int] | None = None
    ) -> tuple[np.ndarray, Entry, int]:
        """A random audible cut of entry `index` (or of the first usable one after it); shorter
        recordings wrap round.

        `among` restricts the choice to the entries of these numbers; `index` then counts in it.

        Only the cut is decoded where `Entry.length` allows it. Damage elsewhere in such a file is
        then not met; a cut that meets it is taken from the next entry. What is drawn from `rng`
        does not depend on the files, so that the same call gives the same cut in any process.

        Returns:
            The cut float32 [samples]; its entry; and where it starts, in samples at `rate`.

        Raises:
            UserError: if no entry can be used.
        """
        part, entry, start = self.random_part(index, rng, among)
        return fit(part, self.samples), entry, start

    def random_part(
        self, index: int, rng: np.random.Generator, among: Sequence[int] | None = None
    ) -> tuple[np.ndarray, Entry, int]:
        """As `random`, but of a shorter recording all of it, once."""
        places = rng.random(_DRAWS)
        order = range(len(self.entries)) if among is None else among
        for step in range(len(order)):
            entry = self.entries[order[(index + step) % len(order)]]
            try:
                found = self._cut(entry, places)
            except UserError as error:
                found = self._skip(entry, why_unusable(entry, error))
            if found is not None:
                return found[0], entry, found[1]
        raise UserError(
            f"none of {len(order)} recordings can be used; {entry.path}: {self.skipped[entry]}"
        )

    def _cut(self, entry: Entry, places: np.ndarray) -> tuple[np.ndarray, int] | None:
        """The first audible cut at one of `places` (shares of the recording), or that round its
        loudest sample; and its start. None if the recording cannot be used."""
        if entry not in self._lengths:
            self._lengths[entry] = entry.length(self.rate)
        whole = None
        if (length := self._lengths[entry]) is None:
            if (whole := self.read(entry)) is None:
                return None
            length = len(whole)
        last = max(length - self.samples, 0)
        for start in (int(place * (last + 1)) for place in places):
            wanted = min(self.samples, length)
            if whole is None:
                cut = entry.read(self.rate, start=start, samples=wanted)
            else:
                cut = whole[start : start + wanted]
            if not is_silent(cut):
                return cut, start
        if (whole := self.read(entry)) is None:
            return None
        start = min(max(int(np.argmax(np.abs(whole))) - self.samples // 2, 0), last)
        return whole[start : start + self.samples], start

    def _skip(self, entry: Entry, reason: str) -> None:
        if self.skipped.setdefault(entry, reason) is reason:
            _log.warning("skipped %s: %s", entry.path, reason)
