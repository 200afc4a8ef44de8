"""AdamW with warm-up and decay, as the published trainings use it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx


@dataclass(frozen=True)
class OptimiserConfig:
    """Learning rate: linear warm-up to `peak`, then times `decay` at every step, never below
    `floor` of the peak."""

    peak: float = 2e-4
    warmup: int = 0  # steps
    decay: float = 1.0  # factor per step after the warm-up
    floor: float = 0.02  # share of `peak`
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float = 5.0  # largest global norm of the gradient


def schedule(config: OptimiserConfig) -> optax.Schedule:
    """Learning rate by step."""
    rise = optax.linear_schedule(config.peak / max(1, config.warmup), config.peak, config.warmup)

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
