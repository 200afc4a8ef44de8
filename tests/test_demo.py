"""The demo with fewer steps: all of its stages, interrupted and gone on with."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot

from data_pipelines import open_tokenised, read_manifest, samples_manifest
from quark_jax import audio
from quark_jax.pipeline import QuarkAudio
from quark_jax.training.metrics import read_metrics

SCRIPT = """
import sys
from dataclasses import replace
from quark_jax import demo
from quark_jax.commands import guarded

def codec_config(manifest, steps, make=demo.codec_config):
    config = make(manifest, steps)
    return replace(config, run=replace(config.run, save_every=20))

demo.codec_config = codec_config
demo.EXAMPLES = {"train": 64, "heldout": 16}
sys.exit(guarded(lambda: demo.demo(sys.argv[1], codec_steps=40, lm_steps=20)))
"""


def start(workdir: Path, trainers) -> subprocess.Popen:
    with (workdir.parent / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, workdir],
            env=os.environ | trainers.cache,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_goes_on_after_an_interruption(trainers, wait_until, tmp_path):
    workdir, said = tmp_path / "demo", tmp_path / "said"
    process = start(workdir, trainers)
    saved = workdir / "codec" / "checkpoints" / "20"
    wait_until(saved.exists, process, said.read_text)
    process.send_signal(signal.SIGINT)
    process.communicate()
    told = said.read_text()
    assert process.returncode == 130, told
    assert told.splitlines()[-1].startswith("quark: interrupted") and "Traceback" not in told

    process = start(workdir, trainers)
    table, _ = process.communicate()
    assert process.returncode == 0, said.read_text()
    assert "20/40" in said.read_text()  # it did not begin again
    steps = [row["step"] for row in read_metrics(workdir / "codec") if "loss" in row]
    assert steps == [20, 40]
    check_results(workdir, table)


def check_results(workdir: Path, table: str) -> None:
    results = workdir / "results"
    clean, rate = audio.read(results / "clean.wav")
    entries = read_manifest(samples_manifest())
    heldout = [entry.read(rate) for entry in entries if entry.split == "heldout"]
    # Rounded to 16 bits once more.
    assert any(len(w) == len(clean) and np.abs(w - clean).max() < 1e-4 for w in heldout)
    for name in ("noisy", "restored", "clean_through_the_codec"):
        wave, its_rate = audio.read(results / f"{name}.wav")
        assert its_rate == rate and len(wave) == len(clean)
        assert np.abs(wave).max() > 0.001 and not np.array_equal(wave, clean)
    picture = pyplot.imread(results / "comparison.png")
    assert min(picture.shape[:2]) > 300 and np.std(picture) > 0.05
    assert (results / "table.md").read_text().strip() in table
    numbers = json.loads((results / "metrics.json").read_text())
    assert set(numbers) == {"codec", "lm", "waves"}
    assert numbers["codec"]["step"] == 40 and numbers["lm"]["step"] == 20
    assert all(np.isfinite(v) for row in numbers["waves"].values() for v in row.values())
    assert len(list((workdir / "corpus").glob("*.flac"))) == len(entries)
    assert open_tokenised(workdir / "tokens").splits == {"train": 64, "heldout": 16}
    quark = QuarkAudio.load(workdir / "model")
    # `quark restore` makes the same of the file.
    again = quark.restore(*audio.read(results / "noisy.wav"))
    assert np.abs(again - audio.read(results / "restored.wav")[0]).max() < 1e-4
    assert quark.lm.config.codebooks == quark.tokeniser.config.quantiser.codebooks
