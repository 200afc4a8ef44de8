"""The making of a pre-tokenised dataset, shard by shard (`data_pipelines.tokenised` is the way in).

A shard is a function of its number alone. Shards are made one after another, or by the workers of a
Beam pipeline (`data_pipelines.beam`), and kept in a folder of their own; then TFDS's builder takes
them in. `ShardBasedBuilder` rather than `GeneratorBasedBuilder`, because it keeps the order of the
examples and streams (the other sorts all of a split, and needs TensorFlow once that passes 1 GB).
Its own way over Beam is not used: its graph grows with every shard, past what Dataflow accepts, and
with each further split it makes the ones before again.
"""

import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import example_serializer, file_adapters, naming, writer

from data_pipelines.examples import Example, Source
from data_pipelines.manifests import Entry
from data_pipelines.records import (
    AUDIO,
    LENGTHS,
    Networks,
    Record,
    features_dict,
    lengths,
)
from quark_jax.encoders.features import SAMPLES_PER_FRAME
from quark_jax.files import read_json

NAME, VERSION = "tokenised", "2.0.0"
CHECKSUMS = "checksums.json"  # SHA-256 of each shard, by file name
SKIPPED = "skipped.json"  # by split, the ids of recordings that were passed over, and why
EXAMPLES_PER_SHARD = 4096
_FORMAT = file_adapters.FileFormat.ARRAY_RECORD
_THREADS = min(16, os.cpu_count() or 1)


class Shard(NamedTuple):
    """Examples `start` to `stop` of a split, shard `number` of `count`."""

    split: str
    number: int
    count: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        """The name TFDS gives to the file."""
        template = naming.ShardedFileTemplate(
            data_dir=epath.Path("."),
            dataset_name=NAME,
            split=self.split,
            filetype_suffix=_FORMAT.file_suffix,
        )
        return template.sharded_filepath(shard_index=self.number, num_shards=self.count).name


def shards_of(splits: Mapping[str, int], size: int) -> list[Shard]:
    """The shards, of `size` examples each, of splits that have so many examples."""
    return [
        Shard(split, number, -(-total // size), start, min(start + size, total))
        for split, total in splits.items()
        for number, start in enumerate(range(0, total, size))
    ]


def lengths_file(split: str) -> str:
    """The file with the lengths of a split's records, int32 [records, `records.LENGTHS`]."""
    return f"lengths-{split}.npy"


def record_id(prefix: str, index: int) -> str:
    """The id of a record: what its split is made of, and which of its examples it is."""
    return f"{prefix}-{index:09d}"


def short_hash(value: Any) -> str:
    """Sixteen hexadecimal digits that tell apart JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def prefix_of(split: str, about: Mapping[str, Any]) -> str:
    """What the ids of a split's records begin with, if its source describes itself so."""
    return short_hash([split, about])[:12]


@dataclass
class Work:
    """What shards are made with.

    Attributes:
        sources: the examples of each split.
        networks: what is computed of them.
        prefixes: of the records' ids, by split.
        folder: where shards that are done lie, each with a JSON file of the same name that tells
            examples, seconds, wall (seconds that it took), lengths, codebooks, channels (of
            features), dynamic, sha256, and which recordings were skipped for the first time.
        left_out: what each source skips from the start, by split.
    """

    sources: Mapping[str, Source]
    networks: Networks
    prefixes: Mapping[str, str]
    folder: epath.Path
    left_out: Mapping[str, Mapping[Entry, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.left_out = {split: dict(source.skipped) for split, source in self.sources.items()}
        # Besides those, what is in the JSON file of some shard.
        self._told = {split: set(found) for split, found in self.left_out.items()}

    def make(self, shard: Shard, made: Callable[[int], None] = lambda count: None) -> None:
        """Makes a shard, unless it is there; `made` is told of records as they are made."""
        kept = self.folder / shard.file
        if kept.exists():
            return
        began = time.monotonic()
        about: dict[str, Any] = {"examples": shard.stop - shard.start, "lengths": []}
        about |= {"channels": 0, "dynamic": False}
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / shard.file
            features = features_dict()
            serialiser = example_serializer.ExampleSerializer(features.get_serialized_info())
            serialised = (
                (index, serialiser.serialize_example(features.encode_example(record)))
                for index, record in self._records(shard, about, made)
            )
            try:
                writer.ExampleWriter(_FORMAT).write(local, serialised)
            except RuntimeError as error:
                if str(local) not in str(error):  # of what makes the examples
                    raise
                raise OSError(f"{shard.file}: {error}") from error
            with local.open("rb") as file:
                about["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
            # Under a name of its own: two workers may make the same shard.
            beside = self.folder / f".{shard.file}.{uuid.uuid4().hex}"
            try:
                epath.Path(local).copy(beside)
            except OSError:
                beside.unlink(missing_ok=True)
                raise
        about["wall"] = time.monotonic() - began
        told = self._told[shard.split]
        skipped = dict(self.sources[shard.split].skipped)
        fresh = {entry: reason for entry, reason in skipped.items() if entry not in told}
        about["skipped"] = {entry.id: reason for entry, reason in fresh.items()}
        about_beside = beside.with_name(f"{beside.name}.json")
        about_beside.write_text(json.dumps(about))
        about_beside.replace(self.folder / f"{shard.file}.json")
        beside.replace(kept)
        told.update(fresh)

    def _records(
        self, shard: Shard, about: dict[str, Any], made: Callable[[int], None]
    ) -> Iterator[tuple[int, Record]]:
        """(index, record) of a shard's examples, which are made in the background."""
        source, seconds = self.sources[shard.split], 0.0
        examples = (
            grain.MapDataset.range(shard.start, shard.stop)
            .map(lambda index: source[int(index)])
            .to_iter_dataset(grain.ReadOptions(_THREADS, 2 * self.networks.batch_size + _THREADS))
        )

        def counted() -> Iterator[Example]:
            nonlocal seconds
            for example in examples:
                seconds += len(example.target) / example.rate
                yield example

        records = self.networks.records(counted(), source.seconds)
        for index, record in enumerate(records, shard.start):
            yield index, record | {"id": record_id(self.prefixes[shard.split], index)}
            about["lengths"].append(lengths(record))
            about["codebooks"] = len(record["acoustic"])
            about["dynamic"] |= len(record["segments"]) > 0
            if self.networks.features is not None:
                about["channels"] = max(about["channels"], _channels(record))
            made(1)
        about["seconds"] = seconds


def _channels(record: Record) -> int:
    """Channels of a record's features; 0 where it has none."""
    frames = {name: record[f"{name}_samples"] // SAMPLES_PER_FRAME for name in AUDIO}
    return max((len(record[name]) // count for name, count in frames.items() if count), default=0)


def done(folder: epath.Path, shards: Sequence[Shard]) -> list[Shard]:
    """Those of `shards` that are there."""
    there = {path.name for path in folder.iterdir()}
    return [shard for shard in shards if shard.file in there]


class Builder(tfds.core.ShardBasedBuilder):
    """The TFDS dataset of shards that `make_all` makes with `work`: one record an example."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        metadata: dict[str, Any],
        shards: Sequence[Shard],
        work: Work,
        make_all: Callable[[], None],
        *,
        data_dir: str,
    ):
        self._metadata, self._shards = metadata, shards
        self._work, self._folder, self._make_all = work, work.folder, make_all
        super().__init__(data_dir=data_dir, file_format=_FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=features_dict(),
            metadata=tfds.core.MetadataDict(self._metadata),
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        self._make_all()
        super()._download_and_prepare(dl_manager, download_config)
        about = {shard: self._about(shard) for shard in self._shards}
        for split in self.info.splits:
            parts = [about[shard] for shard in self._shards if shard.split == split]
            with (self.data_path / lengths_file(split)).open("wb") as file:
                np.save(file, np.concatenate([part["lengths"] for part in parts]))
        checksums = {shard.file: part["sha256"] for shard, part in about.items()}
        (self.data_path / CHECKSUMS).write_text(json.dumps(checksums, indent=0))
        largest = np.max([part["lengths"].max(0) for part in about.values()], axis=0).tolist()
        skipped = self._skipped(about)
        (self.data_path / SKIPPED).write_text(json.dumps(skipped, indent=0, ensure_ascii=False))
        seconds = sum(part["seconds"] for part in about.values())
        self.info.metadata.update(
            dict(zip(LENGTHS, largest, strict=True)),
            codebooks=max(part["codebooks"] for part in about.values()),
            channels=max(part["channels"] for part in about.values()),
            dynamic=any(part["dynamic"] for part in about.values()),
            statistics={
                "hours": seconds / 3600,
                "hours_per_hour": seconds / sum(part["wall"] for part in about.values()),
                "skipped": {split: len(found) for split, found in skipped.items()},
            },
        )

    def _skipped(self, about: Mapping[Shard, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
        """The ids of all recordings that were passed over, by split, and the reason of each."""
        found = {
            split: {entry.id: reason for entry, reason in entries.items()}
            for split, entries in self._work.left_out.items()
        }
        for shard, part in about.items():
            found[shard.split] |= part["skipped"]
        return found

    def _about(self, shard: Shard) -> dict[str, Any]:
        path = self._folder / f"{shard.file}.json"
        about = read_json(path, "delete it and the shard beside it, then run the command again")
        return about | {"lengths": np.array(about["lengths"], np.int32)}

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        found: dict[str, list[Callable]] = {}
        for shard in self._shards:
            # The keys are counted; what stands for the records is never looked at.
            keys = partial(zip, range(shard.start, shard.stop), range(shard.start, shard.stop))
            found.setdefault(shard.split, []).append(keys)
        return found

    def _example_writer(self) -> writer.ExampleWriter:
        return _TakesIn(self._folder)

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded; saying so would only confuse."""

    _log_download_done = _log_download_bytes


class _TakesIn(writer.ExampleWriter):
    """Links a shard that is made to where the builder wants it."""

    def __init__(self, folder: epath.Path):
        super().__init__(_FORMAT)
        self._folder = folder

    def write(self, path, examples) -> None:
        path = epath.Path(path)
        try:
            os.link(self._folder / path.name, path)
        except OSError:  # a file system without links
            (self._folder / path.name).copy(path)
