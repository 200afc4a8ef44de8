"""AdamW with warm-up and decay, as the published trainings use it, and averages of weights."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from quark_jax.errors import UserError


@dataclass(frozen=True)
class OptimiserConfig:
    """Learning rate: warm-up to `peak`, then times `decay` at every step, never below `floor` of
    the peak."""

    peak: float = 2e-4
    warmup: int = 0  # steps
    rise: str = "linear"  # the warm-up's shape, or "cosine": half a period, from 0
    decay: float = 1.0  # factor per step after the warm-up
    floor: float = 0.02  # share of `peak`
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float = 5.0  # largest global norm of the gradient

    def __post_init__(self):
        if self.rise not in ("linear", "cosine"):
            raise UserError(f"optimiser.rise {self.rise!r}: choose linear or cosine")


def schedule(config: OptimiserConfig) -> optax.Schedule:
    """Learning rate by step."""

    def rise(step: jax.Array) -> jax.Array:
        share = step / config.warmup
        if config.rise == "cosine":
            return config.peak * (1 - jnp.cos(jnp.pi * share)) / 2
        return config.peak * (share + (1 - share) / config.warmup)  # not 0 at the first step

    def fall(step: jax.Array) -> jax.Array:
        return config.peak * jnp.maximum(jnp.power(config.decay, step), config.floor)

    return optax.join_schedules([rise, fall], [config.warmup]) if config.warmup else fall


def optimiser(config: OptimiserConfig) -> optax.GradientTransformation:
    """Clipping, then AdamW (decoupled weight decay on what has named axes: kernels and tables).

    The parameters it is for are an `nnx.State`.
    """

    # Not by the number of axes: a stack that is scanned adds one to its biases and norms.
    def named(params: nnx.State) -> nnx.State:
        return jax.tree.map(
            lambda param: param.replace(param.get_metadata().get("axes") is not None),
            params,
            is_leaf=lambda node: isinstance(node, nnx.Variable),
        )

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule(config),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=named,
        ),
    )


def averaged(average: nnx.State, params: nnx.State, step: jax.Array, decay: float) -> nnx.State:
    """The running average of parameters after step `step`, counted from 0."""
    # In the beginning over fewer steps: the first weights are of no use.
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average, params)
