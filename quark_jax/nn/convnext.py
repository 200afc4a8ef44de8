"""ConvNeXt blocks over time (Liu et al. 2022, 2201.03545; in vocoders, Vocos 2306.00814)."""

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.nn.layers import DepthwiseConv, Dtype, layer_norm, linear
from quark_jax.nn.masking import Mask, masked


class ConvNeXtBlock(nnx.Module):
    """x + gamma * Linear(GELU(Linear(LayerNorm(depthwise convolution k7 (x)))))."""

    def __init__(
        self, width: int, inner: int, *, scale: float, dtype: Dtype = None, rngs: nnx.Rngs
    ):
        self.depthwise = DepthwiseConv(width, 7, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.up = linear(width, inner, axes=("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.down = linear(inner, width, axes=("mlp", "embed"), dtype=dtype, rngs=rngs)
        self.gamma = nnx.Param(jnp.full((width,), scale, jnp.float32))

    def __call__(self, x: jax.Array, mask: Mask = None) -> jax.Array:
        """[batch, time, width] -> same."""
        y = self.norm(self.depthwise(masked(x, mask)))
        y = self.down(jax.nn.gelu(self.up(y), approximate=False))
        return x + self.gamma[...].astype(y.dtype) * y


class ConvNeXt(nnx.Module):
    """A stack of blocks; gamma begins at 1 / number of blocks."""

    def __init__(self, width: int, inner: int, blocks: int, *, dtype: Dtype = None, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [
                ConvNeXtBlock(width, inner, scale=1 / blocks, dtype=dtype, rngs=rngs)
                for _ in range(blocks)
            ]
        )

    def __call__(self, x: jax.Array, mask: Mask = None) -> jax.Array:
        """[batch, time, width] -> same."""
        for block in self.blocks:
            x = block(x, mask)
        return x
