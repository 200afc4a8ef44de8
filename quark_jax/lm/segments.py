"""Codes of a codec with dynamic frame rate: all codes of a segment carry its length.

stored = code + size * (length - 1). While generating, head 0 opens a segment with its first code
and thereby chooses the length; the other codes of the segment follow it, and the lengths of an item
add up to no more than its frames.
"""

import jax
import jax.numpy as jnp

from quark_jax.lm.config import LMConfig
from quark_jax.lm.patterns import Pattern


def _lengths(config: LMConfig) -> jax.Array:
    """Frames of the segment that each token of the vocabulary stands in; 0 for PAD and END."""
    span = jnp.arange(1, config.max_segment + 1)
    acoustic = jnp.repeat(span, config.acoustic_size)
    return jnp.concatenate([acoustic, jnp.repeat(span, config.semantic_size), jnp.zeros(2, int)])


def length_mask(
    config: LMConfig, pattern: Pattern, step: jax.Array, spans: jax.Array, frames: jax.Array
) -> jax.Array:
    """Tokens [batch, heads, vocabulary] whose length fits at `step`.

    Args:
      spans: frames of each segment opened so far [batch, segments], 0 for the others.
      frames: frames of each item at the full rate [batch].
    """
    segment = jnp.clip(pattern.place(step)[0], 0, spans.shape[1] - 1)
    chosen = spans[:, segment][..., None]
    left = (frames - spans.sum(1))[:, None, None]
    length = _lengths(config)
    return (length == 0) | jnp.where(chosen > 0, length == chosen, length <= left)


def open_segments(
    config: LMConfig,
    pattern: Pattern,
    step: jax.Array,
    opened: jax.Array,
    spans: jax.Array,
    ends: jax.Array,
    frames: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Note the segments that head 0 opens at `step` by its tokens `opened` [batch].

    Returns `spans` with them, and `ends`: the number of segments of each item [batch], which is
    known when its frames are used up.
    """
    segment = pattern.place(step)[0][0]
    opens = (step == pattern.announcement(segment)) & (segment >= 0) & (segment < ends)
    length = jnp.where(opens, _lengths(config)[opened], 0)
    spans = spans.at[:, jnp.maximum(segment, 0)].add(length)
    return spans, jnp.where(opens & (spans.sum(1) >= frames), segment + 1, ends)
