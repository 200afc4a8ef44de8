"""Examples of voice conversion."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from data_pipelines import simulation
from data_pipelines.cuts import Cutter
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
from data_pipelines.simulation import VoiceChange

_PEAKS = (0.1, 0.99)


class VoiceConversion(RecordedSource):
    """Task vc: the target is an utterance as it was spoken, the input the same with its voice
    changed, sound for sound at the same time; the reference is another utterance of the speaker.

    Args:
        entries: clean speech; what has no second utterance of its speaker is left out (`skipped`).
        rate: rate of the targets in Hz.
        seconds: length of a cut, and of a reference; shorter audio wraps round.
        seed: of everything random, 0 or more.
        length: number of examples; None for one a recording.
        config: how voices are changed.

    Raises:
        UserError: if no recording has a reference; MissingPackage without the extra `voice`.
    """

    task = "vc"

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        rate: int = INPUT_RATE,
        seconds: float = 5.0,
        seed: int = 0,
        length: int | None = None,
        config: VoiceChange = VoiceChange(),  # noqa: B008 (frozen)
    ):
        samples = round(seconds * rate)
        self.config = config
        self._speech = Cutter(entries, rate=rate, samples=samples)
        self._speakers = Speakers(self._speech, samples)
        self._usable = self._speakers.enrollable(named=False)
        super().__init__(
            self._speech.entries,
            (self._speech, self._speakers),
            rate=rate,
            seconds=seconds,
            seed=seed,
            length=len(self._usable) if length is None else length,
        )

    def __getitem__(self, index: int) -> Example:
        rng = generator(self.seed, checked(index, self._length))
        target, entry, start, reference, other = self._speakers.enrolled(
            self._usable, index % len(self._usable), rng
        )
        voice = simulation.draw_voice(self.config, rng)
        target = simulation.set_peak(target, rng.uniform(*_PEAKS))
        changed = simulation.change_voice(target, self.rate, voice)
        changed, target = simulation.limit_peak((changed, target), _PEAKS[1])
        reference = simulation.set_peak(reference, rng.uniform(*_PEAKS))
        return Example(
            task=self.task,
            target=target,
            rate=self.rate,
            input=at_input_rate(changed, self.rate),
            reference=at_input_rate(reference, self.rate),
            provenance={
                "file": entry.id,
                "start": start,
                "reference": other.id,
                "seed": self.seed,
                "index": index,
                "voice": asdict(voice),
            },
        )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "voice": as_json(self.config),
        }
