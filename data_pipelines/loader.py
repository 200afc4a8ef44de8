"""Batches for training and evaluation, through Grain.

The global batch of a step is a function of (seed, step) alone: process i of n reads the i-th of its
n equal parts, and worker processes only change who computes what. The iterator's state is the
number of steps taken, so that it can be carried to another number of processes or workers.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from data_pipelines.cuts import Cutter
from data_pipelines.examples import fingerprint
from data_pipelines.manifests import Entry
from data_pipelines.simulation import fit, set_peak
from quark_jax.errors import UserError

Batch = np.ndarray | dict[str, np.ndarray]


class Skips(Protocol):
    """What tells which recordings it has passed over in this process, and why."""

    @property
    def skipped(self) -> Mapping[Entry, str]: ...


class Batches(grain.DatasetIterator):
    """Iterator over the batches of this process, with explicit state.

    Save and restore the state with the model, through `get_state` and `set_state` or Orbax
    (`grain.checkpoint.CheckpointSave(batches)`, `CheckpointRestore(batches)`). `close` ends the
    worker processes, if any.

    Attributes:
        skipped: the recordings left out from the start, and the corrupt and silent ones met so
            far by this process and its worker processes; and the reason of each.
    """

    def __init__(
        self,
        parts: grain.MapDataset,
        *,
        num_workers: int,
        made_with: dict[str, Any],
        sources: Sequence[Skips] = (),
        after: Callable[[Batch], Any] | None = None,
    ):
        """`parts` are the batches, made of `sources`, and `after` is done to each batch in a thread
        of this process, ahead of its use."""
        super().__init__()
        self._parts, self._sources = parts, sources
        self._after = after
        self._num_workers = num_workers
        self._made_with = made_with
        self.skipped = _skipped(sources)
        self._left_out = frozenset(self.skipped)
        self._begin(0)

    def __next__(self) -> Batch:
        batch, report = next(self._rest)
        self.skipped |= report.skipped
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The number of batches taken, and what has to stay the same for the order to go on."""
        return {"step": self._step, "made_with": self._made_with}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after `state["step"]` batches.

        Raises:
            UserError: if the state is of batches in another order.
        """
        for name, value in self._made_with.items():
            if state["made_with"].get(name) != value:
                raise UserError(
                    f"data iterator: saved with {name} {state['made_with'].get(name)}, but this "
                    f"run has {value}; keep it as it was to resume"
                )
        self._rest.close()
        self._begin(int(state["step"]))

    def start_prefetch(self) -> None:
        """Begins reading ahead of the first batch."""
        self._rest.start_prefetch()

    def close(self) -> None:
        """Ends the threads and processes that read ahead; no batch can be taken after it."""
        self._rest.close()

    def _begin(self, step: int) -> None:
        """Reads on from `step`. The part of the data set that is left is read from its start,
        because Grain cannot set several workers to a step, nor restore one number as another."""
        self._step = step
        parts = self._parts[step:].map(_WithSkipped(self._sources, self._left_out))
        rest = parts.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # workers read Grain's absl flags; defaults will do
                flags.FLAGS.mark_as_parsed()
            rest = rest.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._num_workers))
        if self._after is not None:
            rest = grain.experimental.ThreadPrefetchIterDataset(
                rest.map(_OnBatch(self._after)), prefetch_buffer_size=2
            )
        self._rest = iter(rest)


@dataclass(frozen=True)
class _Report:
    """What a process has skipped; to Grain one value, not a tree of them."""

    skipped: dict[Entry, str]


@dataclass(frozen=True)
class _OnBatch:
    """Does something to a batch, and leaves alone what was skipped."""

    change: Callable[[Batch], Any]

    def __call__(self, pair: tuple[Batch, _Report]) -> tuple[Any, _Report]:
        return self.change(pair[0]), pair[1]


class _WithSkipped:
    """Adds to a batch what the process that made it has skipped, and not told of with another."""

    def __init__(self, sources: Sequence[Skips], told: Set[Entry]):
        self._sources, self._told = sources, set(told)

    def __call__(self, batch: Batch) -> tuple[Batch, _Report]:
        skipped = _skipped(self._sources)
        fresh = {entry: skipped[entry] for entry in skipped.keys() - self._told}
        self._told |= fresh.keys()
        return batch, _Report(fresh)


def _skipped(sources: Sequence[Skips]) -> dict[Entry, str]:
    return {entry: reason for source in sources for entry, reason in dict(source.skipped).items()}


def codec_batches(
    entries: Sequence[Entry],
    *,
    rate: int,
    seconds: float,
    batch_size: int,
    seed: int = 0,
    train: bool = True,
    weights: Mapping[str, float] | None = None,
    peak: tuple[float, float] = (0.1, 0.99),
    drop_remainder: bool = True,
    shard_index: int = 0,
    shard_count: int = 1,
    num_workers: int = 0,
) -> Batches:
    """Waves for codec training: float32 [batch_size / shard_count, round(seconds * rate)].

    In training a recording is drawn as often as its share of the hours (of its domain, where
    there are weights), as in AudioCraft's `AudioDataset`: each second of audio counts the same,
    be it of a short prompt or a long piece of music. Each round of as many draws as there are
    recordings goes evenly through all the hours.

    Args:
        entries: the recordings, at any rate. Those of unknown duration count as long as the mean
            of the others.
        rate: rate of the waves in Hz.
        seconds: length of a cut; shorter audio wraps round.
        batch_size: of all processes together.
        seed: of order, cuts and levels.
        train: endless, shuffled anew each round, random cuts at a random peak. Otherwise one pass
            in order: the start of each usable recording at its own level.
        weights: how often to draw from each domain of the entries, in proportion, as
            {"speech": 2, "music": 1, "audio": 1}; 0 leaves a domain out. The domains follow each
            other in a fixed pattern, so that every few batches hold them in just this proportion.
            None draws from all entries alike. Training only.
        peak: range of the random peak.
        drop_remainder: leave out a last batch that is not full (one pass only).
        shard_index, shard_count: `jax.process_index()` and `jax.process_count()`.
        num_workers: worker processes; 0 reads in threads of this one.

    Raises:
        UserError: if there are no recordings, or fewer than a batch in one pass; or if the domains
            and the weights do not fit each other. While iterating: if no recording can be used. A
            corrupt or silent file is passed over in favour of the next of its domain, logged, and
            counted in `Batches.skipped`.
    """
    samples = round(seconds * rate)
    recordings = f"{len(entries)} {fingerprint(entries)}"
    made_with = {"batch_size": batch_size, "seed": seed, "recordings": recordings}
    if train:
        domains = [(entries, 1.0)] if weights is None else _domains(entries, weights)
        cutters = [Cutter(domain, rate=rate, samples=samples) for domain, _ in domains]
        made_with["weights"] = weights and dict(weights)
        items = _random_cuts(cutters, [weight for _, weight in domains], seed, peak)
    else:
        cutters = [Cutter(entries, rate=rate, samples=samples)]
        items = _starts(cutters[0])
    return make_batches(
        [(items, 1.0)],
        batch_size=batch_size,
        made_with=made_with,
        sources=cutters,
        drop_remainder=drop_remainder,
        shard=(shard_index, shard_count),
        num_workers=num_workers,
    )


def _starts(cutter: Cutter) -> grain.MapDataset:
    """The start of each usable recording, in order."""
    with ThreadPoolExecutor() as pool:
        audible = pool.map(lambda entry: cutter.read(entry) is not None, cutter.entries)
        usable = list(compress(cutter.entries, audible))
    return grain.MapDataset.source(usable).map(
        lambda entry: fit(cutter.read(entry), cutter.samples)
    )


def _domains(
    entries: Sequence[Entry], weights: Mapping[str, float]
) -> list[tuple[list[Entry], float]]:
    """The entries of each domain whose weight is not 0, and the weight."""
    found = {entry.domain: entry for entry in reversed(entries)}
    check_weights(weights, "domain")
    for domain, weight in weights.items():
        if weight and domain not in found:
            raise UserError(
                f"weights: no recording is of domain {domain!r}; the manifest has "
                f"{', '.join(sorted(found)) or 'none'}"
            )
    for domain, entry in found.items():
        if domain not in weights:
            raise UserError(
                f"{entry.path}: its domain {domain!r} has no weight; give it one, or 0 to leave "
                "these recordings out"
            )
    return [([e for e in entries if e.domain == domain], w) for domain, w in weights.items() if w]


def check_weights(weights: Mapping[str, float], kind: str) -> None:
    """Raises UserError unless all are 0 or more and one is more; `kind` is what each is of."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"weights: {name} has {weight}; give a number, 0 or more")
    if not any(weights.values()):
        raise UserError(f"weights: all are 0; give at least one {kind} more")


def _random_cuts(
    cutters: Sequence[Cutter], weights: Sequence[float], seed: int, peak: tuple[float, float]
) -> grain.MapDataset:
    """Endless cuts float32 [samples], of each cutter in proportion to its weight."""
    ends = [np.cumsum(_durations(cutter.entries)) for cutter in cutters]

    def random_cut(place: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        domain, slot = place
        # A slot is one of equal parts of the domain's time, as many as it has recordings.
        second = (slot + rng.random()) / len(ends[domain]) * ends[domain][-1]
        index = min(int(np.searchsorted(ends[domain], second, "right")), len(ends[domain]) - 1)
        return set_peak(cutters[domain].random(index, rng)[0], rng.uniform(*peak))

    slots = [
        grain.MapDataset.range(len(cutter))
        .seed(seed)
        .shuffle()
        .repeat()
        .map(partial(_pair, domain))
        for domain, cutter in enumerate(cutters)
    ]
    return grain.MapDataset.mix(slots, weights=weights).seed(seed).random_map(random_cut)


def _pair(domain: int, slot: int) -> tuple[int, int]:
    return domain, int(slot)


def _durations(entries: Sequence[Entry]) -> np.ndarray:
    """Seconds of each entry; of those that do not say, the mean of the others."""
    seconds = np.array([np.nan if e.seconds is None else e.seconds for e in entries])
    known = seconds[seconds > 0]
    return np.nan_to_num(seconds, nan=known.mean() if len(known) else 1.0)


def make_batches(
    pools: Sequence[tuple[grain.MapDataset, float]],
    *,
    batch_size: int,
    made_with: dict[str, Any],
    drop_remainder: bool,
    shard: tuple[int, int],
    num_workers: int,
    sources: Sequence[Skips] = (),
    after: Callable[[Batch], Any] | None = None,
) -> Batches:
    """Batches, each of the items of one pool, the pools in proportion to their weights; shard i of
    n takes the i-th part of each global batch."""
    index, count = shard
    if batch_size % count or not 0 <= index < count:
        raise UserError(
            f"batch_size {batch_size} does not divide over {count} processes (shard {index}); "
            "choose a multiple of their number"
        )
    if count > 1 and not drop_remainder:
        raise UserError("drop_remainder=False needs one process: parts have to be equal")
    parts = []
    for items, _ in pools:
        if drop_remainder:
            if len(items) < batch_size:
                raise UserError(
                    f"{len(items)} items do not fill a batch of {batch_size}; choose a smaller one"
                )
            items = items[: len(items) // batch_size * batch_size]
        items = items.batch(batch_size // count, drop_remainder=drop_remainder)
        parts.append(items[index::count])
    weights = [weight for _, weight in pools]
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=weights)
    return Batches(
        mixed, num_workers=num_workers, made_with=made_with, sources=sources, after=after
    )
