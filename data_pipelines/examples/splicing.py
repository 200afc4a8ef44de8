"""Cutting speech between words, and joining the pieces without clicks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.alignments import Word
from data_pipelines.manifests import Entry
from data_pipelines.simulation import active_power

_WINDOW_SECONDS = 0.01  # over which power is measured
_MARGIN_SECONDS = 0.04  # how far a boundary may lie from where the alignment has it
_OUTER_SECONDS = 0.15  # how far before the first and after the last word is looked for silence


@dataclass(frozen=True)
class Joints:
    """Where a recording of n words may be cut.

    Attributes:
        places: int [n + 1], samples: the quietest place before the first word, between two
            neighbours, and after the last.
        depth_db: float [n + 1]: how far the 10 ms there lie below the speech, in dB.
    """

    places: np.ndarray
    depth_db: np.ndarray


@dataclass(frozen=True)
class Passage:
    """A recording, or some neighbouring words of it: float32 [samples], its words in lower case,
    its joints, and whether each is quiet enough to splice at."""

    wave: np.ndarray
    words: tuple[str, ...]
    joints: Joints
    quiet: np.ndarray
    entry: Entry
    start: int

    def without(self, first: int, stop: int) -> list[str]:
        """The words but for those from `first` to `stop`."""
        return [*self.words[:first], *self.words[stop:]]


@dataclass(frozen=True)
class Piece:
    """Samples `start` to `stop` of `wave` [samples], times `gain`."""

    wave: np.ndarray
    start: int
    stop: int
    gain: float = 1.0


def find_joints(wave: np.ndarray, words: Sequence[Word], rate: int) -> Joints:
    """The joints of `wave` [samples] at `rate` Hz, which holds `words` in order.

    A place is looked for from 40 ms before the end of one word to 40 ms after the start of the
    next, as far as half of each: alignments are off by about that much.
    """
    power = _smooth_power(wave, rate)
    margin = round(_MARGIN_SECONDS * rate)
    starts = np.array([round(word.start * rate) for word in words])
    ends = np.array([round(word.end * rate) for word in words])
    middles = (starts + ends) // 2
    outer = round(_OUTER_SECONDS * rate)
    low = np.concatenate(([starts[0] - outer], np.maximum(ends - margin, middles)))
    high = np.concatenate((np.minimum(starts + margin, middles), [ends[-1] + outer]))
    places = np.zeros(len(words) + 1, np.int64)
    for number, (first, last) in enumerate(zip(low, high, strict=True)):
        first = min(max(int(first), 0), len(wave) - 1)
        last = min(max(int(last), first + 1), len(wave))
        places[number] = first + int(np.argmin(power[first:last]))
    floor = np.maximum(power[places], np.finfo(np.float32).tiny)
    return Joints(places, 10 * np.log10(active_power(wave, rate) / floor))


def join(pieces: Sequence[Piece], rate: int, *, fade_seconds: float = 0.01) -> np.ndarray:
    """The pieces one after the other: float32 [sum of their samples].

    At each joint the two cross-fade (raised cosine) over `fade_seconds`, half before it and half
    after, with what their waves hold there; silence beyond the ends of a wave.
    """
    half = round(fade_seconds * rate / 2)
    rise = (0.5 - 0.5 * np.cos(np.pi * (np.arange(2 * half) + 0.5) / (2 * half))).astype(np.float32)
    joined = np.zeros(sum(piece.stop - piece.start for piece in pieces) + 2 * half, np.float32)
    place = 0
    for number, piece in enumerate(pieces):
        wide = _widened(piece, half)
        if number > 0:
            wide[: 2 * half] *= rise
        else:
            wide[:half] = 0
        if number < len(pieces) - 1:
            wide[len(wide) - 2 * half :] *= rise[::-1]
        else:
            wide[len(wide) - half :] = 0
        joined[place : place + len(wide)] += wide
        place += piece.stop - piece.start
    return joined[half : len(joined) - half]


def _widened(piece: Piece, by: int) -> np.ndarray:
    """The piece and `by` samples on both sides of it, a copy."""
    first, last = max(piece.start - by, 0), min(piece.stop + by, len(piece.wave))
    around = (first - (piece.start - by), piece.stop + by - last)
    return np.pad(piece.wave[first:last] * np.float32(piece.gain), around)


def _smooth_power(wave: np.ndarray, rate: int) -> np.ndarray:
    """Mean square over 10 ms round each sample: float64 [samples]."""
    window = max(1, round(_WINDOW_SECONDS * rate))
    before = window // 2
    total = np.cumsum(np.pad(np.square(wave, dtype=np.float64), (before + 1, window - before)))
    return np.maximum(total[window : window + len(wave)] - total[: len(wave)], 0) / window
