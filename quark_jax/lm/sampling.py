"""Generation as one compiled program: prefill, then a loop over a preallocated cache.

The prefix is right-padded to a static length P, and step s of every item is written to slot P + s
of the cache. Masks and rotary positions count each item's own prefix, so that the result is that of
the sequence without padding.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from quark_jax.lm.attention import as_cached
from quark_jax.lm.layout import SECTIONS, Conditions, Prefix, Targets, drop_sections
from quark_jax.lm.model import Cache, LanguageModel
from quark_jax.lm.segments import length_mask, open_segments
from quark_jax.lm.tasks import is_aligned


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token.
      top_k: draw from the k most probable tokens only.
      top_p: draw from the fewest most probable tokens whose probabilities, after `top_k`, add up
        to at least this much.
      guidance: classifier-free guidance (Ho & Salimans, arXiv 2207.12598): the logits become
        u + guidance * (c - u), c with and u without the `guided` sections. 1 leaves it out.
      guided: the sections that u is without.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    guidance: float = 1.0
    guided: tuple[str, ...] = SECTIONS

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature} must not be negative")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} must be at least 1, or None")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be in (0, 1]")
        if self.guidance < 0:
            raise ValueError(f"guidance {self.guidance} must not be negative")
        if unknown := set(self.guided) - set(SECTIONS):
            raise ValueError(f"guided sections {sorted(unknown)} are not among {SECTIONS}")


GREEDY = Sampling(temperature=0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """The loop's state; with guidance, hidden states and caches hold the items twice."""

    step: jax.Array  # [] the step to draw
    hidden: jax.Array  # [items, width] from which it is drawn
    caches: list[Cache]  # one for each layer
    tokens: jax.Array  # [batch, rows, heads] drawn so far, PAD beyond
    frames: jax.Array  # [batch] frames of each item, or the bound while the end is open
    spans: jax.Array  # [batch, max_frames] frames in each segment so far; 0 not yet opened


def generate(
    model: LanguageModel,
    conditions: Conditions,
    frames: jax.Array,
    keys: jax.Array,
    sampling: Sampling = Sampling(),
    *,
    max_frames: int | None = None,
) -> Targets:
    """Generate the codes of a batch.

    Args:
      model: compiled once for each shape of the other arguments and each `sampling`.
      conditions: tasks and sections of the items.
      frames: [batch] codec frames of each item: exactly so many where the task is time-aligned, at
        most so many elsewhere. With a dynamic frame rate they are frames at the full rate.
      keys: [batch] typed keys (`jax.random.key`). An item's codes depend on its own key and
        conditions only.
      max_frames: T of the result, to compile for; the largest of `frames` by default.
    Returns:
      codes [batch, codebooks, T], zero beyond each item's frames, and those frames (segments,
      where the frame rate is dynamic) [batch].
    Raises:
      ValueError: if `frames` are not in [0, max_frames], or not one key an item is given.
    """
    largest = int(np.max(frames))  # on the host: the device may be busy
    max_frames = largest if max_frames is None else max_frames
    if int(np.min(frames)) < 0 or largest > max_frames:
        raise ValueError(f"frames {frames} must be in [0, {max_frames}]")
    batch = conditions.task.shape[0]
    if keys.shape != (batch,) or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise ValueError(f"keys must be {batch} typed keys, one an item, not {keys.shape}")
    if sampling.guidance == 1:  # one program, whatever would be guided
        sampling = replace(sampling, guided=())
    return generate_loop(model, conditions, jnp.asarray(frames), keys, sampling, max_frames)


@partial(jax.jit, static_argnames=("sampling", "max_frames"))
def generate_loop(model, conditions, frames, keys, sampling: Sampling, max_frames: int) -> Targets:
    """The program that `generate` runs, with its arguments checked."""
    pattern, dtype = model.pattern, model.config.compute_dtype
    aligned = is_aligned(conditions.task)
    if sampling.guidance != 1:
        without = drop_sections(conditions, sampling.guided)
        conditions = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), conditions, without)
    blocks = [
        jax.tree.map(lambda a: a.astype(dtype), block)
        for block in model.backbone.layers.unstacked()
    ]
    prefix = model.prefix(conditions)
    rows, batch = pattern.steps(max_frames), keys.shape[0]
    hidden, caches = _prefill(model, blocks, prefix, rows)

    def advance(state: _State) -> _State:
        tokens, ends, spans = _draw(model, state, frames, aligned, keys, sampling)
        hidden, caches = _feed(model, blocks, prefix, state, tokens)
        return _State(
            step=state.step + 1,
            hidden=hidden,
            caches=caches,
            tokens=state.tokens.at[:, state.step].set(tokens),
            frames=ends,
            spans=spans,
        )

    state = _State(
        step=jnp.zeros((), jnp.int32),
        hidden=hidden,
        caches=caches,
        tokens=jnp.full((batch, rows + 1, pattern.heads), pattern.vocabulary.pad, jnp.int32),
        frames=frames.astype(jnp.int32),
        spans=jnp.zeros((batch, max_frames), jnp.int32),
    )
    state = jax.lax.while_loop(lambda s: s.step < pattern.steps(s.frames).max(), advance, state)
    ends = jnp.arange(rows + 1) == pattern.steps(state.frames)[:, None]
    tokens = jnp.where(ends[..., None], pattern.vocabulary.end, state.tokens)
    return Targets(*pattern.revert(tokens))


def _prefill(model, blocks, prefix: Prefix, rows: int) -> tuple[jax.Array, list[Cache]]:
    """Hidden state at S [items, width], and caches with `rows` free slots after the prefix."""
    x, caches = prefix.features, []
    positions = prefix.positions(jnp.arange(x.shape[1]), model.config.step_stride)
    for block in blocks:
        x, written = block.prefill(x, positions)
        free = ((0, 0), (0, 0), (0, rows), (0, 0))
        caches.append(tuple(as_cached(jnp.pad(a, free)) for a in written))
    last = jnp.take_along_axis(x, prefix.lengths[:, None, None] - 1, axis=1)
    return model.backbone.norm(last)[:, 0], caches


def _draw(
    model, state: _State, frames, aligned, keys, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens [batch, heads] of the state's step, and the state's `frames` and `spans` after it."""
    pattern, step, spans, ends = model.pattern, state.step, state.spans, state.frames
    logits = model.logits(state.hidden)
    if sampling.guidance != 1:
        conditional, without = jnp.split(logits, 2)
        logits = without + sampling.guidance * (conditional - without)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    pick = partial(_pick, logits, keys=step_keys, sampling=sampling)
    allowed = pattern.allowed(step, ends, aligned)
    if model.config.max_segment == 1:
        drawn = pick(allowed)
    else:
        # Head 0 may open a segment: its draw sets the length of the others' codes at this step.
        fits = partial(length_mask, model.config, pattern, step, frames=frames)
        first = pick(allowed & fits(spans))[:, 0]
        spans, ends = open_segments(model.config, pattern, step, first, spans, ends, frames)
        drawn = pick(allowed & fits(spans)).at[:, 0].set(first)
    return *pattern.settle(drawn, step, ends), spans


def _feed(
    model, blocks, prefix: Prefix, state: _State, tokens: jax.Array
) -> tuple[jax.Array, list[Cache]]:
    """Hidden state [items, width] and caches after `tokens` [batch, heads] at the state's step."""
    items, start = prefix.features.shape[:2]
    x = jnp.tile(model.embed_steps(tokens), (items // tokens.shape[0], 1))[:, None]
    x += prefix.heard(state.step[None] + 1, model.config.step_stride)
    slots = jnp.arange(state.caches[0][0].shape[-2])
    steps = (slots >= start) & (slots <= start + state.step)
    mask = (slots < prefix.lengths[:, None]) | steps
    place = (prefix.lengths + state.step)[:, None]
    positions = prefix.positions(place, model.config.step_stride)
    caches = []
    for block, cache in zip(blocks, state.caches, strict=True):
        x, cache = block.step(x, positions, cache, start + state.step, mask)
        caches.append(cache)
    return model.backbone.norm(x)[:, 0], caches


def _pick(
    logits: jax.Array, allowed: jax.Array, *, keys: jax.Array, sampling: Sampling
) -> jax.Array:
    """Tokens [batch, heads] drawn from logits [batch, heads, vocabulary] where `allowed`."""
    logits = jnp.where(allowed, logits, -jnp.inf)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits, tokens = logits / sampling.temperature, None
    if sampling.top_k is not None or sampling.top_p < 1:
        size = logits.shape[-1]
        logits, tokens = jax.lax.top_k(logits, min(sampling.top_k or size, size))
        p = jax.nn.softmax(logits, axis=-1)
        logits = jnp.where(jnp.cumsum(p, axis=-1) - p < sampling.top_p, logits, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    picked = jnp.argmax(logits + noise, axis=-1)
    if tokens is None:
        return picked
    return jnp.take_along_axis(tokens, picked[..., None], axis=-1)[..., 0]
