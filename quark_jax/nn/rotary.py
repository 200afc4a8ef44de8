"""Rotary position embedding (Su et al., arXiv 2104.09864), in its two layouts.

Angles are computed in float32 whatever the compute dtype: bfloat16 cannot hold a position.
"""

import jax
import jax.numpy as jnp
import numpy as np


def _angles(dim: int, positions: jax.Array, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [..., dim / 2] of positions [...] * theta^(-2i / dim)."""
    if dim % 2:
        raise ValueError(f"rotary embedding needs an even head dimension, not {dim}")
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = 1.0 / np.power(np.float32(theta), exponents)
    angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate_half(x: jax.Array, positions: jax.Array, theta: float = 10000.0) -> jax.Array:
    """Rotate [..., dim] with channel i paired with i + dim / 2 (as LLaMA does).

    `positions` are counted in steps; their shape broadcasts to [...]. Returns the shape and dtype
    of `x`.
    """
    dim = x.shape[-1]
    cos, sin = (jnp.concatenate([a, a], axis=-1) for a in _angles(dim, positions, theta))
    # A quarter turn, (a, b) -> (-b, a), as a product: a TPU has channels in lanes, 128 of them, and
    # takes long to move halves of a head. Of each sum one term is not 0, so nothing is rounded.
    half = np.eye(dim // 2)
    turn = jnp.asarray(np.block([[0 * half, half], [-half, 0 * half]]), x.dtype)
    turned = jnp.dot(x, turn, precision=jax.lax.Precision.HIGHEST)
    return (x.astype(jnp.float32) * cos + turned.astype(jnp.float32) * sin).astype(x.dtype)


def rotate_pairs(x: jax.Array, positions: jax.Array, theta: float = 10000.0) -> jax.Array:
    """Rotate [..., dim] with channel 2i paired with 2i + 1, otherwise as `rotate_half`."""
    cos, sin = _angles(x.shape[-1], positions, theta)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
