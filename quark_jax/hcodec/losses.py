"""What H-Codec learns from: distances between a recording and its reconstruction, what
discriminators and a frozen encoder make of the two, and how all of it is weighed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from quark_jax.audio import mel_spectrogram
from quark_jax.errors import UserError
from quark_jax.hcodec.adversary import Judgement

# Window in samples: mel bands (DAC, 2306.06546).
MEL_SCALES = {32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320}
_MEL_FLOOR = 1e-5
_KINDS = ("least_squares", "hinge")
_DISTANCES = ("l1", "mse")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the sum, those of `mel`, `adversarial` and `feature_matching` as in DAC."""

    mel: float = 15.0
    semantic: float = 1.0
    commitment: float = 1.0
    adversarial: float = 1.0
    feature_matching: float = 2.0
    perceptual: float = 0.0
    adversarial_kind: str = "least_squares"  # or "hinge"
    perceptual_distance: str = "l1"  # or "mse"
    balance: bool = False  # weights are shares of the gradient of the wave: `balance`
    balance_norm: float = 20.0  # of an item's whole gradient; about what the plain sum has
    balance_decay: float = 0.999  # of the averaged norms, per step

    def __post_init__(self):
        if self.adversarial_kind not in _KINDS:
            raise UserError(
                f"losses.adversarial_kind {self.adversarial_kind!r}: choose one of "
                + ", ".join(_KINDS)
            )
        if self.perceptual_distance not in _DISTANCES:
            raise UserError(
                f"losses.perceptual_distance {self.perceptual_distance!r}: choose one of "
                + ", ".join(_DISTANCES)
            )


def mel_loss(reference: jax.Array, estimate: jax.Array, rate: int) -> jax.Array:
    """Mean absolute difference of log10 mel magnitudes of waves [batch, samples], summed over the
    seven scales of DAC, hop a quarter of the window."""

    def log_mel(wave: jax.Array, window: int, bands: int) -> jax.Array:
        mel = mel_spectrogram(wave, rate, window, window // 4, bands)
        return jnp.log10(jnp.maximum(mel, _MEL_FLOOR))

    return sum(
        jnp.mean(jnp.abs(log_mel(reference, *scale) - log_mel(estimate, *scale)))
        for scale in MEL_SCALES.items()
    )


def discriminator_loss(
    real: Sequence[Judgement], made: Sequence[Judgement], kind: str = "least_squares"
) -> jax.Array:
    """What the discriminators learn from, summed over them (not averaged), each a mean over its
    scores: (1 - real)^2 + made^2 (LSGAN, as HiFi-GAN and DAC have it), or with `kind` "hinge"
    max(0, 1 - real) + max(0, 1 + made) (as EnCodec)."""
    scores = [
        (a.score.astype(jnp.float32), b.score.astype(jnp.float32))
        for a, b in zip(real, made, strict=True)
    ]
    if kind == "hinge":
        return sum(jnp.mean(jax.nn.relu(1 - a)) + jnp.mean(jax.nn.relu(1 + b)) for a, b in scores)
    return sum(jnp.mean((1 - a) ** 2) + jnp.mean(b**2) for a, b in scores)


def adversarial_loss(made: Sequence[Judgement], kind: str = "least_squares") -> jax.Array:
    """What the codec learns from the scores, summed over discriminators: the mean of
    (1 - made)^2, or with `kind` "hinge" of max(0, 1 - made) (as EnCodec)."""
    scores = [judgement.score.astype(jnp.float32) for judgement in made]
    if kind == "hinge":
        return sum(jnp.mean(jax.nn.relu(1 - score)) for score in scores)
    return sum(jnp.mean((1 - score) ** 2) for score in scores)


def feature_matching_loss(real: Sequence[Judgement], made: Sequence[Judgement]) -> jax.Array:
    """Mean absolute difference of each layer's features, summed over layers and discriminators as
    in HiFi-GAN (2010.05646, eq. 5) and DAC; no gradient passes to `real`."""
    return sum(
        jnp.mean(jnp.abs(jax.lax.stop_gradient(x).astype(jnp.float32) - y.astype(jnp.float32)))
        for a, b in zip(real, made, strict=True)
        for x, y in zip(a.features, b.features, strict=True)
    )


def perceptual_loss(reference: jax.Array, estimate: jax.Array, distance: str = "l1") -> jax.Array:
    """Mean absolute (`distance` "mse": squared) difference of features [batch, frames, channels]
    that a frozen encoder has of two waves; no gradient passes to `reference`. Use features that are
    not compressed: the gradient of |f|^0.3 is boundless near 0."""
    difference = estimate.astype(jnp.float32) - jax.lax.stop_gradient(reference)
    return jnp.mean(difference**2 if distance == "mse" else jnp.abs(difference))


def weighted_sum(terms: Mapping[str, jax.Array], config: LossConfig) -> jax.Array:
    """The terms, each named as its weight in `config`, times their weights."""
    return sum(getattr(config, name) * value for name, value in terms.items())


class BalancerState(NamedTuple):
    """Averaged gradient norms; `count` debiases `total`."""

    total: dict[str, jax.Array]
    count: dict[str, jax.Array]


def init_balancer(names: Sequence[str]) -> BalancerState:
    """The state before the first step, of losses with these names."""
    return BalancerState(
        {name: jnp.zeros(()) for name in names}, {name: jnp.zeros(()) for name in names}
    )


def balance(
    gradients: Mapping[str, jax.Array],
    weights: Mapping[str, float],
    state: BalancerState,
    *,
    decay: float = 0.999,
    norm: float = 1.0,
) -> tuple[jax.Array, BalancerState]:
    """One gradient of the wave [batch, samples] from that of each loss (EnCodec, 2210.13438,
    section 3.4), to be pulled back through the codec once, and the state after.

    Loss i gets the share weight_i / sum of weights of `norm`, however large it is itself: its
    gradient is divided by its moving average of norms. Losses are means over the batch, so the norm
    of an item counts times the batch size, and the sum weighs the same against losses that do not
    pass the wave at any batch size (EnCodec's does not: its total norm is `norm` times the batch
    size). A loss of the state without a gradient keeps its average: it may begin later. A state
    with numbers that are not finite does not recover.
    """
    total, count = dict(state.total), dict(state.count)
    weight, balanced = sum(weights[name] for name in gradients), 0.0
    for name, gradient in gradients.items():
        gradient = gradient.astype(jnp.float32)
        norms = gradient.shape[0] * jnp.sqrt(jnp.sum(gradient**2, axis=1))
        total[name] = decay * total[name] + jnp.mean(norms)
        count[name] = decay * count[name] + 1
        average = total[name] / count[name]
        balanced += norm * weights[name] / weight * gradient / (average + 1e-12)
    return balanced, BalancerState(total, count)
