"""A whole job with a real codec and encoder; Beam knows the options of the launch scripts."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from data_pipelines import (
    Entry,
    open_tokenised,
    read_manifest,
    samples_manifest,
    write_manifest,
)
from data_pipelines.features import FeatureEncoder
from data_pipelines.jobs import Job
from quark_jax.encoders import FeatureConfig, features_hash
from quark_jax.errors import UserError
from quark_jax.hcodec import HCodec, HCodecConfig, Tokeniser
from quark_jax.interop.files import write_state

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def codec(drawn, tmp_path_factory) -> Tokeniser:
    tokeniser = Tokeniser(drawn(lambda rngs: HCodec(HCodecConfig.preset("tiny"), rngs=rngs)))
    tokeniser.save(folder := tmp_path_factory.mktemp("codec"))
    tokeniser.folder = str(folder)
    return tokeniser


@pytest.fixture(scope="module")
def job(codec) -> Job:
    return Job(
        "tse",
        str(samples_manifest()),
        codec.folder,
        splits=("heldout",),
        seconds=0.5,
        rounds=2,
        features="log_mel",
        batch_size=4,
    )


def test_a_job_makes_what_its_names_say(job, codec, tmp_path):
    made = job.run(str(tmp_path), examples_per_shard=8)
    sources, _ = job.load()
    source = sources["heldout"]
    records = made.records("heldout")
    assert made.metadata["codec_hash"] == codec.weights_hash
    assert made.metadata["conditioning"]["encoder_hash"] == features_hash(FeatureConfig())
    assert len(records) == len(source) == 20
    assert len({record["provenance"] for record in records}) == 20
    heard = FeatureEncoder(FeatureConfig())
    for index in (0, 5, len(records) - 1):
        example, record = source[index], records[index]
        batch = np.stack([example.target] * 4)
        codes = codec.encode_batch(batch)
        assert np.array_equal(record["acoustic"], np.asarray(codes.acoustic)[0])
        assert np.array_equal(record["semantic"], np.asarray(codes.semantic)[0])
        for name in ("input", "reference"):
            wave = getattr(example, name)
            expected = heard(np.stack([wave] * 4), np.full(4, len(wave)))[0]
            assert np.array_equal(record[name], expected.astype(ml_dtypes.bfloat16))


def test_a_split_may_have_no_alignments(job, tmp_path):
    """Those of a corpus may be of a language that is not held out."""
    train = next(entry for entry in read_manifest(samples_manifest()) if entry.split == "train")
    words = tmp_path / "words.ctm"
    words.write_text(f"{train.id} 1 0.1 0.2 word\n")
    given = replace(job, features=None, rounds=1, alignments=str(words))
    assert len(given.load()[0]["heldout"]) == 10
    with pytest.raises(UserError, match="needs word alignments"):
        replace(given, task="edit-speech").load()


def test_settings_of_no_features_are_refused(job):
    with pytest.raises(UserError, match="features_window"):
        replace(job, features=None, window=5.0).load()
    with pytest.raises(UserError, match="features_layers"):
        replace(job, features=None, layers=(0, 1)).load()
    with pytest.raises(UserError, match="log_mel takes neither folder nor layers"):
        replace(job, layers=(0, 1)).load()


def test_a_job_of_several_manifests(job, tmp_path):
    entries = [entry for entry in read_manifest(samples_manifest()) if entry.split == "heldout"]
    parts = tuple(str(tmp_path / f"{n}.jsonl") for n in range(2))
    for n, part in enumerate(parts):
        write_manifest(entries[n::2], part)
    sources, _ = replace(job, manifests=parts).load()
    assert len(sources["heldout"]) == 2 * len(entries)
    write_manifest([Entry(entries[1].path, entries[0].id)], parts[1])
    with pytest.raises(UserError, match=r"1\.jsonl: id .* give each an id of its own"):
        replace(job, manifests=parts).load()


def launch(*arguments: str, kilobytes: int | None = None) -> subprocess.CompletedProcess:
    """launch/tokenise.py with these arguments; `kilobytes` that a file can have."""
    limited = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "limited"] if kilobytes else []
    return subprocess.run(
        [*limited, sys.executable, str(LAUNCH / "tokenise.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(LAUNCH.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_makes_a_dataset_of_each_task(codec, tmp_path):
    entries = [entry for entry in read_manifest(samples_manifest()) if entry.split == "heldout"]
    parts = tuple(str(tmp_path / f"{n}.jsonl") for n in range(2))
    for n, part in enumerate(parts):
        write_manifest(entries[n::2], part)
    options = {"codec": codec.folder, "out": tmp_path / "tokens", "task": "sr,tse"}
    options |= {"splits": "heldout", "seconds": "0.5", "features": "log_mel"}
    options |= {"examples_per_shard": "4", "seed": "1"}
    given = [f"--manifest={part}" for part in parts]
    given += [f"--{name}={value}" for name, value in options.items()]
    done = launch(*given)
    assert done.returncode == 0, done.stderr
    for task in ("sr", "tse"):
        made = open_tokenised(tmp_path / "tokens" / task, codec_hash=codec.weights_hash)
        assert made.splits == {"heldout": len(entries)}
        assert made.metadata["examples_per_shard"] == 4
        assert made.metadata["conditioning"]["encoder"] == "log_mel"
        assert {record["task"] for record in made.records("heldout")} == {task.encode()}
        assert json.loads(made.records("heldout")[0]["provenance"])["seed"] == 1


def test_a_full_disk_is_told_and_what_is_done_is_gone_on_with(codec, tmp_path):
    options = {"manifest": samples_manifest(), "codec": codec.folder, "out": tmp_path / "tokens"}
    options |= {"splits": "heldout", "seconds": "0.5", "examples_per_shard": "4"}
    given = [f"--{name}={value}" for name, value in options.items()]
    full = launch(*given, kilobytes=40)
    assert full.returncode == 2
    last = full.stderr.splitlines()[-1]
    assert re.match(
        r"quark: .*/tokens/sr: cannot be written \(.*File too large.*run the same", last
    )
    assert "Traceback" not in full.stderr
    with pytest.raises(UserError):
        open_tokenised(tmp_path / "tokens" / "sr")
    left = [path for path in (tmp_path / "tokens").rglob("*array_record*")]
    assert left == []
    assert launch(*given).returncode == 0
    assert open_tokenised(tmp_path / "tokens" / "sr").splits == {"heldout": 10}


def test_what_is_no_option_is_named(tmp_path):
    done = launch("--manifest=m", "--codec=c", f"--out={tmp_path}", "--task", "sr,", "tse")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("quark: tse: is no option; give lists without")
    assert not list(tmp_path.iterdir())


def test_layers_that_are_no_numbers_are_named(tmp_path):
    done = launch("--manifest=m", "--codec=c", f"--out={tmp_path}", "--features_layers=0,top")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("quark: --features_layers 0,top: give numbers")


def test_a_task_or_split_that_is_not_there_is_named(job):
    with pytest.raises(UserError, match=r"task 'ss' is unknown; choose one of sr, tse"):
        replace(job, task="ss").load()
    with pytest.raises(UserError, match=r"manifest.jsonl: no recordings of split 'dev'; give"):
        replace(job, splits=("dev",)).load()


def test_features_are_told_apart_by_weights_and_settings_not_by_place(tmp_path):
    for name, weight in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        write_state(tmp_path / name / "model.safetensors", {"weight": np.full(2, weight)})

    def hash_of(name: str, **options) -> str:
        folder = str(tmp_path / name)
        return features_hash(FeatureConfig(kind="hugging_face", folder=folder, **options))

    assert hash_of("a") == hash_of("b") != hash_of("c")
    assert len({hash_of("a"), hash_of("a", layers=(1,)), features_hash(FeatureConfig())}) == 3


@pytest.mark.parametrize("script", ["dataflow", "flink", "spark"])
def test_beam_knows_the_options_of_the_launch_scripts(script):
    options = pytest.importorskip("apache_beam.options.pipeline_options")
    known = options.PipelineOptions([]).get_all_options()
    _, given = (LAUNCH / f"tokenise_{script}.sh").read_text().split(" -- \\\n")
    names = re.findall(r"^  --(\w+)", given, re.MULTILINE)
    assert len(names) == len(given.strip().splitlines()) and set(names) <= set(known)
