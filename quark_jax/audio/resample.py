"""Changing the sample rate: soxr on the host, and the codec's own windowed sinc in JAX."""

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import soxr

from quark_jax.errors import UserError

_LOBES = 6  # zero crossings of the sinc on each side
_ROLLOFF = 0.99  # cut-off as a fraction of the lower Nyquist frequency


def resample(wave: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resamples [samples] or [samples, channels] on the host with soxr at its HQ setting.

    Returns:
        float32, about samples * target_rate / source_rate long.
    """
    wave = np.asarray(wave, np.float32)
    if source_rate == target_rate:
        return wave
    return soxr.resample(wave, source_rate, target_rate, quality="HQ")


def resample_sinc(wave: jax.Array, source_rate: int, target_rate: int) -> jax.Array:
    """Resamples [..., samples] -> [..., ceil(samples * target_rate / source_rate)] in JAX.

    A sinc under a squared-cosine window of 6 zero crossings a side with roll-off 0.99, zeros beyond
    the edges: bandlimited interpolation (Smith, "Digital Audio Resampling") as the published
    H-Codec 2.0 brings 48 kHz to the 16 kHz of its semantic features.
    """
    if source_rate < 1 or target_rate < 1:
        raise UserError(f"rate: {source_rate} to {target_rate} Hz; both have to be positive")
    if source_rate == target_rate:
        return wave
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    kernel, half = _sinc_kernel(source, target)
    samples = wave.shape[-1]
    outputs = jax.lax.conv_general_dilated(
        wave.reshape(-1, samples, 1).astype(jnp.float32),
        jnp.asarray(kernel)[:, None, :],
        window_strides=(source,),
        padding=[(half, half + source)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    length = -(-samples * target // source)
    return outputs.reshape(*wave.shape[:-1], -1)[..., :length]


@lru_cache(maxsize=16)
def _sinc_kernel(source: int, target: int) -> tuple[np.ndarray, int]:
    """Taps float32 [2 * half + source, target], one column for each output phase, and half."""
    base = _ROLLOFF * min(source, target)
    half = math.ceil(_LOBES * source / base)
    inputs = np.arange(-half, half + source)[:, None] / source
    phases = np.arange(target)[None, :] / target
    t = np.clip((inputs - phases) * base, -_LOBES, _LOBES)
    taps = np.sinc(t) * np.cos(np.pi * t / (2 * _LOBES)) ** 2 * base / source
    return taps.astype(np.float32), half
