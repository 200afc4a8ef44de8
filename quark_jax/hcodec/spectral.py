"""Acoustic encoder of H-Codec 2.0: ConvNeXt blocks on log-magnitude and phase of the STFT."""

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.audio import stft
from quark_jax.hcodec.config import SpectralConfig
from quark_jax.nn import (
    ConvNeXt,
    RecurrentTransformer,
    conv,
    frame_mask,
    hann_buffer,
    layer_norm,
    masked,
)
from quark_jax.nn.layers import Dtype


class SpectralEncoder(nnx.Module):
    """Wave [batch, samples] -> [batch, frames, outputs] at one frame per `stride` STFT hops."""

    def __init__(
        self,
        config: SpectralConfig,
        stride: int,
        outputs: int,
        *,
        dtype: Dtype = None,
        rngs: nnx.Rngs,
    ):
        width = config.width
        # n_fft + 2 divides over few meshes: split is the width.
        axes = (None, None, "embed")
        self.embed = conv(config.n_fft + 2, width, 3, padding=1, axes=axes, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.blocks = ConvNeXt(width, config.inner, config.blocks, dtype=dtype, rngs=rngs)
        self.transformer = RecurrentTransformer(
            width,
            layers=config.layers,
            heads=config.heads,
            inner=min(4 * width, 4096),
            dtype=dtype,
            rngs=rngs,
        )
        self.final_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.out = conv(
            width, outputs, 2 * stride + 1, stride=stride, padding=stride, dtype=dtype, rngs=rngs
        )
        self.window = hann_buffer(config.n_fft)
        self.n_fft, self.hop = config.n_fft, config.hop

    def __call__(self, wave: jax.Array, samples: jax.Array | None = None) -> jax.Array:
        """`samples` [batch]: true lengths, multiples of the codec's hop; None where all are full.
        What lies beyond them must be zero."""
        spectrum = stft(wave, self.n_fft, self.hop)
        magnitude = jnp.log(jnp.maximum(jnp.abs(spectrum), 1e-5))
        x = jnp.concatenate([magnitude, jnp.angle(spectrum) / jnp.pi], axis=-1)
        mask = None if samples is None else frame_mask(samples // self.hop, x.shape[1])
        x = self.blocks(self.norm(self.embed(masked(x, mask))), mask)
        x = self.final_norm(self.transformer(x, mask))
        return self.out(masked(x, mask))
