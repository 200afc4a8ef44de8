"""The language model: a LLaMA that continues a continuous prefix with codec tokens."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from quark_jax.lm.attention import as_cached, attend, attend_step
from quark_jax.lm.config import LMConfig
from quark_jax.lm.layout import (
    SECTIONS,
    Conditions,
    Packing,
    Prefix,
    Section,
    Targets,
    lay,
    pack,
    stack_pairs,
)
from quark_jax.lm.patterns import make_pattern
from quark_jax.lm.tasks import is_aligned
from quark_jax.nn import conv, embed, linear, rms_norm
from quark_jax.nn.placement import batch_split, whole
from quark_jax.nn.rotary import rotate_half
from quark_jax.nn.stack import Stack

Pair = tuple[jax.Array, jax.Array]  # keys and values
Cache = Pair  # those of one layer, as `as_cached` lays them out


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary embedding, [batch, time, width] -> same."""

    def __init__(self, config: LMConfig, *, rngs: nnx.Rngs):
        width, dim = config.width, config.head_dim
        dense = partial(linear, bias=False, dtype=config.compute_dtype, rngs=rngs)
        inner, shared = config.heads * dim, config.kv_heads * dim
        self.query = dense(width, inner, axes=("embed", "heads"))
        self.key = dense(width, shared, axes=("embed", "kv_heads"))
        self.value = dense(width, shared, axes=("embed", "kv_heads"))
        self.out = dense(inner, width, axes=("heads", "embed"))
        self.dim, self.theta, self.kind = dim, config.rope_theta, config.attention

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, Pair]:
        """Queries [batch, heads, time, dim], and keys and values [batch, kv_heads, time, dim]."""

        def heads(layer: nnx.Linear) -> jax.Array:
            if x.shape[1] == 1:  # XLA for CPUs copies a kernel of three axes, here at each step
                return layer(x).reshape(x.shape[0], -1, 1, self.dim)
            kernel = layer.kernel[...].astype(x.dtype).reshape(x.shape[-1], -1, self.dim)
            return jnp.einsum("btw,whd->bhtd", x, kernel)

        positions = positions[..., None, :]  # alike in all heads
        query = rotate_half(heads(self.query), positions, self.theta)
        key = rotate_half(heads(self.key), positions, self.theta)
        return query, (key, heads(self.value))

    def attend(self, query: jax.Array, pair: Pair, segments: jax.Array | None) -> jax.Array:
        """Causal attention of whole sequences, within `segments` [batch, time] if there are some.
        Shapes as `project` gives them."""
        return self._joined(attend(query, *pair, segments, kind=self.kind))

    def attend_cached(self, query: jax.Array, cache: Cache, mask: jax.Array) -> jax.Array:
        """Attention of one position to the slots of `mask` [batch, slots]."""
        return self._joined(attend_step(query, *cache, mask))

    def _joined(self, y: jax.Array) -> jax.Array:
        if y.shape[2] == 1:
            return self.out(y.reshape(y.shape[0], 1, -1))
        kernel = self.out.kernel[...].astype(y.dtype).reshape(-1, self.dim, self.out.out_features)
        return jnp.einsum("bhtd,hdw->btw", y, kernel)


class MLP(nnx.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202), [batch, time, width] -> same."""

    def __init__(self, config: LMConfig, *, rngs: nnx.Rngs):
        dense = partial(linear, bias=False, dtype=config.compute_dtype, rngs=rngs)
        self.gate = dense(config.width, config.mlp, axes=("embed", "mlp"))
        self.up = dense(config.width, config.mlp, axes=("embed", "mlp"))
        self.down = dense(config.mlp, config.width, axes=("mlp", "embed"))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """One pre-norm decoder layer, [batch, time, width] -> same."""

    def __init__(self, config: LMConfig, *, rngs: nnx.Rngs):
        norm = partial(
            rms_norm,
            config.width,
            epsilon=config.norm_epsilon,
            dtype=config.compute_dtype,
            rngs=rngs,
        )
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = Attention(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self, x: jax.Array, positions: jax.Array, segments: jax.Array | None = None
    ) -> jax.Array:
        """The whole sequence; `positions` [time] or [batch, time]. Nothing passes between
        positions of unlike `segments` [batch, time]."""
        return self.prefill(x, positions, segments)[0]

    def prefill(
        self, x: jax.Array, positions: jax.Array, segments: jax.Array | None = None
    ) -> tuple[jax.Array, Pair]:
        """The whole sequence, and its keys and values [batch, kv_heads, time, dim]."""
        x = batch_split(x)
        query, written = self.attention.project(self.attention_norm(x), positions)
        x = batch_split(x + self.attention.attend(query, written, segments))
        return x + self.mlp(self.mlp_norm(x)), written

    def step(
        self, x: jax.Array, positions: jax.Array, cache: Cache, slot: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """One position [batch, 1, width], written to `slot` [] of the cache; `mask` [batch,
        slots] tells which slots it attends to."""
        query, written = self.attention.project(self.attention_norm(x), positions)
        cache = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, as_cached(new), slot, axis=old.ndim - 2)
            for old, new in zip(cache, written, strict=True)
        )
        x = x + self.attention.attend_cached(query, cache, mask)
        return x + self.mlp(self.mlp_norm(x)), cache


class Backbone(nnx.Module):
    """Decoder layers and the final norm: hidden states of LlamaModel from its `inputs_embeds`."""

    def __init__(self, config: LMConfig, *, rngs: nnx.Rngs):
        self.layers = Stack(
            lambda rngs: Block(config, rngs=rngs),
            config.layers,
            scan=config.scan,
            remat=config.remat,
            rngs=rngs,
        )
        self.norm = rms_norm(
            config.width, epsilon=config.norm_epsilon, dtype=config.compute_dtype, rngs=rngs
        )

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """[batch, time, width] -> same. Attention is causal, so what is padded on the right
        changes nothing before it. `positions` [time] or [batch, time], None to count from 0;
        `segments` [batch, time] where a row is not one sequence."""
        positions = jnp.arange(x.shape[1]) if positions is None else positions
        return self.norm(self.layers(x, positions, segments))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LMLoss:
    """The loss of a batch, and its parts for every item and head, to add up as is wanted.

    Attributes:
      loss: label-smoothed cross-entropy, mean over the scored targets of the whole batch.
      nats: cross-entropy without smoothing, summed over targets [batch, heads].
      count: scored targets [batch, heads].
      correct: codes to which the model gives the highest probability [batch, heads].
      codes: scored targets that are codes, not END [batch, heads].
    """

    loss: jax.Array
    nats: jax.Array
    count: jax.Array
    correct: jax.Array
    codes: jax.Array

    @property
    def accuracy(self) -> jax.Array:
        """Share of codes that are correct of each head [heads]."""
        return self.correct.sum(0) / jnp.maximum(self.codes.sum(0), 1)


class BesideAdapter(nnx.Module):
    """What is added to the steps: features [batch, positions, channels] -> [batch, positions,
    width], of each position and its two neighbours.

    The norm keeps it as large as embeddings of tokens: the optimiser moves a projection of so many
    channels by so much at once that tokens would be drowned before anything is learned.
    """

    def __init__(self, channels: int, config: LMConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, config.compute_dtype
        axes = (None, None, "embed")
        self.conv = conv(channels, width, 3, padding=1, axes=axes, dtype=dtype, rngs=rngs)
        self.norm = rms_norm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        self.norm.scale[...] = jnp.full((width,), 0.1)

    def __call__(self, features: jax.Array) -> jax.Array:
        return self.norm(self.conv(features))


class LanguageModel(nnx.Module):
    """Continues [task] [caption] [reference] [input] [S] with codec steps (see `layout`).

    The tables of all heads are one table of heads * vocabulary rows, token k of head h in row
    h * vocabulary + k; the output heads are one matrix in the same order.
    """

    def __init__(self, config: LMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.pattern = make_pattern(config)
        width, dtype = config.width, config.compute_dtype
        rows = self.pattern.heads * self.pattern.vocabulary.size

        def vectors(count: int) -> nnx.Param:
            values = 0.02 * jax.random.normal(rngs.params(), (count, width))
            return nnx.Param(values, axes=(None, "embed"))

        self.tasks = vectors(config.task_rows)
        self.starts = vectors(len(SECTIONS) + 1)  # C, R, I, S
        frames = 2 if config.stack_features else 1
        self.audio_adapter = linear(
            frames * config.audio_channels, width, axes=(None, "embed"), dtype=dtype, rngs=rngs
        )
        self.beside_adapter = (
            BesideAdapter(frames * config.audio_channels, config, rngs=rngs)
            if config.beside
            else None
        )
        self.text_adapter = (
            linear(config.text_channels, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
            if config.text_channels
            else None
        )
        self.embedding = embed(rows, width, dtype=dtype, rngs=rngs)
        self.backbone = Backbone(config, rngs=rngs)
        self.head = linear(width, rows, axes=("embed", "vocab"), bias=False, dtype=dtype, rngs=rngs)

    def embed_steps(self, tokens: jax.Array) -> jax.Array:
        """Sum of the embeddings of a step's tokens: [..., heads] -> [..., width]."""
        first_rows = self.pattern.vocabulary.size * jnp.arange(self.pattern.heads)
        # Left to itself, XLA looks all of the batch up in each chip's part of the table.
        table = whole(self.embedding.embedding[...].astype(self.config.compute_dtype))
        return jnp.take(table, tokens + first_rows, axis=0).sum(-2)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., heads, vocabulary] of the step after hidden state [..., width]."""
        logits = self.head(hidden).astype(jnp.float32)
        return logits.reshape(*hidden.shape[:-1], self.pattern.heads, -1)

    def prefix(self, conditions: Conditions) -> Prefix:
        """All that stands before step 0, embedded: [T] ([C] caption) ([R] reference) ([I] input)
        [S], [batch, longest, width]. Step 0 stands at its `lengths`."""
        batch = conditions.task.shape[0]
        task = self.tasks[...][conditions.task][:, None].astype(self.config.compute_dtype)
        one = jnp.ones((batch,), jnp.int32)

        def start(number: int) -> jax.Array:
            vector = self.starts[number].astype(self.config.compute_dtype)
            return jnp.broadcast_to(vector, (batch, 1, vector.shape[0]))

        pieces = [Section(task, one)]
        for number, name in enumerate(SECTIONS):
            section = getattr(conditions, name)
            if section is not None:
                present = (section.lengths > 0).astype(jnp.int32)
                pieces += [Section(start(number), present), self._adapt(name, section)]
        whole = lay([*pieces, Section(start(len(SECTIONS)), one)])
        frames = 0 if conditions.input is None else pieces[-1].lengths
        origin = whole.lengths - jnp.where(frames > 0, frames + 1, 0)  # the input, and S
        prefix = Prefix(whole.features, whole.lengths, origin, self._beside(conditions.input))
        first = prefix.heard(jnp.zeros(1, jnp.int32), self.config.step_stride)
        at_start = jnp.arange(whole.features.shape[1]) == whole.lengths[:, None] - 1
        return replace(prefix, features=prefix.features + jnp.where(at_start[..., None], first, 0))

    def _beside(self, section: Section | None) -> Section | None:
        if self.beside_adapter is None or section is None or section.features.shape[1] == 0:
            return None
        section = self._stacked(section)
        return Section(self.beside_adapter(section.features), section.lengths)

    def _stacked(self, section: Section) -> Section:
        section = section.cleared()
        return stack_pairs(section) if self.config.stack_features else section

    def _adapt(self, name: str, section: Section) -> Section:
        if name == "caption":
            if self.text_adapter is None:
                raise ValueError("a caption is given, but LMConfig.text_channels is 0")
            return Section(self.text_adapter(section.cleared().features), section.lengths)
        section = self._stacked(section)
        return Section(self.audio_adapter(section.features), section.lengths)

    def __call__(
        self,
        conditions: Conditions,
        tokens: jax.Array,
        steps: jax.Array,
        packing: Packing | None = None,
    ) -> jax.Array:
        """Hidden states that predict each of `tokens` (teacher forcing).

        Args:
          tokens: [batch, rows, heads] as `Pattern.build` returns them.
          steps: steps of each item before END [batch].
          packing: how items share rows, where they do; those without steps are not there then.
        Returns:
          [batch, rows, width]; row s is the hidden state before step s, from which `logits` are
          taken. Rows after an item's END are of no meaning. All are NaN of items that do not fit
          their row together.
        """
        prefix = self.prefix(conditions)
        embedded = self.embed_steps(tokens[:, :-1])
        embedded += prefix.heard(jnp.arange(1, tokens.shape[1]), self.config.step_stride)
        sequence = lay([prefix, Section(embedded, steps)])
        places = jnp.arange(sequence.features.shape[1])
        positions = prefix.positions(places, self.config.step_stride)
        hidden = self._hidden(sequence, positions, steps, packing)
        before = prefix.lengths[:, None] - 1 + jnp.arange(tokens.shape[1])
        return batch_split(jnp.take_along_axis(hidden, before[..., None], axis=1))

    def _hidden(
        self, sequence: Section, positions: jax.Array, steps: jax.Array, packing: Packing | None
    ) -> jax.Array:
        if packing is None:
            return self.backbone(sequence.features, positions)
        there = replace(sequence, lengths=jnp.where(steps > 0, sequence.lengths, 0))
        positions = jnp.broadcast_to(positions, sequence.features.shape[:2])
        rows = pack(there, positions, packing)
        hidden = self.backbone(rows.features, rows.positions, rows.segments)
        hidden = jnp.where(rows.fits[:, None, None], hidden, jnp.nan)
        return jnp.take_along_axis(hidden, rows.source[..., None], axis=1).reshape(
            sequence.features.shape
        )

    def loss(
        self, conditions: Conditions, targets: Targets, packing: Packing | None = None
    ) -> LMLoss:
        """Label-smoothed cross-entropy of `targets` after `conditions`, the same however items are
        packed; NaN where they do not fit their row.

        Items with 0 frames fill a batch up and weigh nothing. Under jit with a sharded batch the
        mean is that of the whole batch, over all devices.
        """
        frames = targets.frames
        tokens, scored = self.pattern.build(targets.acoustic, targets.semantic, frames)
        wanted, scored = self.pattern.targets(tokens, scored, frames, is_aligned(conditions.task))
        steps = jnp.where(frames > 0, self.pattern.steps(frames), 0)
        nats, uniform, best = self._score(self(conditions, tokens, steps, packing), wanted)
        smoothing = self.config.label_smoothing
        smoothed = (1 - smoothing) * nats + smoothing * uniform
        count = scored.sum()
        codes = scored & (wanted < self.pattern.vocabulary.pad)
        return LMLoss(
            loss=jnp.where(scored, smoothed, 0).sum() / jnp.maximum(count, 1),
            nats=jnp.where(scored, nats, 0).sum(1),
            count=scored.sum(1),
            correct=((best == wanted) & codes).sum(1),
            codes=codes.sum(1),
        )

    def _score(self, hidden: jax.Array, wanted: jax.Array) -> tuple[jax.Array, ...]:
        """Cross-entropy of the tokens `wanted` [batch, rows, heads] and of the uniform distribution
        after `hidden` [batch, rows, width], and the most probable tokens."""

        def score(logits: jax.Array, wanted: jax.Array) -> tuple[jax.Array, ...]:
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
            uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(-1)
            return nats, uniform, logits.argmax(-1)

        if self.config.remat is None:
            return score(self.logits(hidden), wanted)

        # All logits would take more memory than what the layers keep: those of one head at a time.
        @partial(jax.checkpoint, prevent_cse=False)
        def score_head(head: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            kernel, wanted = head
            return score((hidden @ kernel).astype(jnp.float32), wanted)

        kernel = self.head.kernel[...].astype(hidden.dtype)
        kernels = kernel.reshape(kernel.shape[0], self.pattern.heads, -1)
        scores = jax.lax.map(score_head, (jnp.moveaxis(kernels, 1, 0), jnp.moveaxis(wanted, 2, 0)))
        return tuple(jnp.moveaxis(score, 0, 2) for score in scores)
