"""Dynamic frame rate of H-Codec 1.5: runs of similar semantic frames become one frame
(FlexiCodec, 2510.00981). All shapes are static: there are as many places for segments as frames.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.nn import Mask, frame_mask, key_mask, layer_norm, linear, masked, rotate_pairs
from quark_jax.nn.layers import Dtype


def cosine_similarity(x: jax.Array) -> jax.Array:
    """Similarity of neighbouring frames of [batch, time, width]: [batch, time - 1]."""
    a, b = x[:, :-1], x[:, 1:]
    norms = jnp.maximum(jnp.linalg.norm(a, axis=-1), 1e-8) * jnp.maximum(
        jnp.linalg.norm(b, axis=-1), 1e-8
    )
    return jnp.sum(a * b, axis=-1) / norms


def segment(
    semantic: jax.Array, threshold: jax.Array | float, longest: int, mask: Mask = None
) -> tuple[jax.Array, jax.Array]:
    """Cut frames [batch, time, width] into segments: a new one begins where the cosine similarity
    to the frame before is at or below `threshold`, and every `longest` frames within a run.

    Returns `owner` [batch, time], the segment of each frame (`time` where masked), and `lengths`
    [batch, time], frames in each segment (0 where there is none).
    """
    batch, frames, _ = semantic.shape
    index = jnp.arange(frames)
    change = jnp.pad(cosine_similarity(semantic) <= threshold, ((0, 0), (1, 0)))
    run = jax.lax.cummax(jnp.where(change, index, 0), axis=1)
    owner = jnp.cumsum((index - run) % longest == 0, axis=1) - 1
    if mask is not None:
        owner = jnp.where(mask[..., 0], owner, frames)
    rows = jnp.arange(batch)[:, None]
    lengths = jnp.zeros((batch, frames), jnp.int32).at[rows, owner].add(1, mode="drop")
    return owner, lengths


def expand(x: jax.Array, lengths: jax.Array, frames: int) -> jax.Array:
    """Repeat each segment of [batch, segments, width] as often as its length [batch, segments]
    says: [batch, frames, width], zero after an item's last segment."""
    ends = jnp.cumsum(lengths, axis=1)
    owner = jnp.sum(jnp.arange(frames)[None, :, None] >= ends[:, None, :], axis=-1)
    owner = jnp.minimum(owner, x.shape[1] - 1)
    repeated = jnp.take_along_axis(x, owner[..., None], axis=1)
    return masked(repeated, frame_mask(ends[:, -1], frames))


class TransformerLayer(nnx.Module):
    """Pre-norm transformer layer with layer scale and rotary positions over interleaved pairs,
    [batch, time, width] -> same."""

    def __init__(self, width: int, heads: int, inner: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.qkv = linear(
            width, 3 * width, axes=("embed", "heads"), bias=False, dtype=dtype, rngs=rngs
        )
        self.out = linear(width, width, axes=("heads", "embed"), bias=False, dtype=dtype, rngs=rngs)
        self.scale1 = nnx.Param(jnp.full((width,), 0.01, jnp.float32))
        self.norm2 = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.up = linear(width, inner, axes=("embed", "mlp"), bias=False, dtype=dtype, rngs=rngs)
        self.down = linear(inner, width, axes=("mlp", "embed"), bias=False, dtype=dtype, rngs=rngs)
        self.scale2 = nnx.Param(jnp.full((width,), 0.01, jnp.float32))
        self.heads = heads

    def __call__(self, x: jax.Array, mask: Mask) -> jax.Array:
        batch, time, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, time, 3, self.heads, width // self.heads)
        positions = jnp.arange(time)[:, None]
        q, k = (rotate_pairs(qkv[:, :, i], positions) for i in (0, 1))
        y = jax.nn.dot_product_attention(q, k, qkv[:, :, 2], mask=key_mask(mask))
        y = self.out(y.reshape(batch, time, width))
        x = x + self.scale1[...].astype(y.dtype) * y
        y = self.down(jax.nn.gelu(self.up(self.norm2(x)), approximate=False))
        return x + self.scale2[...].astype(y.dtype) * y


class Transformer(nnx.Module):
    """[batch, time, width] -> same; attention is full, and there is no final norm."""

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        heads: int,
        inner: int,
        dtype: Dtype = None,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List(
            [TransformerLayer(width, heads, inner, dtype=dtype, rngs=rngs) for _ in range(layers)]
        )

    def __call__(self, x: jax.Array, mask: Mask = None) -> jax.Array:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Aggregator(nnx.Module):
    """Segments of frames to one frame each: a query (segment mean + learned vector) follows the
    last frame of its segment, and is read off a transformer over frames and queries."""

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        heads: int,
        inner: int,
        dtype: Dtype = None,
        rngs: nnx.Rngs,
    ):
        self.query = nnx.Param(jax.random.normal(rngs.params(), (width,), jnp.float32) * 0.02)
        self.transformer = Transformer(
            width, layers=layers, heads=heads, inner=inner, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, owner: jax.Array, lengths: jax.Array) -> jax.Array:
        """[batch, time, width] and what `segment` gives -> [batch, time, width], zero where there
        is no segment."""
        batch, frames, width = x.shape
        rows = jnp.arange(batch)[:, None]
        sums = jnp.zeros_like(x).at[rows, owner].add(x, mode="drop")
        query = sums / jnp.maximum(lengths, 1)[..., None] + self.query[...]

        # A frame stands after the queries of the segments before its own; a query after its
        # segment's frames. What is padding goes past the end, and is dropped.
        nowhere = 2 * frames
        frame_place = jnp.where(owner < frames, jnp.arange(frames) + owner, nowhere)
        ends = jnp.cumsum(lengths, axis=1)
        query_place = jnp.where(lengths > 0, ends + jnp.arange(frames), nowhere)
        woven = jnp.zeros((batch, 2 * frames, width), x.dtype)
        woven = woven.at[rows, frame_place].set(x, mode="drop")
        woven = woven.at[rows, query_place].set(query.astype(x.dtype), mode="drop")

        used = ends[:, -1] + jnp.sum(lengths > 0, axis=1)
        y = self.transformer(woven, frame_mask(used, 2 * frames))
        place = jnp.minimum(query_place, 2 * frames - 1)
        return masked(jnp.take_along_axis(y, place[..., None], axis=1), (lengths > 0)[..., None])
