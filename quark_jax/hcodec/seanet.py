"""Acoustic encoder of H-Codec 1.0 and 1.5: SEANet (EnCodec, 2210.13438) on the wave."""

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.hcodec.config import SeanetConfig
from quark_jax.nn import Mask, RecurrentTransformer, elu, frame_mask, masked
from quark_jax.nn.layers import Dtype


def _reflection_pads(frames: int, kernel: int, stride: int) -> tuple[int, int]:
    """Frames to pad left and right so that the last window is complete."""
    total = kernel - stride
    windows = -(-(frames - kernel + total) // stride) + 1
    extra = (windows - 1) * stride + (kernel - total) - frames
    return total - total // 2, total // 2 + extra


def _reflect(x: jax.Array, left: int, right: int, lengths: jax.Array | None) -> jax.Array:
    """Pad [batch, time, channels] by reflection about the first and the last frame of each item."""
    frames = x.shape[1]
    # Too short to reflect: zeros are appended first, and cut again.
    shortfall = max(0, max(left, right) + 1 - frames)
    x = jnp.pad(x, ((0, 0), (0, shortfall), (0, 0)))
    if lengths is None:
        return jnp.pad(x, ((0, 0), (left, right), (0, 0)), mode="reflect")[
            :, : left + frames + right
        ]
    last = jnp.maximum(lengths, max(left, right) + 1)[:, None] - 1
    index = jnp.abs(jnp.arange(-left, frames + right))
    index = jnp.where(index > last, 2 * last - index, index)
    return jnp.take_along_axis(x, jnp.clip(index, 0, x.shape[1] - 1)[..., None], axis=1)


class WeightNormConv(nnx.Module):
    """Convolution with kernel gain * direction / |direction| (norm over all but the outputs) and a
    bias; its input is padded by reflection.

    Kernel [kernel, inputs, outputs], gain and bias [outputs].
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dtype: Dtype = None,
        rngs: nnx.Rngs,
    ):
        init = jax.nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        direction = init(rngs.params(), (kernel, inputs, outputs), jnp.float32)
        channels_in = "channels_in" if inputs > 1 else None  # a wave's one channel is not split
        self.direction = nnx.Param(direction, axes=(None, channels_in, "channels_out"))
        self.gain = nnx.Param(jnp.sqrt(jnp.sum(direction**2, axis=(0, 1))))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array, mask: Mask = None) -> jax.Array:
        """[batch, time, inputs] -> [batch, ceil(time / stride), outputs]; `mask` [batch, time, 1]
        is of what comes in: reflection is about each item's own last frame."""
        direction = self.direction[...]
        norm = jnp.sqrt(jnp.sum(direction**2, axis=(0, 1)))
        kernel = (direction * (self.gain[...] / norm)).astype(self.dtype or x.dtype)
        size = kernel.shape[0]
        left, right = _reflection_pads(x.shape[1], size, self.stride)
        lengths = None if mask is None else jnp.sum(mask[..., 0], axis=1)
        if left or right:
            x = _reflect(masked(x, mask), left, right, lengths)
        x = x.astype(kernel.dtype)
        if x.shape[-1] == 1 and self.stride == 1:
            # A product of frames: over a convolution of one channel the TPU compiler sits minutes.
            frames = x.shape[1] - size + 1
            y = jnp.concatenate([x[:, k : k + frames] for k in range(size)], -1) @ kernel[:, 0]
        else:
            y = jax.lax.conv_general_dilated(
                x, kernel, (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
            )
        return y + self.bias[...].astype(y.dtype)


class ResidualUnit(nnx.Module):
    """shortcut(x) + conv k1(ELU(conv k3(ELU(x))))."""

    def __init__(self, width: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.narrow = WeightNormConv(width, width // 2, 3, dtype=dtype, rngs=rngs)
        self.widen = WeightNormConv(width // 2, width, 1, dtype=dtype, rngs=rngs)
        self.shortcut = WeightNormConv(width, width, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: Mask = None) -> jax.Array:
        """[batch, time, width] -> the same shape."""
        y = self.widen(elu(self.narrow(elu(x), mask)), mask)
        return self.shortcut(x, mask) + y


class SeanetEncoder(nnx.Module):
    """Wave [batch, samples] -> [batch, frames, outputs]; samples a multiple of all strides."""

    def __init__(self, config: SeanetConfig, outputs: int, *, dtype: Dtype = None, rngs: nnx.Rngs):
        width = config.filters
        self.first = WeightNormConv(1, width, 7, dtype=dtype, rngs=rngs)
        units, downs = [], []
        for stride in config.strides:
            units.append(ResidualUnit(width, dtype=dtype, rngs=rngs))
            downs.append(
                WeightNormConv(width, 2 * width, 2 * stride, stride=stride, dtype=dtype, rngs=rngs)
            )
            width *= 2
        self.units, self.downs = nnx.List(units), nnx.List(downs)
        self.transformer = RecurrentTransformer(
            width,
            layers=config.layers,
            heads=config.heads,
            inner=4 * width,
            dtype=dtype,
            rngs=rngs,
        )
        self.last = WeightNormConv(
            width,
            outputs,
            2 * config.last_stride,
            stride=config.last_stride,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, wave: jax.Array, samples: jax.Array | None = None) -> jax.Array:
        """`samples` [batch]: true lengths, multiples of all strides; None where all are full."""

        def mask_of(x: jax.Array, stride: int) -> Mask:
            return None if samples is None else frame_mask(samples // stride, x.shape[1])

        x, stride = wave[..., None], 1
        x = self.first(x, mask_of(x, stride))
        for unit, down in zip(self.units, self.downs, strict=True):
            mask = mask_of(x, stride)
            x = down(elu(unit(x, mask)), mask)
            stride *= down.stride
        mask = mask_of(x, stride)
        return self.last(elu(self.transformer(x, mask)), mask)
