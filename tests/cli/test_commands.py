"""What `quark tokenize`, `detokenize` and `restore` make."""

import sys

import numpy as np
import pytest
import soundfile

from quark_jax import audio


@pytest.mark.parametrize(
    ("name", "rate", "channels", "seconds"),
    [
        ("telephone.wav", 8000, 1, 0.4),
        ("stereo.wav", 16000, 2, 0.4),
        ("blink.wav", 16000, 1, 0.01),
        ("blink.wav", 8000, 1, 0.01),
        ("sample.wav", 16000, 1, 0),
        ("sample.wav", 48000, 1, 0),
        ("studio.mp3", 48000, 1, 0.4),
        ("studio.ogg", 48000, 2, 0.4),
        ("studio.flac", 48000, 6, 0.4),
        ("disc.wav", 44100, 2, 0.333),
        ("windows.wav", 16000, 1, 1.3),
        ("silence.wav", 16000, 1, 0.4),
    ],
)
def test_every_recording_comes_back_in_its_length_and_rate(
    quark, model, speech, tmp_path, name, rate, channels, seconds
):
    source, codes = tmp_path / name, tmp_path / "codes.hq"
    back, clean = tmp_path / "back.wav", tmp_path / "clean.flac"
    wave = np.stack([speech(seconds, rate, seed) for seed in range(channels)], 1)
    soundfile.write(source, wave * (name != "silence.wav"), rate)
    given = audio.info(source)
    assert quark("tokenize", source, codes, "--model", model).code == 0
    assert quark("detokenize", codes, back, "--model", model).code == 0
    said = quark("restore", source, clean, "--model", model)
    assert said.code == 0 and f"{clean}: " in said.out
    for path in (back, clean):
        made = audio.info(path)
        assert (made.rate, made.samples, made.channels) == (rate, given.samples, 1)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {name, "codes.hq", "back.wav", "clean.flac"}


def test_detokenising_to_other_rates_and_formats(quark, model, codes, tmp_path):
    for suffix, rate in ((".wav", 48000), (".flac", 8000), (".ogg", 16000), (".mp3", 44100)):
        target = tmp_path / f"out{suffix}"
        assert quark("detokenize", codes, target, "--model", model, "--rate", rate).code == 0
        made = audio.info(target)
        assert made.rate == rate
        assert made.seconds == pytest.approx(0.7, abs=0.1 if suffix == ".mp3" else 1e-3)


def test_same_codes_from_the_same_recording(quark, model, codes, speech, tmp_path):
    source, target = tmp_path / "a.wav", tmp_path / "a.hq"
    audio.write(source, speech(0.7, 16000), 16000)
    said = quark("tokenize", source, target, "--model", model)
    assert target.read_bytes() == codes.read_bytes()
    assert "0.70 s" in said.out and "bit/s with the header" in said.out


def test_the_result_has_a_line_of_its_own_in_a_log(quark, model, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.stdout)  # as 2>&1 does
    source, target = tmp_path / "noisy.wav", tmp_path / "clean.wav"
    audio.write(source, speech(0.4, 16000), 16000)
    said = quark("restore", source, target, "--model", model)
    assert said.out.split("\n")[-2:] == [f"{target}: 0.40 s at 16000 Hz", ""]


def test_mono_picks_the_channel(quark, model, speech, tmp_path):
    left, right = speech(0.4, 16000), speech(0.4, 16000, seed=1)[::-1]
    soundfile.write(tmp_path / "both.wav", np.stack([left, right], 1), 16000)
    soundfile.write(tmp_path / "left.wav", left, 16000)
    made = []
    for name, options in (("both", ["--mono", "first"]), ("left", []), ("both", [])):
        target = tmp_path / "out.hq"
        source = tmp_path / f"{name}.wav"
        assert quark("tokenize", source, target, "--model", model, *options).code == 0
        made.append(target.read_bytes())
    assert made[0] == made[1] != made[2]


def test_restoring_depends_on_the_seed_alone(quark, model, speech, tmp_path):
    source = tmp_path / "noisy.wav"
    audio.write(source, speech(1.3, 16000), 16000)  # three windows

    def restored(*options) -> bytes:
        target = tmp_path / "clean.wav"
        assert quark("restore", source, target, "--model", model, *options).code == 0
        return target.read_bytes()

    first = restored("--seed", 3)
    assert restored("--seed", 3) == first
    assert restored("--seed", 4) != first
    greedy = restored("--temperature", 0)
    assert restored("--temperature", 0, "--seed", 4) == greedy != first
