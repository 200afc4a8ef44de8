"""Pre-tokenised datasets hold what was put in, survive interruption, and refuse another codec."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines import (
    SpeechRestoration,
    open_tokenised,
    read_manifest,
    samples_manifest,
    tokenise,
)
from data_pipelines.shards import from_int16, to_int16
from quark_jax.errors import UserError

CODEC = {"codec": "stand-in", "codec_hash": "a1b2", "progress": False}


def make_sources(entries) -> dict[str, SpeechRestoration]:
    """20 training and 5 held-out examples of one second."""
    return {
        split: SpeechRestoration(
            [entry for entry in entries if entry.split == split], seconds=1, seed=3, length=length
        )
        for split, length in (("train", 20), ("heldout", 5))
    }


@pytest.fixture
def sources(entries):
    return make_sources(entries)


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

    def watching(waves):
        shapes.add((waves.shape, waves.dtype))
        return encode(waves)

    tokenise(sources, watching, tmp_path, batch_size=8, **CODEC)
    assert shapes == {((8, 16_000), np.dtype(np.float32))}


def test_a_complete_dataset_is_left_alone(sources, encode, tmp_path, capsys):
    tokenise(sources, encode, tmp_path, **CODEC)
    printed = capsys.readouterr().out
    assert "20 train, 5 heldout examples" in printed and "audio hours per hour" in printed
    assert "download" not in printed.lower()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def never(waves):
        raise AssertionError("nothing is left to encode")

    tokenise(sources, never, tmp_path, **CODEC)
    assert "already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


def test_an_interrupted_dataset_is_not_readable_and_goes_on(sources, encode, tmp_path):
    encoded = []

    def breaks(waves):
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
        sources, lambda w: resumed.append(1) or encode(w), tmp_path / "a", **options
    )
    assert len(encoded) + len(resumed) == 5 + 2  # 3 shards were kept, none was made twice
    straight = tokenise(sources, encode, tmp_path / "b", **options)
    assert_same(finished, straight)
    assert finished.metadata["statistics"]["hours"] == straight.metadata["statistics"]["hours"]
    assert sorted(p.name for p in (tmp_path / "a/tokenised").iterdir()) == ["1.0.0"]


def test_killed_and_run_again_it_is_the_same(sources, encode, tmp_path):
    command = [sys.executable, __file__, str(tmp_path / "a")]
    run = subprocess.Popen(command, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("a/tokenised/shards-*/*-of-00005")):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    with pytest.raises(UserError, match="not complete"):
        open_tokenised(tmp_path / "a")
    options = CODEC | {"batch_size": 4, "examples_per_shard": 4}
    finished = tokenise(sources, encode, tmp_path / "a", **options)
    assert_same(finished, tokenise(sources, encode, tmp_path / "b", **options))
    assert sorted(p.name for p in (tmp_path / "a/tokenised").iterdir()) == ["1.0.0"]


def test_another_codec_is_refused(sources, encode, tmp_path):
    tokenise(sources, encode, tmp_path, **CODEC)
    with pytest.raises(UserError, match=f"^{tmp_path}: tokenised with codec stand-in of weights"):
        tokenise(sources, encode, tmp_path, **CODEC | {"codec_hash": "ffff"})
    with pytest.raises(UserError, match="but the codec here has ffff"):
        open_tokenised(tmp_path, codec_hash="ffff")


def test_other_examples_are_refused(sources, encode, entries, tmp_path):
    tokenise(sources, encode, tmp_path, **CODEC)
    sources["train"] = SpeechRestoration(entries[:30], seconds=1, seed=4, length=20)
    with pytest.raises(UserError, match="was made with splits"):
        tokenise(sources, encode, tmp_path, **CODEC)


def test_half_of_another_codecs_shards_is_not_gone_on_with(sources, encode, tmp_path):
    calls = []

    def breaks(waves):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return encode(waves)

    options = {"batch_size": 4, "examples_per_shard": 4}
    with pytest.raises(RuntimeError):
        tokenise(sources, breaks, tmp_path, **CODEC, **options)

    def other(waves):
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
    assert sorted(p.name for p in (tmp_path / "tokenised").iterdir()) == ["1.0.0"]


def test_what_is_not_there_is_named(sources, encode, tmp_path):
    with pytest.raises(UserError, match="holds no tokenised dataset"):
        open_tokenised(tmp_path)
    made = tokenise(sources, encode, tmp_path, **CODEC)
    with pytest.raises(UserError, match="no split 'test'; there are train, heldout"):
        made.records("test")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"acoustic": np.full((8, 2, 25), 40_000)}, "do not fit"),
        ({"acoustic": np.full((8, 2, 25), -1)}, "do not fit"),
        ({"semantic": np.zeros((8, 2, 25), np.float32)}, "give integers"),
        ({"acoustic": np.zeros((8, 25), np.int32)}, "give integers"),
        ({"lengths": np.ones((8, 25), np.int32)}, "fixed frame rate"),
    ],
)
def test_codes_that_a_record_cannot_hold_are_refused(sources, tmp_path, wrong, says):
    right = {name: np.zeros((8, 2, 25), np.int32) for name in ("acoustic", "semantic")}
    with pytest.raises(ValueError, match=says):
        tokenise(sources, lambda _: SimpleNamespace(**right | wrong), tmp_path, **CODEC)
    with pytest.raises(UserError):
        open_tokenised(tmp_path)


def test_splits_have_to_agree_and_hold_something(entries, encode, tmp_path):
    short = SpeechRestoration(entries, seconds=1, length=2)
    with pytest.raises(UserError, match="differ in rate"):
        long = SpeechRestoration(entries, seconds=2, length=2)
        tokenise({"train": short, "heldout": long}, encode, tmp_path, **CODEC)
    with pytest.raises(UserError, match="'heldout' has no examples"):
        none = SpeechRestoration(entries, seconds=1, length=0)
        tokenise({"train": short, "heldout": none}, encode, tmp_path, **CODEC)


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
    from conftest import stand_in

    def encode(waves):
        time.sleep(0.5)
        return stand_in(waves)

    sources = make_sources(read_manifest(samples_manifest()))
    tokenise(sources, encode, folder, **CODEC, batch_size=4, examples_per_shard=4)


if __name__ == "__main__":
    run_slowly(sys.argv[1])
