"""The restoring pipeline: windows, lengths and what its result depends on."""

import numpy as np
import pytest

from quark_jax.errors import UserError
from quark_jax.pipeline import QuarkAudio

RATE = 16000


@pytest.fixture(scope="module")
def quark(small_run) -> QuarkAudio:
    return QuarkAudio.load(small_run / "lm" / "model")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=samples)).astype(np.float32)


def test_windows_are_those_of_training_and_not_whole_frames(quark, small):
    """Else the tests below could not see windows drift apart."""
    assert quark.seconds == small.SECONDS
    assert quark.seconds * quark.tokeniser.config.frame_rate == 12.5


def test_saving_and_loading_changes_nothing(quark, tmp_path):
    quark.save(tmp_path / "model")
    again = QuarkAudio.load(tmp_path / "model")
    assert again.seconds == quark.seconds
    assert again.lm.config == quark.lm.config
    wave = noise(9000)
    np.testing.assert_array_equal(again.restore(wave, RATE), quark.restore(wave, RATE))


@pytest.mark.parametrize("samples", [1, 100, 7999, 8000, 8001, 3 * 8000, 8 * 8000 + 5])
def test_windows_are_put_together_where_they_were(quark, monkeypatch, samples):
    """Restoration that changes nothing gives the very samples back."""
    monkeypatch.setattr(quark, "_generate", lambda task, windows, keys, sampling: windows)
    wave = noise(samples)
    np.testing.assert_array_equal(quark.restore(wave, RATE), wave)


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_lengths_at_other_rates(quark, monkeypatch, rate):
    monkeypatch.setattr(quark, "_generate", lambda task, windows, keys, sampling: windows)
    t = np.arange(round(1.3 * rate)) / rate
    wave = np.sin(2 * np.pi * 300 * t).astype(np.float32)
    restored = quark.restore(wave, rate)
    assert restored.shape == wave.shape
    edge = rate // 10  # where resampling misses what lies beyond
    assert np.abs(restored - wave)[edge:-edge].max() < 1e-3


def test_a_window_lasts_as_long_as_what_it_was_made_from(quark):
    """The last of its 13 frames is cut: each window of a long recording stays in its place."""
    wave = noise(3 * 8000)
    restored = quark.restore(wave, RATE)
    for count in (1, 2):
        part = quark.restore(wave[: count * 8000], RATE)
        np.testing.assert_allclose(part, restored[: count * 8000], atol=1e-6)
    assert np.std(restored.reshape(3, -1), axis=1).min() > 0


def test_windows_beyond_a_batch(quark):
    wave, seen = noise(10 * 8000), []
    restored = quark.restore(wave, RATE, progress=lambda b: (seen.append(x) or x for x in b))
    assert seen == [0, 8]
    assert restored.shape == wave.shape
    np.testing.assert_allclose(
        quark.restore(wave[: 8 * 8000], RATE), restored[: 8 * 8000], atol=1e-6
    )


def test_equal_windows_draw_differently_and_seeds_repeat(quark):
    wave = np.tile(noise(8000), 2)
    restored = quark.restore(wave, RATE, seed=5)
    assert not np.array_equal(*restored.reshape(2, -1))
    np.testing.assert_array_equal(quark.restore(wave, RATE, seed=5), restored)
    assert not np.array_equal(quark.restore(wave, RATE, seed=6), restored)


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros(0, np.float32),
        np.zeros((2, 100), np.float32),
        np.float32(0.5),
        np.array([0, np.nan], np.float32),
        np.array([0, -np.inf], np.float32),
    ],
)
def test_arrays_that_are_no_recording_are_refused(quark, wave):
    with pytest.raises(UserError, match="audio: pass one channel"):
        quark.restore(wave, RATE)


@pytest.mark.parametrize("rate", [0, -16000])
def test_rates_that_cannot_be_are_refused(quark, rate):
    with pytest.raises(UserError, match="rate"):
        quark.restore(noise(100), rate)
