"""Tokenised datasets that are damaged, not whole or of another codec are refused, in a line that
names the file."""

import gc
import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from stand_ins import CODEC

from data_pipelines import open_tokenised, tokenise
from data_pipelines.shards import VERSION, Builder
from data_pipelines.verify import _main as main
from data_pipelines.verify import verify
from quark_jax.errors import UserError


@pytest.fixture
def shards(sources, encode, tmp_path):
    """A dataset of 5 and 2 shards."""
    return tokenise(sources, encode, tmp_path, batch_size=4, examples_per_shard=4, **CODEC)


def test_a_whole_dataset_is_verified(shards, capsys, monkeypatch):
    assert verify(shards) == {"train": 20, "heldout": 5}
    folder = str(shards.path.parent.parent)
    monkeypatch.setattr(sys, "argv", ["verify", folder])
    assert main() == 0
    printed = capsys.readouterr().out
    assert "20 train, 5 heldout records in 7 shards; none lost, doubled or damaged" in printed


DAMAGE = {
    "flipped bit": lambda data, _: data[:20_000] + bytes([data[20_000] ^ 1]) + data[20_001:],
    "cut off": lambda data, _: data[:65_536],
    "empty": lambda data, _: b"",
    "another shard": lambda data, other: other,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_shard_is_named_and_refused(shards, damage):
    bad, other = (shards.path / shards.shards("train")[number].file for number in (3, 1))
    data = bad.read_bytes()
    bad.unlink()  # it is linked to
    bad.write_bytes(DAMAGE[damage](data, other.read_bytes()))
    with pytest.raises(UserError, match=f"^{bad}: damaged .*; delete this dataset"):
        verify(shards)
    with pytest.raises(UserError, match=f"^{bad}: damaged .*; delete this dataset"):
        list(shards.records("train"))
    assert len([shards.records("train")[index] for index in range(12)]) == 12


def test_a_missing_shard_is_named(shards):
    gone = shards.path / shards.shards("heldout")[1].file
    gone.unlink()
    with pytest.raises(UserError, match=f"^{gone}: no such file; "):
        verify(shards)
    with pytest.raises(UserError, match=f"^{gone}: no such file; "):
        shards.records("heldout")[4]


@contextmanager
def may_open(more: int) -> Iterator[None]:
    """Lets this process open so many more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = [number for number in range(len(used) + more + 1) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[more], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux does")
def test_more_shards_than_files_may_be_open(noises, encode, tmp_path):
    made = tokenise({"train": noises(60)}, encode, tmp_path, examples_per_shard=1, **CODEC)
    with may_open(20):
        assert len(list(made.records("train"))) == 60
    records, says = made.records("train"), r"cannot be read \(.*Too many open.*ulimit"
    with may_open(5), pytest.raises(UserError, match=says) as error:
        list(records)
    assert "damaged" not in str(error.value) and "delete" not in str(error.value)


def test_a_shard_that_cannot_be_read_is_not_called_damaged(shards, monkeypatch):
    records = shards.records("train")

    class Fails:
        def __getitem__(self, index):
            raise RuntimeError("the disk went to sleep")

    monkeypatch.setattr(records, "_source", Fails())
    with pytest.raises(UserError, match=r"cannot be read \(the disk .*try again$") as error:
        records[0]
    assert "delete" not in str(error.value)


def test_damaged_lengths_are_named(shards):
    np.save(shards.path / "lengths-train.npy", np.zeros((3, 4), np.int32))
    with pytest.raises(UserError, match=r"lengths-train.npy: of shape \(3, 4\), for 20 records"):
        shards.lengths("train")
    (shards.path / "lengths-train.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"lengths-train.npy: cannot be read"):
        shards.lengths("train")


def test_lengths_that_are_not_the_records_are_found(shards):
    path = shards.path / "lengths-train.npy"
    noted = np.load(path)
    noted[7, 1] += 1
    np.save(path, noted)
    with pytest.raises(UserError, match="lengths of train 7 differ; copy"):
        verify(shards)


def test_a_shard_without_a_checksum_is_named(shards):
    path = shards.path / "checksums.json"
    checksums = json.loads(path.read_text())
    name = shards.shards("train")[2].file
    del checksums[name]
    path.write_text(json.dumps(checksums))
    with pytest.raises(UserError, match=f"^{path}: has no {name}; copy"):
        verify(shards)


@pytest.mark.parametrize("content", [None, "", "{", '{"splits": 3}', "[]"])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json"])
def test_a_damaged_description_is_one_line(shards, name, content):
    if name == "metadata.json" and content == '{"splits": 3}':
        content = "3"
    if content is None:
        (shards.path / name).unlink()
    else:
        (shards.path / name).write_text(content)
    with pytest.raises(UserError, match=rf"^{shards.path}.*; copy") as error:
        open_tokenised(shards.path.parent.parent)
    assert "\n" not in str(error.value)


def test_a_damaged_note_of_a_shard_is_named(sources, encode, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):

        def breaks(self, about):
            raise RuntimeError("power cut")

        patch.setattr(Builder, "_about", breaks)
        tokenise(sources, encode, tmp_path, **CODEC)
    (note,) = tmp_path.glob("tokenised/shards-*/tokenised-heldout*.json")
    note.write_text("{")
    with pytest.raises(UserError, match=f"^{note}: not JSON .*; delete it and the shard"):
        tokenise(sources, encode, tmp_path, **CODEC)


def test_what_is_not_there_is_named(sources, encode, tmp_path):
    with pytest.raises(UserError, match="holds no tokenised dataset"):
        open_tokenised(tmp_path)
    made = tokenise(sources, encode, tmp_path, **CODEC)
    with pytest.raises(UserError, match="no split 'test'; there are train, heldout"):
        made.records("test")


def test_another_codec_is_refused(sources, encode, tmp_path):
    tokenise(sources, encode, tmp_path, **CODEC)
    with pytest.raises(UserError, match=f"^{tmp_path}: tokenised with codec stand-in of weights"):
        tokenise(sources, encode, tmp_path, **CODEC | {"codec_hash": "ffff"})
    with pytest.raises(UserError, match="but the codec here has ffff"):
        open_tokenised(tmp_path, codec_hash="ffff")


def test_a_dataset_of_an_older_format_is_named(tmp_path):
    (tmp_path / "tokenised/1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=f"of format 1.0.0, this is for {VERSION}; delete"):
        open_tokenised(tmp_path)
