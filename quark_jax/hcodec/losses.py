"""What H-Codec learns from: distances between a recording and its reconstruction."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from quark_jax.audio import mel_spectrogram
from quark_jax.hcodec.model import Reconstruction

# Window in samples: mel bands (DAC, 2306.06546).
MEL_SCALES = {32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320}
_MEL_FLOOR = 1e-5


@dataclass(frozen=True)
class LossConfig:
    """Weights of the sum."""

    mel: float = 15.0
    semantic: float = 1.0
    commitment: float = 1.0


def mel_loss(reference: jax.Array, estimate: jax.Array, rate: int) -> jax.Array:
    """Mean absolute difference of log10 mel magnitudes of waves [batch, samples], summed over the
    seven scales of DAC, hop a quarter of the window."""

    def log_mel(wave: jax.Array, window: int, bands: int) -> jax.Array:
        mel = mel_spectrogram(wave, rate, window, window // 4, bands)
        return jnp.log10(jnp.maximum(mel, _MEL_FLOOR))

    return sum(
        jnp.mean(jnp.abs(log_mel(reference, *scale) - log_mel(estimate, *scale)))
        for scale in MEL_SCALES.items()
    )


def codec_loss(
    output: Reconstruction,
    wave: jax.Array,
    features: jax.Array,
    rate: int,
    config: LossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum, and its terms: `wave` [batch, samples] and `features` [batch, frames,
    channels] are what `output` ought to be."""
    terms = {
        "mel": mel_loss(wave, output.wave, rate),
        "semantic": jnp.mean((features - output.features) ** 2),
        "commitment": output.commitment,
    }
    total = sum(getattr(config, name) * value for name, value in terms.items())
    return total, terms
