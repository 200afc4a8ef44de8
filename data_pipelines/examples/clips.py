"""Captioned sounds: cut from recordings, without the silence round them, with edges that do not
click."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.cuts import Cutter
from data_pipelines.examples.base import RecordedSource
from data_pipelines.examples.instructions import tidy
from data_pipelines.manifests import Entry
from data_pipelines.simulation import active, active_power
from quark_jax.errors import UserError

_FADE_SECONDS = 0.005
_CANDIDATES = 16
_WORDS_OF_LITTLE = """and are being from heard into noise over some somebody someone something sound
sounds that the then there while with"""


@dataclass(frozen=True)
class Clip:
    """A captioned sound.

    Attributes:
        wave: float32 [samples], never silent; audible at both ends where it was not cut.
        caption: one of the captions of its recording, tidied to stand inside a sentence.
        entry: its recording.
        start: where it begins there, in samples at the rate of the wave.
    """

    wave: np.ndarray
    caption: str
    entry: Entry
    start: int


class CaptionedClips:
    """Clips of up to `seconds` at `rate` Hz out of those of `entries` that have a caption.

    A caption describes all of a recording: of a longer one, what it names may lie outside of the
    cut. Take `seconds` as long as the recordings of the caption set, where that matters.

    Raises:
        UserError: if no entry has a caption.
    """

    def __init__(self, entries: Sequence[Entry], *, rate: int, seconds: float):
        captioned = [entry for entry in entries if _captions(entry)]
        if not captioned:
            raise UserError("no recordings with captions; check the manifest's field 'captions'")
        self.rate = rate
        self.cutter = Cutter(captioned, rate=rate, samples=round(seconds * rate))
        self._words = [_content_words(_captions(entry)) for entry in captioned]

    def __len__(self) -> int:
        return len(self._words)

    def draw(self, index: int, rng: np.random.Generator, longest: int | None = None) -> Clip:
        """A clip of recording `index` (or of the first usable one after it), of at most `longest`
        samples."""
        wave, entry, start = self.cutter.random_part(index, rng)
        place = rng.random()  # drawn whatever the lengths, so that these do not shift what follows
        sound = np.flatnonzero(active(wave, self.rate))
        first, stop = int(sound[0]), int(sound[-1]) + 1
        if longest is not None and stop - first > longest:
            centre = _loud_sample(wave, sound, place)  # there may be silence inside as well
            first = min(max(centre - longest // 2, first), stop - longest)
            stop = first + longest
        captions = _captions(entry)
        caption = captions[int(rng.integers(len(captions)))]
        return Clip(fade_edges(wave[first:stop], self.rate), caption, entry, start + first)

    def draw_other(
        self, others: Sequence[Clip], rng: np.random.Generator, longest: int | None = None
    ) -> Clip:
        """A clip that is told apart from all `others` by its caption: the one that shares the
        fewest words with theirs, of some drawn at random.

        Raises:
            UserError: if all recordings that were drawn have captions of `others`.
        """
        known = _content_words([text for clip in others for text in _captions(clip.entry)])
        drawn = rng.integers(len(self), size=_CANDIDATES)
        shared = [len(known & self._words[number]) for number in drawn]
        taken = {text.lower() for clip in others for text in _captions(clip.entry)}
        for place in np.argsort(shared, kind="stable"):
            clip = self.draw(int(drawn[place]), rng, longest)
            if taken.isdisjoint(text.lower() for text in _captions(clip.entry)):
                return clip
        raise UserError(
            f"no sound that differs from {others[0].caption!r} in {_CANDIDATES} draws; "
            "the task needs recordings with various captions"
        )


class CaptionedSource(RecordedSource):
    """What sources of captioned sounds have in common; see `RecordedSource`.

    Args:
        entries: recordings; those without captions are not used.
        length: number of examples; None for one a recording.
    """

    def __init__(
        self, entries: Sequence[Entry], *, rate: int, seconds: float, seed: int, length: int | None
    ):
        self._clips = CaptionedClips(entries, rate=rate, seconds=seconds)
        super().__init__(
            self._clips.cutter.entries,
            (self._clips.cutter,),
            rate=rate,
            seconds=seconds,
            seed=seed,
            length=len(self._clips) if length is None else length,
        )


def _loud_sample(wave: np.ndarray, sound: np.ndarray, place: float) -> int:
    """One of the samples `sound` of `wave`, at the share `place` of those that lie no more than
    40 dB below the peak."""
    loud = sound[np.abs(wave[sound]) >= 0.01 * np.max(np.abs(wave))]
    return int(loud[int(place * len(loud))])


def at_power(wave: np.ndarray, rate: int, power: float) -> np.ndarray:
    """`wave` [samples], which must not be digital silence, scaled to this power of its active
    samples."""
    return (wave * np.sqrt(power / active_power(wave, rate))).astype(np.float32)


def fade_edges(wave: np.ndarray, rate: int) -> np.ndarray:
    """`wave` [samples] with 5 ms of raised cosine at both ends."""
    samples = min(round(_FADE_SECONDS * rate), len(wave) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(samples) + 0.5) / samples)).astype(np.float32)
    faded = wave.copy()
    faded[:samples] *= ramp
    faded[len(wave) - samples :] *= ramp[::-1]
    return faded


def overlay(parts: Sequence[tuple[np.ndarray, int]], samples: int | None = None) -> np.ndarray:
    """The sum of waves, each from its own start on: float32 [samples].

    Args:
        parts: wave [its samples] and start of each.
        samples: length of the result, at least up to the end of the last; None for just that.
    """
    end = max(start + len(wave) for wave, start in parts)
    mixed = np.zeros(end if samples is None else samples, np.float32)
    for wave, start in parts:
        mixed[start : start + len(wave)] += wave
    return mixed


def _captions(entry: Entry) -> list[str]:
    return [text for text in map(tidy, entry.captions) if text]


def _content_words(captions: Sequence[str]) -> frozenset[str]:
    words = re.findall(r"\w{3,}", " ".join(captions).lower())
    return frozenset(words).difference(_WORDS_OF_LITTLE.split())
