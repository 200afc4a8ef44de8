"""Examples of speech restoration."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from data_pipelines import simulation
from data_pipelines.cuts import Cutter
from data_pipelines.examples.base import INPUT_RATE, Example, fingerprint, generator
from data_pipelines.manifests import Entry
from data_pipelines.simulation import Degradation
from quark_jax import audio

_COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
_BABBLE_VOICES = (3, 7)


class SpeechRestoration:
    """Examples of task sr: a cut of clean speech, degraded. Random access, [index] -> Example.

    Noise is cut from `noise` recordings where there are any; otherwise it is white, pink or brown
    noise, mains hum, or babble of other recordings of `entries`, each as often.

    Args:
        entries: clean speech.
        rate: rate of the targets in Hz.
        seconds: length of a cut; shorter audio wraps round.
        seed: of everything random, 0 or more.
        length: number of examples; None for one a recording. Example i is of recording
            i modulo their number; every round takes other cuts and degradations.
        noise: recordings of noise.
        config: the degradations.
    """

    task = "sr"

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        rate: int = INPUT_RATE,
        seconds: float = 5.0,
        seed: int = 0,
        length: int | None = None,
        noise: Sequence[Entry] = (),
        config: Degradation = Degradation(),  # noqa: B008 (frozen)
    ):
        samples = round(seconds * rate)
        self.rate, self.seconds, self.seed, self.config = rate, seconds, seed, config
        self._speech = Cutter(entries, rate=rate, samples=samples)
        self._noise = Cutter(noise, rate=rate, samples=samples) if noise else None
        self._length = len(entries) if length is None else length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        rng = generator(self.seed, index)
        clean, entry, start = self._speech.random(index % len(self._speech), rng)
        kind, noise = self._make_noise(index, rng)
        degraded, target = simulation.degrade(clean, noise, rng, self.config, rate=self.rate)
        return Example(
            task=self.task,
            target=target,
            rate=self.rate,
            input=audio.resample(degraded, self.rate, INPUT_RATE),
            provenance={
                "file": entry.id,
                "start": start,
                "seed": self.seed,
                "index": index,
                "noise": kind,
            },
        )

    @property
    def skipped(self) -> dict[Entry, str]:
        """The corrupt and silent recordings met so far, and the reason of each."""
        return self._speech.skipped | (self._noise.skipped if self._noise else {})

    def describe(self) -> dict[str, Any]:
        """All that the examples depend on, as JSON values; kept with a dataset made of them."""
        return {
            "task": self.task,
            "rate": self.rate,
            "seconds": self.seconds,
            "seed": self.seed,
            "examples": self._length,
            "recordings": fingerprint(self._speech.entries),
            "noise": fingerprint(self._noise.entries) if self._noise else None,
            "degradation": json.loads(json.dumps(asdict(self.config))),
        }

    def _make_noise(self, index: int, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """Its kind and the noise float32 [samples]."""
        samples = self._speech.samples
        if self._noise:
            cut, entry, _ = self._noise.random(int(rng.integers(len(self._noise))), rng)
            return entry.id, cut
        kind = rng.choice((*_COLOURS, "hum", *(("babble",) if len(self._speech) > 1 else ())))
        if kind == "hum":
            return str(kind), simulation.hum(samples, self.rate, rng)
        if kind == "babble":
            others = rng.integers(1, len(self._speech), rng.integers(*_BABBLE_VOICES))
            voices = [self._speech.random(index + int(other), rng)[0] for other in others]
            return str(kind), simulation.babble(voices, self.rate)
        return str(kind), simulation.coloured_noise(samples, _COLOURS[kind], rng)
