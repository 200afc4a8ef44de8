"""Semantic coder: SSL features at 50 Hz to the codec's frame rate, and back."""

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.hcodec.config import SemanticConfig
from quark_jax.nn import Mask, conv, elu, frame_mask, linear, masked
from quark_jax.nn.layers import Dtype


class ResidualUnit(nnx.Module):
    """x + conv k1(ELU(conv k3(ELU(x)))), without biases."""

    def __init__(self, width: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = conv(width, width, 3, padding=1, bias=False, dtype=dtype, rngs=rngs)
        self.point = linear(
            width,
            width,
            axes=("channels_in", "channels_out"),
            bias=False,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, mask: Mask) -> jax.Array:
        """[batch, time, width] -> the same shape."""
        y = self.conv(masked(elu(x), mask))
        return x + self.point(elu(y))


class UpConv(nnx.Module):
    """Transposed convolution k = 2 * stride with padding (stride + 1) // 2, giving stride frames
    per frame; one product per frame and two shifted adds, whose gradient is as fast."""

    def __init__(self, width: int, stride: int, *, dtype: Dtype, rngs: nnx.Rngs):
        init = jax.nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        self.kernel = nnx.Param(
            init(rngs.params(), (2 * stride, width, width), jnp.float32),
            axes=(None, "channels_in", "channels_out"),
        )
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array, mask: Mask) -> jax.Array:
        """[batch, time, width] -> [batch, time * stride, width]; `mask` is of what comes in."""
        dtype = self.dtype or x.dtype
        kernel = self.kernel[...].astype(dtype)
        stride, (batch, frames, width) = kernel.shape[0] // 2, x.shape
        taps = jnp.einsum("btc,kcd->btkd", masked(x, mask).astype(dtype), kernel)
        head = jnp.pad(taps[:, :, :stride], ((0, 0), (0, 1), (0, 0), (0, 0)))
        tail = jnp.pad(taps[:, :, stride:], ((0, 0), (1, 0), (0, 0), (0, 0)))
        y = (head + tail).reshape(batch, (frames + 1) * stride, width)
        start = (stride + 1) // 2
        return y[:, start : start + frames * stride] + self.bias[...].astype(dtype)


def _resample_mask(lengths: jax.Array | None, frames: int) -> Mask:
    return None if lengths is None else frame_mask(lengths, frames)


class SemanticEncoder(nnx.Module):
    """Features [batch, 50 Hz frames, channels] -> [batch, frames, outputs]."""

    def __init__(
        self, config: SemanticConfig, outputs: int, *, dtype: Dtype = None, rngs: nnx.Rngs
    ):
        width = config.width
        self.first = conv(config.channels, width, 3, padding=1, bias=False, dtype=dtype, rngs=rngs)
        self.units = nnx.List(
            [
                nnx.List([ResidualUnit(width, dtype=dtype, rngs=rngs) for _ in range(2)])
                for _ in config.strides
            ]
        )
        self.downs = nnx.List([])
        for stride in config.strides:
            kernel = 3 if stride == 1 else 2 * stride
            self.downs.append(
                conv(
                    width,
                    width,
                    kernel,
                    stride=stride,
                    padding=(kernel - 1) // 2,
                    dtype=dtype,
                    rngs=rngs,
                )
            )
        self.last = conv(width, outputs, 3, padding=1, bias=False, dtype=dtype, rngs=rngs)
        self.strides = config.strides

    def __call__(self, features: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """`lengths` [batch]: 50 Hz frames of each item, multiples of all strides."""
        mask = _resample_mask(lengths, features.shape[1])
        x = self.first(masked(features, mask))
        for stride, units, down in zip(self.strides, self.units, self.downs, strict=True):
            for unit in units:
                x = unit(x, mask)
            x = down(masked(x, mask))
            lengths = None if lengths is None else lengths // stride
            mask = _resample_mask(lengths, x.shape[1])
        return self.last(masked(x, mask))


class SemanticDecoder(nnx.Module):
    """Quantised [batch, frames, inputs] -> features [batch, 50 Hz frames, channels]."""

    def __init__(self, config: SemanticConfig, inputs: int, *, dtype: Dtype = None, rngs: nnx.Rngs):
        width = config.width
        self.first = conv(inputs, width, 3, padding=1, bias=False, dtype=dtype, rngs=rngs)
        self.ups = nnx.List([])
        for stride in config.strides:
            self.ups.append(
                conv(width, width, 3, padding=1, dtype=dtype, rngs=rngs)
                if stride == 1
                else UpConv(width, stride, dtype=dtype, rngs=rngs)
            )
        self.units = nnx.List(
            [
                nnx.List([ResidualUnit(width, dtype=dtype, rngs=rngs) for _ in range(2)])
                for _ in config.strides
            ]
        )
        self.last = conv(width, config.channels, 3, padding=1, bias=False, dtype=dtype, rngs=rngs)
        self.strides = config.strides

    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """`lengths` [batch]: codec frames of each item."""
        mask = _resample_mask(lengths, x.shape[1])
        x = self.first(masked(x, mask))
        for stride, up, units in zip(self.strides, self.ups, self.units, strict=True):
            x = up(masked(x, mask)) if stride == 1 else up(x, mask)
            lengths = None if lengths is None else lengths * stride
            mask = _resample_mask(lengths, x.shape[1])
            for unit in units:
                x = unit(x, mask)
        return self.last(masked(x, mask))
