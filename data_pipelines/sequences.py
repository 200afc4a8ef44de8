"""Batches for the language model, from tokenised datasets or on the fly from examples.

Both draw in the same order: which items a batch has is a function of (seed, step), and of how many
records of each length each dataset has, or examples each source.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import grain
import numpy as np

from data_pipelines.examples import INPUT_RATE, Example, Source
from data_pipelines.loader import Batches, make_batches
from data_pipelines.records import (
    AUDIO,
    SAMPLES_PER_FRAME,
    Codes,
    Record,
    codes_lengths,
    from_int16,
)
from data_pipelines.tokenised import TokenisedDataset
from quark_jax.errors import UserError
from quark_jax.lm.tasks import TASK_IDS, task

Batch = dict[str, np.ndarray]
Text = Callable[[str], Sequence[int]]


def token_batches(
    datasets: TokenisedDataset | Mapping[str, TokenisedDataset],
    *,
    split: str = "train",
    batch_size: int,
    seed: int = 0,
    train: bool = True,
    weights: Mapping[str, float] | None = None,
    buckets: int = 1,
    text: Text | None = None,
    caption_length: int = 64,
    place: Callable[[Batch], Any] | None = None,
    drop_remainder: bool = True,
    shard_index: int = 0,
    shard_count: int = 1,
    num_workers: int = 0,
) -> Batches:
    """Batches of the language model from tokenised datasets, B = batch_size / shard_count items.

    A batch is a dict of arrays, padded with zeros on the right:

    - task int32 [B]; acoustic, semantic int32 [B, N, T]; frames int32 [B]; with a dynamic frame
      rate also segments int32 [B, T];
    - input float32 [B, S at 16 kHz], input_samples int32 [B]; reference, reference_samples alike;
      or where the datasets hold features, input_features bfloat16 [B, F at 50 Hz, C],
      input_frames int32 [B], and the same of the reference. Left out where no item has them;
    - with `text`: caption int32 [B, caption_length], caption_tokens int32 [B].

    T, S and F are the largest of all records, or of the bucket that the batch is from.

    Args:
        datasets: what to read; where there are several, by name, as of their tasks.
        split: which of their splits.
        batch_size: of all processes together.
        seed: of the order.
        train: endless, shuffled anew each round; otherwise one pass in order.
        weights: how often to draw from each dataset, in proportion, by name; 0 leaves it out. The
            datasets follow each other in a fixed pattern, so that every few batches hold them in
            just this proportion. None draws from all records alike. Training only.
        buckets: how many lengths of target to tell apart among records that are alike in having
            input and reference or not. A batch is of one bucket, and as long as the longest of it.
            1 has one bucket of all records. Training only.
        text: gives the token ids of a caption; an empty one has none. None leaves captions out.
        caption_length: token ids that a caption may have.
        place: brings a batch to the devices; called ahead of the step that wants it.
        drop_remainder, shard_index, shard_count, num_workers: as in `codec_batches`.

    Raises:
        UserError: if there is no such split, or it holds less than a batch in one pass; or if the
            datasets do not fit each other, or the weights. While iterating: if a shard is damaged,
            or a caption has too many tokens.
    """
    if isinstance(datasets, TokenisedDataset):
        datasets = {"dataset": datasets}
    _check_alike(datasets)
    lengths = [dataset.lengths(split) for dataset in datasets.values()]
    records = {name: dataset.records(split) for name, dataset in datasets.items()}
    pools = []
    for members in _buckets(lengths, buckets if train else 1):
        rows = [found[own].max(0) for found, own in zip(lengths, members, strict=True) if len(own)]
        frames, *samples, _ = np.max(rows, axis=0).tolist()
        shape = _Shape(
            dict(zip(("input", "reference"), samples, strict=True)),
            text,
            caption_length,
            frames=frames,
            channels=max(dataset.metadata["channels"] for dataset in datasets.values()),
            dynamic=any(dataset.metadata["dynamic"] for dataset in datasets.values()),
        )
        pools.append((members, shape.of_record))
    return make_batches(
        _drawn(records, pools, weights, seed if train else None),
        batch_size=batch_size,
        made_with=_made_with(records, batch_size, seed, weights) | {"buckets": buckets},
        after=_Chain([_as_waves, *([place] if place else [])]),
        drop_remainder=drop_remainder,
        shard=(shard_index, shard_count),
        num_workers=num_workers,
    )


def example_batches(
    sources: Source | Mapping[str, Source],
    *,
    batch_size: int,
    seed: int = 0,
    train: bool = True,
    weights: Mapping[str, float] | None = None,
    encode: Callable[[np.ndarray, np.ndarray], Codes] | None = None,
    hop: int | None = None,
    text: Text | None = None,
    caption_length: int = 64,
    place: Callable[[Batch], Any] | None = None,
    drop_remainder: bool = True,
    shard_index: int = 0,
    shard_count: int = 1,
    num_workers: int = 0,
) -> Batches:
    """The batches that `token_batches` has of datasets made of `sources`, made as they are needed.

    Without `encode` they hold the wave in the place of the codes: target float32 [B, samples at the
    codec's rate] and target_samples int32 [B], for a training step that has the codec in it. All
    batches have one shape, that of the sources' `seconds`. The audio is not rounded to int16.

    Args:
        sources: what to read; where there are several, by name, as of their tasks. Of one rate.
        encode, hop: as in `records.Networks`; run in this process.
        batch_size, seed, train, weights, text, caption_length, place, drop_remainder, shard_index,
            shard_count, num_workers: as in `token_batches`.

    Raises:
        UserError: as in `token_batches`; or if an example is longer than its source says.
    """
    if not isinstance(sources, Mapping):
        sources = {"source": sources}
    rates = {source.rate for source in sources.values()}
    if len(rates) != 1:
        raise UserError(f"the sources differ in rate {sorted(rates)} Hz; make them equal")
    seconds = max(source.seconds for source in sources.values())
    # A source of several tasks names none: room is left for all that they may have.
    names = {getattr(source, "task", None) for source in sources.values()}
    longest = round(seconds * INPUT_RATE)
    shape = _Shape(
        {
            part: longest if any(name is None or getattr(task(name), part) for name in names) else 0
            for part in AUDIO
        },
        text,
        caption_length,
        target=round(seconds * rates.pop()),
    )
    members = [np.arange(len(source)) for source in sources.values()]
    steps = [step for step in (encode and _Coded(encode, hop), place) if step]
    return make_batches(
        _drawn(sources, [(members, shape.of_example)], weights, seed if train else None),
        batch_size=batch_size,
        made_with=_made_with(sources, batch_size, seed, weights),
        cutters=list(sources.values()),
        after=_Chain(steps) if steps else None,
        drop_remainder=drop_remainder,
        shard=(shard_index, shard_count),
        num_workers=num_workers,
    )


def _made_with(
    parts: Mapping[str, Sequence], batch_size: int, seed: int, weights: Mapping[str, float] | None
) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        "seed": seed,
        "records": {name: len(part) for name, part in parts.items()},
        "weights": weights and dict(weights),
    }


def _check_alike(datasets: Mapping[str, TokenisedDataset]) -> None:
    first, about = next((name, dataset.metadata) for name, dataset in datasets.items())
    for name, dataset in datasets.items():
        for field in ("codec_hash", "conditioning"):
            if (found := dataset.metadata[field]) != about[field]:
                raise UserError(
                    f"dataset {name}: {field} {found}, but {first} has {about[field]}; make them "
                    "with the same"
                )


def _buckets(lengths: Sequence[np.ndarray], count: int) -> list[list[np.ndarray]]:
    """The records of each bucket: of each dataset their numbers, ascending. A bucket is of records
    that have input or not, reference or not, and targets in one `count`-th of the longest."""
    if count == 1:
        return [[np.arange(len(found)) for found in lengths]]
    longest: dict[int, int] = {}
    kinds = []
    for found in lengths:
        kind = (found[:, 1] > 0) + 2 * (found[:, 2] > 0)
        kinds.append(kind)
        for value in np.unique(kind).tolist():
            longest[value] = max(longest.get(value, 0), int(found[kind == value, 0].max()))
    chosen = []
    for value, most in sorted(longest.items()):
        for part in range(1, count + 1):
            low, high = most * (part - 1) // count, most * part // count
            members = [
                np.flatnonzero((kind == value) & (found[:, 0] > low) & (found[:, 0] <= high))
                for kind, found in zip(kinds, lengths, strict=True)
            ]
            if any(map(len, members)):
                chosen.append(members)
    return chosen


def _drawn(
    parts: Mapping[str, Sequence],
    pools: Sequence[tuple[list[np.ndarray], Callable[[Any], Batch]]],
    weights: Mapping[str, float] | None,
    seed: int | None,
) -> list[tuple[grain.MapDataset, float]]:
    """The items of each pool, and how often to draw from it; `seed` None is one pass in order.

    A pool is of the members of each part with these numbers, and what makes items of them.
    """
    if weights is not None:
        _check_weights(weights, parts)
    joined = _Joined(list(parts.values()))
    found = []
    for members, convert in pools:
        numbers = {
            name: first + own
            for name, own, first in zip(parts, members, joined.firsts, strict=False)
            if len(own) and (weights is None or weights[name])
        }
        if not numbers:
            continue
        if weights is None:
            groups = [np.concatenate(list(numbers.values()))]
            rates = [float(len(groups[0]))]
        else:
            groups = list(numbers.values())
            rates = [weights[name] * len(own) / len(parts[name]) for name, own in numbers.items()]
        drawn = [_keys(group) for group in groups]
        if seed is not None:  # two groups of one size differ in their order
            seeds = np.random.SeedSequence((seed, len(found))).generate_state(len(drawn))
            drawn = [
                keys.seed(int(own)).shuffle().repeat()
                for keys, own in zip(drawn, seeds, strict=True)
            ]
        items = drawn[0] if len(drawn) == 1 else grain.MapDataset.mix(drawn, weights=rates)
        found.append((items.map(joined.read).map(convert), sum(rates)))
    return found


def _check_weights(weights: Mapping[str, float], parts: Mapping[str, Sequence]) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"weights: {name} has {weight}; give a number, 0 or more")
        if name not in parts:
            raise UserError(f"weights: no dataset {name!r}; there are {', '.join(parts)}")
    for name in parts:
        if name not in weights:
            raise UserError(f"weights: dataset {name!r} has none; give one, or 0 to leave it out")
    if not any(weights.values()):
        raise UserError("weights: all are 0; give at least one dataset more")


def _keys(numbers: np.ndarray) -> grain.MapDataset:
    """`numbers`, ascending; as a range where they are one, which costs no memory."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first + 1 == len(numbers):
        return grain.MapDataset.range(first, last + 1)
    return grain.MapDataset.source(numbers)


class _Joined:
    """Several sequences as one; `firsts` are the numbers at which they begin."""

    def __init__(self, parts: Sequence[Sequence]):
        self._parts = parts
        self.firsts = [0, *accumulate(map(len, parts))]

    def read(self, key: int) -> Any:
        part = int(np.searchsorted(self.firsts, key, "right")) - 1
        return self._parts[part][int(key) - self.firsts[part]]


@dataclass(frozen=True)
class _Shape:
    """The shape of the items of a batch.

    Attributes:
        audio: samples of input and reference; 0 leaves one out.
        text, caption_length: as in `token_batches`.
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


def _as_waves(batch: Batch) -> Batch:
    """Audio comes from worker processes as int16, which is half as much to pass on."""
    return {name: from_int16(v) if name in AUDIO else v for name, v in batch.items()}


@dataclass(frozen=True)
class _Coded:
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


@dataclass(frozen=True)
class _Chain:
    steps: Sequence[Callable[[Any], Any]]

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value
