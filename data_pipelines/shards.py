"""The making of a pre-tokenised dataset, shard by shard (`data_pipelines.tokenised` is the way in).

TFDS's `ShardBasedBuilder` is used rather than `GeneratorBasedBuilder` because it keeps the order of
the examples, streams (the other sorts all of a split and needs TensorFlow once that passes 1 GB),
and runs the same code on Beam.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tqdm import tqdm

from data_pipelines.examples import Example
from data_pipelines.manifests import Entry
from quark_jax.errors import UserError

NAME, VERSION = "tokenised", "1.0.0"
_FULL_SCALE = 32768


class Codes(Protocol):
    """What `encode` returns: both streams' codes, integers [batch, codebooks, frames]."""

    acoustic: Any
    semantic: Any


class ExampleSource(Protocol):
    """Random access to examples; see `data_pipelines.examples.SpeechRestoration`."""

    rate: int
    seconds: float
    skipped: dict[Entry, str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def describe(self) -> dict[str, Any]: ...


def to_int16(wave: np.ndarray) -> np.ndarray:
    """float32 [...] in [-1, 1] -> int16; `from_int16` brings it back to within half a step of
    1 / 32768, and 1 itself to within a step."""
    return np.clip(np.rint(wave * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def from_int16(wave: np.ndarray) -> np.ndarray:
    """int16 [...] -> float32 in [-1, 1)."""
    return wave.astype(np.float32) / _FULL_SCALE


class Work:
    """The making of records, shared by all shards of one run; done shards lie in `shards`."""

    def __init__(
        self,
        sources: Mapping[str, ExampleSource],
        encode: Callable[[np.ndarray], Codes],
        batch_size: int,
        shards: Path,
        bar: tqdm,
    ):
        self.sources, self._encode, self._batch_size = sources, encode, batch_size
        self.shards, self._bar = shards, bar
        self._made_seconds = 0.0

    def records(
        self, split: str, start: int, stop: int, sizes_file: Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, record) of examples `start` to `stop`, made in the background as they are
        needed; last, the sizes of the records are written to `sizes_file`."""
        source = self.sources[split]
        batches = (
            grain.MapDataset.range(start, stop)
            .map(lambda index: source[int(index)])
            .batch(self._batch_size, batch_fn=list)
            .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
        )
        index, seconds, sizes = start, 0.0, np.zeros(3, np.int64)
        for examples in batches:
            for record in self._encoded(examples):
                yield index, record
                index += 1
                sizes = np.maximum(sizes, (*record["acoustic"].shape, len(record["input"])))
            seconds += sum(len(example.target) / example.rate for example in examples)
            self._bar.update(len(examples))
        self._made_seconds += seconds
        found = {"examples": stop - start, "seconds": seconds, "sizes": sizes.tolist()}
        sizes_file.write_text(json.dumps(found))

    def done(self, start: int, stop: int) -> Iterator[tuple[int, None]]:
        """Stands in for the records of a shard that is there already."""
        return ((index, None) for index in range(start, stop))

    def summary(self, wall_seconds: float) -> dict[str, Any]:
        """Sizes of the largest record, hours of audio in all, and how fast this run made them."""
        shards = done_shards(self.shards)
        codebooks, frames, samples = np.max([shard["sizes"] for shard in shards], axis=0).tolist()
        return {
            "codebooks": codebooks,
            "frames": frames,
            "input_samples": samples,
            "statistics": {
                "hours": sum(shard["seconds"] for shard in shards) / 3600,
                "hours_per_hour": self._made_seconds / wall_seconds,
            },
        }

    def _encoded(self, examples: list[Example]) -> Iterator[dict[str, Any]]:
        targets = np.stack([example.target for example in examples])
        missing = self._batch_size - len(targets)  # a last batch is filled up: one shape, one jit
        codes = self._encode(np.pad(targets, ((0, missing), (0, 0)), mode="edge"))
        if getattr(codes, "lengths", None) is not None:
            raise UserError(
                "the codec's frames differ in length, which a tokenised dataset does not hold; "
                "use a codec with a fixed frame rate"
            )
        streams = _int16(codes.acoustic), _int16(codes.semantic)
        for example, acoustic, semantic in zip(examples, *streams, strict=False):
            wave = np.zeros(0, np.float32) if example.input is None else example.input
            yield {
                "acoustic": acoustic,
                "semantic": semantic,
                "frames": acoustic.shape[-1],
                "input": to_int16(wave),
                "input_samples": len(wave),
                "task": example.task,
                "caption": example.caption,
                "provenance": json.dumps(example.provenance),
            }


class Builder(tfds.core.ShardBasedBuilder):
    """The TFDS dataset: one record an example, wave and codes of int16, in shards of
    `examples_per_shard` (of `metadata`)."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, metadata: dict[str, Any], work: Work, *, data_dir: str):
        self._metadata, self._work = metadata, work
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        raw = tfds.features.Encoding.BYTES
        codes = tfds.features.Tensor(shape=(None, None), dtype=np.int16, encoding=raw)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "acoustic": codes,
                    "semantic": codes,
                    "frames": tfds.features.Scalar(np.int32),
                    "input": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding=raw),
                    "input_samples": tfds.features.Scalar(np.int32),
                    "task": tfds.features.Text(),
                    "caption": tfds.features.Text(),
                    "provenance": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(self._metadata),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        size = self._metadata["examples_per_shard"]
        return {
            split: [
                partial(self._shard, split, shard, shard * size, min(shard * size + size, total))
                for shard in range(-(-total // size))
            ]
            for split, total in ((name, len(s)) for name, s in self._work.sources.items())
        }

    def _shard(self, split: str, shard: int, start: int, stop: int) -> Iterator:
        template = self._get_filename_template(split_name=split)
        shards = -(-len(self._work.sources[split]) // self._metadata["examples_per_shard"])
        path = template.sharded_filepath(shard_index=shard, num_shards=shards)
        kept = self._work.shards / path.name
        if kept.exists():
            return self._work.done(start, stop)
        return self._work.records(split, start, stop, kept.with_name(f"{kept.name}.json"))

    def _example_writer(self) -> writer.ExampleWriter:
        return _ShardKeeper(self.info.file_format, self._work.shards)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        began = time.monotonic()
        super()._download_and_prepare(dl_manager, download_config)
        self.info.metadata.update(self._work.summary(time.monotonic() - began))

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded; saying so would only confuse."""

    _log_download_done = _log_download_bytes


class _ShardKeeper(writer.ExampleWriter):
    """Writes a shard where an interruption leaves it, unless it is there, and links it in."""

    def __init__(self, file_format, shards: Path):
        super().__init__(file_format)
        self._shards = shards

    def write(self, path, examples) -> None:
        kept = self._shards / Path(path).name
        if not kept.exists():
            beside = kept.with_name(f"{kept.name}.partial")
            super().write(beside, examples)
            beside.rename(kept)
        try:
            os.link(kept, path)
        except OSError:  # a file system without links
            shutil.copyfile(kept, path)


def done_shards(shards: Path) -> list[dict[str, Any]]:
    """What is known of each shard that is there: examples, seconds of audio, largest sizes."""
    files = (path for path in shards.glob("*.json") if path.with_suffix("").exists())
    return [json.loads(path.read_text()) for path in files]


def _int16(codes: Any) -> np.ndarray:
    """Codes [batch, codebooks, frames] as int16."""
    codes = np.asarray(codes)
    if codes.ndim != 3 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes are {codes.dtype} {list(codes.shape)}; give integers [B, N, T]")
    if codes.size and not 0 <= codes.min() <= codes.max() < _FULL_SCALE:
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit 15 bits")
    return codes.astype(np.int16)
