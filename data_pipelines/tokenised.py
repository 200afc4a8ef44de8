"""Pre-tokenised datasets: examples whose targets are codec codes, as ArrayRecord (no TensorFlow).

The dataset is a TFDS one, `FOLDER/tokenised/1.0.0`, which appears under that name only when it is
complete. Shards that are done are kept beside it until then, so that an interrupted run goes on
with the shard it was in.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_pipelines.shards import NAME, VERSION, Builder, Codes, ExampleSource, Work, done_shards
from quark_jax.errors import UserError


@dataclass(frozen=True)
class TokenisedDataset:
    """A complete pre-tokenised dataset.

    Attributes:
        path: its folder.
        metadata: codec (name), codec_hash, rate (Hz), seconds, splits (what the examples of each
            depend on), codebooks, frames and input_samples (the largest of any record), statistics.
        splits: number of records by split.
    """

    path: Path
    metadata: dict[str, Any]
    splits: dict[str, int]

    def records(self, split: str):
        """Random access to the records of a split, in the order of the examples.

        A record is a dict: acoustic, semantic int16 [codebooks, frames]; frames; input int16
        [samples at 16 kHz]; input_samples; task, caption, provenance (JSON) as UTF-8 bytes.

        Raises:
            UserError: if there is no such split.
        """
        if split not in self.splits:
            raise UserError(f"{self.path}: no split {split!r}; there are {', '.join(self.splits)}")
        return tfds.builder_from_directory(self.path).as_data_source(split)


def open_tokenised(folder: str | Path, *, codec_hash: str | None = None) -> TokenisedDataset:
    """Opens the dataset that `tokenise` made in `folder`.

    Args:
        folder: as given to `tokenise`.
        codec_hash: of the codec the codes have to be of; None for any.

    Raises:
        UserError: if there is no complete dataset, or it was made with another codec.
    """
    path = _place(folder)
    if not (path / "dataset_info.json").is_file():
        begun = path.parent.is_dir() and any(path.parent.iterdir())
        raise UserError(
            f"{folder}: the tokenised dataset is not complete; run the same tokenising command "
            "again to finish it"
            if begun
            else f"{folder}: holds no tokenised dataset; make one first"
        )
    info = tfds.builder_from_directory(path).info
    metadata = dict(info.metadata)
    if codec_hash is not None:
        _refuse_other_codec(folder, metadata, codec_hash)
    return TokenisedDataset(
        path, metadata, {name: split.num_examples for name, split in info.splits.items()}
    )


def tokenise(
    sources: Mapping[str, ExampleSource],
    encode: Callable[[np.ndarray], Codes],
    folder: str | Path,
    *,
    codec: str,
    codec_hash: str,
    batch_size: int = 8,
    examples_per_shard: int = 256,
    progress: bool = True,
) -> TokenisedDataset:
    """Makes a dataset of the examples of `sources`, their targets encoded; or finishes or reuses
    one that was begun with the same arguments.

    Args:
        sources: by split, "train" and "heldout"; all of one rate.
        encode: float32 [batch_size, samples at the sources' rate] -> `Codes`; always called with
            full batches.
        folder: where the dataset goes.
        codec: the codec's name.
        codec_hash: hash of the codec's weights.
        batch_size: examples encoded at a time.
        examples_per_shard: examples a file; what an interruption can cost.
        progress: show a progress bar.

    Raises:
        UserError: if `folder` holds a dataset made with another codec or of other examples, or
            cannot be written to; or if a source is empty.
    """
    metadata = _describe(sources, codec, codec_hash) | {"examples_per_shard": examples_per_shard}
    path = _place(folder)
    if (path / "dataset_info.json").is_file():
        dataset = open_tokenised(folder, codec_hash=codec_hash)
        _refuse_other_examples(folder, dataset.metadata, metadata)
        print(f"{folder}: already complete ({_counts(dataset.splits)}); nothing to do")
        _remove(path.parent, "shards-*")
        return dataset
    _remove(path.parent, "incomplete.*")
    name = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:16]
    shards = path.parent / f"shards-{name}"
    try:
        shards.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); choose a folder that can be written to"
        ) from error
    total = sum(len(source) for source in sources.values())
    with tqdm(
        total=total,
        initial=sum(shard["examples"] for shard in done_shards(shards)),
        desc="Tokenising",
        unit=" examples",
        disable=not progress,
    ) as bar:
        work = Work(sources, encode, batch_size, shards, bar)
        Builder(metadata, work, data_dir=str(folder)).download_and_prepare()
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


def _place(folder: str | Path) -> Path:
    return Path(folder) / NAME / VERSION


def _remove(folder: Path, pattern: str) -> None:
    """Removes what interrupted runs left in `folder`."""
    for left in folder.glob(pattern):
        shutil.rmtree(left)


def _counts(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in splits.items()) + " examples"


def _describe(sources: Mapping[str, ExampleSource], codec: str, codec_hash: str) -> dict[str, Any]:
    """What the dataset is made from; two runs that agree in this make the same dataset."""
    for split, source in sources.items():
        if len(source) == 0:
            raise UserError(f"split {split!r} has no examples; give it recordings")
    rates = {source.rate for source in sources.values()}
    seconds = {source.seconds for source in sources.values()}
    if len(rates) != 1 or len(seconds) != 1:
        raise UserError(f"the splits differ in rate {rates} or seconds {seconds}; make them equal")
    return {
        "codec": codec,
        "codec_hash": codec_hash,
        "rate": rates.pop(),
        "seconds": seconds.pop(),
        "splits": {split: source.describe() for split, source in sources.items()},
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
    for name in ("rate", "seconds", "splits"):
        if found[name] != wanted[name]:
            raise UserError(
                f"{folder}: was made with {name} {found[name]}, but this run has {wanted[name]}; "
                "tokenise into another folder"
            )
