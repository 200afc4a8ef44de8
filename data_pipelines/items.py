"""Items of a batch of the language model: records and examples, padded to one shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.records import AUDIO, Codes, Record, codes_lengths, from_int16
from quark_jax.encoders.features import SAMPLES_PER_FRAME
from quark_jax.errors import UserError
from quark_jax.lm.tasks import TASK_IDS

Batch = dict[str, np.ndarray]
Text = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Shape:
    """The shape of the items of a batch.

    Attributes:
        audio: samples of input and reference; 0 leaves one out.
        text, caption_length: as in `sequences.token_batches`.
        frames: of codes.
        channels: of features in the place of audio; 0 for audio.
        dynamic: whether the codes have lengths of their own.
        target: samples, where there are no codes.
    """

    audio: dict[str, int]
    text: Text | None
    caption_length: int
    frames: int = 0
    channels: int = 0
    dynamic: bool = False
    target: int = 0

    def of_record(self, record: Record) -> Batch:
        item = {"frames": np.int32(record["frames"])}
        for name in ("acoustic", "semantic", *(("segments",) if self.dynamic else ())):
            codes = record[name]
            item[name] = _padded(codes.T, self.frames, np.int32).T
        for name, samples in self.audio.items():
            own = record[f"{name}_samples"]
            if samples and self.channels:
                features = record[name].reshape(-1, self.channels)
                item[f"{name}_features"] = _padded(features, samples // SAMPLES_PER_FRAME)
                item[f"{name}_frames"] = np.int32(own // SAMPLES_PER_FRAME)
            elif samples:
                item[name] = _padded(record[name], samples)
                item[f"{name}_samples"] = np.int32(own)
        words = record["task"].decode(), record["caption"].decode()
        return item | self._words(*words, record["id"].decode())

    def of_example(self, example: Example) -> Batch:
        waves = {"target": example.target, "input": example.input, "reference": example.reference}
        item = {}
        for name, size in ({"target": self.target} | self.audio).items():
            wave = np.zeros(0, np.float32) if waves[name] is None else waves[name]
            if len(wave) > size:
                raise UserError(
                    f"{name} of task {example.task}, {example.provenance}: {len(wave)} samples, "
                    f"but at most {size} are expected; give its source longer `seconds`"
                )
            if size:
                item[name] = _padded(wave, size)
                item[f"{name}_samples"] = np.int32(len(wave))
        return item | self._words(example.task, example.caption, str(example.provenance))

    def _words(self, task_name: str, caption: str, origin: str) -> Batch:
        item = {"task": np.int32(TASK_IDS[task_name])}
        if self.text is None:
            return item
        tokens = np.asarray(self.text(caption) if caption else (), np.int32)
        if len(tokens) > self.caption_length:
            raise UserError(
                f"{origin}: a caption of {len(tokens)} tokens ({caption[:60]!r}...); set "
                f"caption_length, which is {self.caption_length}, to at least that"
            )
        item["caption"] = _padded(tokens, self.caption_length)
        item["caption_tokens"] = np.int32(len(tokens))
        return item


def _padded(array: np.ndarray, length: int, dtype: Any = None) -> np.ndarray:
    """`array` [n, ...] with zeros behind it, [length, ...]."""
    padded = np.zeros((length, *array.shape[1:]), dtype or array.dtype)
    padded[: len(array)] = array
    return padded


def as_waves(batch: Batch) -> Batch:
    """Audio comes from worker processes as int16, which is half as much to pass on."""
    return {name: from_int16(v) if name in AUDIO else v for name, v in batch.items()}


@dataclass(frozen=True)
class Coded:
    """Puts codes in the place of the target's wave."""

    encode: Callable[[np.ndarray, np.ndarray], Codes]
    hop: int | None

    def __call__(self, batch: Batch) -> Batch:
        batch = dict(batch)
        target, samples = batch.pop("target"), batch.pop("target_samples")
        codes = self.encode(target, samples)
        segments, frames = codes_lengths(codes, samples, self.hop)
        found = {"acoustic": codes.acoustic, "semantic": codes.semantic}
        found |= {"segments": segments} if segments.size else {}
        for name, values in found.items():
            values = np.asarray(values, np.int32)
            true = np.arange(values.shape[-1]) < frames[:, None]
            batch[name] = np.where(true if values.ndim == 2 else true[:, None], values, 0)
        return batch | {"frames": frames.astype(np.int32)}
