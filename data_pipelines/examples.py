"""Examples of the tasks: what goes in, what has to come out.

A source of examples is a map (seed, index) -> `Example`: the same pair gives the same example on
any machine, whatever else was drawn before.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from data_pipelines import simulation
from data_pipelines.cuts import Cutter
from data_pipelines.manifests import Entry
from data_pipelines.simulation import Degradation
from quark_jax import audio

INPUT_RATE = 16_000
_COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
_BABBLE_VOICES = (3, 7)


@dataclass(frozen=True)
class Example:
    """One training example.

    Attributes:
        task: the name of one of `quark_jax.lm.tasks.TASKS`.
        target: the audio to produce, float32 [samples] at `rate` Hz.
        rate: rate of `target` in Hz (the codec's).
        input: the audio to work on, float32 [samples at 16 kHz]; None where the task has none.
        reference: enrolment or far-end audio, float32 [samples at 16 kHz]; or None.
        caption: instruction or description; empty where there is none.
        provenance: what it was made from: source file, seed, index and more (JSON values).
    """

    task: str
    target: np.ndarray
    rate: int
    input: np.ndarray | None = None
    reference: np.ndarray | None = None
    caption: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


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


def generator(seed: int, index: int) -> np.random.Generator:
    """The random generator of example `index` under `seed`: independent of every other pair."""
    return np.random.Generator(np.random.Philox(key=np.array((seed, index), np.uint64)))


def fingerprint(entries: Sequence[Entry]) -> str:
    """A hash of what the entries are within their corpus, wherever it lies on disk."""
    digest = hashlib.sha256()
    for entry in entries:
        record = {k: v for k, v in asdict(entry).items() if k != "path"}
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()[:16]
