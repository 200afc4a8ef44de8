"""Examples of echo cancellation."""

from collections.abc import Sequence
from dataclasses import asdict
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
from data_pipelines.simulation import Echo, Rooms

# A loudspeaker is nearer than a talker; the challenge's rooms are live.
ECHO_ROOMS = Rooms(distance=(0.1, 1.0), rt60=(0.2, 1.0))


class EchoCancellation(RecordedSource):
    """Task aec: the input is what a microphone hears, near-end speech with the echo of the far end;
    the reference is the far-end signal as it comes in; the target is the near-end speech.

    The far end is another speaker where the near end's has a name and there is another; else it is
    any recording.

    Args:
        entries: clean speech.
        rate: rate of the targets in Hz.
        seconds: length of an example; shorter audio wraps round.
        seed: of everything random, 0 or more.
        length: number of examples; None for one a recording. Recording i is the near end of
            example i modulo their number.
        noise: recordings of noise; made without any (see `Noises`).
        rooms: recordings of room responses, or the ranges to make rooms from.
        config: the echoes.

    Attributes:
        responses: the room responses, kept as far as they are made.

    Raises:
        UserError: if there are no recordings.
    """

    task = "aec"

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        rate: int = INPUT_RATE,
        seconds: float = 5.0,
        seed: int = 0,
        length: int | None = None,
        noise: Sequence[Entry] = (),
        rooms: Sequence[Entry] | Rooms = ECHO_ROOMS,
        config: Echo = Echo(),  # noqa: B008 (frozen)
    ):
        samples = round(seconds * rate)
        self.config = config
        self._speech = Cutter(entries, rate=rate, samples=samples)
        self._speakers = Speakers(self._speech, samples)
        self._noises = Noises(noise, self._speech)
        self.responses = Responses(rooms, rate)
        super().__init__(
            self._speech.entries,
            (self._speech, self._noises, self.responses),
            rate=rate,
            seconds=seconds,
            seed=seed,
            length=len(entries) if length is None else length,
        )

    def __getitem__(self, index: int) -> Example:
        rng = generator(self.seed, checked(index, self._length))
        near, entry, start = self._speech.random(index % len(self._speech), rng)
        far, other, _ = self._far_end(entry, rng)
        plan = simulation.draw_echo(self.config, rng)
        room, response = self.responses.random(rng)
        near_kind, near_noise = self._noise(plan.near_snr_db, rng)
        far_kind, far_noise = self._noise(plan.far_snr_db, rng)
        microphone, target, far = simulation.add_echo(
            near,
            far,
            plan,
            rate=self.rate,
            response=response,
            near_noise=near_noise,
            far_noise=far_noise,
        )
        return Example(
            task=self.task,
            target=target,
            rate=self.rate,
            input=at_input_rate(microphone, self.rate),
            reference=at_input_rate(far, self.rate),
            provenance={
                "file": entry.id,
                "start": start,
                "far_end": other.id,
                "seed": self.seed,
                "index": index,
                "room": room,
                "near_noise": near_kind,
                "far_noise": far_kind,
                "plan": asdict(plan),
            },
        )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "noise": self._noises.describe(),
            "rooms": self.responses.describe(),
            "echo": as_json(self.config),
        }

    def _far_end(self, near: Entry, rng: np.random.Generator) -> tuple[np.ndarray, Entry, int]:
        if near.speaker and self._speakers.count > 1:
            return self._speakers.other(near.speaker, rng)
        return self._speech.random(int(rng.integers(len(self._speech))), rng)

    def _noise(
        self, snr_db: float | None, rng: np.random.Generator
    ) -> tuple[str, np.ndarray | None]:
        return ("", None) if snr_db is None else self._noises.random(rng)
