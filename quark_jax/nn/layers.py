"""Linear, convolution and norm layers whose parameters carry logical axis names.

They are Flax's own layers; the names (metadata `axes` of each kernel) are what
`quark_jax.training.sharding` maps to mesh axes. Biases and norms stay unnamed: they are replicated.
Parameters are float32; `dtype` is the compute dtype (None keeps that of the input).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Dtype = jnp.dtype | type | None


class Buffer(nnx.Variable):
    """A tensor that goes with the weights, to files and back, and is never trained."""


def hann_buffer(size: int) -> Buffer:
    """Periodic Hann window [size], as checkpoints of STFT modules hold it. It is not read: the
    transforms in `quark_jax.audio` have the window as a constant."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return Buffer(jnp.asarray(window, jnp.float32))


def linear(
    inputs: int,
    outputs: int,
    *,
    axes: tuple[str | None, str | None],
    bias: bool = True,
    dtype: Dtype = None,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Dense layer [..., inputs] -> [..., outputs]; kernel [inputs, outputs] with names `axes`."""
    return nnx.Linear(
        inputs, outputs, use_bias=bias, dtype=dtype, rngs=rngs, kernel_metadata={"axes": axes}
    )


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | Sequence[tuple[int, int]] = 0,
    groups: int = 1,
    bias: bool = True,
    axes: tuple[str | None, ...] = (None, "channels_in", "channels_out"),
    dtype: Dtype = None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """1-d convolution [batch, time, inputs] -> [batch, time, outputs], zero-padded by `padding`
    frames on both sides; kernel [kernel, inputs / groups, outputs]."""
    pads = [(padding, padding)] if isinstance(padding, int) else list(padding)
    return nnx.Conv(
        inputs,
        outputs,
        (kernel,),
        strides=(stride,),
        padding=pads,
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        rngs=rngs,
        kernel_metadata={"axes": axes},
    )


def elu(x: jax.Array) -> jax.Array:
    """x where positive, exp(x) - 1 elsewhere; `jax.nn.elu` calls the slower expm1."""
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


class DepthwiseConv(nnx.Module):
    """Depthwise convolution [batch, time, width] -> same, zero-padded (kernel - 1) / 2 on both
    sides, written as shifted multiply-adds: XLA fuses them, while its grouped convolution is slow.
    """

    def __init__(self, width: int, kernel: int, *, dtype: Dtype = None, rngs: nnx.Rngs):
        init = jax.nn.initializers.truncated_normal(0.02)
        self.kernel = nnx.Param(init(rngs.params(), (kernel, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...], self.bias[...]
        if self.dtype is not None:
            x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        size, frames = kernel.shape[0], x.shape[-2]
        padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (0, 0)))
        return bias + sum(padded[:, k : k + frames] * kernel[k] for k in range(size))


def embed(
    entries: int, width: int, *, axes=("vocab", "embed"), dtype: Dtype = None, rngs: nnx.Rngs
) -> nnx.Embed:
    """Embedding table [entries, width], normal with deviation 0.02."""
    return nnx.Embed(
        entries,
        width,
        dtype=dtype,
        embedding_init=jax.nn.initializers.normal(0.02),
        rngs=rngs,
        embedding_metadata={"axes": axes},
    )


def layer_norm(
    width: int, *, epsilon: float = 1e-6, dtype: Dtype = None, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """LayerNorm over the last axis, with scale and bias."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


def rms_norm(
    width: int, *, epsilon: float = 1e-6, dtype: Dtype = None, rngs: nnx.Rngs
) -> nnx.RMSNorm:
    """RMSNorm over the last axis, with scale."""
    return nnx.RMSNorm(width, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


def group_norm(
    width: int, *, groups: int = 32, epsilon: float = 1e-6, dtype: Dtype = None, rngs: nnx.Rngs
) -> nnx.GroupNorm:
    """GroupNorm of [batch, time, width] over time and the channels of each group."""
    return nnx.GroupNorm(
        width,
        num_groups=groups,
        epsilon=epsilon,
        dtype=dtype,
        use_fast_variance=False,
        rngs=rngs,
    )
