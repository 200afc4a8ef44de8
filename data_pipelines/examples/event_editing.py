"""Edits of captioned sounds, by instructions."""

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
from data_pipelines.examples.instructions import (
    decibels,
    instruction,
    new_sound,
    present_sound,
    speed,
)
from data_pipelines.manifests import Entry
from data_pipelines.simulation import active_power, limit_peak
from quark_jax import audio
from quark_jax.errors import UserError

OPERATIONS = ("add", "remove", "replace", "extract", "loudness", "speed", "order")


@dataclass(frozen=True)
class EventEdits:
    """What is edited, and the ranges that are drawn from uniformly.

    Attributes:
        operations: of `OPERATIONS`, each as often.
        others: number of sounds beside the edited one, both ends included.
        level_db: the edited sound over each other one, in dB, over their active samples.
        loudness_db: change of loudness, up or down, in whole dB, both ends included.
        speeds: factors of speed, of no more than two decimals, so that instructions are exact.
        gap_seconds: silence between two sounds that change places.
        peak: of the louder of input and target.
    """

    operations: tuple[str, ...] = OPERATIONS
    others: tuple[int, int] = (1, 2)
    level_db: tuple[float, float] = (-5.0, 5.0)
    loudness_db: tuple[int, int] = (3, 12)
    speeds: tuple[float, ...] = (0.5, 0.6, 0.7, 0.75, 0.8, 1.25, 1.3, 1.5, 1.75, 2.0)
    gap_seconds: tuple[float, float] = (0.1, 0.5)
    peak: tuple[float, float] = (0.1, 0.99)


@dataclass(frozen=True)
class Edit:
    """An edit before its words: waves float32 [samples] of one scale, and the names and sounds of
    the slots of its instruction."""

    operation: str
    input: np.ndarray
    target: np.ndarray
    slots: dict[str, str]
    clips: list[Clip]
    change: float | None = None


class EventEditing(CaptionedSource):
    """Examples of task edit: a scene of captioned sounds, one of which is changed.

    Input and target are scaled by one factor, and start together. Of the operations:

    - add: the input is the target without the sound; remove: the other way round;
    - replace: a sound of the same loudness starts where the other did;
    - extract: the target is the sound alone, where it was;
    - loudness: only its gain differs;
    - speed: its start stays; the pitch moves with the speed, as on a tape, for that leaves no
      artefacts (it is resampled by soxr);
    - order: two sounds, one after the other, change places.

    Args:
        entries: recordings; those without captions are not used.
        rate: rate of the targets in Hz.
        seconds: the longest input or target.
        seed: of everything random, 0 or more.
        length: number of examples; None for one a recording.
        config: what is edited.

    Raises:
        UserError: if there are no captions, or an operation is unknown.
    """

    task = "edit"

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        rate: int = INPUT_RATE,
        seconds: float = 5.0,
        seed: int = 0,
        length: int | None = None,
        config: EventEdits = EventEdits(),
    ):
        if unknown := set(config.operations) - set(OPERATIONS):
            raise UserError(
                f"operations: {min(unknown)!r} is unknown; choose from {', '.join(OPERATIONS)}"
            )
        self.config = config
        super().__init__(entries, rate=rate, seconds=seconds, seed=seed, length=length)

    def __getitem__(self, index: int) -> Example:
        rng = generator(self.seed, checked(index, self._length))
        operation = self.config.operations[int(rng.integers(len(self.config.operations)))]
        edit = getattr(self, f"_{operation}")(index % len(self._clips), rng)
        loudest = max(np.max(np.abs(edit.input)), np.max(np.abs(edit.target)))
        scale = np.float32(rng.uniform(*self.config.peak) / loudest)
        scene, target = limit_peak((edit.input * scale, edit.target * scale), self.config.peak[1])
        return Example(
            task=self.task,
            target=target,
            rate=self.rate,
            input=at_input_rate(scene, self.rate),
            caption=instruction(edit.operation, rng, **edit.slots),
            provenance={
                "operation": edit.operation,
                "change": edit.change,
                "file": edit.clips[0].entry.id,
                "others": [clip.entry.id for clip in edit.clips[1:]],
                "captions": [clip.caption for clip in edit.clips],
                "seed": self.seed,
                "index": index,
            },
        )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "kind": "events",
            "edits": as_json(self.config),
        }

    def _add(self, index: int, rng: np.random.Generator) -> Edit:
        event, start, others, clips = self._scene(index, rng)
        slots = {"new": new_sound(clips[0].caption, rng)}
        return Edit("add", overlay(others), overlay([*others, (event, start)]), slots, clips)

    def _remove(self, index: int, rng: np.random.Generator) -> Edit:
        event, start, others, clips = self._scene(index, rng)
        scene = overlay([*others, (event, start)])
        slots = {"old": present_sound(clips[0].caption, rng)}
        return Edit("remove", scene, overlay(others, len(scene)), slots, clips)

    def _replace(self, index: int, rng: np.random.Generator) -> Edit:
        event, start, others, clips = self._scene(index, rng)
        other = self._clips.draw_other(clips, rng, self._clips.cutter.samples - start)
        substitute = at_power(other.wave, self.rate, active_power(event, self.rate))
        slots = {
            "old": present_sound(clips[0].caption, rng),
            "new": new_sound(other.caption, rng),
        }
        scene = overlay([*others, (event, start)])
        target = overlay([*others, (substitute, start)])
        return Edit("replace", scene, target, slots, [*clips, other])

    def _extract(self, index: int, rng: np.random.Generator) -> Edit:
        event, start, others, clips = self._scene(index, rng)
        scene = overlay([*others, (event, start)])
        slots = {"old": present_sound(clips[0].caption, rng)}
        return Edit("extract", scene, overlay([(event, start)], len(scene)), slots, clips)

    def _loudness(self, index: int, rng: np.random.Generator) -> Edit:
        event, start, others, clips = self._scene(index, rng)
        low, high = self.config.loudness_db
        change = int(rng.integers(low, high + 1)) * int(rng.choice((-1, 1)))
        changed = event * np.float32(10 ** (change / 20))
        slots = {"old": present_sound(clips[0].caption, rng), "by": decibels(change, rng)}
        scene = overlay([*others, (event, start)])
        target = overlay([*others, (changed, start)])
        name = "louder" if change > 0 else "quieter"
        return Edit(name, scene, target, slots, clips, change)

    def _speed(self, index: int, rng: np.random.Generator) -> Edit:
        factor = self.config.speeds[int(rng.integers(len(self.config.speeds)))]
        event, start, others, clips = self._scene(index, rng, stretch=max(1.0, 1 / factor))
        changed = change_speed(event, factor, self.rate)
        slots = {"old": present_sound(clips[0].caption, rng), "speed": speed(factor, rng)}
        scene = overlay([*others, (event, start)])
        target = overlay([*others, (changed, start)])
        return Edit("faster" if factor > 1 else "slower", scene, target, slots, clips, factor)

    def _order(self, index: int, rng: np.random.Generator) -> Edit:
        gap = round(rng.uniform(*self.config.gap_seconds) * self.rate)
        longest = (self._clips.cutter.samples - gap) // 2
        first = self._clips.draw(index, rng, longest)
        second = self._clips.draw_other([first], rng, longest)
        level = 10 ** (rng.uniform(*self.config.level_db) / 10)
        one = at_power(first.wave, self.rate, level)
        two = at_power(second.wave, self.rate, 1.0)
        slots = {
            "old": present_sound(first.caption, rng),
            "other": present_sound(second.caption, rng),
        }
        scene = overlay([(one, 0), (two, len(one) + gap)])
        target = overlay([(two, 0), (one, len(two) + gap)])
        return Edit("order", scene, target, slots, [first, second], gap / self.rate)

    def _scene(
        self, index: int, rng: np.random.Generator, stretch: float = 1.0
    ) -> tuple[np.ndarray, int, list[tuple[np.ndarray, int]], list[Clip]]:
        """A sound and its start; other sounds with theirs, all within the longest scene even if
        the sound lasts `stretch` times as long; and the clips, that of the sound first."""
        room = self._clips.cutter.samples
        clips = [self._clips.draw(index, rng, int(room / stretch))]
        for _ in range(int(rng.integers(self.config.others[0], self.config.others[1] + 1))):
            clips.append(self._clips.draw_other(clips, rng))
        level = 10 ** (rng.uniform(*self.config.level_db) / 10)
        waves = [at_power(clip.wave, self.rate, 1.0) for clip in clips[1:]]
        event = at_power(clips[0].wave, self.rate, level)
        lengths = [int(np.ceil(len(event) * stretch)), *map(len, waves)]
        # Short sounds lie close together, not scattered over the longest scene.
        longest = min(room, sum(lengths) + self.rate)
        span = int(rng.integers(max(lengths), longest + 1))
        starts = [int(rng.integers(span - length + 1)) for length in lengths]
        return event, starts[0], list(zip(waves, starts[1:], strict=True)), clips


def change_speed(wave: np.ndarray, factor: float, rate: int) -> np.ndarray:
    """`wave` [samples] at `rate` Hz played `factor` times as fast: float32 [samples / factor].

    As on a tape, the pitch is `factor` times as high; what passes half the rate is cut off.
    """
    samples = max(1, round(len(wave) / factor))
    changed = audio.resample(wave, round(rate * factor), rate)[:samples]
    return np.pad(changed, (0, samples - len(changed)))
