"""The transformer layer that the frozen encoders share, and its position biases."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from quark_jax.errors import UserError
from quark_jax.interop.table import LINEAR, Entry
from quark_jax.nn import layer_norm, linear
from quark_jax.nn.placement import batch_split

_ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function that Hugging Face configurations call `name`; UserError for one there is not."""
    if name not in _ACTIVATIONS:
        raise UserError(
            f"activation {name!r}: not supported; models with {', '.join(_ACTIVATIONS)} are"
        )
    return _ACTIVATIONS[name]


def relative_buckets(frames: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket [queries, keys] of each distance key - query, for `frames` of both (T5, section 2.1).

    The first half is for keys at or before the query. In each half, the first half of the buckets
    holds one distance each, the others grow logarithmically up to `max_distance`.
    """
    half = buckets // 2
    exact = half // 2
    distance = np.arange(frames, dtype=np.int32)
    # In float32 and in this order, as PyTorch does: distances at a border fall on the same side.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + ratio.astype(np.int32), half - 1)
    bucket = np.where(distance < exact, distance, far)
    offset = np.arange(frames)[None, :] - np.arange(frames)[:, None]
    return bucket[np.abs(offset)] + np.where(offset > 0, half, 0)


class PositionGate(nnx.Module):
    """Gate of WavLM's relative position bias (arXiv 2110.13900, equations 3 to 5).

    x [batch, time, width] -> gate [batch, heads, time, 1].
    """

    def __init__(self, width: int, heads: int, *, dtype=None, rngs: nnx.Rngs):
        self.heads = heads
        self.linear = linear(width // heads, 8, axes=(None, None), dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.ones((heads,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, frames, _ = x.shape
        projected = self.linear(x.reshape(batch, frames, self.heads, -1))
        pair = projected.reshape(batch, frames, self.heads, 2, 4).sum(-1)
        update, reset = jnp.moveaxis(jax.nn.sigmoid(pair), -1, 0)
        gate = update * (reset * self.scale[...] - 1.0) + 2.0
        return gate.transpose(0, 2, 1)[..., None]


class SelfAttention(nnx.Module):
    """Full self-attention over time, [batch, time, width] -> same.

    `mask` [batch, 1, 1, time] says which keys may be seen; `bias` [1, heads, time, time] is added
    to the scores, through the gate where there is one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_width: int | None = None,
        bias: bool = True,
        key_bias: bool = True,
        scale: float | None = None,
        gated: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.scale = scale
        inner = heads * (head_width or width // heads)
        project = partial(linear, dtype=dtype, rngs=rngs)
        self.query = project(width, inner, axes=("embed", "heads"), bias=bias)
        self.key = project(width, inner, axes=("embed", "heads"), bias=bias and key_bias)
        self.value = project(width, inner, axes=("embed", "heads"), bias=bias)
        self.out = project(inner, width, axes=("heads", "embed"), bias=bias)
        self.gate = PositionGate(width, heads, dtype=dtype, rngs=rngs) if gated else None

    def __call__(self, x: jax.Array, mask=None, bias=None) -> jax.Array:
        if self.gate is not None:
            bias = self.gate(x) * bias
        heads = (*x.shape[:2], self.heads, -1)
        query, key, value = (p(x).reshape(heads) for p in (self.query, self.key, self.value))
        if bias is not None:
            bias = bias.astype(query.dtype)
        mixed = jax.nn.dot_product_attention(query, key, value, bias, mask, scale=self.scale)
        return batch_split(self.out(mixed.reshape(*x.shape[:2], -1)))


class Layer(nnx.Module):
    """Attention and MLP with a residual around each, [batch, time, width] -> same.

    LayerNorm comes before each of the two (`pre_norm`) or after each residual.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        *,
        activation_name: str,
        epsilon: float,
        pre_norm: bool,
        key_bias: bool = True,
        gated: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.pre_norm = pre_norm
        self.activation = activation(activation_name)
        self.attention = SelfAttention(
            width, heads, key_bias=key_bias, gated=gated, dtype=dtype, rngs=rngs
        )
        self.attention_norm = layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp_in = linear(width, inner, axes=("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.mlp_out = linear(inner, width, axes=("mlp", "embed"), dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def _mlp(self, x: jax.Array) -> jax.Array:
        return batch_split(self.mlp_out(self.activation(self.mlp_in(x))))

    def __call__(self, x: jax.Array, mask=None, bias=None) -> jax.Array:
        x = batch_split(x)
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), mask, bias)
            return x + self._mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, mask, bias))
        return self.mlp_norm(x + self._mlp(x))


def layers(config: Any, **options) -> nnx.List:
    """The layers of an encoder: `config` has width, heads, inner, activation and how many layers,
    `options` are the other arguments of `Layer`."""
    shape = config.width, config.heads, config.inner
    return nnx.List(
        Layer(*shape, activation_name=config.activation, **options) for _ in range(config.layers)
    )


def renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a config.json by our names; `names` is {ours: theirs}, absent ones are left out."""
    return {ours: config[theirs] for ours, theirs in names.items() if theirs in config}


def linear_entries(torch: str, path: str, *, bias: bool = True) -> list[Entry]:
    """Table rows of a dense layer."""
    entries = [Entry(f"{torch}.weight", f"{path}.kernel", LINEAR)]
    return entries + ([Entry(f"{torch}.bias", f"{path}.bias")] if bias else [])


def norm_entries(torch: str, path: str) -> list[Entry]:
    """Table rows of a LayerNorm or GroupNorm."""
    return [Entry(f"{torch}.weight", f"{path}.scale"), Entry(f"{torch}.bias", f"{path}.bias")]
