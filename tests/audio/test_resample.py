"""The codec's own resampling kernel against what the published H-Codec 2.0 computed."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quark_jax import audio

HERE = Path(__file__).parent


def _signal(*args):
    spec = importlib.util.spec_from_file_location("recipe", HERE.parent / "golden" / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.signal(*args)


@pytest.mark.parametrize(("seed", "batch", "rate"), [(5, 2, 48_000), (6, 1, 44_100)])
def test_sinc_equals_the_published_resampling(seed, batch, rate):
    # The reference's input is one second from before the silence at the end of the signal.
    wave = _signal(seed, batch, rate + rate // 4, rate)[:, :rate]
    result = np.asarray(jax.jit(audio.resample_sinc, static_argnums=(1, 2))(wave, rate, 16_000))
    assert result.shape == (batch, 16_000)
    with np.load(HERE / "data" / "resample.npz") as golden:
        head, tail = golden[f"head_{rate}_16000"], golden[f"tail_{rate}_16000"]
    np.testing.assert_allclose(result[:, : head.shape[1]], head, atol=1e-6)
    np.testing.assert_allclose(result[:, -tail.shape[1] :], tail, atol=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 3, 100, 481, 1001])
@pytest.mark.parametrize(
    ("source", "target"), [(48_000, 16_000), (16_000, 48_000), (44_100, 8_000)]
)
def test_sinc_length_is_rounded_up(samples, source, target):
    result = audio.resample_sinc(jnp.ones((2, 3, samples)), source, target)
    assert result.shape == (2, 3, -(-samples * target // source))
    assert np.isfinite(result).all()


def test_sinc_keeps_tones_and_stops_what_would_alias():
    t = np.arange(48_000) / 48_000
    tone = np.sin(2 * np.pi * 1000 * t)
    result = np.asarray(audio.resample_sinc(jnp.asarray(tone), 48_000, 16_000))
    expected = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(result[100:-100], expected[100:-100], atol=2e-3)
    high = audio.resample_sinc(jnp.asarray(np.sin(2 * np.pi * 11_000 * t)), 48_000, 16_000)
    assert np.abs(high[100:-100]).max() < 1e-2


def test_equal_rates_change_nothing():
    wave = np.arange(5, dtype=np.float32)
    assert audio.resample_sinc(wave, 16_000, 16_000) is wave
    assert audio.resample(wave, 16_000, 16_000) is wave
