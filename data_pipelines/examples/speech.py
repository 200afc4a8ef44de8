"""Examples of the tasks on mixtures of speech: restoration, and extraction of a speaker.

Speech separation (ss) is trained by these three: at inference it runs them one after another.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from data_pipelines import simulation
from data_pipelines.cuts import Cutter
from data_pipelines.examples.backgrounds import Noises, Responses
from data_pipelines.examples.base import (
    INPUT_RATE,
    Example,
    RecordedSource,
    as_json,
    at_input_rate,
    checked,
    generator,
)
from data_pipelines.examples.speakers import Speakers
from data_pipelines.manifests import Entry
from data_pipelines.simulation import EXTRACTION, Degradation, Plan, Rooms
from quark_jax.errors import UserError


class SpeechMixtures(RecordedSource):
    """What the three tasks share: cuts of speech, degraded. Random access, [index] -> Example.

    Args:
        entries: clean speech.
        rate: rate of the targets in Hz.
        seconds: length of a cut, and of an enrolment; shorter audio wraps round.
        seed: of everything random, 0 or more.
        length: number of examples; None for one a recording. Example i is of recording
            i modulo their number; every round takes other cuts and degradations.
        noise: recordings of noise; without any it is white, pink or brown noise, mains hum, or
            babble of other recordings of `entries`, each as often.
        rooms: recordings of room responses, or the ranges to make rooms from.
        config: the degradations; None for those published for the task.

    Attributes:
        responses: the room responses, kept as far as they are made.

    Raises:
        UserError: if there are no recordings, or too few speakers for the task.
    """

    _published: Degradation

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        rate: int = INPUT_RATE,
        seconds: float = 5.0,
        seed: int = 0,
        length: int | None = None,
        noise: Sequence[Entry] = (),
        rooms: Sequence[Entry] | Rooms = Rooms(),  # noqa: B008 (frozen)
        config: Degradation | None = None,
    ):
        samples = round(seconds * rate)
        self.config = self._published if config is None else config
        self._speech = Cutter(entries, rate=rate, samples=samples)
        self._speakers = Speakers(self._speech, samples)
        self._noises = Noises(noise, self._speech)
        self.responses = Responses(rooms, rate)
        self._usable = self._choose()
        super().__init__(
            self._speech.entries,
            (self._speech, self._speakers, self._noises, self.responses),
            rate=rate,
            seconds=seconds,
            seed=seed,
            length=len(self._usable) if length is None else length,
        )

    def _choose(self) -> Sequence[int]:
        """The numbers of the recordings that examples are made of."""
        return range(len(self._speech))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "noise": self._noises.describe(),
            "rooms": self.responses.describe(),
            "degradation": as_json(self.config),
        }

    def _degrade(
        self, clean: np.ndarray, interferer: np.ndarray | None, plan: Plan, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Input at 16 kHz, target, and what surrounds them."""
        room, response = self.responses.random(rng) if plan.reverberant else ("", None)
        kind, noise = self._noises.random(rng) if plan.snr_db is not None else ("", None)
        degraded, target = simulation.degrade(
            clean, plan, rate=self.rate, interferer=interferer, response=response, noise=noise
        )
        around = {"room": room, "noise": kind, "plan": asdict(plan)}
        return at_input_rate(degraded, self.rate), target, around


class SpeechRestoration(SpeechMixtures):
    """Task sr: the input is speech that went through the degradations, now and then with a second,
    quieter speaker; the target is the clean speech of the first.

    A recording whose entry names no speaker never has an interferer, nor is it one; nor has any
    where there is one speaker only. Arguments as of `SpeechMixtures`.
    """

    task = "sr"
    _published = Degradation()

    def __getitem__(self, index: int) -> Example:
        rng = generator(self.seed, checked(index, self._length))
        clean, entry, start = self._speech.random(index % len(self._usable), rng)
        plan = simulation.draw(self.config, rng)
        if not entry.speaker or self._speakers.count < 2:
            plan = replace(plan, sir_db=None)
        second, other = None, None
        if plan.sir_db is not None:
            second, other, _ = self._speakers.other(entry.speaker, rng)
        degraded, target, around = self._degrade(clean, second, plan, rng)
        provenance = {
            "file": entry.id,
            "start": start,
            "interferer": other.id if other else "",
            "seed": self.seed,
            "index": index,
        }
        return Example(self.task, target, self.rate, degraded, provenance=provenance | around)


class _SpeakerExtraction(SpeechMixtures):
    """Examples with an enrolment, which is of the speaker of recording i modulo their number."""

    _published = EXTRACTION
    _wants_enrolled: bool

    def _choose(self) -> Sequence[int]:
        if self._speakers.count < 2:
            raise UserError(
                f"task {self.task}: {self._speakers.count} named speakers in "
                f"{len(self._speech)} recordings, but it takes 2; fill in 'speaker' in the "
                "manifest, or add recordings"
            )
        return self._speakers.enrollable(named=True)

    def __getitem__(self, index: int) -> Example:
        rng = generator(self.seed, checked(index, self._length))
        first, entry, start, reference, enrolled = self._speakers.enrolled(
            self._usable, index % len(self._usable), rng
        )
        second, other, other_start = self._speakers.other(entry.speaker, rng)
        plan = simulation.draw(self.config, rng)
        reference = simulation.set_peak(reference, rng.uniform(*self.config.peak))
        pair = [(first, entry, start), (second, other, other_start)]
        (clean, wanted, start), (interferer, unwanted, _) = (
            pair if self._wants_enrolled else pair[::-1]
        )
        degraded, target, around = self._degrade(clean, interferer, plan, rng)
        provenance = {
            "file": wanted.id,
            "start": start,
            "interferer": unwanted.id,
            "enrolment": enrolled.id,
            "seed": self.seed,
            "index": index,
        }
        return Example(
            task=self.task,
            target=target,
            rate=self.rate,
            input=degraded,
            reference=at_input_rate(reference, self.rate),
            provenance=provenance | around,
        )


class TargetSpeakerExtraction(_SpeakerExtraction):
    """Task tse: the input is a degraded mixture of two speakers; the reference is another
    recording of one of them; the target is the clean speech of that one.

    Recordings without a speaker's name, and those of speakers of whom there is nothing to take an
    enrolment from, are left out (`skipped`). Arguments as of `SpeechMixtures`.
    """

    task = "tse"
    _wants_enrolled = True


class OtherSpeakerExtraction(_SpeakerExtraction):
    """Task rtse: as tse, but the target is the clean speech of the other speaker, the one that is
    not enrolled."""

    task = "rtse"
    _wants_enrolled = False
