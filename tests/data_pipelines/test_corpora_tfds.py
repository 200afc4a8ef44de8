"""Datasets of TFDS: made here by TFDS itself, with the features file that an Audio feature writes.

TFDS needs TensorFlow to make an Audio feature; stored, decoded audio is the integers of a tensor,
so that a builder with tensors writes the same records. Its features file is then made to say Audio,
in TFDS's own protocol buffer.
"""

import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import json_format
from tensorflow_datasets.core.proto import feature_pb2

from data_pipelines import read_manifest
from data_pipelines.corpora import Tfds, left_out_path, scan, tfds_sets
from quark_jax.errors import UserError

RATE = 16_000
AUDIO = "tensorflow_datasets.core.features.audio_feature.Audio"


def wave(seed: int, samples: int = 1600, peak: int = 20_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(-peak, peak, samples)


def build(
    data_dir: Path,
    called: str,
    features: dict,
    splits: dict[str, list[dict]],
    audio: dict[str, dict],
    shards: int = 1,
) -> Path:
    """Makes a dataset whose features named in `audio` are Audio ones; returns its folder."""

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = called
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, download_manager):
            return {split: self._generate_examples(rows) for split, rows in splits.items()}

        def _generate_examples(self, rows):
            yield from enumerate(rows)

    builder = Made(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=config)
    folder = Path(builder.data_dir)
    tree = json.loads((folder / "features.json").read_text())
    for feature, about in audio.items():
        shape = about.pop("shape", (-1,))
        message = feature_pb2.Feature(
            python_class_name=AUDIO, audio=feature_pb2.AudioFeature(encoding="none", **about)
        )
        message.audio.shape.dimensions.extend(shape)
        tree["featuresDict"]["features"][feature] = json_format.MessageToDict(message)
    (folder / "features.json").write_text(json.dumps(tree))
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """As librispeech is, of two splits in three shards; beside it a dataset without audio."""
    data_dir = tmp_path_factory.mktemp("tfds")
    rows = [
        {
            "speech": wave(i).astype(np.int16),
            "text": f"TEXT {i}",
            "speaker_id": 100 + i,
            "id": f"100-1-{i:04d}",
        }
        for i in range(7)
    ]
    features = {
        "speech": tfds.features.Tensor(shape=(None,), dtype=np.int16),
        "text": tfds.features.Text(),
        "speaker_id": np.int64,
        "id": np.str_,
    }
    splits = {"train_clean100": rows[:5], "dev_clean": rows[5:]}
    audio = {"speech": {"dtype": "int16", "sample_rate": RATE, "file_format": "flac"}}
    build(data_dir, "libri_mini", features, splits, audio, shards=2)
    build(data_dir, "texts", {"text": tfds.features.Text()}, {"train": [{"text": "a"}]}, {})
    return data_dir


def read(speech: Path, export: Path, name: str = "libri_mini", **options) -> dict:
    options = {"data_dir": speech, "workers": 1, "progress": False} | options
    return {entry.id: entry for entry in Tfds(name, export, **options)}


def test_every_recording_is_exported_bit_for_bit(speech, tmp_path):
    found = read(speech, tmp_path / "x")
    assert len(found) == 7
    for entry in found.values():
        number = int(entry.id[-4:])
        assert (entry.text, entry.speaker) == (f"TEXT {number}", str(100 + number))
        assert entry.id == f"{entry.split}/100-1-{number:04d}"
        assert entry.split == ("train_clean100" if number < 5 else "dev_clean")
        assert entry.source == "libri_mini:1.0.0"
        samples, rate = soundfile.read(entry.path, dtype="int16")
        assert rate == RATE and np.array_equal(samples, wave(number))
    assert len(list((tmp_path / "x").glob("*/*/manifest.jsonl"))) == 4


def test_splits_may_be_chosen(speech, tmp_path):
    found = read(speech, tmp_path / "x", splits=("dev_clean",))
    assert {entry.split for entry in found.values()} == {"dev_clean"} and len(found) == 2
    with pytest.raises(UserError, match="no split test; it has train_clean100, dev_clean"):
        read(speech, tmp_path / "x", splits=("test",))


@pytest.fixture
def exported(monkeypatch) -> list[str]:
    """The shards that are read from here on."""
    names, export = [], tfds_sets._export

    def counted(shard):
        names.append(f"{shard.split}/{shard.folder.name}")
        return export(shard)

    monkeypatch.setattr(tfds_sets, "_export", counted)
    return names


def test_an_export_goes_on_by_shards(speech, tmp_path, exported, monkeypatch):
    whole = read(speech, tmp_path / "whole")
    assert len(exported) == 4
    exported.clear()
    write, calls = tfds_sets._write_decoded, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > 4:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(tfds_sets, "_write_decoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(speech, tmp_path / "part")
    done = [path for path in (tmp_path / "part").glob("*/*/manifest.jsonl")]
    monkeypatch.setattr(tfds_sets, "_write_decoded", lambda *a: calls.append(a) or write(*a))
    exported.clear()
    calls.clear()
    part = read(speech, tmp_path / "part")
    assert len(exported) == 4 - len(done) and len(calls) == 7 - 4
    assert part.keys() == whole.keys()
    for name, entry in part.items():
        assert entry.path.read_bytes() == whole[name].path.read_bytes()
    exported.clear()
    read(speech, tmp_path / "part")
    assert exported == []


def test_processes_export_the_same(speech, tmp_path):
    one, two = read(speech, tmp_path / "one"), read(speech, tmp_path / "two", workers=2)
    assert list(one) == list(two)
    for name, entry in two.items():
        assert entry.path.read_bytes() == one[name].path.read_bytes()


def test_an_export_of_something_else_is_refused(speech, tmp_path):
    read(speech, tmp_path / "x")
    with pytest.raises(UserError, match=f"{tmp_path}/x: holds an export of another dataset"):
        read(speech, tmp_path / "x", fields={"text": "id"})


def test_tfrecord_is_read_too(speech, tmp_path):
    """The usual format: length, checksum, record, checksum."""
    source = speech / "libri_mini/1.0.0"
    target = tmp_path / "libri_mini/1.0.0"
    target.mkdir(parents=True)
    info = json.loads((source / "dataset_info.json").read_text())
    info.pop("fileFormat")
    (target / "dataset_info.json").write_text(json.dumps(info))
    (target / "features.json").write_bytes((source / "features.json").read_bytes())
    for shard in source.glob("*.array_record*"):
        reader = ArrayRecordReader(str(shard))
        records = [reader.read() for _ in range(reader.num_records())]
        framed = b"".join(struct.pack("<Q4x", len(r)) + r + bytes(4) for r in records)
        (target / shard.name.replace("array_record", "tfrecord")).write_bytes(framed)
    one = read(speech, tmp_path / "one")
    two = read(tmp_path, tmp_path / "two")
    assert one.keys() == two.keys()
    for name, entry in two.items():
        assert entry.path.read_bytes() == one[name].path.read_bytes()
    (cut,) = target.glob("*dev_clean*00000-of*")
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"dev_clean.tfrecord-00000-of-00002: cut off"):
        read(tmp_path, tmp_path / "three")
    cut.write_bytes(b"")
    with pytest.raises(UserError, match="0 records, 1 expected"):
        read(tmp_path, tmp_path / "three")


def test_a_dataset_in_a_bucket(bucket, speech, tmp_path):
    for path in (speech / "libri_mini/1.0.0").iterdir():
        bucket.pipe(f"gs://b/data/libri_mini/1.0.0/{path.name}", path.read_bytes())
    here, there = read(speech, tmp_path / "a"), read("gs://b/data", tmp_path / "b")
    assert here.keys() == there.keys()
    named = read(speech, tmp_path / "c", name="gs://b/data/libri_mini/1.0.0")
    for name, entry in there.items():
        assert entry.path.read_bytes() == here[name].path.read_bytes()
        assert entry.path.read_bytes() == named[name].path.read_bytes()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> Path:
    """Every kind of audio that TFDS stores, and classes."""

    def flac(samples: np.ndarray) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, samples.astype(np.int16), RATE, format="FLAC")
        return file.getvalue()

    data_dir = tmp_path_factory.mktemp("kinds")
    rows = [
        {
            "stereo": wave(i, 3200).reshape(-1, 2),
            "wide": wave(i, peak=2**30) & ~0xFF,
            "real": (wave(i) / 32768).astype(np.float32),
            "lazy": flac(wave(i)) if i else b"junk",
            "speaker": "p226",
            "label": "dog",
            "unknown": -1,
            "caption": ["a dog barks", "a dog"],
        }
        for i in range(2)
    ]
    features = {
        "stereo": tfds.features.Tensor(shape=(None, 2), dtype=np.int64),
        "wide": tfds.features.Tensor(shape=(None,), dtype=np.int64),
        "real": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        "lazy": tfds.features.Tensor(shape=(), dtype=np.str_),
        "speaker": tfds.features.ClassLabel(names=["p225", "p226"]),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "unknown": tfds.features.ClassLabel(names=["cat", "dog"]),
        "caption": tfds.features.Sequence(tfds.features.Text()),
    }
    audio = {
        "stereo": {"dtype": "int64", "sample_rate": 8000, "shape": (-1, 2)},
        "wide": {"dtype": "int64", "sample_rate": RATE},
        "real": {"dtype": "float32", "sample_rate": RATE},
        "lazy": {"dtype": "int16", "sample_rate": RATE, "lazy_decode": True},
    }
    build(data_dir, "kinds", features, {"train": rows}, audio)
    return data_dir


def samples_of(kinds: Path, export: Path, feature: str) -> tuple[np.ndarray, int]:
    found = read(kinds, export, "kinds", fields={"audio": feature})
    return soundfile.read(found["train/0-000001"].path, dtype="int32")


def test_all_kinds_of_audio(kinds, tmp_path):
    found = read(kinds, tmp_path / "stereo", "kinds", fields={"audio": "stereo"})
    stereo, rate = soundfile.read(found["train/0-000001"].path, dtype="int16")
    last = int(np.array_equal(stereo, wave(1, 3200).reshape(-1, 2)))  # a builder shuffles
    assert rate == 8000 and np.array_equal(stereo, wave(last, 3200).reshape(-1, 2))
    wide, _ = samples_of(kinds, tmp_path / "wide", "wide")
    assert np.array_equal(wide, wave(last, peak=2**30) & ~0xFF)  # 24 bits
    real, _ = samples_of(kinds, tmp_path / "real", "real")
    assert np.array_equal(real >> 16, wave(last))
    found = read(kinds, tmp_path / "lazy", "kinds", fields={"audio": "lazy"})
    by_suffix = {entry.path.suffix: entry for entry in found.values()}
    assert set(by_suffix) == {".flac", ".bin"}
    assert np.array_equal(soundfile.read(by_suffix[".flac"].path, dtype="int16")[0], wave(1))
    assert by_suffix[".bin"].path.read_bytes() == b"junk"
    entry = by_suffix[".flac"]
    assert (entry.speaker, entry.captions) == ("p226", ("a dog barks", "a dog"))


def test_classes_may_be_captions(kinds, tmp_path):
    fields = {"audio": "lazy", "captions": "label"}
    found = read(kinds, tmp_path / "x", "kinds", fields=fields)
    assert {entry.captions for entry in found.values()} == {("dog",)}
    scan(
        Tfds("kinds", tmp_path / "x", kinds, (), fields, 1, False), tmp_path / "m.jsonl", workers=1
    )
    (entry,) = read_manifest(tmp_path / "m.jsonl")
    assert (entry.seconds, entry.rate, entry.captions) == (0.1, RATE, ("dog",))


def test_an_unknown_class_is_none(kinds, tmp_path):
    fields = {"audio": "real", "captions": "unknown", "speaker": "unknown"}
    found = read(kinds, tmp_path / "x", "kinds", fields=fields)
    assert {(entry.captions, entry.speaker) for entry in found.values()} == {((), "")}


def test_a_record_without_audio_is_left_out(kinds, tmp_path, monkeypatch):
    from tensorflow_datasets.proto import tf_example_pb2

    def without(path, name):
        for record in tfds_sets._read_array_record(path, name):
            example = tf_example_pb2.Example.FromString(record)
            del example.features.feature["lazy"]
            yield example.SerializeToString()

    monkeypatch.setitem(tfds_sets._READERS, "array_record", without)
    corpus = Tfds("kinds", tmp_path / "x", kinds, (), {"audio": "lazy"}, 1, False)
    with pytest.raises(UserError, match="none of the recordings can be used"):
        scan(corpus, tmp_path / "m.jsonl", workers=1, progress=False)
    left_out = [json.loads(line) for line in left_out_path(tmp_path / "m.jsonl").open()]
    assert len(left_out) == 2
    assert all(item["reason"].startswith("the file is empty") for item in left_out)


def edited(source: Path, target: Path, change: Callable[[dict, dict], None]) -> Path:
    """A copy of a dataset with other info or features."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    info, features = (
        json.loads((source / f"{name}.json").read_text()) for name in ("dataset_info", "features")
    )
    change(info, features["featuresDict"]["features"]["speech"]["audio"])
    (target / "dataset_info.json").write_text(json.dumps(info))
    (target / "features.json").write_text(json.dumps(features))
    return target


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda info, audio: audio.update(encoding="zlib"), "with encoding zlib"),
        (lambda info, audio: audio.pop("sampleRate"), "has no sample_rate"),
        (
            lambda info, audio: info.update(fileFormat="riegeli"),
            "records as riegeli; they are read",
        ),
        (lambda info, audio: info["splits"][0].update(shardLengths=["9", "2"]), "9 expected"),
    ],
)
def test_what_cannot_be_read_is_named(speech, tmp_path, change, says):
    folder = edited(speech / "libri_mini/1.0.0", tmp_path / "libri_mini/1.0.0", change)
    with pytest.raises(UserError, match=says) as error:
        read(speech, tmp_path / "x", name=str(folder))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_shard_is_named(speech, tmp_path):
    folder = edited(speech / "libri_mini/1.0.0", tmp_path / "libri_mini/1.0.0", lambda *_: None)
    shard = next(folder.glob("*train*00000-of*"))
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(UserError, match=f"{shard}: "):
        read(speech, tmp_path / "x", name=str(folder))


def test_datasets_that_are_not_there_or_have_no_audio(speech, tmp_path):
    with pytest.raises(UserError, match=r"none: no prepared .*: tfds build none --data_dir"):
        read(speech, tmp_path / "x", "none")
    with pytest.raises(UserError, match=r"2.0.0: no prepared version .*tfds build"):
        read(speech, tmp_path / "x", "libri_mini:2.0.0")
    with pytest.raises(UserError, match=r"texts/1.0.0: no Audio feature; it has text"):
        read(speech, tmp_path / "x", "texts")
    with pytest.raises(UserError, match="field 'mood': not one of audio, id, speaker"):
        read(speech, tmp_path / "x", fields={"mood": "text"})
    with pytest.raises(UserError, match="no feature 'sentence'; it has"):
        read(speech, tmp_path / "x", fields={"text": "sentence"})
    assert not (tmp_path / "x").exists()


def test_configs_and_versions_are_found(speech, tmp_path):
    source = speech / "libri_mini/1.0.0"
    for place in ("one/plain/1.0.0", "one/plain/1.10.0", "one/plain/1.9.0", "two/a/1.0.0"):
        edited(source, tmp_path / "data" / place, lambda *_: None)
    edited(source, tmp_path / "data/two/b/1.0.0", lambda *_: None)
    assert tfds_sets._find("one", tmp_path / "data").as_posix().endswith("one/plain/1.10.0")
    assert tfds_sets._find("one:1.9.0", tmp_path / "data").name == "1.9.0"
    assert tfds_sets._find("two/b", tmp_path / "data").parent.name == "b"
    with pytest.raises(UserError, match="two: name a config: two/a, two/b"):
        tfds_sets._find("two", tmp_path / "data")


def test_the_command(speech, tmp_path):
    command = [sys.executable, "-m", "data_pipelines.corpora", "tfds", "libri_mini"]
    options = ["--export", tmp_path / "x", "--data-dir", speech, "--workers", "1"]
    run = [*map(str, [*command, tmp_path / "m.jsonl", *options]), "--split", "train"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "7 recordings" in done.stdout
    assert {entry.split for entry in read_manifest(tmp_path / "m.jsonl")} == {"train"}
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "0 looked at" in done.stdout, done.stderr
