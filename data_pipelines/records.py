"""Records: what a pre-tokenised dataset holds of an example.

Targets become codes; input and reference are kept as int16 audio, or as features of a frozen
encoder in bfloat16. The networks see batches of few shapes: within a window of examples, waves are
sorted by length and padded to the next quarter of the longest, and what comes out is cut to each
item's own length. The networks are batch-invariant: a record does not depend on what shares its
batch.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.examples import INPUT_RATE, Example
from quark_jax.encoders.features import SAMPLES_PER_FRAME

AUDIO = ("reference", "input")
LENGTHS = ("frames", "input_samples", "reference_samples", "caption_bytes")
_FULL_SCALE = 32768
_WINDOW = 4  # batches

Record = dict[str, Any]


class Codes(Protocol):
    """Both streams' codes, integers [batch, codebooks, frames], and `lengths`: None, or where the
    frame rate is dynamic, how many frames at the full rate each stands for [batch, frames], 0 for
    those past the end."""

    acoustic: Any
    semantic: Any


@dataclass(frozen=True)
class Networks:
    """What is computed of examples, in full batches of right-padded waves.

    Attributes:
        encode: (float32 [batch, samples] at the codec's rate, true samples int [batch]) -> `Codes`.
        hop: samples in a frame of codes; may be None where all targets are equally long.
        features: None keeps input and reference as audio. Otherwise (float32 [batch, samples at
            16 kHz], true samples int [batch]) -> features [batch, samples // 320, channels].
        batch_size: waves at a time.
        codec_hash: of the weights of what encodes.
        encoder_hash: of the weights and settings of what computes features.
    """

    encode: Callable[[np.ndarray, np.ndarray], Codes]
    hop: int | None = None
    features: Callable[[np.ndarray, np.ndarray], Any] | None = None
    batch_size: int = 8
    codec_hash: str = ""
    encoder_hash: str = ""

    def records(self, examples: Iterable[Example], seconds: float) -> Iterator[Record]:
        """The records of `examples`, without their ids, in order; `seconds`: the longest."""
        examples = iter(examples)
        while window := list(islice(examples, _WINDOW * self.batch_size)):
            codes = self._codes(window, seconds)
            audio = self._audio(window, seconds)
            for index, example in enumerate(window):
                record = {
                    "task": example.task,
                    "caption": example.caption.encode(),
                    "provenance": json.dumps(example.provenance),
                }
                for name in AUDIO:
                    wave = getattr(example, name)
                    record[name] = audio.get((index, name), np.zeros(0, np.int16))
                    record[f"{name}_samples"] = 0 if wave is None else len(wave)
                yield record | codes[index]

    def _codes(self, examples: list[Example], seconds: float) -> dict[int, Record]:
        """Codes of each example's target, of its own frames."""
        made = {}
        waves = {index: example.target for index, example in enumerate(examples)}
        for part, batch, samples in self._batches(waves, seconds * examples[0].rate):
            codes = self.encode(batch, samples)
            acoustic, semantic = _int16(codes.acoustic), _int16(codes.semantic)
            segments, frames = codes_lengths(codes, samples, self.hop)
            for place, index in enumerate(part):
                own = slice(0, int(frames[place]))
                made[index] = {
                    "acoustic": acoustic[place, :, own],
                    "semantic": semantic[place, :, own],
                    "frames": own.stop,
                    "segments": segments[place, own].astype(np.int16),
                }
        return made

    def _audio(self, examples: list[Example], seconds: float) -> dict[tuple[int, str], np.ndarray]:
        """What a record holds of the inputs and references that there are."""
        waves = {
            (index, name): wave
            for index, example in enumerate(examples)
            for name in AUDIO
            if (wave := getattr(example, name)) is not None
        }
        if self.features is None:
            return {place: to_int16(wave) for place, wave in waves.items()}
        made = {}
        for part, batch, samples in self._batches(waves, seconds * INPUT_RATE):
            features = np.asarray(self.features(batch, samples))
            for place, key in enumerate(part):
                own = features[place, : samples[place] // SAMPLES_PER_FRAME]
                made[key] = own.astype(ml_dtypes.bfloat16).view(np.int16).ravel()
        return made

    def _batches(
        self, waves: Mapping[Hashable, np.ndarray], longest: float
    ) -> Iterator[tuple[list[Any], np.ndarray, np.ndarray]]:
        """Keys of `waves` that go together, and a batch [batch_size, samples] that begins with
        their waves and is filled up with the last, with the true samples of each [batch_size]."""
        quarter = max(-(-round(longest) // 4), SAMPLES_PER_FRAME)
        order = sorted(waves, key=lambda key: len(waves[key]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            rows = [waves[key] for key in part]
            rows += rows[-1:] * (self.batch_size - len(rows))
            samples = np.array([len(row) for row in rows])
            quarters = max(-(-int(samples.max()) // quarter), 1)
            # The whole is what most examples are: it is not rounded up with the quarter.
            size = max(round(longest), int(samples.max())) if quarters == 4 else quarters * quarter
            batch = np.zeros((self.batch_size, size), np.float32)
            for row, wave in zip(batch, rows, strict=True):
                row[: len(wave)] = wave
            yield part, batch, samples


def codes_lengths(
    codes: Codes, samples: np.ndarray, hop: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of codes of targets with these samples [batch], `hop` to a frame: how long each frame is
    [batch, frames], or [batch, 0] where the rate is fixed; and each item's true frames [batch]."""
    segments, most = getattr(codes, "lengths", None), np.shape(codes.acoustic)[-1]
    if segments is not None:
        segments = np.asarray(segments)
        return segments, (segments > 0).sum(1)
    fixed = np.zeros((len(samples), 0), np.int32)
    if hop is not None:
        return fixed, np.minimum(-(-samples // hop), most)
    if np.ptp(samples):
        raise ValueError("the targets differ in length: give `hop`, the samples of a frame")
    return fixed, np.full(len(samples), most)


def lengths(record: Record) -> list[int]:
    """The `LENGTHS` of a record, its caption given as bytes."""
    return [int(record[name]) for name in LENGTHS[:-1]] + [len(record["caption"])]


def features_dict() -> tfds.features.FeaturesDict:
    """How TFDS stores a record; features of audio are stored flat, as the bytes of int16."""
    raw = tfds.features.Encoding.BYTES
    codes = tfds.features.Tensor(shape=(None, None), dtype=np.int16, encoding=raw)
    flat = tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding=raw)
    count, text = tfds.features.Scalar(np.int32), tfds.features.Text()
    return tfds.features.FeaturesDict(
        {
            "id": text,
            "acoustic": codes,
            "semantic": codes,
            "segments": flat,
            "frames": count,
            **{name: flat for name in AUDIO},
            **{f"{name}_samples": count for name in AUDIO},
            "task": text,
            "caption": text,
            "provenance": text,
        }
    )


def as_features(stored: np.ndarray, samples: int, channels: int) -> np.ndarray:
    """The bfloat16 features [samples // 320, channels] that are stored flat as int16."""
    return stored.view(ml_dtypes.bfloat16).reshape(samples // SAMPLES_PER_FRAME, channels)


def to_int16(wave: np.ndarray) -> np.ndarray:
    """float32 [...] in [-1, 1] -> int16; `from_int16` brings it back to within half a step of
    1 / 32768, and 1 itself to within a step."""
    return np.clip(np.rint(wave * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def from_int16(wave: np.ndarray) -> np.ndarray:
    """int16 [...] -> float32 in [-1, 1)."""
    return np.multiply(wave, np.float32(1 / _FULL_SCALE), dtype=np.float32)


def _int16(codes: Any) -> np.ndarray:
    """Codes [batch, codebooks, frames] as int16."""
    codes = np.asarray(codes)
    if codes.ndim != 3 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes are {codes.dtype} {list(codes.shape)}; give integers [B, N, T]")
    if codes.size and not 0 <= codes.min() <= codes.max() < _FULL_SCALE:
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit 15 bits")
    return codes.astype(np.int16)
