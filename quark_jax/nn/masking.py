"""Padding that does not show: masks for batches of items of unlike length.

A mask is [batch, time, 1], true at the frames that an item has, or None where all are full. Layers
that look across time zero what is masked first, so that an item gets what it gets alone.
"""

import jax
import jax.numpy as jnp

Mask = jax.Array | None


def frame_mask(lengths: jax.Array, frames: int) -> jax.Array:
    """[batch, frames, 1] true where frame < length; `lengths` [batch], in frames."""
    return (jnp.arange(frames) < lengths[:, None])[..., None]


def masked(x: jax.Array, mask: Mask) -> jax.Array:
    """`x` [batch, time, channels] with zeros at masked frames."""
    return x if mask is None else jnp.where(mask, x, 0)


def key_mask(mask: Mask) -> jax.Array | None:
    """`mask` [batch, time, 1] as an attention mask over keys, [batch, 1, 1, time]; None stays."""
    return None if mask is None else mask[:, None, None, :, 0]
