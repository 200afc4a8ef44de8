"""Recordings at other speeds are other voices, made once."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines import Entry, read_manifest, speeds, write_manifest
from quark_jax import audio
from quark_jax.errors import UserError


@pytest.fixture
def tone(tmp_path) -> Entry:
    """A second of 400 Hz at 16 kHz, between half seconds that are not of the entry."""
    wave = 0.5 * np.sin(2 * np.pi * 400 * np.arange(32000) / 16000)
    audio.write(tmp_path / "tone.wav", wave.astype(np.float32), 16000)
    return Entry(
        tmp_path / "tone.wav", "tone", 1.0, 16000, 1, 8000, 16000, speaker="a", domain="speech"
    )


def test_a_tone_gets_shorter_by_as_much_as_it_gets_higher(tone, tmp_path):
    made, unusable = speeds.at_other_speeds([tone], tmp_path / "made", speeds=(1.25,))
    assert unusable == {}
    (entry,) = made
    assert (entry.id, entry.speaker, entry.domain) == ("tone@1.25", "a@1.25", "speech")
    wave = entry.read(16000)
    assert len(wave) == pytest.approx(12800, abs=2) and entry.seconds == len(wave) / 16000
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    assert spectrum.argmax() * 16000 / len(wave) == pytest.approx(500, abs=2)


def test_each_recording_of_the_split_once_at_one_of_the_speeds(entries, tmp_path):
    sound = replace(entries[0], id="a sound", domain="audio")
    made, _ = speeds.at_other_speeds([*entries, sound], tmp_path, speeds=(0.9, 1.1), seed=1)
    train = [entry for entry in entries if entry.split == "train"]
    assert [entry.id.rpartition("@")[0] for entry in made] == [entry.id for entry in train]
    chosen = [float(entry.id.rpartition("@")[2]) for entry in made]
    assert set(chosen) == {0.9, 1.1}
    for before, after, speed in zip(train, made, chosen, strict=True):
        assert after.seconds == pytest.approx(before.seconds / speed, abs=0.01)
        assert after.text == before.text
    again, _ = speeds.at_other_speeds(entries, tmp_path, speeds=(0.9, 1.1), seed=1)
    assert again == made
    other, _ = speeds.at_other_speeds(entries, tmp_path, speeds=(0.9, 1.1), seed=2)
    assert other != made


def test_what_is_there_is_not_made_again(tone, tmp_path):
    (first,), _ = speeds.at_other_speeds([tone], tmp_path, speeds=(0.9,))
    before = first.path.stat().st_mtime_ns
    tone.path.unlink()
    (again,), unusable = speeds.at_other_speeds([tone], tmp_path, speeds=(0.9,))
    assert again == first and unusable == {} and again.path.stat().st_mtime_ns == before


def test_corpora_that_share_a_folder_keep_their_recordings_apart(tone, tmp_path):
    """Though ids are equal, or recordings are sections of one file."""
    later = replace(tone, start=tone.start + 4000)
    audio.write(tmp_path / "other.wav", np.linspace(0, 0.5, 32000, dtype=np.float32), 16000)
    other = replace(tone, path=tmp_path / "other.wav")
    made = [
        speeds.at_other_speeds([entry], tmp_path / "made", speeds=(0.9,))[0][0]
        for entry in (tone, later, other)
    ]
    assert len({entry.path for entry in made}) == 3
    assert made[2].read(16000).min() >= 0 > made[0].read(16000).min()


def test_what_cannot_be_read_is_left_out_with_its_reason(tone, tmp_path):
    damaged = replace(tone, path=tmp_path / "damaged.wav", id="damaged")
    damaged.path.write_bytes(tone.path.read_bytes()[:20])
    made, unusable = speeds.at_other_speeds([damaged, tone], tmp_path / "made", speeds=(0.9,))
    assert [entry.id for entry in made] == ["tone@0.9"]
    assert list(unusable) == [damaged] and unusable[damaged]


def test_speeds_and_splits_that_give_nothing_are_refused(tone, tmp_path):
    for speed in (1.0, 0.0, -0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"speed {speed:g}: give positive factors"):
            speeds.at_other_speeds([tone], tmp_path, speeds=(0.9, speed))
    with pytest.raises(UserError, match="no speech of split 'other'"):
        speeds.at_other_speeds([tone], tmp_path, split="other")


def test_the_command_writes_a_manifest(tone, tmp_path):
    write_manifest([tone], tmp_path / "corpus.jsonl")
    command = [sys.executable, "-m", "data_pipelines.speeds", "corpus.jsonl", "more.jsonl"]
    result = subprocess.run(
        [*command, "--audio", "made", "--speeds", "0.8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("more.jsonl: 1 recordings, 0.00 h; 0 left out")
    (entry,) = read_manifest(tmp_path / "more.jsonl")
    assert entry.speaker == "a@0.8" and entry.seconds == pytest.approx(1.25, abs=0.01)
