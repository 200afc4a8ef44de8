"""The discriminators: what an item gets, what they refuse, and how large they are. That they
compute what PyTorch does is shown in tests/interop/test_adversary.py."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax.errors import UserError
from quark_jax.hcodec import Adversary, AdversaryConfig
from quark_jax.interop import as_shapes

SMALL = AdversaryConfig(
    periods=(2, 3),
    period_widths=(4, 6, 8),
    windows=(64, 32),
    bands=((0.0, 0.3), (0.3, 1.0)),
    band_width=4,
)


@pytest.fixture(scope="module")
def adversary():
    return make(SMALL)


def make(config, dtype=None):
    """Filled with numbers of a seed: initialising layer by layer would compile for long."""
    shapes = as_shapes(lambda rngs: Adversary(config, dtype=dtype, rngs=rngs))
    return jax.tree.map(lambda a: jnp.asarray(5 * waves(*a.shape)), shapes)


@jax.jit
def judge(adversary, wave):
    return adversary(wave)


def waves(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.2, shape).astype(np.float32)


def assert_close(ours, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()))


def test_shapes_of_what_it_sees(adversary):
    judgements = judge(adversary, waves(3, 400))
    period, spectral = judgements[1], judgements[2]
    assert [j.score.shape for j in (period, spectral)] == [(3, 3, 15, 1), (3, 25, 5, 1)]
    assert [f.shape for f in period.features] == [(3, 3, 45, 4), (3, 3, 15, 6), (3, 3, 15, 8)]
    assert [f.shape[2] for f in spectral.features] == [9, 5, 3, 2, 2, 24, 12, 6, 3, 3]
    assert all(f.shape[:2] == (3, 25) and f.shape[3] == 4 for f in spectral.features)


def test_an_item_is_judged_alone_and_at_any_level(adversary):
    wave = waves(3, 400)
    together = judge(adversary, wave)
    for item in range(3):
        alone = judge(adversary, 0.01 * wave[item : item + 1] + 0.3)
        assert_close(alone, jax.tree.map(lambda a, i=item: a[i : i + 1], together), 1e-3)


def test_silence_gives_finite_numbers_and_gradients(adversary):
    def total(wave):
        return sum(j.score.sum() + sum(f.sum() for f in j.features) for j in adversary(wave))

    assert all(np.isfinite(jax.jit(jax.grad(total))(np.zeros((1, 400), np.float32))).ravel())


def test_bfloat16_computes_near_float32_on_the_same_parameters():
    config = replace(SMALL, periods=(3,), windows=(32,), bands=((0.0, 1.0),))
    whole, half = make(config), make(config, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype(jnp.float32)}
    ours, expected = judge(half, waves(1, 200)), judge(whole, waves(1, 200))
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.bfloat16)}
    assert_close(jax.tree.map(lambda a: a.astype(jnp.float32), ours), expected, tolerance=3e-2)


def test_a_new_one_is_scaled_as_pytorchs():
    """Weights uniform in +-1 / sqrt(fan in), gains their norms."""
    config = replace(SMALL, periods=(2,), period_widths=(64, 128), windows=())
    conv = Adversary(config, rngs=nnx.Rngs(0)).discriminators[0].convs[1]
    direction, bound = np.asarray(conv.direction[...]), 1 / np.sqrt(5 * 64)
    assert 0.99 * bound < np.abs(direction).max() <= bound
    assert direction.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    norms = np.linalg.norm(direction.reshape(-1, 128), axis=0)
    np.testing.assert_allclose(conv.gain[...], norms, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"), [("16khz", 42_519_760), ("48khz", 42_519_760), ("tiny", 747_278)]
)
def test_presets(name, parameters):
    config = AdversaryConfig.preset(name)
    shapes = as_shapes(lambda rngs: Adversary(config, rngs=rngs))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param))) == parameters


def test_every_kernel_has_axes_that_can_be_split():
    shapes = as_shapes(lambda rngs: Adversary(AdversaryConfig.preset("tiny"), rngs=rngs))
    for path, leaf in nnx.to_flat_state(nnx.state(shapes, nnx.Param)):
        if path[-1] == "direction":
            axes = leaf.get_metadata()["axes"]
            assert len(axes) == len(leaf.shape) and axes[-1] == "channels_out"
            assert axes[-2] == ("channels_in" if leaf.shape[-2] % 8 == 0 else None)


def test_short_waves_are_refused(adversary):
    with pytest.raises(UserError, match=r"wave: 47 samples are too few .* at least 48"):
        jax.eval_shape(adversary, waves(1, 47))
    assert len(jax.eval_shape(adversary, waves(1, 48))) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"periods": (), "windows": ()}, "neither periods nor windows"),
        ({"periods": (0,)}, r"periods \[0\]"),
        ({"period_widths": ()}, "at least one width"),
        ({"windows": (100,)}, "100 is not a multiple of 8"),
        ({"bands": ()}, "adversary.bands"),
        ({"bands": ((0.0, 0.01),)}, "without bins of a window of 64"),
        ({"bands": ((0.5, 1.1),)}, "between 0 and 1"),
    ],
)
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


def test_unknown_preset():
    with pytest.raises(UserError, match="'huge': unknown, choose one of 16khz, 48khz, tiny"):
        AdversaryConfig.preset("huge")
