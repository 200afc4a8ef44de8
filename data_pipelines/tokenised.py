"""Pre-tokenised datasets: examples whose targets are codec codes, as ArrayRecord (no TensorFlow).

The dataset is a TFDS one, `FOLDER/tokenised/2.0.0`, which appears under that name only when it is
complete. Shards that are done are kept beside it until then, so that an interrupted run goes on
with the shard it was in.

`token_batches` mixes datasets by weight, so make one a task: then weights can change, and a task
can join or be made anew, without the others. A source that gives several tasks works too.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from data_pipelines.examples import Source
from data_pipelines.records import AUDIO, LENGTHS, Codes, Networks, Record, as_features
from data_pipelines.shards import (
    NAME,
    VERSION,
    Builder,
    Shard,
    Work,
    done,
    lengths_file,
    record_id,
    shards_of,
)
from quark_jax.errors import UserError, optional_import

REMEDY = "delete this dataset's folder and make it again, or copy it anew from where it is whole"


@dataclass(frozen=True)
class TokenisedDataset:
    """A complete pre-tokenised dataset.

    Attributes:
        path: its folder.
        metadata: codec (name), codec_hash, conditioning (kind "audio", or "features" with encoder
            and encoder_hash), rate (Hz), seconds, splits (what the examples of each depend on),
            prefixes (of the records' ids, by split), examples_per_shard; codebooks; channels of
            the features, else 0; dynamic, whether the frame rate is; the largest
            frames, input_samples, reference_samples and caption_bytes of any record; statistics.
        splits: number of records by split.
    """

    path: epath.Path
    metadata: dict[str, Any]
    splits: dict[str, int]

    def records(self, split: str) -> "Records":
        """Random access to the records of a split, in the order of the examples.

        Raises:
            UserError: if there is no such split.
        """
        self._check(split)
        return Records(self, split)

    def lengths(self, split: str) -> np.ndarray:
        """int32 [records, 4]: frames, input_samples, reference_samples and caption_bytes (UTF-8) of
        each record of a split. Mapped from the disk, not read.

        Raises:
            UserError: if there is no such split, or the file is damaged.
        """
        self._check(split)
        path = self.path / lengths_file(split)
        try:
            found = np.load(path, mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {REMEDY}") from error
        if found.shape != (self.splits[split], len(LENGTHS)):
            raise UserError(
                f"{path}: of shape {found.shape}, for {self.splits[split]} records; {REMEDY}"
            )
        return found

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split; their files are in `path`."""
        self._check(split)
        return shards_of({split: self.splits[split]}, self.metadata["examples_per_shard"])

    def _check(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"{self.path}: no split {split!r}; there are {', '.join(self.splits)}")


class Records:
    """The records of a split: `len(records)`, `records[index]`.

    A record is a dict: id; acoustic, semantic int16 [codebooks, frames]; frames; segments int16
    [frames], how many frames at the full rate each stands for (none of a codec with a fixed frame
    rate); input, reference: int16 [samples at 16 kHz], or bfloat16 features [samples // 320,
    channels], none where the task has none; input_samples, reference_samples; task, caption,
    provenance (JSON) as UTF-8 bytes.

    `records[index]` raises UserError, which names the file, where a shard is missing or damaged, or
    holds something else than it should.
    """

    def __init__(self, dataset: TokenisedDataset, split: str):
        self._dataset, self._split = dataset, split
        self._source = tfds.builder_from_directory(dataset.path).as_data_source(split)
        self._features = dataset.metadata["conditioning"]["kind"] == "features"

    def __len__(self) -> int:
        return self._dataset.splits[self._split]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        wanted = record_id(self._dataset.metadata["prefixes"][self._split], index)
        try:
            record = self._source[index]
        except Exception as error:  # what the readers raise has no common kind
            raise UserError(f"{self._path(index)}: damaged ({_first(error)}); {REMEDY}") from error
        if record["id"] != wanted.encode():
            raise UserError(
                f"{self._path(index)}: damaged (record {record['id'].decode(errors='replace')!r} "
                f"where {wanted} should be); {REMEDY}"
            )
        if self._features:
            channels = self._dataset.metadata["channels"]
            for name in AUDIO:
                record[name] = as_features(record[name], record[f"{name}_samples"], channels)
        return record

    def _path(self, index: int) -> epath.Path:
        number = index // self._dataset.metadata["examples_per_shard"]
        return self._dataset.path / self._dataset.shards(self._split)[number].file


def open_tokenised(folder: str | Path, *, codec_hash: str | None = None) -> TokenisedDataset:
    """Opens the dataset that `tokenise` made in `folder`.

    Args:
        folder: as given to `tokenise`.
        codec_hash: of the codec the codes have to be of; None for any.

    Raises:
        UserError: if there is no complete dataset, or it was made with another codec, or in another
            format.
    """
    path = _place(folder)
    if not (path / "dataset_info.json").is_file():
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        if old := [name for name in there if name[0].isdigit()]:
            raise UserError(
                f"{folder}: a tokenised dataset of format {old[-1]}, this is for {VERSION}; delete "
                "it and make it again"
            )
        raise UserError(
            f"{folder}: the tokenised dataset is not complete; run the same tokenising command "
            "again to finish it"
            if there
            else f"{folder}: holds no tokenised dataset; make one first"
        )
    info = tfds.builder_from_directory(path).info
    metadata = dict(info.metadata)
    if codec_hash is not None:
        _refuse_other_codec(folder, metadata, codec_hash)
    return TokenisedDataset(
        path, metadata, {name: split.num_examples for name, split in info.splits.items()}
    )


@dataclass(frozen=True)
class Beam:
    """How to make a dataset with Apache Beam.

    Attributes:
        make: gives the sources and the networks; pickled, and called once in each worker process,
            so that neither recordings nor weights travel with the graph.
        options: Beam's pipeline options, as on a command line.
    """

    make: Callable[[], tuple[Mapping[str, Source], Networks]]
    options: tuple[str, ...] = ()


def tokenise(
    sources: Mapping[str, Source],
    encode: Callable[[np.ndarray, np.ndarray], Codes],
    folder: str | Path,
    *,
    codec: str,
    codec_hash: str,
    hop: int | None = None,
    features: Callable[[np.ndarray, np.ndarray], Any] | None = None,
    encoder: str = "",
    encoder_hash: str = "",
    batch_size: int = 8,
    examples_per_shard: int = 256,
    progress: bool = True,
    beam: Beam | None = None,
) -> TokenisedDataset:
    """Makes a dataset of the examples of `sources`, their targets encoded; or finishes or reuses
    one that was begun with the same arguments.

    Args:
        sources: by split, "train" and "heldout"; all of one rate.
        encode, hop, features, batch_size: as in `Networks`; `features` keeps those of input and
            reference instead of the audio.
        folder: where the dataset goes.
        codec: the codec's name.
        codec_hash: hash of the codec's weights.
        encoder: name of what computes `features`.
        encoder_hash: hash of its weights and settings.
        examples_per_shard: examples a file; what an interruption can cost.
        progress: show a progress bar.
        beam: run on Beam; what it makes has to be what the other arguments say.

    Raises:
        UserError: if `folder` holds a dataset made with another codec or of other examples, or
            cannot be written to; or if a source is empty.
    """
    metadata = _describe(sources) | {
        "codec": codec,
        "codec_hash": codec_hash,
        "conditioning": {"kind": "audio"}
        if features is None
        else {"kind": "features", "encoder": encoder, "encoder_hash": encoder_hash},
        "examples_per_shard": examples_per_shard,
    }
    path = _place(folder)
    if (path / "dataset_info.json").is_file():
        dataset = open_tokenised(folder, codec_hash=codec_hash)
        _refuse_other_examples(folder, dataset.metadata, metadata)
        print(f"{folder}: already complete ({_counts(dataset.splits)}); nothing to do")
        _remove(path.parent, "shards-*")
        return dataset
    _remove(path.parent, "incomplete.*")
    place = path.parent / f"shards-{_hash(metadata)}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); choose a folder that can be written to"
        ) from error
    shards = shards_of(
        {split: len(source) for split, source in sources.items()}, examples_per_shard
    )
    networks = Networks(encode, hop, features, batch_size)
    work = Work(sources, networks, metadata["prefixes"], place)

    def make_all() -> None:
        if beam is not None:
            _on_beam(beam, work, shards)
        else:
            _here(work, shards, progress)

    Builder(metadata, shards, place, make_all, data_dir=str(folder)).download_and_prepare()
    _remove(path.parent, "shards-*")
    dataset = open_tokenised(folder)
    made = dataset.metadata["statistics"]
    print(
        f"{folder}: {_counts(dataset.splits)}, {made['hours']:.2f} h of audio "
        f"({made['hours_per_hour']:.0f} audio hours per hour)"
    )
    for split, source in sources.items():
        if source.skipped:
            print(f"{folder}: {split}: passed over {len(source.skipped)} unusable recordings")
    return dataset


def _here(work: Work, shards: list[Shard], progress: bool) -> None:
    with tqdm(
        total=sum(shard.stop - shard.start for shard in shards),
        initial=sum(shard.stop - shard.start for shard in done(work.folder, shards)),
        desc="Tokenising",
        unit=" examples",
        disable=not progress,
    ) as bar:
        for shard in shards:
            work.make(shard, bar.update)


def _on_beam(beam: Beam, work: Work, shards: list[Shard]) -> None:
    optional_import(
        "apache_beam", use="make a dataset with Beam", install="pip install 'quark-jax[beam]'"
    )
    from data_pipelines.beam import make_shards

    missing = sorted(set(shards) - set(done(work.folder, shards)))
    make_shards(missing, beam.make, work.prefixes, work.folder, beam.options)


def _place(folder: str | Path) -> epath.Path:
    return epath.Path(folder) / NAME / VERSION


def _remove(folder: epath.Path, pattern: str) -> None:
    """Removes what interrupted runs left in `folder`."""
    for left in folder.glob(pattern):
        left.rmtree()


def _counts(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in splits.items()) + " examples"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _first(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _describe(sources: Mapping[str, Source]) -> dict[str, Any]:
    """What the examples depend on; two runs that agree in this have the same ones."""
    for split, source in sources.items():
        if len(source) == 0:
            raise UserError(f"split {split!r} has no examples; give it recordings")
    rates = {source.rate for source in sources.values()}
    seconds = {source.seconds for source in sources.values()}
    if len(rates) != 1 or len(seconds) != 1:
        raise UserError(f"the splits differ in rate {rates} or seconds {seconds}; make them equal")
    splits = {split: source.describe() for split, source in sources.items()}
    return {
        "rate": rates.pop(),
        "seconds": seconds.pop(),
        "splits": splits,
        "prefixes": {split: _hash([split, about])[:12] for split, about in splits.items()},
    }


def _refuse_other_codec(folder: str | Path, metadata: dict[str, Any], codec_hash: str) -> None:
    if metadata["codec_hash"] != codec_hash:
        raise UserError(
            f"{folder}: tokenised with codec {metadata['codec']} of weights "
            f"{metadata['codec_hash']}, but the codec here has {codec_hash}; "
            "tokenise into another folder, or use the codec it was made with"
        )


def _refuse_other_examples(
    folder: str | Path, found: dict[str, Any], wanted: dict[str, Any]
) -> None:
    for name in ("rate", "seconds", "splits", "conditioning"):
        if place := _difference(name, found[name], wanted[name]):
            raise UserError(
                f"{folder}: was made with {place[0]} {place[1]}, but this run has {place[2]}; "
                "tokenise into another folder"
            )


def _difference(name: str, found: Any, wanted: Any) -> tuple[str, Any, Any] | None:
    """Where two JSON values differ first, and what stands there in each."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        places = (_difference(f"{name}.{key}", found[key], wanted[key]) for key in found)
        return next(filter(None, places), None)
    return None if found == wanted else (name, found, wanted)
