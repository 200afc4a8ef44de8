"""Mel spectrograms on Slaney's scale (Auditory Toolbox, 1998), as librosa computes them."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from quark_jax.audio.stft import stft
from quark_jax.errors import UserError

# The scale is linear up to 1 kHz (mel 15) and logarithmic above.
_HZ_PER_MEL = 200 / 3
_BREAK_HZ, _BREAK_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27


def mel_filterbank(
    rate: int, n_fft: int, n_mels: int, fmin: float = 0.0, fmax: float | None = None
) -> np.ndarray:
    """Triangular filters of equal area, float32 [n_fft // 2 + 1, n_mels].

    Args:
        rate: Hz.
        n_fft: samples in a window.
        n_mels: number of filters.
        fmin, fmax: lowest and highest edge in Hz; None is half the rate.

    Raises:
        UserError: if there are no filters or the edges are not 0 <= fmin < fmax <= rate / 2.
    """
    return _filterbank(rate, n_fft, n_mels, float(fmin), rate / 2 if fmax is None else float(fmax))


def mel_spectrogram(
    wave: jax.Array,
    rate: int,
    n_fft: int,
    hop: int,
    n_mels: int,
    fmin: float = 0.0,
    fmax: float | None = None,
) -> jax.Array:
    """Mel-weighted magnitudes (not powers, not logarithms), [..., samples // hop, n_mels].

    The frames are those of `stft`. The gradient is finite everywhere, 0 at silence.
    """
    spectrum = stft(wave, n_fft, hop)
    power = spectrum.real**2 + spectrum.imag**2
    heard = power > 0
    magnitude = jnp.where(heard, jnp.sqrt(jnp.where(heard, power, 1.0)), 0.0)
    filters = mel_filterbank(rate, n_fft, n_mels, fmin, fmax)
    return jnp.matmul(magnitude, filters, precision=jax.lax.Precision.HIGHEST)


@lru_cache(maxsize=64)
def _filterbank(rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> np.ndarray:
    if n_mels < 1 or not 0 <= fmin < fmax <= rate / 2:
        raise UserError(
            f"n_mels {n_mels}, fmin {fmin:g}, fmax {fmax:g} at {rate} Hz: needs at least one "
            f"filter and 0 <= fmin < fmax <= {rate / 2:g}"
        )
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(fmax), n_mels + 2))
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    frequency = np.arange(n_fft // 2 + 1)[:, None] * rate / n_fft
    rising = (frequency - lower) / (centre - lower)
    falling = (upper - frequency) / (upper - centre)
    filters = np.maximum(0, np.minimum(rising, falling)) * 2 / (upper - lower)
    filters = filters.astype(np.float32)
    filters.setflags(write=False)
    return filters


def _hz_to_mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _HZ_PER_MEL
    return _BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, logarithmic)
