"""Log-mel features: the stand-in for a speech model that needs no weights."""

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.audio import mel_spectrogram
from quark_jax.nn.masking import frame_mask, masked

_RATE, _N_FFT, _HOP, _BANDS = 16000, 640, 320, 80
_FLOOR = 1e-5


class LogMel(nnx.Module):
    """Wave [batch, samples at 16 kHz] -> [batch, samples // 320, 80], at 50 Hz.

    Natural logarithm of mel magnitudes (40 ms Hann windows, hop 20 ms), floored at 1e-5, less
    `MEAN`, over `DEVIATION`: those of all bands together over 300 studio prompts in English,
    Italian and Russian (-5.32 and 2.25), pauses included. Frames past an item's `lengths` [batch]
    (samples) are zero.
    """

    MEAN = -5.3
    DEVIATION = 2.3
    channels = _BANDS

    def __call__(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        mask = None
        if lengths is not None:
            wave = masked(wave[..., None], frame_mask(lengths, wave.shape[1]))[..., 0]
            mask = frame_mask(lengths // _HOP, wave.shape[1] // _HOP)
        mel = mel_spectrogram(wave, _RATE, _N_FFT, _HOP, _BANDS)
        scaled = (jnp.log(jnp.maximum(mel, _FLOOR)) - self.MEAN) / self.DEVIATION
        return masked(scaled, mask)
