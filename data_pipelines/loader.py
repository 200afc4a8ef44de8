"""Batches for training and evaluation, through Grain.

The global batch of a step is a function of (seed, step) alone: process i of n reads the i-th of its
n equal parts, and worker processes only change who computes what. The iterator's state is the
number of steps taken, so that it can be carried to another number of processes or workers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipelines.cuts import Cutter
from data_pipelines.manifests import Entry
from data_pipelines.shards import from_int16
from data_pipelines.simulation import fit, set_peak
from data_pipelines.tokenised import TokenisedDataset
from quark_jax.errors import UserError
from quark_jax.lm.tasks import TASK_IDS

Batch = np.ndarray | dict[str, np.ndarray]


class Batches(grain.DatasetIterator):
    """Iterator over the batches of this process, with explicit state.

    Save and restore the state with the model, through `get_state` and `set_state` or Orbax
    (`grain.checkpoint.CheckpointSave(batches)`, `CheckpointRestore(batches)`). `close` ends the
    worker processes, if any.

    Attributes:
        skipped: the corrupt and silent recordings met so far, and the reason of each; what worker
            processes meet is in their logs only.
    """

    def __init__(
        self,
        parts: grain.MapDataset,
        *,
        num_workers: int,
        made_with: dict[str, int],
        skipped: dict[Entry, str],
    ):
        super().__init__()
        self._parts, self._num_workers = parts, num_workers
        self._made_with = made_with
        self.skipped = skipped
        self._begin(0)

    def __next__(self) -> Batch:
        batch = next(self._rest)
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
        rest = self._parts[step:].to_iter_dataset(
            grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        )
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # workers read Grain's absl flags; defaults will do
                flags.FLAGS.mark_as_parsed()
            rest = rest.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._num_workers))
        self._rest = iter(rest)


def codec_batches(
    entries: Sequence[Entry],
    *,
    rate: int,
    seconds: float,
    batch_size: int,
    seed: int = 0,
    train: bool = True,
    peak: tuple[float, float] = (0.1, 0.99),
    drop_remainder: bool = True,
    shard_index: int = 0,
    shard_count: int = 1,
    num_workers: int = 0,
) -> Batches:
    """Waves for codec training: float32 [batch_size / shard_count, round(seconds * rate)].

    Args:
        entries: the recordings, at any rate.
        rate: rate of the waves in Hz.
        seconds: length of a cut; shorter audio wraps round.
        batch_size: of all processes together.
        seed: of order, cuts and levels.
        train: endless, shuffled anew each round, random cuts at a random peak. Otherwise one pass
            in order: the start of each usable recording at its own level.
        peak: range of the random peak.
        drop_remainder: leave out a last batch that is not full (one pass only).
        shard_index, shard_count: `jax.process_index()` and `jax.process_count()`.
        num_workers: worker processes; 0 reads in threads of this one.

    Raises:
        UserError: if there are no recordings, or fewer than a batch in one pass. While iterating:
            if no recording can be used. A corrupt or silent file is passed over, logged and
            counted in `Batches.skipped`.
    """
    cutter = Cutter(entries, rate=rate, samples=round(seconds * rate))

    def random_cut(index: int, rng: np.random.Generator) -> np.ndarray:
        return set_peak(cutter.random(int(index), rng)[0], rng.uniform(*peak))

    if train:
        items = grain.MapDataset.range(len(entries)).seed(seed).shuffle().repeat()
        items = items.random_map(random_cut)
    else:
        usable = [entry for entry in cutter.entries if cutter.read(entry) is not None]
        items = grain.MapDataset.source(usable).map(
            lambda entry: fit(cutter.read(entry), cutter.samples)
        )
    return _batches(
        items,
        batch_size=batch_size,
        made_with={"batch_size": batch_size, "seed": seed, "recordings": len(entries)},
        skipped=cutter.skipped,
        drop_remainder=drop_remainder,
        shard=(shard_index, shard_count),
        num_workers=num_workers,
    )


def token_batches(
    dataset: TokenisedDataset,
    *,
    split: str = "train",
    batch_size: int,
    seed: int = 0,
    train: bool = True,
    drop_remainder: bool = True,
    shard_index: int = 0,
    shard_count: int = 1,
    num_workers: int = 0,
) -> Batches:
    """Batches of the language model from a tokenised dataset, B = batch_size / shard_count items.

    A batch is a dict of task int32 [B]; input float32 [B, S at 16 kHz], input_samples int32 [B];
    acoustic, semantic int32 [B, N, T]; frames int32 [B]. S and T are the dataset's largest, items
    are padded with zeros on the right.

    Args:
        dataset: what to read.
        split: which of its splits.
        batch_size: of all processes together.
        seed: of the order.
        train: endless, shuffled anew each round; otherwise one pass in order.
        drop_remainder, shard_index, shard_count, num_workers: as in `codec_batches`.

    Raises:
        UserError: if there is no such split, or it holds less than a batch in one pass.
    """
    records = dataset.records(split)
    items = grain.MapDataset.source(records)
    if train:
        items = items.seed(seed).shuffle().repeat()
    sizes = {name: dataset.metadata[name] for name in ("frames", "input_samples")}
    return _batches(
        items.map(partial(_item, **sizes)),
        batch_size=batch_size,
        made_with={"batch_size": batch_size, "seed": seed, "records": len(records)},
        skipped={},
        drop_remainder=drop_remainder,
        shard=(shard_index, shard_count),
        num_workers=num_workers,
    )


def _item(record: dict[str, Any], *, frames: int, input_samples: int) -> dict[str, np.ndarray]:
    """One record as the language model reads it, padded to static shapes."""
    streams = {
        name: np.pad(record[name].astype(np.int32), ((0, 0), (0, frames - record[name].shape[1])))
        for name in ("acoustic", "semantic")
    }
    wave = from_int16(record["input"])
    return streams | {
        "task": np.int32(TASK_IDS[record["task"].decode()]),
        "input": np.pad(wave, (0, input_samples - len(wave))),
        "input_samples": np.int32(record["input_samples"]),
        "frames": np.int32(record["frames"]),
    }


def _batches(
    items: grain.MapDataset,
    *,
    batch_size: int,
    made_with: dict[str, int],
    skipped: dict[Entry, str],
    drop_remainder: bool,
    shard: tuple[int, int],
    num_workers: int,
) -> Batches:
    """Batches of `items`, of which shard i of n takes the i-th part of each global batch."""
    index, count = shard
    if batch_size % count or not 0 <= index < count:
        raise UserError(
            f"batch_size {batch_size} does not divide over {count} processes (shard {index}); "
            "choose a multiple of their number"
        )
    if count > 1 and not drop_remainder:
        raise UserError("drop_remainder=False needs one process: parts have to be equal")
    if drop_remainder:
        if len(items) < batch_size:
            raise UserError(
                f"{len(items)} items do not fill a batch of {batch_size}; choose a smaller batch"
            )
        items = items[: len(items) // batch_size * batch_size]
    parts = items.batch(batch_size // count, drop_remainder=drop_remainder)[index::count]
    return Batches(parts, num_workers=num_workers, made_with=made_with, skipped=skipped)
