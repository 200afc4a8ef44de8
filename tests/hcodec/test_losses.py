"""Losses by other means: librosa, PyTorch, finite differences, and by hand."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from quark_jax.audio import resample_sinc
from quark_jax.encoders import FeatureConfig, SSLFeatures
from quark_jax.errors import UserError
from quark_jax.hcodec.adversary import Judgement
from quark_jax.hcodec.losses import (
    MEL_SCALES,
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

RATE = 16_000


# Compiled once, for waves of one shape.
mel_loss_and_gradient = jax.jit(
    jax.value_and_grad(lambda estimate, reference: mel_loss(reference, estimate, RATE))
)


def waves(seed: int, samples: int = 6400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, samples)) * [[0.3], [0.01]]
    return (noise + np.sin(np.arange(samples) * 0.1 * (seed + 1))).astype(np.float32)


def librosa_mel(wave: np.ndarray, window: int, bands: int) -> np.ndarray:
    """log10 mel magnitudes [batch, bands, frames] of frames that start half a window less half a
    hop early."""
    padding = (window - window // 4) // 2
    spectrum = librosa.stft(
        np.pad(wave, ((0, 0), (padding, padding))).astype(np.float64),
        n_fft=window,
        hop_length=window // 4,
        window="hann",
        center=False,
    )
    filters = librosa.filters.mel(sr=RATE, n_fft=window, n_mels=bands, dtype=np.float64)
    return np.log10(np.maximum(filters @ np.abs(spectrum), 1e-5))


@pytest.mark.filterwarnings("ignore:Empty filters")
def test_mel_loss_is_librosas():
    reference, estimate = waves(0), waves(1)
    wanted = sum(
        np.mean(np.abs(librosa_mel(reference, *scale) - librosa_mel(estimate, *scale)))
        for scale in ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
    )
    assert len(MEL_SCALES) == 7
    loss, _ = mel_loss_and_gradient(estimate, reference)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_mel_loss_of_equals_is_nothing():
    assert float(mel_loss_and_gradient(waves(0), waves(0))[0]) < 1e-5


@pytest.mark.parametrize("silent", [(0,), (1,), (0, 1)])
def test_mel_loss_has_a_gradient_at_silence(silent):
    pair = [waves(i) * np.float32(i not in silent) for i in range(2)]
    loss, gradient = mel_loss_and_gradient(*pair)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert (float(loss) > 1) == (silent != (0, 1))


def judgements(seed: int) -> list[Judgement]:
    """Of two discriminators with features of unlike shapes."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(2 * rng.normal(size=shape), jnp.float32)

    return [
        Judgement(normal(2, 3, 4, 1), [normal(2, 3, 8, 5), normal(2, 3, 4, 6)]),
        Judgement(normal(2, 9, 1), [normal(2, 9, 7)]),
    ]


def test_adversarial_losses_by_hand():
    """Sums over discriminators of means over scores, of both signs and on both sides of 1."""
    real, made = judgements(0), judgements(1)
    scores = [
        (np.asarray(a.score, np.float64), np.asarray(b.score, np.float64))
        for a, b in zip(real, made, strict=True)
    ]
    squares = sum(((1 - a) ** 2).mean() + (b**2).mean() for a, b in scores)
    hinges = sum(np.maximum(0, 1 - a).mean() + np.maximum(0, 1 + b).mean() for a, b in scores)
    assert float(discriminator_loss(real, made)) == pytest.approx(squares, rel=1e-6)
    assert float(discriminator_loss(real, made, "hinge")) == pytest.approx(hinges, rel=1e-6)
    squares = sum(((1 - b) ** 2).mean() for _, b in scores)
    hinges = sum(np.maximum(0, 1 - b).mean() for _, b in scores)
    assert float(adversarial_loss(made)) == pytest.approx(squares, rel=1e-6)
    assert float(adversarial_loss(made, "hinge")) == pytest.approx(hinges, rel=1e-6)


def test_feature_matching_sums_layers_and_moves_only_what_is_made():
    real, made = judgements(0), judgements(1)
    wanted = sum(
        np.abs(np.asarray(x, np.float64) - np.asarray(y)).mean()
        for a, b in zip(real, made, strict=True)
        for x, y in zip(a.features, b.features, strict=True)
    )
    loss, gradients = jax.value_and_grad(feature_matching_loss, (0, 1))(real, made)
    assert float(loss) == pytest.approx(wanted, rel=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients[0]))
    for gradient in gradients[1]:
        assert not gradient.score.any() and all(f.all() for f in gradient.features)


def test_losses_of_bfloat16_judgements_are_summed_in_float32():
    """Means of 4096 equal features: bfloat16 sums would stop growing at 256."""
    shape = (1, 4096, 1)
    real = [Judgement(jnp.ones(shape, jnp.bfloat16), [jnp.ones(shape, jnp.bfloat16)])]
    made = [Judgement(jnp.zeros(shape, jnp.bfloat16), [jnp.zeros(shape, jnp.bfloat16)])]
    losses = feature_matching_loss(real, made), adversarial_loss(made)
    assert [(loss.dtype, float(loss)) for loss in losses] == [(jnp.float32, 1.0)] * 2


def test_perceptual_loss_by_hand():
    reference, estimate = np.random.default_rng(0).normal(size=(2, 2, 5, 3)).astype(np.float32)
    difference = reference - estimate
    assert float(perceptual_loss(reference, estimate)) == pytest.approx(np.abs(difference).mean())
    squares = perceptual_loss(reference, estimate, "mse")
    assert float(squares) == pytest.approx((difference**2).mean())
    assert not jax.grad(perceptual_loss)(reference, estimate).any()


def test_perceptual_gradient_passes_the_frozen_encoder_and_the_resampling():
    """From features at 16 kHz to a wave at 48 kHz, against a finite difference."""
    features = SSLFeatures(FeatureConfig())
    noise = np.random.default_rng(0).normal(0, 0.3, (3, 2, 4800)).astype(np.float32)
    reference, estimate, direction = noise

    def extract(wave):
        return features(resample_sinc(wave, 48_000, RATE))

    target = jax.jit(extract)(reference)

    @jax.jit
    @jax.value_and_grad
    def run(wave):
        return perceptual_loss(target, extract(wave), "mse")

    step = 1e-3
    gradient = run(estimate)[1]
    slope = (run(estimate + step * direction)[0] - run(estimate - step * direction)[0]) / (2 * step)
    assert np.vdot(gradient, direction) == pytest.approx(float(slope), rel=1e-2)
    assert np.abs(gradient).min(axis=1).max() > 0


def test_weighted_sum_of_terms_from_anywhere():
    config = LossConfig(adversarial=3.0, feature_matching=5.0, perceptual=7.0)
    terms = {"adversarial": 1.0, "feature_matching": 10.0, "perceptual": 100.0}
    assert weighted_sum(terms, config) == 3 + 50 + 700


@pytest.mark.parametrize("field", ["adversarial_kind", "perceptual_distance"])
def test_unknown_kinds_are_refused(field):
    with pytest.raises(UserError, match=f"losses.{field} 'sharp': choose one of"):
        LossConfig(**{field: "sharp"})


WEIGHTS = {"mel": 3.0, "adversarial": 1.0, "perceptual": 0.5}


def gradients(seed: int) -> dict[str, np.ndarray]:
    """Of unlike sizes, and unlike over the items of the batch."""
    rng = np.random.default_rng(seed)
    scales = {"mel": 20.0, "adversarial": 1e-3, "perceptual": 1.0}
    return {
        name: (scale * rng.normal(size=(4, 50)) * [[1], [2], [0.5], [3]]).astype(np.float32)
        for name, scale in scales.items()
    }


def run_balancer(steps, scale=1.0, **options):
    """The gradients that come out, of losses of which `mel` is `scale` times as large."""
    state, results = init_balancer(list(WEIGHTS)), []
    move = jax.jit(lambda g, state: balance(g, WEIGHTS, state, **options))
    for step in steps:
        given = gradients(step)
        result, state = move(given | {"mel": given["mel"] * np.float32(scale)}, state)
        results.append(np.asarray(result))
    return results


def item_norm(gradient) -> float:
    return float(np.linalg.norm(gradient, axis=1).mean())


@pytest.mark.parametrize("step", range(2))
def test_each_loss_gets_the_share_of_its_weight(step):
    """In the first step already, though averages begin at zero."""
    for name, weight in WEIGHTS.items():
        alone = {other: g * (other == name) for other, g in gradients(step).items()}
        state = init_balancer(list(WEIGHTS))
        result, _ = balance(alone, WEIGHTS, state, norm=2.0)
        # That of a mean over the batch of four.
        assert item_norm(result) * 4 == pytest.approx(2.0 * weight / 4.5, rel=1e-5)
        cosine = np.vdot(result, alone[name]) / np.linalg.norm(result)
        assert cosine == pytest.approx(np.linalg.norm(alone[name]), rel=1e-5)


def test_balanced_gradients_are_encodecs():
    """Section 3.4 of 2210.13438 by hand: norms averaged over steps with weights decay^age."""
    results = run_balancer(range(5), decay=0.8, norm=2.0)
    for last, result in enumerate(results):
        ages = 0.8 ** np.arange(last, -1, -1.0)
        wanted = 0.0
        for name, weight in WEIGHTS.items():
            norms = [4 * item_norm(gradients(step)[name]) for step in range(last + 1)]
            average = np.sum(ages * norms) / np.sum(ages)
            wanted = wanted + 2.0 * weight / 4.5 * gradients(last)[name] / average
        np.testing.assert_allclose(result, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_size_of_a_loss_is_nothing_to_the_balancer():
    for a, b in zip(run_balancer(range(3)), run_balancer(range(3), scale=1e4), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_a_loss_that_joins_later_begins_its_average_then():
    state = init_balancer(list(WEIGHTS))
    for step in range(3):
        early = {name: g for name, g in gradients(step).items() if name != "adversarial"}
        result, state = balance(early, WEIGHTS, state)
        assert float(state.count["adversarial"]) == 0
    fresh = balance(early, WEIGHTS, init_balancer(list(early)))[0]
    assert item_norm(fresh) == pytest.approx(item_norm(result), rel=0.2)
    _, state = balance(gradients(3), WEIGHTS, state)
    average = state.total["adversarial"] / state.count["adversarial"]
    assert float(average) == pytest.approx(4 * item_norm(gradients(3)["adversarial"]), rel=1e-5)


def test_a_loss_without_a_gradient_does_no_harm():
    silent = gradients(0) | {"mel": np.zeros((4, 50), np.float32)}
    result, state = balance(silent, WEIGHTS, init_balancer(list(WEIGHTS)))
    assert np.isfinite(result).all() and result.any()
    assert np.isfinite(balance(gradients(1), WEIGHTS, state)[0]).all()


def test_one_pull_back_of_the_balanced_gradient_is_that_of_the_losses():
    """With shares undone, the codec gets what the plain weighted sum gives it."""
    wave, params = waves(0, 400), waves(1, 400)

    def codec(params):
        return jnp.tanh(params * wave)

    losses = {"mel": lambda x: jnp.mean(x**2), "adversarial": lambda x: jnp.mean(jnp.sin(5 * x))}
    made, pull = jax.vjp(codec, params)
    given = {name: jax.grad(loss)(made) for name, loss in losses.items()}
    norms = {name: 2 * item_norm(g) for name, g in given.items()}
    weights = {name: 3 * norm for name, norm in norms.items()}  # losses weigh 3 each
    balanced, _ = balance(given, weights, init_balancer(list(losses)), norm=sum(weights.values()))
    plain = jax.grad(lambda p: sum(3 * loss(codec(p)) for loss in losses.values()))(params)
    np.testing.assert_allclose(pull(balanced)[0], plain, atol=1e-5 * np.abs(plain).max())
