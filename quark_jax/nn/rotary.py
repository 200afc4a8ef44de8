"""Rotary position embedding (Su et al., arXiv 2104.09864), in its two layouts.

Angles are computed in float32 whatever the compute dtype: bfloat16 cannot hold a position.
"""

import jax
import jax.numpy as jnp
import numpy as np


def _angles(dim: int, positions: jax.Array, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [..., time, 1, dim / 2] of position * theta^(-2i / dim)."""
    if dim % 2:
        raise ValueError(f"rotary embedding needs an even head dimension, not {dim}")
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = 1.0 / np.power(np.float32(theta), exponents)
    angles = jnp.asarray(positions, jnp.float32)[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate_half(x: jax.Array, positions: jax.Array, theta: float = 10000.0) -> jax.Array:
    """Rotate [..., time, heads, dim] with channel i paired with i + dim / 2 (as LLaMA does).

    `positions` [time] or [..., time] are counted in steps. Returns the shape and dtype of `x`.
    """
    cos, sin = _angles(x.shape[-1], positions, theta)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rotate_pairs(x: jax.Array, positions: jax.Array, theta: float = 10000.0) -> jax.Array:
    """Rotate [..., time, heads, dim] with channel 2i paired with 2i + 1.

    `positions` [time] or [..., time] are counted in steps. Returns the shape and dtype of `x`.
    """
    cos, sin = _angles(x.shape[-1], positions, theta)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
