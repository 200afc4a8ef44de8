"""On Beam's DirectRunner with several worker processes a dataset comes out as it does without."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import open_tokenised, tokenise
from data_pipelines.records import Networks
from data_pipelines.tokenising import Beam
from quark_jax.errors import UserError

pytest.importorskip("apache_beam")
OPTIONS = {"codec": "stand-in", "codec_hash": "a1b2", "progress": False, "examples_per_shard": 4}
RUNNER = (
    "--runner=DirectRunner",
    "--direct_running_mode=multi_processing",
    "--direct_num_workers=2",
)


def run(folder: Path, fail: str = "") -> subprocess.CompletedProcess:
    """`tokenise` on Beam in a process of its own: its workers are started anew, as programs."""
    here = Path(__file__).parent
    return subprocess.run(
        [sys.executable, __file__, str(folder), fail],
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def straight(noises, encode, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    sources = {"train": noises(21, varied=True), "heldout": noises(5, seed=1, varied=True)}
    return tokenise(sources, encode, folder, hop=640, batch_size=2, **OPTIONS)


def assert_same(a, b) -> None:
    assert a.splits == b.splits
    for split in a.splits:
        assert np.array_equal(a.lengths(split), b.lengths(split))
        for left, right in zip(a.records(split), b.records(split), strict=True):
            assert left.keys() == right.keys()
            assert all(np.array_equal(left[name], right[name]) for name in left)


def test_workers_make_the_same_files_and_an_interrupted_run_goes_on(straight, tmp_path):
    broken = run(tmp_path / "tokens", fail="9")
    told = "quark_jax.errors.UserError: a.wav: power cut; try again"
    assert broken.returncode != 0 and broken.stderr.splitlines()[-1] == told
    kept = {path.name: path.stat() for path in tmp_path.glob("tokens/tokenised/shards-*/tok*-of-*")}
    shards = {name for name in kept if not name.endswith(".json")}
    assert 0 < len(shards) < 8 and "tokenised-train.array_record-00002-of-00006" not in shards

    whole = run(tmp_path / "tokens")
    assert whole.returncode == 0, whole.stderr
    made = open_tokenised(tmp_path / "tokens")
    assert_same(made, straight)
    for name in shards:
        assert Path(made.path, name).stat().st_ino == kept[name].st_ino  # not made again
    loads = (tmp_path / "loads").read_text().split()
    assert len(loads) == len(set(loads)) > 3  # two runs, of more than one process; each loads once


def here(make) -> Beam:
    """Beam in this process."""
    return Beam(make, ("--runner=FnApiRunner", "--direct_num_workers=1"))


def test_workers_that_load_something_else_are_stopped(noises, encode, tmp_path):
    sources = {"train": noises(3)}
    options = OPTIONS | {"hop": 640}
    right = Networks(encode, 640, codec_hash="a1b2")
    wrong = {
        r"another codec \(ffff\) than .* \(a1b2\)": (
            sources,
            Networks(encode, 640, codec_hash="ffff"),
        ),
        "another encoder": (sources, Networks(encode, 640, codec_hash="a1b2", encoder_hash="1")),
        "another set of train examples": ({"train": noises(3, seed=1)}, right),
    }
    for says, loaded in wrong.items():
        with pytest.raises(
            UserError, match=rf"^\S+: a worker has {says}.*give all the same \D+$"
        ) as e:
            tokenise(sources, encode, tmp_path, beam=here(lambda found=loaded: found), **options)
        assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("tokenised/shards-*/*"))
    made = tokenise(sources, encode, tmp_path, beam=here(lambda: (sources, right)), **options)
    assert made.splits == {"train": 3}


def test_what_a_worker_says_is_one_line(noises, encode, tmp_path):
    def loads():
        raise UserError("m.jsonl: no such file; check the path")

    with pytest.raises(UserError, match=r"^m.jsonl: no such file; check the path$"):
        tokenise({"train": noises(3)}, encode, tmp_path, hop=640, beam=here(loads), **OPTIONS)


def load(folder: str, fail: str):
    """What each worker process calls once."""
    from stand_ins import Noises, stand_in

    with (Path(folder).parent / "loads").open("a") as log:
        log.write(f"{os.getpid()}\n")
    sources = {"train": Noises(21, varied=True), "heldout": Noises(5, seed=1, varied=True)}

    class Breaks(Noises):
        def __getitem__(self, index):
            if str(index) == fail:
                raise UserError("a.wav: power cut; try again")
            return super().__getitem__(index)

    sources["train"] = Breaks(21, varied=True)
    return sources, Networks(stand_in, 640, batch_size=2, codec_hash=OPTIONS["codec_hash"])


if __name__ == "__main__":
    folder, fail = sys.argv[1:]
    sources, networks = load(folder, fail)
    beam = Beam(partial(load, folder, fail), RUNNER)
    tokenise(sources, networks.encode, folder, hop=640, batch_size=2, beam=beam, **OPTIONS)
