"""Pre-tokenised datasets hold what was put in, and their making survives interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from stand_ins import CODEC, make_sources, stand_in

from data_pipelines import Entry, open_tokenised, tokenise
from data_pipelines.records import LENGTHS, from_int16, to_int16
from data_pipelines.shards import VERSION, Builder
from quark_jax.errors import UserError


def test_tensorflow_is_not_needed(sources, encode, tmp_path):
    tokenise(sources, encode, tmp_path, **CODEC)
    assert "tensorflow" not in sys.modules


def test_records_hold_the_examples_in_order(sources, encode, tmp_path):
    made = tokenise(sources, encode, tmp_path, batch_size=8, examples_per_shard=6, **CODEC)
    assert made.splits == {"train": 20, "heldout": 5}
    for split, source in sources.items():
        records = made.records(split)
        assert len(records) == len(source)
        for index, example in enumerate(source):
            record = records[index]
            codes = encode(example.target[None])
            assert record["acoustic"].dtype == record["input"].dtype == np.int16
            assert np.array_equal(record["acoustic"], codes.acoustic[0])
            assert np.array_equal(record["semantic"], codes.semantic[0])
            assert np.abs(from_int16(record["input"]) - example.input).max() <= 0.5 / 32768
            assert record["frames"] == 25 and record["input_samples"] == 16_000
            assert record["task"] == b"sr" and record["caption"] == b""
            assert json.loads(record["provenance"]) == example.provenance


def test_the_metadata_says_what_it_was_made_from(sources, encode, tmp_path):
    tokenise(sources, encode, tmp_path, **CODEC)
    metadata = open_tokenised(tmp_path, codec_hash="a1b2").metadata
    expected = {"codec": "stand-in", "codec_hash": "a1b2", "rate": 16_000, "seconds": 1}
    sizes = {"codebooks": 2, "frames": 25, "input_samples": 16_000}
    assert (expected | sizes).items() <= metadata.items()
    assert metadata["splits"]["train"] == sources["train"].describe()
    assert metadata["splits"]["train"]["seed"] == 3
    assert abs(metadata["statistics"]["hours"] - 25 / 3600) < 1e-9


def test_encode_sees_one_shape(sources, encode, tmp_path):
    shapes = set()

    def watching(waves, samples):
        shapes.add((waves.shape, waves.dtype))
        assert samples.tolist() == [16_000] * 8
        return encode(waves)

    tokenise(sources, watching, tmp_path, batch_size=8, **CODEC)
    assert shapes == {((8, 16_000), np.dtype(np.float32))}


def test_a_complete_dataset_is_left_alone(sources, encode, tmp_path, capsys):
    tokenise(sources, encode, tmp_path, **CODEC)
    printed = capsys.readouterr().out
    assert "20 train, 5 heldout examples" in printed and "audio hours per hour" in printed
    assert "download" not in printed.lower()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def never(waves, samples):
        raise AssertionError("nothing is left to encode")

    tokenise(sources, never, tmp_path, **CODEC)
    assert "already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


def test_an_interrupted_dataset_is_not_readable_and_goes_on(sources, encode, tmp_path):
    encoded = []

    def breaks(waves, samples):
        if len(encoded) == 3:
            raise RuntimeError("power cut")
        encoded.append(len(waves))
        return encode(waves)

    options = CODEC | {"batch_size": 4, "examples_per_shard": 4}
    with pytest.raises(RuntimeError, match="power cut"):
        tokenise(sources, breaks, tmp_path / "a", **options)
    with pytest.raises(UserError, match="not complete; run the same"):
        open_tokenised(tmp_path / "a")

    resumed = []
    finished = tokenise(
        sources, lambda w, _: resumed.append(1) or encode(w), tmp_path / "a", **options
    )
    assert len(encoded) + len(resumed) == 5 + 2  # 3 shards were kept, none was made twice
    straight = tokenise(sources, encode, tmp_path / "b", **options)
    assert_same(finished, straight)
    assert finished.metadata["statistics"]["hours"] == straight.metadata["statistics"]["hours"]
    assert sorted(p.name for p in (tmp_path / "a/tokenised").iterdir()) == [VERSION]


def test_killed_and_run_again_it_is_the_same(sources, encode, wait_until, tmp_path):
    command = [sys.executable, __file__, str(tmp_path / "a")]
    run = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until(lambda: any(tmp_path.glob("a/tokenised/shards-*/*-of-00005")), run)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    with pytest.raises(UserError, match="not complete"):
        open_tokenised(tmp_path / "a")
    options = CODEC | {"batch_size": 4, "examples_per_shard": 4}
    finished = tokenise(sources, encode, tmp_path / "a", **options)
    assert_same(finished, tokenise(sources, encode, tmp_path / "b", **options))
    assert sorted(p.name for p in (tmp_path / "a/tokenised").iterdir()) == [VERSION]


def test_other_examples_are_refused(sources, encode, noises, tmp_path):
    tokenise(sources, encode, tmp_path, **CODEC)
    sources["train"] = noises(20, seed=5)
    with pytest.raises(UserError, match=r"was made with splits.train.seed 3, but this run has 5"):
        tokenise(sources, encode, tmp_path, **CODEC)


def test_half_of_another_codecs_shards_is_not_gone_on_with(sources, encode, tmp_path):
    calls = []

    def breaks(waves, samples):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return encode(waves)

    options = {"batch_size": 4, "examples_per_shard": 4}
    with pytest.raises(RuntimeError):
        tokenise(sources, breaks, tmp_path, **CODEC, **options)

    def other(waves, samples=None):
        codes = encode(waves)
        return SimpleNamespace(acoustic=codes.semantic, semantic=codes.acoustic)

    made = tokenise(sources, other, tmp_path, **CODEC | {"codec_hash": "ffff"}, **options)
    expected = other(sources["train"][0].target[None]).acoustic[0]
    assert np.array_equal(made.records("train")[0]["acoustic"], expected)


def test_a_folder_that_cannot_be_made_is_named(sources, encode, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^.*file/x: cannot be made"):
        tokenise(sources, encode, tmp_path / "file/x", **CODEC)


def test_leftovers_of_a_late_interruption_are_removed(sources, encode, tmp_path):
    tokenise(sources, encode, tmp_path, **CODEC)
    (tmp_path / "tokenised/shards-0123").mkdir()
    tokenise(sources, encode, tmp_path, **CODEC)
    assert sorted(p.name for p in (tmp_path / "tokenised").iterdir()) == [VERSION]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"acoustic": np.full((8, 2, 25), 40_000)}, "do not fit"),
        ({"acoustic": np.full((8, 2, 25), -1)}, "do not fit"),
        ({"semantic": np.zeros((8, 2, 25), np.float32)}, "give integers"),
        ({"acoustic": np.zeros((8, 25), np.int32)}, "give integers"),
    ],
)
def test_codes_that_a_record_cannot_hold_are_refused(sources, tmp_path, wrong, says):
    right = {name: np.zeros((8, 2, 25), np.int32) for name in ("acoustic", "semantic")}
    with pytest.raises(ValueError, match=says):
        tokenise(sources, lambda *_: SimpleNamespace(**right | wrong), tmp_path, **CODEC)
    with pytest.raises(UserError):
        open_tokenised(tmp_path)


def test_splits_have_to_agree_and_hold_something(noises, encode, tmp_path):
    short = noises(2)
    with pytest.raises(UserError, match="differ in rate"):
        long = noises(2, seconds=2)
        tokenise({"train": short, "heldout": long}, encode, tmp_path, **CODEC)
    with pytest.raises(UserError, match="'heldout' has no examples"):
        none = noises(0)
        tokenise({"train": short, "heldout": none}, encode, tmp_path, **CODEC)


def test_records_of_unlike_lengths_have_their_own_frames(noises, encode, tmp_path):
    shapes = []

    def watching(waves, samples):
        shapes.append(waves.shape)
        return encode(waves + 0.5 * (np.arange(waves.shape[1]) >= samples[:, None]), samples)

    source = noises(45, task="edit", varied=True)
    made = tokenise(
        {"train": source}, watching, tmp_path, hop=640, batch_size=4, examples_per_shard=16, **CODEC
    )
    assert len(shapes) == 12 and len(set(shapes)) >= 3
    assert set(shapes) <= {(4, 4000), (4, 8000), (4, 12_000), (4, 16_000)}
    records, lengths = made.records("train"), made.lengths("train")
    for index, example in enumerate(source):
        record, own = records[index], len(example.target)
        codes = encode(np.pad(example.target, (0, 700), constant_values=0.5)[None])
        assert record["frames"] == -(-own // 640)
        assert record["acoustic"].shape == record["semantic"].shape == (2, record["frames"])
        whole = slice(0, own // 640)  # the rest of the last frame is whatever was padded
        assert np.array_equal(record["acoustic"][:, whole], codes.acoustic[0, :, whole])
        for name in ("input", "reference"):
            wave = getattr(example, name)
            assert record[f"{name}_samples"] == len(record[name]) == len(wave)
            assert np.abs(from_int16(record[name]) - wave).max() <= 0.5 / 32768
        assert record["caption"].decode() == example.caption
        waves = len(example.input), len(example.reference)
        assert lengths[index].tolist() == [record["frames"], *waves, len(record["caption"])]
    largest = dict(zip(LENGTHS, lengths.max(0), strict=True))
    assert largest.items() <= made.metadata.items()
    hours = sum(len(example.target) for example in source) / 16_000 / 3600
    assert abs(made.metadata["statistics"]["hours"] - hours) < 1e-9


def test_targets_of_unlike_lengths_need_the_hop(noises, encode, tmp_path):
    with pytest.raises(ValueError, match="give `hop`"):
        tokenise({"train": noises(9, varied=True)}, encode, tmp_path, **CODEC)


def test_segments_of_a_dynamic_frame_rate_are_held(sources, encode, tmp_path):
    def dynamic(waves, samples):
        codes = encode(waves)
        count = 3 + np.arange(len(waves))[:, None] % 4
        codes.lengths = np.where(np.arange(25) < count, 2, 0)
        return codes

    made = tokenise(sources, dynamic, tmp_path, **CODEC)
    for index, record in enumerate(made.records("train")):
        frames = 3 + index % 8 % 4
        assert record["segments"].tolist() == [2] * frames and record["frames"] == frames
        codes = encode(sources["train"][index].target[None])
        assert np.array_equal(record["acoustic"], codes.acoustic[0, :, :frames])


@pytest.mark.parametrize("task", ["tse", "sr", "tta"])
def test_features_in_the_place_of_audio(noises, encode, tmp_path, task):
    def features(waves, samples):
        assert np.all((np.arange(waves.shape[1]) < samples[:, None]) | (waves == 0))
        frames = waves[:, : waves.shape[1] // 320 * 320].reshape(len(waves), -1, 320)
        return np.stack([frames.mean(-1), frames.std(-1), frames.max(-1)], -1)

    source = noises(21, task=task, varied=True)
    heard = {"features": features, "encoder": "moments", "encoder_hash": "77"}
    made = tokenise({"train": source}, encode, tmp_path, hop=640, batch_size=4, **heard, **CODEC)
    assert made.metadata["conditioning"] == {
        "kind": "features",
        "encoder": "moments",
        "encoder_hash": "77",
    }
    for record, example in zip(made.records("train"), source, strict=True):
        for name in ("input", "reference"):
            wave = getattr(example, name)
            assert record[name].dtype == ml_dtypes.bfloat16
            assert record[f"{name}_samples"] == (0 if wave is None else len(wave))
            if wave is None:
                assert len(record[name]) == 0
            else:
                expected = features(wave[None], np.array([len(wave)]))[0]
                assert np.array_equal(record[name], expected.astype(ml_dtypes.bfloat16))
    with pytest.raises(UserError, match=r"conditioning.encoder_hash 77, but this run has 78"):
        heard["encoder_hash"] = "78"
        tokenise({"train": source}, encode, tmp_path, hop=640, **heard, **CODEC)
    with pytest.raises(UserError, match="conditioning"):
        tokenise({"train": source}, encode, tmp_path, hop=640, **CODEC)


def test_ids_are_unique_and_of_the_example_alone(sources, encode, noises, tmp_path):
    made = tokenise(sources, encode, tmp_path / "a", examples_per_shard=4, **CODEC)
    ids = [record["id"] for split in made.splits for record in made.records(split)]
    assert len(set(ids)) == 25
    sources["heldout"] = noises(5, seed=9)
    other = tokenise(sources, encode, tmp_path / "b", **CODEC | {"codec_hash": "ffff"})
    assert [record["id"] for record in other.records("train")] == ids[:20]
    assert not {record["id"] for record in other.records("heldout")} & set(ids)


def skipping(noises: type, bad: dict[int, str], length: int):
    """Noises that meet a recording that cannot be used in making each of these examples; another
    is left out from the start."""

    class Skipping(noises):
        def __getitem__(self, index):
            if index in bad:
                self.skipped[Entry(Path(f"{index}.wav"), bad[index])] = "silent"
            return super().__getitem__(index)

    source = Skipping(length)
    source.skipped[Entry(Path("0.wav"), "alone")] = "only one"
    return source


def test_what_was_skipped_is_known_after_an_interruption(noises, encode, tmp_path, capsys):
    bad = {1: "a", 6: "b", 7: "a", 14: "c"}
    calls = []

    def breaks(waves, samples):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return encode(waves)

    options = CODEC | {"batch_size": 4, "examples_per_shard": 4}
    with pytest.raises(RuntimeError, match="power cut"):
        tokenise({"train": skipping(noises, bad, 16)}, breaks, tmp_path, **options)
    made = tokenise({"train": skipping(noises, bad, 16)}, encode, tmp_path, **options)
    assert made.metadata["statistics"]["skipped"] == {"train": 4}
    expected = {"alone": "only one", "a": "silent", "b": "silent", "c": "silent"}
    assert json.loads((made.path / "skipped.json").read_text()) == {"train": expected}
    assert "train: passed over 4 recordings" in capsys.readouterr().out


def test_the_speed_is_that_of_all_shards(sources, encode, tmp_path, monkeypatch):
    def breaks(self, about):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Builder, "_about", breaks)
        tokenise(sources, encode, tmp_path, **CODEC)

    def never(waves, samples):
        raise AssertionError("nothing is left to encode")

    made = tokenise(sources, never, tmp_path, **CODEC)
    assert made.metadata["statistics"]["hours_per_hour"] > 0


def test_int16_brings_a_wave_back():
    wave = np.array([-1.0, -0.5, 0.0, 0.25, 0.99, 1.0, 1.5, -2.0], np.float32)
    back = from_int16(to_int16(wave))
    assert np.abs(back - np.clip(wave, -1, 1)).max() <= 1 / 32768


def assert_same(a, b) -> None:
    assert a.splits == b.splits
    for split in a.splits:
        for left, right in zip(a.records(split), b.records(split), strict=True):
            assert left.keys() == right.keys()
            assert all(np.array_equal(left[name], right[name]) for name in left)


def run_slowly(folder: str) -> None:
    """The run that is killed: the examples and codes of the other tests, half a second a batch."""

    def encode(waves, samples):
        time.sleep(0.5)
        return stand_in(waves)

    tokenise(make_sources(), encode, folder, **CODEC, batch_size=4, examples_per_shard=4)


if __name__ == "__main__":
    run_slowly(sys.argv[1])
