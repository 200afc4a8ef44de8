"""The speech samples: the manifest and the files say the same."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import data_pipelines
from quark_jax import audio

FOLDER = Path(data_pipelines.__file__).parent / "samples"
ROWS = [json.loads(line) for line in (FOLDER / "manifest.jsonl").read_text("utf-8").splitlines()]


def test_every_file_is_listed_once():
    paths = [row["path"] for row in ROWS]
    assert len(set(paths)) == len(paths)
    assert sorted(paths) == sorted(p.name for p in FOLDER.glob("*.flac"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["path"])
def test_file_is_what_the_manifest_says(row):
    info = audio.info(FOLDER / row["path"])
    wave, rate = audio.read(FOLDER / row["path"])
    assert (rate, info.channels, len(wave)) == (16_000, 1, info.samples)
    assert row["seconds"] == pytest.approx(info.seconds, abs=1e-6) and 2 <= row["seconds"] <= 8
    peak, level = np.abs(wave).max(), np.sqrt(np.mean(wave**2))
    assert 0.3 < peak < 0.99, "too quiet or clipped"
    assert level > 0.05, "hardly any speech"
    frames = wave[: len(wave) // 320 * 320].reshape(-1, 320)
    assert np.flatnonzero((frames**2).mean(1) > 1e-4)[0] < 25, "half a second of silence first"
    letters = sum(c.isalpha() for c in row["text"])
    assert 8 < letters / row["seconds"] < 20, "the transcript does not fit the duration"
    assert row["path"].startswith(f"{row['language']}_{row['speaker']}_")
    assert row["language"] in row["source"].split("-")


def test_speakers_splits_and_licences():
    splits, seconds, texts = defaultdict(set), defaultdict(float), defaultdict(set)
    for row in ROWS:
        splits[row["speaker"]].add(row["split"])
        seconds[row["speaker"]] += row["seconds"]
        texts[row["split"]].add(row["text"].lower())
    assert len(splits) == 4
    assert all(s == {"train", "heldout"} for s in splits.values())
    assert all(40 < s < 60 for s in seconds.values()) and 180 < sum(seconds.values()) < 220
    assert not texts["train"] & texts["heldout"]
    notice = (FOLDER / "LICENSE.md").read_text("utf-8")
    titles = {"CC-BY-SA-3.0": "CC BY-SA 3.0", "CC-BY-3.0": "CC BY 3.0"}
    for row in ROWS:
        files = f"{row['language']}_{row['speaker']}_*.flac"
        assert f"`{files}`: {titles[row['licence']]}\n" in notice


def test_total_size_is_under_four_megabytes():
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 4_000_000
