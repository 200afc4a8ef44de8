"""Pre-tokenised datasets: examples whose targets are codec codes, as ArrayRecord (no TensorFlow).

The dataset is a TFDS one, `FOLDER/tokenised/2.0.0`, made by `data_pipelines.tokenising`.
"""

import hashlib
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines.records import AUDIO, LENGTHS, Record, as_features
from data_pipelines.shards import (
    CHECKSUMS,
    NAME,
    VERSION,
    Shard,
    lengths_file,
    record_id,
    shards_of,
)
from quark_jax.errors import UserError
from quark_jax.files import read_json

DAMAGED = "delete this dataset's folder and make it again, or copy it anew from where it is whole"
NOT_WHOLE = "copy the dataset anew from where it is whole, or make it again in another folder"
_TOO_MANY = "Too many open files"


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
            raise UserError(f"{path}: cannot be read ({_first(error)}); {NOT_WHOLE}") from error
        if found.shape != (self.splits[split], len(LENGTHS)):
            raise UserError(
                f"{path}: of shape {found.shape}, for {self.splits[split]} records; {NOT_WHOLE}"
            )
        return found

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split; their files are in `path`."""
        self._check(split)
        return shards_of({split: self.splits[split]}, self.metadata["examples_per_shard"])

    def check(self, shard: Shard) -> None:
        """Reads a shard's file from end to end.

        Raises:
            UserError: if it is missing, cannot be read, or has another SHA-256 than was noted when
                it was made.
        """
        path = self.path / shard.file
        if not path.is_file():
            raise UserError(f"{path}: no such file; {NOT_WHOLE}")
        try:
            noted = read_json(self.path / CHECKSUMS, NOT_WHOLE).get(shard.file)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from error
        if noted is None:
            raise UserError(f"{self.path / CHECKSUMS}: has no {shard.file}; {NOT_WHOLE}")
        if found != noted:
            raise UserError(f"{path}: damaged (another SHA-256); {DAMAGED}")

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

    `records[index]` raises UserError, which names the file, where a shard is missing, damaged or
    cannot be read, or holds something else than it should.

    Each shard that a record was read from stays open. The limit of open files is raised for that,
    here and so in worker processes, as far as the system lets it be.
    """

    def __init__(self, dataset: TokenisedDataset, split: str):
        self._dataset, self._split = dataset, split
        self._source = tfds.builder_from_directory(dataset.path).as_data_source(split)
        self._features = dataset.metadata["conditioning"]["kind"] == "features"
        _allow_open_files(len(dataset.shards(split)))

    def __len__(self) -> int:
        return self._dataset.splits[self._split]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        wanted = record_id(self._dataset.metadata["prefixes"][self._split], index)
        try:
            record = self._source[index]
        except Exception as error:  # what the readers raise has no common kind
            self._explain(index, error)
        if record["id"] != wanted.encode():
            found = record["id"].decode(errors="replace")
            self._explain(index, ValueError(f"record {found!r} where {wanted} should be"))
        if self._features:
            channels = self._dataset.metadata["channels"]
            for name in AUDIO:
                record[name] = as_features(record[name], record[f"{name}_samples"], channels)
        return record

    def _explain(self, index: int, error: Exception) -> NoReturn:
        """Says what is wrong with the shard of a record that could not be read: only what its
        SHA-256 tells to be damaged is called so."""
        number = index // self._dataset.metadata["examples_per_shard"]
        shard = self._dataset.shards(self._split)[number]
        path = self._dataset.path / shard.file
        if _TOO_MANY not in str(error):
            self._dataset.check(shard)
        raise _unreadable(path, error) from error


def open_tokenised(folder: str | Path, *, codec_hash: str | None = None) -> TokenisedDataset:
    """Opens the dataset that `tokenise` made in `folder`.

    Args:
        folder: as given to `tokenise`.
        codec_hash: of the codec the codes have to be of; None for any.

    Raises:
        UserError: if there is no complete dataset, or it was made with another codec, or in another
            format.
    """
    path = place_of(folder)
    if not (path / "dataset_info.json").is_file():
        if path.is_dir():
            raise UserError(f"{path}: has no dataset_info.json; {NOT_WHOLE}")
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
    for name in ("dataset_info.json", "features.json", "metadata.json"):
        read_json(path / name, NOT_WHOLE)
    try:
        info = tfds.builder_from_directory(path).info
    except Exception as error:  # what TFDS raises has no common kind
        raise UserError(f"{path}: no dataset of TFDS ({_first(error)}); {NOT_WHOLE}") from error
    metadata = dict(info.metadata)
    if codec_hash is not None:
        _refuse_other_codec(folder, metadata, codec_hash)
    return TokenisedDataset(
        path, metadata, {name: split.num_examples for name, split in info.splits.items()}
    )


def place_of(folder: str | Path) -> epath.Path:
    """Where in `folder` its dataset lies."""
    return epath.Path(folder) / NAME / VERSION


def _allow_open_files(count: int) -> None:
    """Raises this process's limit of open files by `count`, or to the most it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _unreadable(path: epath.Path, error: Exception) -> UserError:
    remedy = "check the disk or the connection and try again"
    if _TOO_MANY in str(error):
        remedy = "raise the limit of open files (ulimit -Hn), or make the dataset of larger shards"
    return UserError(f"{path}: cannot be read ({_first(error)}); {remedy}")


def _refuse_other_codec(folder: str | Path, metadata: dict[str, Any], codec_hash: str) -> None:
    if metadata["codec_hash"] != codec_hash:
        raise UserError(
            f"{folder}: tokenised with codec {metadata['codec']} of weights "
            f"{metadata['codec_hash']}, but the codec here has {codec_hash}; "
            "tokenise into another folder, or use the codec it was made with"
        )


def _first(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
