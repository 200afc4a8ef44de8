"""Residual vector quantiser with EMA codebooks (SoundStream 2107.03312, VQ-VAE-2 1906.00446)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.hcodec.config import QuantiserConfig
from quark_jax.nn import Mask, masked

DROPPED = -1  # the code of a layer that quantiser dropout left out

# In training, rows whose squared distances differ by less than this share of the squared norm of
# the quantiser's input count as equally near. Codebooks hold such rows: drawn twice, never used,
# or put in the place of others. Rounding would choose between them, otherwise on every number of
# devices, and two such runs would soon have other codebooks.
_TIE = 1e-5


class CodebookStatistic(nnx.Variable):
    """State of the quantiser that training moves without a gradient."""


class QuantiserState(NamedTuple):
    """Codebooks and what their moving averages are made of; arrays stacked over layers."""

    embed: jax.Array  # [codebooks, size, width]
    sums: jax.Array  # [codebooks, size, width], averaged sums of the vectors of each code
    counts: jax.Array  # [codebooks, size], averaged counts of each code
    initialised: jax.Array  # [codebooks] bool


class Quantised(NamedTuple):
    """What the quantiser gives in training."""

    output: jax.Array  # [batch, time, width], gradient by the rotation trick; 0 where masked
    codes: jax.Array  # [batch, codebooks, time], DROPPED also where masked
    commitment: jax.Array  # scalar, mean over layers
    state: QuantiserState  # of the step after


def nearest(x: jax.Array, embed: jax.Array, tie: jax.Array | float = 0.0) -> jax.Array:
    """Index of the row of `embed` [size, width] nearest to each of `x` [..., width], the first of
    equals: of those with a squared distance at most `tie` [...] above the smallest. Distances are
    computed in float32."""
    distance = jnp.sum(embed**2, axis=-1) - 2 * jnp.einsum(
        "...d,kd->...k", x, embed, precision=jax.lax.Precision.HIGHEST
    )
    # argmin, but as two reductions that XLA makes fast. The barrier has both read the same numbers;
    # NaN equals nothing, hence the bound.
    distance = jax.lax.optimization_barrier(distance)
    size = distance.shape[-1]
    smallest = jnp.min(distance, axis=-1, keepdims=True)
    equal = distance <= smallest + jnp.asarray(tie)[..., None]
    index = jnp.where(equal, jnp.arange(size), size - 1)
    return jnp.min(index, axis=-1)


def _safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    return x / jnp.maximum(y, 1e-6)


def _norm(x: jax.Array) -> jax.Array:
    # The gradient of a norm at zero is not finite; nothing flows there.
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def rotate_to(source: jax.Array, target: jax.Array) -> jax.Array:
    """`target`, with the gradient of `source` rotated and scaled onto it (2410.06424, eq. 4)."""
    target = jax.lax.stop_gradient(target)
    held = jax.lax.stop_gradient(source)
    source_norm, target_norm = _norm(held), _norm(target)
    u, q = _safe_divide(held, source_norm), _safe_divide(target, target_norm)
    w = u + q
    w = w / jnp.maximum(_norm(w), 1e-12)

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=-1, keepdims=True)

    rotated = source - 2 * dot(source, w) * w + 2 * dot(source, u) * q
    return rotated * _safe_divide(target_norm, source_norm)


def kmeans(
    x: jax.Array,
    valid: jax.Array,
    clusters: int,
    iterations: int,
    key: jax.Array,
    tie: jax.Array | float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Means [clusters, width] and counts [clusters] of the `valid` [n] rows of `x` [n, width],
    begun at rows drawn at random; a cluster left empty keeps its mean. `tie` [n]: see `nearest`."""
    # Drawn without replacement while rows last, then again from the beginning.
    priority = jnp.where(valid, jax.random.uniform(key, valid.shape), -1.0)
    order = jnp.argsort(-priority)
    means = x[order[jnp.arange(clusters) % jnp.maximum(jnp.sum(valid), 1)]]

    def step(_, carry):
        means, _ = carry
        onehot = jax.nn.one_hot(nearest(x, means, tie), clusters) * valid[:, None]
        counts = jnp.sum(onehot, axis=0)
        new = onehot.T @ x / jnp.maximum(counts, 1.0)[:, None]
        return jnp.where(counts[:, None] == 0, means, new), counts

    return jax.lax.fori_loop(0, iterations, step, (means, jnp.zeros(clusters)))


class ResidualQuantiser(nnx.Module):
    """Layer i quantises what the layers before it left over; the output is the sum.

    Its codebooks and their statistics are `QuantiserState`, not parameters: `train` gives their
    next values, `set_state` puts them in.
    """

    def __init__(self, config: QuantiserConfig, *, rngs: nnx.Rngs):
        shape = (config.codebooks, config.codebook_size, config.width)
        bound = (6 / (config.codebook_size * config.width)) ** 0.5
        embed = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        self.embed = CodebookStatistic(embed, axes=("layers", "codebook", None))
        # A copy: buffers that are given to a step to overwrite must not be one.
        self.sums = CodebookStatistic(jnp.copy(embed), axes=("layers", "codebook", None))
        self.counts = CodebookStatistic(jnp.ones(shape[:2]), axes=("layers", "codebook"))
        self.initialised = CodebookStatistic(jnp.full(shape[:1], not config.kmeans_iterations))
        self.config = config

    def encode(self, x: jax.Array) -> jax.Array:
        """[batch, time, width] -> codes [batch, codebooks, time]."""
        residual = x.astype(jnp.float32)
        codes = [jnp.zeros((x.shape[0], 0, x.shape[1]), jnp.int32)]
        for embed in self.embed[...]:
            index = nearest(residual, embed)
            residual = residual - embed[index]
            codes.append(index[:, None].astype(jnp.int32))
        return jnp.concatenate(codes, axis=1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes [batch, codebooks, time] -> [batch, time, width]; a dropped layer adds nothing."""
        rows = jax.vmap(lambda embed, index: embed[index], (0, 1), 1)(self.embed[...], codes)
        return jnp.sum(jnp.where((codes != DROPPED)[..., None], rows, 0), axis=1)

    @property
    def state(self) -> QuantiserState:
        """Codebooks and statistics as they are."""
        return QuantiserState(
            self.embed[...], self.sums[...], self.counts[...], self.initialised[...]
        )

    def set_state(self, state: QuantiserState) -> None:
        """Replace codebooks and statistics, in place, with arrays of the same shapes."""
        for name, value in state._asdict().items():
            getattr(self, name).set_value(value)

    def train(self, x: jax.Array, key: jax.Array, mask: Mask = None) -> Quantised:
        """Quantise [batch, time, width] and give the codebooks' next state.

        Codebooks are begun by k-means on the first batch, if it has iterations. All statistics are
        sums over the whole batch: on a mesh, over the global one. Masked frames count nowhere.
        """
        config = self.config
        x = masked(x.astype(jnp.float32), mask)
        valid = jnp.ones(x.shape[:2], bool) if mask is None else mask[..., 0]
        keys = jax.random.split(key, config.codebooks + 1)
        kept = config.codebooks
        if config.dropout:
            kept = jax.random.randint(keys[0], (), min(1, config.codebooks), config.codebooks + 1)

        tie = _TIE * jax.lax.stop_gradient(jnp.sum(x**2, axis=-1))
        count = jnp.maximum(jnp.sum(valid) * x.shape[-1], 1)

        def layer(carry: tuple[jax.Array, jax.Array], of: tuple):
            residual, output = carry
            i, before, key = of
            on = i < kept
            held = jax.lax.stop_gradient(residual)
            # A dropped layer does not begin either: what is left of the kept ones is not its input.
            begins = ~before.initialised & on & jnp.any(valid)
            begun = self._begin(before, held, valid, tie, key, begins)
            index = nearest(held, begun.embed, tie)
            row = begun.embed[index]
            loss = jnp.sum(masked((row - residual) ** 2, valid[..., None])) / count
            output = output + jnp.where(on, rotate_to(residual, row), 0)
            after = self._move(begun, held, index, valid)
            error = jnp.maximum(jnp.sum((held - row) ** 2, axis=-1), tie)
            after = self._revive(after, held, error, valid, jax.random.fold_in(key, 1))
            after = jax.tree.map(lambda a, b: jnp.where(on, a, b), after, begun)
            codes = jnp.where(on & valid, index, DROPPED)
            residual = residual - jnp.where(on, row, 0)
            return (residual, output), (after, jnp.where(on, loss, 0), codes)

        (_, output), (state, losses, codes) = jax.lax.scan(
            layer,
            (x, jnp.zeros_like(x)),
            (jnp.arange(config.codebooks), self.state, keys[1:]),
        )
        return Quantised(
            output=jnp.where(valid[..., None], output, 0),
            codes=codes.swapaxes(0, 1),
            commitment=jnp.sum(losses) / max(config.codebooks, 1),
            state=state,
        )

    def _begin(self, state: QuantiserState, x, valid, tie, key, begins) -> QuantiserState:
        def begin():
            means, counts = kmeans(
                x.reshape(-1, x.shape[-1]),
                valid.reshape(-1),
                self.config.codebook_size,
                self.config.kmeans_iterations,
                key,
                tie.reshape(-1),
            )
            sums = means * counts[:, None]
            return QuantiserState(self._mean(sums, counts), sums, counts, jnp.array(True))

        return jax.lax.cond(begins, begin, lambda: state)

    def _move(self, state: QuantiserState, x, index, valid) -> QuantiserState:
        decay = self.config.decay
        onehot = jax.nn.one_hot(index, self.config.codebook_size) * valid[..., None]
        counts = decay * state.counts + (1 - decay) * jnp.sum(onehot, axis=(0, 1))
        sums = decay * state.sums + (1 - decay) * jnp.einsum(
            "btk,btd->kd", onehot, x, precision=jax.lax.Precision.HIGHEST
        )
        return QuantiserState(self._mean(sums, counts), sums, counts, state.initialised)

    def _mean(self, sums: jax.Array, counts: jax.Array) -> jax.Array:
        """Sums over counts, the counts Laplace-smoothed: an unused code goes to zero."""
        epsilon, total = self.config.epsilon, jnp.sum(counts)
        smoothed = (counts + epsilon) / (total + self.config.codebook_size * epsilon) * total
        return sums / smoothed[:, None]

    def _revive(self, state: QuantiserState, x, error, valid, key) -> QuantiserState:
        """Put rows drawn from the batch in the place of codes that are hardly used, the more likely
        the greater their squared `error`, as k-means++ chooses."""
        threshold = self.config.dead_code_threshold
        if threshold == 0:
            return state
        dead = state.counts < threshold
        log_odds = jnp.where(valid, jnp.log(error), -jnp.inf).reshape(-1)
        rows = x.reshape(-1, x.shape[-1])[jax.random.categorical(key, log_odds, shape=dead.shape)]
        return state._replace(
            embed=jnp.where(dead[:, None], rows, state.embed),
            sums=jnp.where(dead[:, None], rows * threshold, state.sums),
            counts=jnp.where(dead, threshold, state.counts),
        )
