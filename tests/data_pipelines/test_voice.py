"""Changed voices: another pitch, other formants, the same words at the same times."""

import sys
import threading
from dataclasses import replace

import numpy as np
import parselmouth
import pytest

from data_pipelines import simulation
from data_pipelines.examples import VoiceConversion
from data_pipelines.simulation import Voice, VoiceChange
from quark_jax import audio
from quark_jax.errors import UserError

RATE = 16_000


@pytest.fixture(scope="module")
def speech(entries) -> np.ndarray:
    return simulation.fit(entries[0].read(RATE), 4 * RATE)


def pitch(wave: np.ndarray) -> float:
    track = parselmouth.Sound(wave.astype(float), RATE).to_pitch(pitch_floor=60, pitch_ceiling=700)
    values = track.selected_array["frequency"]
    return float(np.median(values[values > 0]))


def envelope(wave: np.ndarray) -> np.ndarray:
    """Level of every 5 ms, smoothed over 25 ms."""
    power = np.square(wave.astype(np.float64)).reshape(-1, 80).mean(1)
    return np.sqrt(np.convolve(power, np.ones(5) / 5, "same"))


@pytest.mark.parametrize("ratio", [0.6, 1.5])
def test_the_pitch_moves_by_its_ratio(speech, ratio):
    changed = simulation.change_voice(speech, RATE, Voice(pitch_ratio=ratio))
    assert pitch(changed) / pitch(speech) == pytest.approx(ratio, rel=0.04)


@pytest.mark.timeout(60)
def test_a_pitch_far_below_the_median_stays_above_zero():
    """By the ratio alone the lower one would be -20 Hz, with which Praat has no end."""
    time = np.arange(2 * RATE) / RATE
    wave = 0.2 * np.sign(np.sin(2 * np.pi * np.where(time < 0.5, 80, 280) * time))
    changed = simulation.change_voice(wave, RATE, Voice(range_ratio=1.5))
    assert pitch(changed[: RATE // 2]) == pytest.approx(280 / 4, rel=0.05)
    assert pitch(changed[RATE // 2 :]) == pytest.approx(280, rel=0.05)


def test_the_formants_move_and_the_pitch_stays(speech):
    """The long-term spectrum, stretched by the ratio, fits that of the changed voice best."""
    changed = simulation.change_voice(speech, RATE, Voice(formant_ratio=1.25))
    assert pitch(changed) / pitch(speech) == pytest.approx(1, rel=0.04)

    def spectrum(wave: np.ndarray) -> np.ndarray:
        frames = wave[: len(wave) // 512 * 512].reshape(-1, 512) * np.hanning(512)
        log = np.log((np.abs(np.fft.rfft(frames)) ** 2).mean(0))
        return np.convolve(log, np.ones(9) / 9, "same")

    ours, theirs = spectrum(speech), spectrum(changed)
    bins = np.arange(15, 160)
    ratios = np.arange(0.8, 1.5, 0.05)
    fits = [np.corrcoef(np.interp(bins / r, range(257), ours), theirs[bins])[0, 1] for r in ratios]
    assert ratios[np.argmax(fits)] == pytest.approx(1.25, abs=0.08)


def test_every_sound_stays_at_its_time(speech):
    rng = np.random.default_rng(0)
    for _ in range(4):
        voice = simulation.draw_voice(VoiceChange(), rng)
        changed = simulation.change_voice(speech, RATE, voice)
        assert changed.shape == speech.shape and changed.dtype == np.float32
        ours, theirs = envelope(speech), envelope(changed)
        lags = range(-20, 21)
        fits = [np.corrcoef(ours[30:-30], np.roll(theirs, lag)[30:-30])[0, 1] for lag in lags]
        assert abs(lags[int(np.argmax(fits))]) <= 1 and max(fits) > 0.6


def test_the_equaliser_has_its_gains_at_its_frequencies():
    impulse = np.zeros(1 << 15, np.float32)
    impulse[0] = 1
    bands = tuple((gain, 5.0) for gain in (12, 0, -12, 0, 6, 0, -6, 0))
    response = np.abs(np.fft.rfft(simulation.equalise(impulse, RATE, bands)))
    for frequency, (gain, _) in zip(np.geomspace(60, 7200, 8), bands, strict=True):
        found = response[round(frequency / RATE * len(impulse))]
        assert 20 * np.log10(found) == pytest.approx(gain, abs=0.6)


def test_a_change_is_a_function_of_audio_and_voice_in_threads_too(speech):
    voice = Voice(1.2, 1.3, 1.1, seed=9)
    expected = simulation.change_voice(speech, RATE, voice)
    assert not np.array_equal(
        expected, simulation.change_voice(speech, RATE, replace(voice, seed=8))
    )
    found = {}

    def work(seed: int) -> None:
        found[seed] = [
            simulation.change_voice(speech, RATE, replace(voice, seed=s)) for s in (seed, 9)
        ]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3, 4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert all(np.array_equal(waves[1], expected) for waves in found.values())


def test_voices_are_drawn_from_the_published_ranges():
    rng = np.random.default_rng(1)
    voices = [simulation.draw_voice(VoiceChange(), rng) for _ in range(1000)]
    for name, high in (("formant_ratio", 1.4), ("pitch_ratio", 2.0), ("range_ratio", 1.5)):
        values = np.array([getattr(voice, name) for voice in voices])
        assert 1 / high <= values.min() < 1.03 / high and 0.97 * high < values.max() <= high
        assert abs(np.mean(values > 1) - 0.5) < 0.07  # up as often as down
    gains = np.array([gain for voice in voices for gain, _ in voice.bands])
    assert len(gains) == 8000 and -12 <= gains.min() < -11.9 and 11.9 < gains.max() <= 12


def test_examples_keep_the_original_and_refer_to_the_same_speaker(entries):
    source = VoiceConversion(entries, rate=48_000, seconds=2, seed=5)
    speaker = {entry.id: entry.speaker for entry in entries}
    for index in (0, 20, 46):
        example = source[index]
        again = VoiceConversion(entries, rate=48_000, seconds=2, seed=5)[index]
        assert np.array_equal(example.input, again.input)
        assert np.array_equal(example.reference, again.reference)
        assert example.target.shape == (96_000,)
        assert example.input.shape == example.reference.shape == (32_000,)
        provenance = example.provenance
        assert provenance["file"] == entries[index].id != provenance["reference"]
        assert speaker[provenance["file"]] == speaker[provenance["reference"]]
        cut = simulation.fit(entries[index].read(48_000), 96_000, provenance["start"])
        assert np.corrcoef(cut, example.target)[0, 1] > 0.9999
        narrow = audio.resample(example.target, 48_000, 16_000)
        assert abs(np.corrcoef(narrow, example.input)[0, 1]) < 0.9  # not the same voice
        fit = np.corrcoef(envelope(narrow), envelope(example.input))[0, 1]
        assert fit > 0.5


@pytest.mark.filterwarnings("ignore:There were no voiced")
def test_recordings_without_another_of_the_speaker_need_to_be_long(tmp_path, entries):
    rng = np.random.default_rng(0)
    long = [replace(entries[0], path=tmp_path / "long.wav", id="long", seconds=6.0, speaker="a")]
    audio.write(tmp_path / "long.wav", 0.1 * rng.standard_normal(6 * RATE), RATE)
    short = [replace(entries[1], speaker="b", seconds=5.9), replace(entries[2], speaker="")]
    short[1] = replace(short[1], seconds=3.0)
    source = VoiceConversion(long + short, seconds=2, length=20)
    assert set(source.skipped) == set(short)
    assert "only one of b" in source.skipped[short[0]]
    for index in range(5):
        example = source[index]
        assert example.provenance["file"] == example.provenance["reference"] == "long"
        whole, start = long[0].read(RATE), example.provenance["start"]
        place = np.argmax(np.correlate(whole, example.reference / 1.0, "valid"))
        assert place + 2 * RATE <= start or place >= start + 2 * RATE  # beside the cut
    with pytest.raises(UserError, match=r"no recording has an enrolment; .*shorter than 6 s"):
        VoiceConversion(short, seconds=2)
