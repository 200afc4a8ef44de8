"""Datasets prepared by TFDS that have an Audio feature, without TensorFlow.

They are exported to files once, shard by shard. Reading them by reference would cost more at every
step: TFDS stores decoded audio as protobuf integers, several times the size of FLAC, and a cut of a
record means parsing all of it; TFRecord, the usual format, has no random access at all; and every
reader of recordings would have to know of records as well as of files.
"""

import io
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from etils import epath
from tqdm import tqdm

from data_pipelines.corpora.base import LeftOut
from data_pipelines.corpora.workers import workers as worker_pool
from data_pipelines.manifests import Entry, iterate_manifest, local_copy, write_manifest
from quark_jax.errors import UserError
from quark_jax.files import read_json, replacing

# Fields of an entry, and the features they are taken from: the first of these that there is.
FIELDS = {
    "id": ("id", "utterance_id"),
    "speaker": ("speaker_id", "speaker", "client_id"),
    "text": ("text", "text_normalized", "sentence", "transcript", "transcription"),
    "language": ("language", "locale"),
    "captions": ("captions", "caption"),
}
_MANIFEST = "manifest.jsonl"
_NO_LABEL = -1  # of TFDS, where a class is not known
_INFO, _FEATURES = "dataset_info.json", "features.json"
_NO_INFO = "name a folder that TFDS has prepared"


@dataclass(frozen=True)
class Tfds:
    """The recordings of a prepared TFDS dataset, as TFRecord or ArrayRecord, here or in a bucket.

    Decoded audio is written as FLAC: 16 bits where all samples of a recording fit, else 24. Encoded
    audio (lazy_decode) is written as it is. A shard that has been exported is not read again.

    Attributes:
        name: of the dataset (`librispeech`, `voxceleb/config`, `vctk:1.0.1`), or its folder.
        export: where the recordings are put, in SPLIT/SHARD/.
        data_dir: where TFDS keeps its datasets; None for its default.
        splits: the ones to take; empty for all.
        fields: (field of the entries, feature) for what `FIELDS` does not find; ("audio", feature)
            chooses one of several Audio features.
        workers: processes that export; as in `workers`.
        progress: show a progress bar.
    """

    name: str
    export: str | PathLike
    data_dir: str | PathLike | None = None
    splits: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)
    workers: int | None = None
    progress: bool = True

    def __iter__(self) -> Iterator[Entry | LeftOut]:
        folder = _find(self.name, self.data_dir)
        features = _features(folder, self.fields)
        shards = _shards(folder, features, self.splits, Path(self.export))
        self._claim(folder, features)
        missing = ((shard, shard) for shard in shards if not shard.manifest.is_file())
        bar = tqdm(desc="Exporting", unit=" shards", total=len(shards), disable=not self.progress)
        with bar, worker_pool(self.workers) as in_order:
            bar.update(sum(shard.manifest.is_file() for shard in shards))
            for _ in in_order(_export, missing):
                bar.update()
        for shard in shards:
            yield from iterate_manifest(shard.manifest)

    def _claim(self, folder: epath.Path, features: "_Features") -> None:
        """Notes whose export it is; a folder with another one is refused."""
        export = Path(self.export)
        ours = {"dataset": _title(folder), "audio": features.audio, "fields": features.names}
        note = export / "dataset.json"
        if note.is_file():
            if read_json(note, "choose another folder") != ours:
                raise UserError(
                    f"{export}: holds an export of another dataset, or with other fields; choose "
                    "another folder"
                )
            return
        try:
            export.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{export}: cannot be made ({error.strerror}); choose another folder"
            ) from error
        with replacing(note) as beside:
            beside.write_text(json.dumps(ours, indent=1))


@dataclass(frozen=True)
class _Features:
    """What of a record becomes an entry.

    Attributes:
        audio: the feature with the recording.
        rate: its rate in Hz; None for encoded audio.
        channels: of decoded audio.
        dtype: of decoded audio; "" for encoded audio.
        names: field of the entry -> feature.
        labels: feature -> names of its classes.
    """

    audio: str
    rate: int | None
    channels: int
    dtype: str
    names: dict[str, str]
    labels: dict[str, list[str]]


@dataclass(frozen=True)
class _Shard:
    """A file of records, and where they go."""

    file: epath.Path
    records: int
    split: str
    source: str
    folder: Path
    features: _Features

    @property
    def manifest(self) -> Path:
        """Written last: it says that the shard has been exported."""
        return self.folder / _MANIFEST


def _find(name: str, data_dir: str | PathLike | None) -> epath.Path:
    """The folder of a prepared dataset; of several versions the highest."""
    if "/" in name and (epath.Path(name) / _INFO).exists():
        return epath.Path(name)
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    data_dir = epath.Path(default if data_dir is None else data_dir).expanduser()
    place, _, version = name.partition(":")
    remedy = (
        f"prepare it where TensorFlow is installed: tfds build {name} --data_dir {data_dir}; "
        "or point --data-dir to where it is"
    )
    if not (data_dir / place).is_dir():
        raise UserError(f"{name}: no prepared TFDS dataset in {data_dir}; {remedy}")
    below = sorted(path for path in (data_dir / place).iterdir() if path.is_dir())
    versions = [path for path in below if (path / _INFO).exists()]
    configs = [path.name for path in below if any((p / _INFO).exists() for p in path.iterdir())]
    if not versions and len(configs) == 1:
        return _find(f"{place}/{configs[0]}{name[len(place) :]}", data_dir)
    if not versions and configs:
        raise UserError(f"{name}: name a config: {', '.join(f'{place}/{c}' for c in configs)}")
    versions = [path for path in versions if version in ("", path.name)]
    if not versions:
        raise UserError(f"{name}: no prepared version in {data_dir / place}; {remedy}")
    return max(
        versions, key=lambda path: [int(x) if x.isdigit() else 0 for x in path.name.split(".")]
    )


def _title(folder: epath.Path) -> str:
    info = read_json(folder / _INFO, _NO_INFO)
    return "/".join(filter(None, (info["name"], info.get("configName")))) + f":{info['version']}"


def _features(folder: epath.Path, wanted: dict[str, str]) -> _Features:
    tree = read_json(folder / _FEATURES, _NO_INFO)
    features = tree.get("featuresDict", {}).get("features", {})
    for name, feature in wanted.items():
        if name != "audio" and name not in FIELDS:
            raise UserError(f"field {name!r}: not one of audio, {', '.join(FIELDS)}")
        if feature not in features:
            raise UserError(f"{folder}: no feature {feature!r}; it has {', '.join(features)}")
    candidates = [name for name, feature in features.items() if "audio" in feature]
    audio = wanted.get("audio", candidates[0] if candidates else None)
    if audio is None or "audio" not in features[audio]:
        raise UserError(f"{folder}: no Audio feature; it has {', '.join(features)}")
    about = features[audio]["audio"]
    lazy = about.get("lazyDecode", False)
    rate = int(about.get("sampleRate", 0)) or None
    if about.get("encoding", "none") not in ("none", "ENCODING_UNSPECIFIED") and not lazy:
        raise UserError(
            f"{folder}: feature {audio!r} is stored with encoding {about['encoding']}; prepare it "
            "without"
        )
    if rate is None and not lazy:
        raise UserError(f"{folder}: feature {audio!r} has no sample_rate; prepare it with one")
    dimensions = about.get("shape", {}).get("dimensions", [])
    names = {
        name: feature
        for name, usual in FIELDS.items()
        for feature in [wanted.get(name) or next((f for f in usual if f in features), None)]
        if feature is not None
    }
    labels = {
        feature: (folder / f"{feature}.labels.txt").read_text().splitlines()
        for feature in names.values()
        if "classLabel" in features[feature]
    }
    channels = int(dimensions[1]) if len(dimensions) > 1 else 1
    return _Features(audio, rate, channels, "" if lazy else about["dtype"], names, labels)


def _shards(
    folder: epath.Path, features: _Features, splits: tuple[str, ...], export: Path
) -> list[_Shard]:
    from tensorflow_datasets.core import naming

    info = read_json(folder / _INFO, _NO_INFO)
    there = {split["name"]: split for split in info.get("splits", [])}
    if missing := set(splits) - set(there):
        raise UserError(
            f"{folder}: no split {', '.join(sorted(missing))}; it has {', '.join(there)}"
        )
    suffix = info.get("fileFormat", "tfrecord")
    if suffix not in _READERS:
        raise UserError(
            f"{folder}: records as {suffix}; they are read as {' or '.join(_READERS)}: prepare it "
            "with one of these --file_format"
        )
    shards = []
    for name in splits or there:
        lengths = [int(length) for length in there[name].get("shardLengths", [])]
        template = naming.ShardedFileTemplate(
            data_dir=folder,
            template=there[name].get("filepathTemplate"),
            dataset_name=info["name"],
            split=name,
            filetype_suffix=suffix,
        )
        files = template.sharded_filepaths(len(lengths))
        shards += [
            _Shard(file, length, name, _title(folder), export / name / f"{number:05d}", features)
            for number, (file, length) in enumerate(zip(files, lengths, strict=True))
            if length
        ]
    return shards


def _export(shard: _Shard) -> None:
    """Writes the recordings of a shard, those that are not there yet, and their manifest."""
    reader = _READERS[shard.file.suffix[1:].partition("-")[0]]

    def entries() -> Iterator[Entry]:
        number = -1
        with local_copy(shard.file) as path:
            for number, record in enumerate(reader(path, shard.file)):
                yield _export_record(record, number, shard)
        if number + 1 != shard.records:
            raise UserError(
                f"{shard.file}: {number + 1} records, {shard.records} expected; copy or prepare it "
                "again"
            )

    try:
        shard.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{shard.folder}: cannot be made ({error.strerror})") from error
    write_manifest(entries(), shard.manifest)


def _export_record(record: bytes, number: int, shard: _Shard) -> Entry:
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        values = tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise UserError(
            f"{shard.file}: record {number} is damaged ({error}); copy or prepare it again"
        ) from error
    features = shard.features
    name = f"{number:06d}"
    about: dict[str, Any] = {"id": f"{int(shard.folder.name)}-{name}"}
    for key, feature in features.names.items():
        texts = _texts(values[feature], features.labels.get(feature))
        about[key] = tuple(texts) if key == "captions" else " ".join(texts)
    about |= {"id": f"{shard.split}/{about['id']}", "split": shard.split, "source": shard.source}
    if features.dtype:
        path = shard.folder / f"{name}.flac"
        if not path.exists():
            _write_decoded(path, values[features.audio], features)
    else:
        encoded = next(iter(values[features.audio].bytes_list.value), b"")
        path = shard.folder / f"{name}.{_format(encoded)}"
        if not path.exists():
            with replacing(path) as beside:
                beside.write_bytes(encoded)
    return Entry(path, **about)


def _write_decoded(path: Path, value: Any, features: _Features) -> None:
    """TFDS says nothing of the scale of integers; it is that of the bits they need: 16, or 32."""
    if np.issubdtype(np.dtype(features.dtype), np.floating):
        wave, subtype = np.asarray(value.float_list.value, np.float32), "PCM_24"
    else:
        wave, subtype = np.asarray(value.int64_list.value, np.int64), "PCM_24"
        if not len(wave) or np.abs(wave).max() <= 1 << 15:
            wave, subtype = np.clip(wave, -1 << 15, (1 << 15) - 1).astype(np.int16), "PCM_16"
        else:
            wave = wave.astype(np.int32)
    wave = wave.reshape(-1, features.channels)
    with replacing(path) as beside:
        try:
            soundfile.write(os.fspath(beside), wave, features.rate, format="FLAC", subtype=subtype)
        except soundfile.LibsndfileError as error:
            raise UserError(
                f"{path}: cannot be written ({error.error_string.rstrip('.')}); check the space"
            ) from error


def _texts(value: Any, labels: list[str] | None) -> list[str]:
    if value.bytes_list.value:
        return [text.decode() for text in value.bytes_list.value if text]
    numbers = value.int64_list.value
    if labels is None:
        return [str(number) for number in numbers]
    if numbers and max(numbers) >= len(labels):
        raise UserError(
            f"class {max(numbers)}, but names of {len(labels)}: the dataset's label file does not "
            "fit; prepare it again"
        )
    return [labels[number] for number in numbers if number != _NO_LABEL]


def _format(encoded: bytes) -> str:
    """The suffix for an encoded recording; "bin" for one that a scan will find damaged or empty."""
    try:
        return {"MPEG": "mp3"}.get(name := soundfile.info(io.BytesIO(encoded)).format, name.lower())
    except soundfile.LibsndfileError:
        return "bin"


def _read_array_record(path: Path, name: epath.Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(os.fspath(path))
        for _ in range(reader.num_records()):
            yield reader.read()
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise UserError(f"{name}: damaged ({error}); copy or prepare it again") from error


def _read_tfrecord(path: Path, name: epath.Path) -> Iterator[bytes]:
    """Length, its checksum, record, its checksum; the checksums are left to the file system."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); check the path") from error
    with file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
            record = file.read(length)
            if len(header) < 12 or len(record) < length or len(file.read(4)) < 4:
                raise UserError(f"{name}: cut off; copy or prepare it again")
            yield record


_READERS = {"array_record": _read_array_record, "tfrecord": _read_tfrecord}
