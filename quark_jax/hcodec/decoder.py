"""H-Codec's decoder: both quantised streams to the wave."""

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.audio import istft
from quark_jax.hcodec.config import DecoderConfig
from quark_jax.nn import (
    ConvNeXt,
    DepthwiseConv,
    Mask,
    RecurrentTransformer,
    conv,
    frame_mask,
    group_norm,
    hann_buffer,
    layer_norm,
    linear,
    masked,
)
from quark_jax.nn.layers import Dtype


class SubPixelUpsample(nnx.Module):
    """One product per frame gives `factor` frames (1.0 and 1.5), then a depthwise convolution."""

    def __init__(self, inputs: int, width: int, factor: int, *, dtype: Dtype, rngs: nnx.Rngs):
        axes = ("channels_in", "channels_out")
        self.expand = linear(inputs, factor * width, axes=axes, dtype=dtype, rngs=rngs)
        self.smooth = DepthwiseConv(width, 5, dtype=dtype, rngs=rngs)
        self.factor = factor

    def __call__(self, x: jax.Array, mask: Mask, upsampled: Mask) -> jax.Array:
        """[batch, time, inputs] -> [batch, time * factor, width]; `mask` is of what comes in (not
        needed: each frame is by itself), `upsampled` [batch, time * factor, 1] of what goes out."""
        y = self.expand(x)
        y = y.reshape(y.shape[0], y.shape[1] * self.factor, -1)
        return self.smooth(masked(y, upsampled))


class RepeatUpsample(nnx.Module):
    """Each frame `factor` times (2.0), then a convolution."""

    def __init__(self, inputs: int, width: int, factor: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = conv(inputs, width, factor + 1, padding=factor // 2, dtype=dtype, rngs=rngs)
        self.factor = factor

    def __call__(self, x: jax.Array, mask: Mask, upsampled: Mask) -> jax.Array:
        """[batch, time, inputs] -> [batch, time * factor, width]; `mask` is of what comes in,
        `upsampled` of what goes out (not needed: zeros stay zeros when repeated)."""
        return self.conv(jnp.repeat(masked(x, mask), self.factor, axis=1))


class ResidualBlock(nnx.Module):
    """x + conv k3(dropout(swish(GN(conv k3(swish(GN(x))))))), GroupNorm over 32 groups."""

    def __init__(self, width: int, dropout: float, *, dtype: Dtype, rngs: nnx.Rngs):
        self.norm1 = group_norm(width, dtype=dtype, rngs=rngs)
        self.conv1 = conv(width, width, 3, padding=1, dtype=dtype, rngs=rngs)
        self.norm2 = group_norm(width, dtype=dtype, rngs=rngs)
        self.conv2 = conv(width, width, 3, padding=1, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: jax.Array, mask: Mask, key: jax.Array | None) -> jax.Array:
        """[batch, time, width] -> the same shape; `key` turns dropout on (training)."""
        full = None if mask is None else jnp.broadcast_to(mask, x.shape)
        y = self.conv1(masked(jax.nn.silu(self.norm1(x, mask=full)), mask))
        y = jax.nn.silu(self.norm2(y, mask=full))
        y = self.dropout(y, deterministic=key is None, rngs=key)
        return x + self.conv2(masked(y, mask))


class ISTFTHead(nnx.Module):
    """Linear to log-magnitude (capped at 100) and phase, then the inverse STFT (Vocos)."""

    def __init__(self, width: int, n_fft: int, hop: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.out = linear(width, n_fft + 2, axes=("embed", None), dtype=dtype, rngs=rngs)
        self.window = hann_buffer(n_fft)
        self.n_fft, self.hop = n_fft, hop

    def __call__(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """[batch, frames, width] -> wave [batch, frames * hop], float32."""
        magnitude, phase = jnp.split(self.out(x).astype(jnp.float32), 2, axis=-1)
        magnitude = jnp.minimum(jnp.exp(magnitude), 100.0)
        spectrum = jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))
        return istft(spectrum, self.n_fft, self.hop, lengths)


class Decoder(nnx.Module):
    """Streams [batch, frames, inputs] -> wave [batch, frames * upsample * hop]."""

    def __init__(self, config: DecoderConfig, inputs: int, *, dtype: Dtype = None, rngs: nnx.Rngs):
        width = config.width
        upsample = RepeatUpsample if config.repeat else SubPixelUpsample
        self.upsample = upsample(inputs, width, config.upsample, dtype=dtype, rngs=rngs)
        self.before = nnx.List(
            [ResidualBlock(width, config.dropout, dtype=dtype, rngs=rngs) for _ in range(2)]
        )
        self.transformer = RecurrentTransformer(
            width,
            layers=config.layers,
            heads=config.heads,
            inner=config.mlp,
            dtype=dtype,
            rngs=rngs,
        )
        self.after = nnx.List(
            [ResidualBlock(width, config.dropout, dtype=dtype, rngs=rngs) for _ in range(2)]
        )
        self.group_norm = group_norm(width, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.blocks = ConvNeXt(width, config.inner, config.blocks, dtype=dtype, rngs=rngs)
        self.final_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.head = ISTFTHead(width, config.n_fft, config.hop, dtype=dtype, rngs=rngs)
        self.factor = config.upsample

    def __call__(
        self, x: jax.Array, frames: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """`frames` [batch]: codec frames of each item; `key` turns dropout on (training)."""
        mask = upsampled = None
        if frames is not None:
            mask = frame_mask(frames, x.shape[1])
            upsampled = frame_mask(frames * self.factor, x.shape[1] * self.factor)
        keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
        x = self.upsample(x, mask, upsampled)
        for block, block_key in zip(self.before, keys[:2], strict=True):
            x = block(x, upsampled, block_key)
        x = self.transformer(x, upsampled)
        for block, block_key in zip(self.after, keys[2:], strict=True):
            x = block(x, upsampled, block_key)
        full = None if upsampled is None else jnp.broadcast_to(upsampled, x.shape)
        x = self.norm(self.group_norm(x, mask=full))
        x = self.final_norm(self.blocks(x, upsampled))
        return self.head(x, None if frames is None else frames * self.factor)
