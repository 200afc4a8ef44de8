"""One step of codec training beside the same thing put together by hand."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from quark_jax.encoders import FeatureConfig, SSLFeatures
from quark_jax.errors import UserError
from quark_jax.hcodec import Adversary, HCodec
from quark_jax.hcodec.config import DynamicConfig
from quark_jax.hcodec.losses import (
    LossConfig,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    mel_loss,
    perceptual_loss,
)
from quark_jax.training.codec_step import (
    CodecLearning,
    CodecState,
    Frozen,
    LearningConfig,
    PerceptualConfig,
)

LOSSES = LossConfig(perceptual=0.5, adversarial_kind="hinge")
FEATURES = SSLFeatures(FeatureConfig())
RATE = 16000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def codec_config(small):
    return replace(small.CODEC, decoder=replace(small.CODEC.decoder, dropout=0.0))


def waves(items: int = 4, frames: int = 8, seed: int = 0) -> jax.Array:
    """Tones in noise, another one in each item."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames * 640) / RATE
    tones = np.sin(2 * np.pi * rng.uniform(100, 2000, (items, 1)) * time)
    return jnp.asarray(0.3 * tones + 0.05 * rng.normal(size=tones.shape), jnp.float32)


class Learned(NamedTuple):
    learning: CodecLearning
    states: list[CodecState]  # before each step, and after the last
    metrics: list[dict[str, float]]  # of each step


def learn(codec_config, config: LearningConfig, steps: int = 1) -> Learned:
    learning = CodecLearning(codec_config, config, seed=0)
    states, metrics = [jax.jit(learning.init)()], []
    step = jax.jit(learning.step, static_argnums=3)
    for number in range(steps):
        begun = learning.begun(number)
        state, values = step(states[-1], waves(seed=number), Frozen(FEATURES), begun)
        states.append(state)
        metrics.append({name: float(value) for name, value in values.items()})
    return Learned(learning, states, metrics)


@pytest.fixture(scope="module")
def everything(codec_config, small) -> Learned:
    config = LearningConfig(
        losses=LOSSES,
        adversary=replace(small.ADVERSARY, begin=1),
        perceptual=PerceptualConfig(begin=1),
        average=0.15,
    )
    return learn(codec_config, config, steps=3)


@pytest.fixture(scope="module")
def plain(codec_config) -> Learned:
    return learn(codec_config, LearningConfig())


def equal(a, b) -> bool:
    return all(bool(jnp.all(x == y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_losses_join_at_their_step(everything, plain):
    _, states, metrics = everything
    # Before it, as if there were no such loss.
    assert metrics[0]["gradient_norm"] == pytest.approx(plain.metrics[0]["gradient_norm"], rel=1e-4)
    assert metrics[0]["loss"] == pytest.approx(plain.metrics[0]["loss"], rel=1e-5)
    assert equal(states[1].adversary, states[0].adversary)
    assert not equal(states[2].adversary.params, states[1].adversary.params)
    for name in ("adversarial", "feature_matching", "perceptual"):
        assert [row.get(name, 0) > 0 for row in metrics] == [False, True, True]


def test_each_loss_begins_at_its_own_step(codec_config, small):
    config = LearningConfig(
        losses=LOSSES,
        adversary=replace(small.ADVERSARY, begin=5),
        perceptual=PerceptualConfig(begin=7),
    )
    learning = CodecLearning(codec_config, config, seed=0)
    judged = {"mel", "adversarial", "feature_matching"}
    assert [set(learning.begun(number)) for number in (0, 4, 5, 6, 7)] == [
        *[{"mel"}] * 2,
        *[judged] * 2,
        judged | {"perceptual"},
    ]


def test_a_step_is_the_gradient_of_the_weighted_sum(codec_config, small, everything):
    _, (_, _, before, after), (*_, metrics) = everything
    wave = waves(seed=2)
    target = FEATURES(wave)
    codec = nnx.graphdef(HCodec(codec_config, rngs=nnx.Rngs(0)))
    judges = nnx.graphdef(Adversary(small.ADVERSARY.networks, rngs=nnx.Rngs(0)))

    @jax.jit
    def by_hand(params, judging, judged_by):
        def made(params):
            key = jax.random.fold_in(before.key, 2)
            return nnx.merge(codec, params, before.rest).reconstruct(wave, target, key)

        def discriminators(judging):
            judge = nnx.merge(judges, judging)
            return discriminator_loss(judge(wave), judge(made(params).wave), "hinge")

        def total(params):
            output, judge = made(params), nnx.merge(judges, judged_by)
            fake = judge(output.wave)
            return (
                LOSSES.mel * mel_loss(wave, output.wave, RATE)
                + LOSSES.semantic * jnp.mean((target - output.features) ** 2)
                + LOSSES.commitment * output.commitment
                + LOSSES.adversarial * adversarial_loss(fake, "hinge")
                + LOSSES.feature_matching * feature_matching_loss(judge(wave), fake)
                + LOSSES.perceptual * perceptual_loss(target, FEATURES(output.wave))
            )

        return jax.value_and_grad(total)(params), jax.value_and_grad(discriminators)(judging)

    judged_by = after.adversary.params  # the discriminators learn first
    results = by_hand(before.codec.params, before.adversary.params, judged_by)
    names = ("loss", "gradient_norm"), ("discriminator", "discriminator_gradient_norm")
    for (loss_name, norm_name), (loss, gradient) in zip(names, results, strict=True):
        assert metrics[loss_name] == pytest.approx(float(loss), rel=1e-5)
        assert metrics[norm_name] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)


def test_weights_are_averaged(everything):
    learning, states, _ = everything
    first, second, third = (jax.tree.leaves(state.codec.params) for state in states[:3])
    kept = jax.tree.leaves(nnx.state(learning.codec(states[2]), nnx.Param))
    for a, b, c, average in zip(first, second, third, kept, strict=True):
        once = 0.1 * a + 0.9 * b  # decay (1 + step) / (10 + step), at most 0.15
        np.testing.assert_allclose(average, 0.15 * once + 0.85 * c, rtol=0, atol=1e-6)


def test_balanced_losses_share_a_gradient_of_the_given_norm(codec_config):
    """A millionth of one leaves next to nothing of the gradient, whatever the losses weigh."""
    losses = LossConfig(balance=True, balance_norm=1e-6, semantic=0.0, commitment=0.0)
    _, states, rows = learn(codec_config, LearningConfig(losses=losses), steps=2)
    assert [float(state.balancer.count["mel"]) for state in states] == pytest.approx([0, 1, 1.999])
    assert 0 < rows[0]["gradient_norm"] < 1e-3


def test_bfloat16_computes_on_float32_parameters(codec_config, plain):
    config = LearningConfig(dtype="bfloat16")
    _, states, (row,) = learn(codec_config, config)
    learned = jax.tree.leaves((states[1].codec, states[1].rest))
    assert {x.dtype for x in learned if jnp.issubdtype(x.dtype, jnp.inexact)} == {
        np.dtype("float32")
    }
    assert row["loss"] == pytest.approx(plain.metrics[0]["loss"], rel=0.03)
    assert row["loss"] != plain.metrics[0]["loss"]


@pytest.fixture(scope="module")
def dynamic(codec_config) -> Learned:
    frames = DynamicConfig(
        lower=0.5,
        upper=0.9,
        heads=2,
        aggregator_layers=1,
        aggregator_inner=32,
        bottleneck_layers=1,
        bottleneck_inner=32,
    )
    return learn(replace(codec_config, dynamic=frames), LearningConfig(), steps=3)


def test_dynamic_rate_is_learned_through_and_logged(dynamic):
    learning, states, rows = dynamic
    rates = [row["frame_rate"] for row in rows]
    assert all(1 <= rate <= 25 for rate in rates)
    assert len(set(rates)) > 1
    assert all(np.isfinite(value) for row in rows for value in row.values())
    for name in ("aggregator", "semantic_aggregator", "bottleneck"):
        before, after = (getattr(learning.codec(state), name) for state in states[:2])
        assert not equal(before, after), name


def test_thresholds_are_drawn_from_their_range(dynamic):
    keys = jax.random.split(jax.random.key(0), 100)
    thresholds = jax.vmap(dynamic.learning.threshold)(keys)
    assert 0.5 <= min(thresholds) < 0.52 and 0.88 < max(thresholds) <= 0.9


def test_a_padded_item_gets_what_it_gets_alone(dynamic):
    """Items have unlike numbers of segments: what fills the shorter up must not be seen."""
    learning, states, _ = dynamic
    codec = learning.codec(states[-1])
    wave = waves(items=2).at[0].set(0.01)  # all alike: few segments
    target = FEATURES(wave)

    @jax.jit
    def losses(wave, target):
        output = codec.reconstruct(wave, target, jax.random.key(0), 0.7)
        mels = [mel_loss(wave[i : i + 1], output.wave[i : i + 1], RATE) for i in range(len(wave))]
        semantic = jnp.mean((target - output.features) ** 2, axis=(1, 2))
        return jnp.stack(mels), semantic, output.commitment, output.semantic

    *together, codes = losses(wave, target)
    segments = np.sum(np.asarray(codes)[:, 0] >= 0, axis=1)
    assert segments[0] < segments[1]
    alone = [losses(wave[i : i + 1], target[i : i + 1]) for i in range(2)]
    for i, (mel, semantic, _, own) in enumerate(alone):
        np.testing.assert_allclose(together[0][i], mel[0], rtol=1e-5)
        np.testing.assert_allclose(together[1][i], semantic[0], rtol=1e-5)
        np.testing.assert_array_equal(codes[i], own[0])
    # That of the batch is the mean over its segments.
    wanted = np.average([float(one[2]) for one in alone], weights=segments)
    np.testing.assert_allclose(together[2], wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16': choose one of float32, bfloat16"),
        ({"average": 1.0}, "average: 1.0; choose a decay"),
        ({"losses": LossConfig(perceptual=1.0)}, "losses.perceptual"),
        ({"perceptual": PerceptualConfig()}, "losses.perceptual"),
    ],
)
def test_configs_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        LearningConfig(**options)


def test_compressed_features_are_refused():
    with pytest.raises(UserError, match=r"perceptual\.features\.compress"):
        PerceptualConfig(FeatureConfig(compress=True))
