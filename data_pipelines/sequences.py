"""Batches for the language model, from tokenised datasets or on the fly from examples.

Both draw in the same order: which items a batch has is a function of (seed, step), and of how many
records of each length each dataset has, or examples each source.

A batch is a dict of arrays, padded with zeros on the right:

- task int32 [B]; acoustic, semantic int32 [B, N, T]; frames int32 [B]; with a dynamic frame
  rate also segments int32 [B, T];
- input float32 [B, S at 16 kHz], input_samples int32 [B]; reference, reference_samples alike;
  or where the datasets hold features, input_features bfloat16 [B, F at 50 Hz, C],
  input_frames int32 [B], and the same of the reference. Left out where no item has them;
- with `text`: caption int32 [B, caption_length], caption_tokens int32 [B].

T, S and F are the largest of all records, or of the bucket that the batch is from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import grain
import numpy as np

from data_pipelines.examples import INPUT_RATE, Source
from data_pipelines.items import Batch, Coded, Shape, Text, as_waves
from data_pipelines.loader import Batches, check_weights, make_batches
from data_pipelines.packing import Rows, pack
from data_pipelines.records import AUDIO, Codes
from data_pipelines.shards import prefix_of
from data_pipelines.tokenised import TokenisedDataset
from quark_jax.errors import UserError
from quark_jax.lm import Packing
from quark_jax.lm.tasks import task


def token_batches(
    datasets: TokenisedDataset | Mapping[str, TokenisedDataset],
    *,
    split: str = "train",
    batch_size: int,
    seed: int = 0,
    train: bool = True,
    weights: Mapping[str, float] | None = None,
    buckets: int = 1,
    packing: Packing | None = None,
    positions: Callable[[np.ndarray], np.ndarray] | None = None,
    text: Text | None = None,
    caption_length: int = 64,
    place: Callable[[Batch], Any] | None = None,
    drop_remainder: bool = True,
    shard_index: int = 0,
    shard_count: int = 1,
    num_workers: int = 0,
) -> Batches:
    """Batches of the language model from tokenised datasets, B = batch_size / shard_count items, or
    that many rows of `packing.sequences` items.

    They hold what the docstring of this module says.

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
        packing: sequences that share rows, for `LanguageModel.loss`. Rows are packed once and
            stay; a row is of one dataset where there are weights. `batch_size` counts rows, and
            items of 0 frames fill them up.
        positions: gives the positions [records] that records of these `TokenisedDataset.lengths`
            [records, 4] take in a row, or more, as `packing.positions_in` does; with `packing`.
        text: gives the token ids of a caption; an empty one has none. None leaves captions out.
        caption_length: token ids that a caption may have.
        place: brings a batch to the devices; called ahead of the step that wants it.
        drop_remainder, shard_index, shard_count, num_workers: as in `codec_batches`.

    Raises:
        UserError: if there is no such split, or it holds less than a batch in one pass; or if the
            datasets do not fit each other, or the weights, or a sequence a row. While iterating: if
            a shard is damaged, or a caption has too many tokens.
    """
    if isinstance(datasets, TokenisedDataset):
        datasets = {"dataset": datasets}
    _check_alike(datasets)
    lengths = [dataset.lengths(split) for dataset in datasets.values()]
    records = {name: dataset.records(split) for name, dataset in datasets.items()}
    pools = _pools(datasets, lengths, buckets if train else 1, text, caption_length)
    packed = packing and _packed(packing, positions, lengths, buckets)
    prefixes = {name: dataset.metadata["prefixes"][split] for name, dataset in datasets.items()}
    return make_batches(
        _drawn(records, pools, weights, seed if train else None, packed),
        batch_size=batch_size,
        made_with=_made_with(records, prefixes, batch_size, seed, weights)
        | {"buckets": buckets, "packing": packing and asdict(packing)},
        after=_chain(as_waves, packing and _join_rows, place),
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
    shape = Shape(
        {
            part: longest if any(name is None or getattr(task(name), part) for name in names) else 0
            for part in AUDIO
        },
        text,
        caption_length,
        target=round(seconds * rates.pop()),
    )
    members = [np.arange(len(source)) for source in sources.values()]
    prefixes = {name: prefix_of(name, source.describe()) for name, source in sources.items()}
    return make_batches(
        _drawn(sources, [(members, shape.of_example)], weights, seed if train else None),
        batch_size=batch_size,
        made_with=_made_with(sources, prefixes, batch_size, seed, weights),
        sources=list(sources.values()),
        after=_chain(encode and Coded(encode, hop), place),
        drop_remainder=drop_remainder,
        shard=(shard_index, shard_count),
        num_workers=num_workers,
    )


def _pools(
    datasets: Mapping[str, TokenisedDataset],
    lengths: Sequence[np.ndarray],
    buckets: int,
    text: Text | None,
    caption_length: int,
) -> list[tuple[list[np.ndarray], Callable[..., Any]]]:
    """The records of each bucket in each dataset, and what makes items of them."""
    return [
        (members, _shape(datasets, lengths, members, text, caption_length).of_record)
        for members in _buckets(lengths, buckets)
    ]


def _packed(
    packing: Packing,
    positions: Callable[[np.ndarray], np.ndarray] | None,
    lengths: Sequence[np.ndarray],
    buckets: int,
) -> "_Packed":
    if positions is None or buckets > 1:
        raise UserError("packing: needs `positions`, and leaves no use for `buckets`; set both so")
    return _Packed(packing, np.concatenate([positions(found) for found in lengths]))


def _chain(*steps: Callable[[Any], Any] | None) -> "_Chain | None":
    """Those of `steps` that there are, one after another."""
    there = [step for step in steps if step]
    return _Chain(there) if there else None


def _made_with(
    parts: Mapping[str, Sequence],
    prefixes: Mapping[str, str],
    batch_size: int,
    seed: int,
    weights: Mapping[str, float] | None,
) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        "seed": seed,
        "records": {name: f"{len(part)} {prefixes[name]}" for name, part in parts.items()},
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


def _shape(
    datasets: Mapping[str, TokenisedDataset],
    lengths: Sequence[np.ndarray],
    members: Sequence[np.ndarray],
    text: Text | None,
    caption_length: int,
) -> Shape:
    """The shape that the members of each dataset, given by number, have room in."""
    longest = [found[own].max(0) for found, own in zip(lengths, members, strict=True) if len(own)]
    frames, *samples, _ = np.max(longest, axis=0).tolist()
    return Shape(
        dict(zip(("input", "reference"), samples, strict=True)),
        text,
        caption_length,
        frames=frames,
        channels=max(dataset.metadata["channels"] for dataset in datasets.values()),
        dynamic=any(dataset.metadata["dynamic"] for dataset in datasets.values()),
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
    packed: "_Packed | None" = None,
) -> list[tuple[grain.MapDataset, float]]:
    """The items of each pool, and how often to draw from it; `seed` None is one pass in order.

    A pool is of the members of each part with these numbers, and what makes items of them; of rows
    of them, where they are `packed`.
    """
    if weights is not None:
        _check_weights(weights, parts)
    joined = _Joined(list(parts.values()))
    # All of these go to each worker process.
    kind = np.int32 if joined.firsts[-1] < 2**31 else np.int64
    found = []
    for members, convert in pools:
        numbers = {
            name: (first + own).astype(kind)
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
        if packed is not None:
            rows = [packed.rows(group, seed) for group in groups]
            rates = [r * len(b) / len(a) for r, a, b in zip(rates, groups, rows, strict=True)]
            groups, convert = rows, _Row(joined.read, convert, packed.packing.sequences)
        drawn = [_keys(group) for group in groups]
        if seed is not None:  # two groups of one size differ in their order
            seeds = np.random.SeedSequence((seed, len(found))).generate_state(len(drawn))
            drawn = [
                keys.seed(int(own)).shuffle().repeat()
                for keys, own in zip(drawn, seeds, strict=True)
            ]
        items = drawn[0] if len(drawn) == 1 else grain.MapDataset.mix(drawn, weights=rates)
        items = items.map(convert if packed is not None else _Chain([joined.read, convert]))
        found.append((items, sum(rates)))
    return found


def _check_weights(weights: Mapping[str, float], parts: Mapping[str, Sequence]) -> None:
    check_weights(weights, "dataset")
    for name in weights:
        if name not in parts:
            raise UserError(f"weights: no dataset {name!r}; there are {', '.join(parts)}")
    for name in parts:
        if name not in weights:
            raise UserError(f"weights: dataset {name!r} has none; give one, or 0 to leave it out")


def _keys(numbers: np.ndarray | Rows) -> grain.MapDataset:
    """`numbers`, ascending; as a range where they are one, which costs no memory. Or rows."""
    if isinstance(numbers, Rows):
        return grain.MapDataset.source(numbers)
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
class _Packed:
    """Records that share rows; `positions` are those of each of all datasets' records."""

    packing: Packing
    positions: np.ndarray

    def rows(self, numbers: np.ndarray, seed: int | None) -> Rows:
        """Rows of the records of these numbers; where there is a seed, of any neighbours."""
        if seed is not None:
            numbers = np.random.default_rng(seed).permutation(numbers)
        return pack(numbers, self.positions[numbers], self.packing)


@dataclass(frozen=True)
class _Row:
    """Makes the items of a row [items, ...] of the numbers of its records."""

    read: Callable[[int], Any]
    convert: Callable[[Any], Batch]
    items: int

    def __call__(self, numbers: np.ndarray) -> Batch:
        found = [self.convert(self.read(int(number))) for number in numbers]
        nothing = {name: np.zeros_like(value) for name, value in found[0].items()}
        found += [nothing] * (self.items - len(found))
        return {name: np.stack([item[name] for item in found]) for name in nothing}


def _join_rows(batch: Batch) -> Batch:
    """[rows, items, ...] -> [rows * items, ...]"""
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in batch.items()}


@dataclass(frozen=True)
class _Chain:
    steps: Sequence[Callable[[Any], Any]]

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value
