"""Captioned sounds: separated by a query, and made from a description."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.examples.base import (
    INPUT_RATE,
    Example,
    as_json,
    at_input_rate,
    checked,
    generator,
)
from data_pipelines.examples.clips import CaptionedSource, Clip, at_power, overlay
from data_pipelines.examples.instructions import query
from data_pipelines.manifests import Entry
from data_pipelines.simulation import add_noise, limit_peak, set_peak


@dataclass(frozen=True)
class Mixing:
    """How captioned sounds are mixed: ranges that are drawn from uniformly.

    Attributes:
        others: number of sounds beside the wanted one, both ends included.
        snr_db: the wanted sound over the sum of the others, in dB, each over its own active
            samples. The range is that of AudioSep (Liu et al. 2023, arXiv 2308.05037).
        peak: of the mixture.
        peak_limit: that neither mixture nor target passes.
    """

    others: tuple[int, int] = (1, 2)
    snr_db: tuple[float, float] = (-10.0, 10.0)
    peak: tuple[float, float] = (0.1, 0.99)
    peak_limit: float = 0.99


class LanguageQueriedSeparation(CaptionedSource):
    """Examples of task lass: a mixture of captioned sounds, and a query for the one to keep.

    The target is that sound as it is in the mixture. Sounds that are shorter than the mixture lie
    somewhere in it; nothing is repeated.

    Args:
        entries: recordings; those without captions are not used.
        rate: rate of the targets in Hz.
        seconds: length of a mixture; longer sounds are cut.
        seed: of everything random, 0 or more.
        length: number of examples; None for one a recording.
        config: how the sounds are mixed.
    """

    task = "lass"

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        rate: int = INPUT_RATE,
        seconds: float = 5.0,
        seed: int = 0,
        length: int | None = None,
        config: Mixing = Mixing(),
    ):
        self.config = config
        super().__init__(entries, rate=rate, seconds=seconds, seed=seed, length=length)

    def __getitem__(self, index: int) -> Example:
        rng = generator(self.seed, checked(index, self._length))
        wanted = self._clips.draw(index % len(self._clips), rng)
        clips = [wanted]
        for _ in range(int(rng.integers(self.config.others[0], self.config.others[1] + 1))):
            clips.append(self._clips.draw_other(clips, rng))
        target, *others = (self._placed(clip, rng) for clip in clips)
        snr = rng.uniform(*self.config.snr_db)
        mixture = add_noise(target, np.sum(others, axis=0), snr, self.rate)
        scale = np.float32(rng.uniform(*self.config.peak) / np.max(np.abs(mixture)))
        mixture, target = limit_peak((mixture * scale, target * scale), self.config.peak_limit)
        return Example(
            task=self.task,
            target=target,
            rate=self.rate,
            input=at_input_rate(mixture, self.rate),
            caption=query("lass", wanted.caption, rng),
            provenance={
                "file": wanted.entry.id,
                "start": wanted.start,
                "others": [clip.entry.id for clip in clips[1:]],
                "captions": [clip.caption for clip in clips],
                "snr_db": snr,
                "seed": self.seed,
                "index": index,
            },
        )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "mixing": as_json(self.config),
        }

    def _placed(self, clip: Clip, rng: np.random.Generator) -> np.ndarray:
        """The clip somewhere in silence, all of one power: float32 [samples of a mixture]."""
        samples = self._clips.cutter.samples
        start = int(rng.random() * (samples - len(clip.wave) + 1))
        return overlay([(at_power(clip.wave, self.rate, 1.0), start)], samples)


class TextToAudio(CaptionedSource):
    """Examples of task tta: a description, and the sound it is of; as long as the sound is.

    Args:
        entries: recordings; those without captions are not used.
        rate: rate of the targets in Hz.
        seconds: the longest target; longer sounds are cut.
        seed: of everything random, 0 or more.
        length: number of examples; None for one a recording.
        peak: range of the targets' peaks.
    """

    task = "tta"

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        rate: int = INPUT_RATE,
        seconds: float = 5.0,
        seed: int = 0,
        length: int | None = None,
        peak: tuple[float, float] = (0.1, 0.99),
    ):
        self.peak = peak
        super().__init__(entries, rate=rate, seconds=seconds, seed=seed, length=length)

    def __getitem__(self, index: int) -> Example:
        rng = generator(self.seed, checked(index, self._length))
        clip = self._clips.draw(index % len(self._clips), rng)
        return Example(
            task=self.task,
            target=set_peak(clip.wave, rng.uniform(*self.peak)),
            rate=self.rate,
            caption=query("tta", clip.caption, rng),
            provenance={
                "file": clip.entry.id,
                "start": clip.start,
                "captions": [clip.caption],
                "seed": self.seed,
                "index": index,
            },
        )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "peak": list(self.peak),
        }
