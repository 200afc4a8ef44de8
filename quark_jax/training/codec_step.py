"""One step of training H-Codec: the codec, and the discriminators that it is trained against."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from quark_jax.audio import resample_sinc
from quark_jax.encoders import FeatureConfig, SSLFeatures
from quark_jax.errors import UserError
from quark_jax.hcodec import HCodec, HCodecConfig
from quark_jax.hcodec.adversary import Adversary, AdversaryConfig
from quark_jax.hcodec.losses import (
    BalancerState,
    LossConfig,
    adversarial_loss,
    balance,
    discriminator_loss,
    feature_matching_loss,
    init_balancer,
    mel_loss,
    perceptual_loss,
    weighted_sum,
)
from quark_jax.hcodec.model import Reconstruction
from quark_jax.hcodec.quantiser import DROPPED
from quark_jax.interop import as_shapes
from quark_jax.training.optimiser import OptimiserConfig, averaged, optimiser

Terms = dict[str, jax.Array]
_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
_SSL_RATE = 16000  # Hz
_ADVERSARIAL = ("adversarial", "feature_matching")


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminators of a run."""

    networks: AdversaryConfig = field(default_factory=AdversaryConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    begin: int = 0  # step at which they begin to learn and to be learned from


@dataclass(frozen=True)
class PerceptualConfig:
    """The frozen encoder whose features the perceptual loss compares."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    begin: int = 400_000  # step

    def __post_init__(self):
        if self.features.compress:
            raise UserError("perceptual.features.compress: its gradient is boundless; set False")


@dataclass(frozen=True)
class LearningConfig:
    """What a codec learns from, and how."""

    losses: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    adversary: AdversarialConfig | None = None
    perceptual: PerceptualConfig | None = None
    average: float = 0.0  # decay of the averaged weights that are evaluated and kept; 0: none
    dtype: str = "float32"  # of the networks' computation, or "bfloat16"; the rest is float32

    def __post_init__(self):
        if self.dtype not in _DTYPES:
            raise UserError(f"dtype {self.dtype!r}: choose one of {', '.join(_DTYPES)}")
        if not 0 <= self.average < 1:
            raise UserError(f"average: {self.average}; choose a decay of at least 0, below 1")
        if (self.losses.perceptual > 0) != (self.perceptual is not None):
            raise UserError("losses.perceptual: a weight needs `perceptual`, and the reverse")


class Learner(NamedTuple):
    """Parameters, and the moments of what optimises them."""

    params: nnx.State
    moments: optax.OptState

    def update(self, gradient: nnx.State, transform: optax.GradientTransformation) -> "Learner":
        """One step of the optimiser."""
        updates, moments = transform.update(gradient, self.moments, self.params)
        return Learner(optax.apply_updates(self.params, updates), moments)


class Frozen(NamedTuple):
    """Networks that a step uses and does not change."""

    features: SSLFeatures  # of the semantic stream
    perceptual: SSLFeatures | None = None  # for the perceptual loss; None: the same encoder


class CodecState(NamedTuple):
    """All that a step changes."""

    step: jax.Array
    key: jax.Array
    codec: Learner
    rest: nnx.State  # codebooks and their statistics
    average: nnx.State | None  # of the codec's parameters
    adversary: Learner | None
    balancer: BalancerState | None


class CodecLearning:
    """How the codec of one config learns: `init` makes a state, `step` the next one, from the
    losses that have `begun`.

    These are known when a step is compiled, one program for each phase of a run. A condition in
    one program would do as well, but XLA's convolutions inside of one take ten times as long on a
    CPU.
    """

    def __init__(self, codec: HCodecConfig, config: LearningConfig, seed: int):
        self._codec, self._config, self._seed = codec, config, seed
        self._dtype = _DTYPES[config.dtype]
        self._graph = nnx.graphdef(as_shapes(self._new_codec))
        self._optimiser = optimiser(config.optimiser)
        self._begins = {"mel": 0}  # losses of the wave, and the steps that they begin at
        if config.perceptual:
            self._begins["perceptual"] = config.perceptual.begin
        if config.adversary:
            self._adversary_graph = nnx.graphdef(as_shapes(self._new_adversary))
            self._adversary_optimiser = optimiser(config.adversary.optimiser)
            self._begins |= dict.fromkeys(_ADVERSARIAL, config.adversary.begin)

    def _new_codec(self, rngs: nnx.Rngs) -> HCodec:
        return HCodec(self._codec, dtype=self._dtype, rngs=rngs)

    def _new_adversary(self, rngs: nnx.Rngs) -> Adversary:
        return Adversary(self._config.adversary.networks, dtype=self._dtype, rngs=rngs)

    def init(self) -> CodecState:
        """The state before the first step."""
        config = self._config
        _, params, rest = nnx.split(self._new_codec(nnx.Rngs(self._seed)), nnx.Param, ...)
        adversary = None
        if config.adversary:
            _, judging = nnx.split(self._new_adversary(nnx.Rngs(self._seed + 1)), nnx.Param)
            adversary = Learner(judging, self._adversary_optimiser.init(judging))
        return CodecState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.PRNGKey(self._seed),
            codec=Learner(params, self._optimiser.init(params)),
            rest=rest,
            # A copy: buffers that are given to a step to overwrite must not be one.
            average=jax.tree.map(jnp.copy, params) if config.average else None,
            adversary=adversary,
            balancer=init_balancer(list(self._begins)) if config.losses.balance else None,
        )

    def codec(self, state: CodecState) -> HCodec:
        """The codec as it is evaluated and saved: with averaged weights where there are some."""
        params = state.codec.params if state.average is None else state.average
        return nnx.merge(self._graph, params, state.rest)

    def adversary(self, state: CodecState) -> Adversary | None:
        """The discriminators, if there are any."""
        if state.adversary is None:
            return None
        return nnx.merge(self._adversary_graph, state.adversary.params)

    def begun(self, number: int) -> tuple[str, ...]:
        """Names of the losses of the wave that step `number`, counted from 0, learns from."""
        return tuple(name for name, begin in self._begins.items() if number >= begin)

    def step(
        self, state: CodecState, wave: jax.Array, frozen: Frozen, begun: tuple[str, ...]
    ) -> tuple[CodecState, dict[str, jax.Array]]:
        """Learn from `wave` [batch, samples], whole codec frames at the codec's rate: the
        discriminators first, then the codec from what they have become. `begun` is static."""
        losses, rate = self._config.losses, self._codec.sample_rate
        target = frozen.features(resample_sinc(wave, rate, _SSL_RATE))
        key = jax.random.fold_in(state.key, state.step)
        threshold = self.threshold(jax.random.fold_in(key, 1))

        def reconstruct(params: nnx.State):
            codec = nnx.merge(self._graph, params, state.rest)
            output = codec.reconstruct(wave, target, key, threshold)
            semantic = jnp.mean((target - output.features.astype(jnp.float32)) ** 2)
            return (output.wave, semantic, output.commitment), output

        (made, semantic, commitment), pull, output = jax.vjp(
            reconstruct, state.codec.params, has_aux=True
        )
        terms, gradients = self._gradients(lambda made: {"mel": mel_loss(wave, made, rate)}, made)
        adversary, metrics = state.adversary, {}
        if "adversarial" in begun:
            adversary, more_terms, more_gradients, metrics = self._judge(adversary, wave, made)
            terms, gradients = terms | more_terms, gradients | more_gradients
        if "perceptual" in begun:
            more_terms, more_gradients = self._perceive(wave, made, frozen)
            terms, gradients = terms | more_terms, gradients | more_gradients
        wave_gradient, balancer = self._wave_gradient(state, gradients)
        (gradient,) = pull(
            (wave_gradient, jnp.float32(losses.semantic), jnp.float32(losses.commitment))
        )
        codec, average = state.codec.update(gradient, self._optimiser), state.average
        if average is not None:
            average = averaged(average, codec.params, state.step, self._config.average)
        terms |= {"semantic": semantic, "commitment": commitment}
        metrics |= {
            "loss": weighted_sum(terms, losses),
            **terms,
            "gradient_norm": optax.tree.norm(gradient),
            "audio_seconds": wave.size / self._codec.sample_rate,
            **self._codebook_metrics(output),
        }
        after = CodecState(
            step=state.step + 1,
            key=state.key,
            codec=codec,
            rest=self._codebooks(codec.params, state.rest, output),
            average=average,
            adversary=adversary,
            balancer=balancer,
        )
        return after, metrics

    def _wave_gradient(
        self, state: CodecState, gradients: Terms
    ) -> tuple[jax.Array, BalancerState | None]:
        losses = self._config.losses
        if not losses.balance:
            return sum(gradients.values()), None
        return balance(
            gradients,
            {name: getattr(losses, name) for name in gradients},
            state.balancer,
            decay=losses.balance_decay,
            norm=losses.balance_norm,
        )

    def threshold(self, key: jax.Array) -> jax.Array | None:
        """Similarity at or below which segments begin, drawn for a step; None at a fixed rate."""
        dynamic = self._codec.dynamic
        if dynamic is None:
            return None
        return jax.random.uniform(key, (), minval=dynamic.lower, maxval=dynamic.upper)

    def _gradients(
        self, losses: Callable[[jax.Array], Terms], made: jax.Array
    ) -> tuple[Terms, Terms]:
        """Losses of the wave `made`, and their gradients: of each where they are to be balanced,
        else of all together, weighted."""
        terms, pull = jax.vjp(losses, made)
        if self._config.losses.balance:
            none = jax.tree.map(jnp.zeros_like, terms)
            return terms, {name: pull(none | {name: jnp.ones(())})[0] for name in terms}
        weights = {name: jnp.float32(getattr(self._config.losses, name)) for name in terms}
        return terms, {", ".join(terms): pull(weights)[0]}

    def _perceive(self, wave: jax.Array, made: jax.Array, frozen: Frozen) -> tuple[Terms, Terms]:
        """The perceptual loss and its gradient."""
        config = self._config.perceptual
        encoder = frozen.perceptual or SSLFeatures(config.features, frozen.features.encoder)
        distance = self._config.losses.perceptual_distance

        def features(wave: jax.Array) -> jax.Array:
            return encoder(resample_sinc(wave, self._codec.sample_rate, _SSL_RATE))

        reference = features(wave)
        return self._gradients(
            lambda made: {"perceptual": perceptual_loss(reference, features(made), distance)}, made
        )

    def _judge(
        self, learner: Learner, wave: jax.Array, made: jax.Array
    ) -> tuple[Learner, Terms, Terms, Terms]:
        """The discriminators after this step, losses of `made` by them with gradients, and
        metrics."""
        kind, graph = self._config.losses.adversarial_kind, self._adversary_graph

        def loss_of(params: nnx.State) -> jax.Array:
            judge = nnx.merge(graph, params)
            return discriminator_loss(judge(wave), judge(made), kind)

        loss, gradient = jax.value_and_grad(loss_of)(learner.params)
        learner = learner.update(gradient, self._adversary_optimiser)
        judge = nnx.merge(graph, learner.params)
        real = judge(wave)

        def losses(made: jax.Array) -> Terms:
            judgements = judge(made)
            values = adversarial_loss(judgements, kind), feature_matching_loss(real, judgements)
            return dict(zip(_ADVERSARIAL, values, strict=True))

        metrics = {
            "discriminator": loss,
            "discriminator_gradient_norm": optax.tree.norm(gradient),
        }
        return learner, *self._gradients(losses, made), metrics

    def _codebooks(self, params: nnx.State, rest: nnx.State, output: Reconstruction) -> nnx.State:
        codec = nnx.merge(self._graph, params, rest)
        codec.quantiser.set_state(output.state[0])
        codec.semantic_quantiser.set_state(output.state[1])
        return nnx.split(codec, nnx.Param, ...)[2]

    def _codebook_metrics(self, output: Reconstruction) -> Terms:
        metrics = {}
        for stream in ("acoustic", "semantic"):
            codes = getattr(output, stream)
            use, perplexity = codebook_use(codes, self._codec.quantiser.codebook_size)
            for layer in range(codes.shape[1]):
                metrics[f"{stream}_use/{layer}"] = use[layer]
                metrics[f"{stream}_perplexity/{layer}"] = perplexity[layer]
        if self._codec.dynamic:  # groups, none of which lacks its first layer
            seconds = output.wave.size / self._codec.sample_rate
            metrics["frame_rate"] = jnp.sum(output.semantic[:, 0] != DROPPED) / seconds
        return metrics


def codebook_use(codes: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Of each layer's codebook of `size`: the share of it that codes [batch, codebooks, time] use,
    and the perplexity of their distribution (1: one code alone; `size`: all alike), [codebooks]
    each. A layer that was dropped gives 0 and 1."""

    def layer(codes: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jnp.where(codes == DROPPED, size, codes).reshape(-1)
        counts = jnp.zeros(size).at[rows].add(1.0, mode="drop")
        share = counts / jnp.maximum(jnp.sum(counts), 1.0)
        entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0.0))
        return jnp.mean(counts > 0), jnp.exp(entropy)

    return jax.vmap(layer, 1)(codes)
