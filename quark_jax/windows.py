"""Recordings of any length cut into windows of one, and windows of many recordings in batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from quark_jax import audio
from quark_jax.errors import UserError
from quark_jax.hcodec import Codes, Tokeniser
from quark_jax.lm import TASK_IDS, Targets, task

T = TypeVar("T")
INPUT_RATE = 16000  # Hz of the audio that conditions


@dataclass(frozen=True, eq=False)
class Job:
    """One task on one recording, cut into windows; `QuarkAudio.job` makes it.

    Attributes:
      task: its name.
      frames: codec frames of a window's target, or the bound on them where the task has no length.
      rate: of the result, in Hz.
      samples: of the result; None where the task has no length.
      inputs: windows float32 [windows, samples at 16 kHz]; None where the task has no input.
      references: float32 [windows or 1, samples at 16 kHz]; 1 is for all windows; or None.
      caption: token ids; empty where the task has no caption.
      seed: of what is drawn.
      label: what the caller knows it by.
    """

    task: str
    frames: int
    rate: int
    samples: int | None
    inputs: np.ndarray | None = None
    references: np.ndarray | None = None
    caption: Sequence[int] = ()
    seed: int = 0
    label: Any = None

    @property
    def passes(self) -> tuple[str, ...]:
        """The tasks whose results are those of the job. Separation begins with a pass that finds
        the enrolment of the others."""
        return task(self.task).passes[1:] or (self.task,)

    def windows(self) -> "Iterator[Window]":
        """Its windows, pass by pass. Their numbers begin at 0, but those of separation at 1: its
        first pass has 0."""
        count = 1 if self.inputs is None else len(self.inputs)
        first = int(self.passes != (self.task,))
        for number in range(len(self.passes) * count):
            part, place = divmod(number, count)
            reference = None
            if self.references is not None:
                reference = self.references[place % len(self.references)]
            yield Window(
                self,
                self.passes[part],
                first + number,
                last=number == len(self.passes) * count - 1,
                input=None if self.inputs is None else self.inputs[place],
                reference=reference,
            )


@dataclass(frozen=True, eq=False)
class Window:
    """What one sequence of the language model is about: audio is float32 [samples at 16 kHz].
    `number` chooses its key; `last` tells that no other of its job follows."""

    job: Job
    task: str
    number: int
    last: bool
    input: np.ndarray | None
    reference: np.ndarray | None


def at_input_rate(name: str, wave: np.ndarray | None, rate: int | None) -> np.ndarray:
    """One channel float32 [samples at 16 kHz]. Raises UserError where it cannot be used."""
    wave = np.asarray(wave, np.float32)
    if wave.ndim != 1 or not wave.size or not np.isfinite(wave).all():
        raise UserError(f"{name}: pass one channel [samples] of finite numbers")
    if rate is None or rate < 1:
        raise UserError(f"{name}: a rate of {rate} Hz; pass that of the recording")
    return audio.resample(wave, rate, INPUT_RATE)


def cut(wave: np.ndarray, samples: int) -> np.ndarray:
    """`wave` [n] as windows [count, samples], the last one filled up from the beginning."""
    count = max(1, -(-len(wave) // samples))  # of too little to resample nothing is left
    return np.resize(wave, count * samples).reshape(count, samples)


def fit(wave: np.ndarray, samples: int) -> np.ndarray:
    """`wave` [n] cut to `samples`, or with zeros behind it."""
    return np.pad(wave, (0, max(0, samples - len(wave))))[:samples]


def loudest(wave: np.ndarray, samples: int) -> np.ndarray:
    """The stretch [samples] of `wave` [n] that has the most energy; a shorter wave wraps round."""
    if len(wave) <= samples:
        return np.resize(wave, samples)
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    begin = int(np.argmax(energy[samples:] - energy[:-samples]))
    return wave[begin : begin + samples]


def batches(windows: Iterable[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Windows in lists of `size`, the last one of what is left; and how many to compute at once:
    `size`, for which there is a program then, or, where the first list is all, the next power of
    two."""
    windows, full = iter(windows), 0
    while found := list(islice(windows, size)):
        full = full or min(size, 1 << (len(found) - 1).bit_length())
        yield found, full


def stack(windows: Sequence[Window], samples: int, tokens: int) -> dict[str, np.ndarray]:
    """A batch as `data_pipelines.sequences` describes it, without targets; what no window has is
    left out. Audio has at most `samples`, a caption at most `tokens`."""
    batch = {"task": np.array([TASK_IDS[window.task] for window in windows], np.int32)}
    for name in ("input", "reference"):
        waves = [getattr(window, name) for window in windows]
        if any(wave is not None for wave in waves):
            waves = [np.zeros(0, np.float32) if wave is None else wave for wave in waves]
            batch[name], batch[f"{name}_samples"] = _padded(waves, samples, np.float32)
    captions = [window.job.caption for window in windows]
    if any(len(caption) for caption in captions):
        batch["caption"], batch["caption_tokens"] = _padded(captions, tokens, np.int32)
    return batch


def _padded(rows: Sequence[Any], length: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows with zeros behind them [rows, length], and their own lengths [rows]."""
    padded = np.zeros((len(rows), length), dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded, np.array([len(row) for row in rows], np.int32)


def decode(tokeniser: Tokeniser, targets: Targets, longest: int) -> list[np.ndarray]:
    """The wave [samples] at the codec's rate of each generated item, of at most `longest` frames.
    One program decodes whatever has the same `longest`."""
    config = tokeniser.config
    codes, frames = at_full_rate(targets, config.quantiser.codebook_size, longest)
    waves = tokeniser.decode_batch(codes, frames)
    return [wave[: count * config.hop] for wave, count in zip(waves, frames, strict=True)]


def at_full_rate(targets: Targets, size: int, longest: int) -> tuple[Codes, np.ndarray]:
    """Generated codes as those of a fixed frame rate [batch, codebooks, longest], and the frames of
    each item: a segment's codes stand in each of its frames. `size` is that of a codebook."""
    streams = np.asarray(targets.acoustic), np.asarray(targets.semantic)
    spans = streams[1][:, 0] // size + 1  # 1 where the rate is fixed
    spans = np.where(np.arange(spans.shape[1]) < np.asarray(targets.frames)[:, None], spans, 0)
    source = np.stack([fit(np.repeat(np.arange(len(row)), row), longest) for row in spans])
    streams = (np.take_along_axis(codes % size, source[:, None], -1) for codes in streams)
    return Codes(*streams), spans.sum(1)
