import jax.numpy as jnp
import numpy as np
import pytest

from quark_jax.nn.rotary import rotate_half, rotate_pairs

RNG = np.random.default_rng(0)


def rotate_by_complex_numbers(pairs, positions, theta):
    """[time, heads, dim / 2, 2] turned in the complex plane, in float64."""
    dim = 2 * pairs.shape[-2]
    angles = positions[:, None, None] * theta ** (-2 * np.arange(dim // 2) / dim)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rotate_pairs_turns_neighbours_in_the_complex_plane(theta):
    x = RNG.normal(size=(40, 3, 16)).astype(np.float32)
    positions = np.arange(7, 47)
    expected = rotate_by_complex_numbers(x.reshape(40, 3, 8, 2), positions, theta)
    np.testing.assert_allclose(
        rotate_pairs(x, positions[:, None], theta), expected.reshape(x.shape), atol=1e-5
    )


def test_rotate_half_turns_channels_half_a_head_apart():
    x = RNG.normal(size=(40, 3, 16)).astype(np.float32)
    positions = np.arange(40)
    pairs = np.stack([x[..., :8], x[..., 8:]], axis=-1)
    expected = rotate_by_complex_numbers(pairs, positions, 10000.0)
    expected = np.concatenate([expected[..., 0], expected[..., 1]], axis=-1)
    np.testing.assert_allclose(rotate_half(x, positions[:, None]), expected, atol=1e-5)


@pytest.mark.parametrize("rotate", [rotate_half, rotate_pairs])
def test_scores_depend_on_distance_only(rotate):
    q, k = RNG.normal(size=(2, 1, 1, 32)).astype(np.float32)
    scores = [
        jnp.sum(rotate(q, jnp.array([p + 5])) * rotate(k, jnp.array([p]))) for p in (0, 3, 200)
    ]
    np.testing.assert_allclose(scores, scores[0], atol=1e-4)


@pytest.mark.parametrize("rotate", [rotate_half, rotate_pairs])
def test_each_item_has_its_own_positions(rotate):
    x = RNG.normal(size=(2, 5, 2, 8)).astype(np.float32)
    positions = jnp.array([[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]])
    together = rotate(x, positions[..., None])
    for i in range(2):
        np.testing.assert_allclose(together[i], rotate(x[i], positions[i, :, None]), atol=1e-6)


@pytest.mark.parametrize("rotate", [rotate_half, rotate_pairs])
def test_heads_may_stand_before_the_positions(rotate):
    x = RNG.normal(size=(2, 5, 3, 8)).astype(np.float32)
    behind = rotate(x, jnp.arange(5)[:, None])
    np.testing.assert_array_equal(rotate(x.swapaxes(1, 2), jnp.arange(5)).swapaxes(1, 2), behind)


def test_rotate_half_is_the_plain_formula():
    x = RNG.normal(size=(200, 64)).astype(np.float32)
    a, b = x[:, :32], x[:, 32:]
    frequencies = 1 / np.float32(10000) ** (np.arange(0, 64, 2, dtype=np.float32) / 64)
    angles = np.arange(200, dtype=np.float32)[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    expected = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    np.testing.assert_allclose(rotate_half(x, jnp.arange(200)), expected, atol=2e-5)


def test_bfloat16_is_rounded_once():
    """The halves change places in a product, which has to be exact."""
    x = jnp.asarray(RNG.normal(size=(200, 64)), jnp.bfloat16)
    whole = rotate_half(x.astype(jnp.float32), jnp.arange(200))
    np.testing.assert_array_equal(rotate_half(x, jnp.arange(200)), whole.astype(jnp.bfloat16))


def test_bfloat16_keeps_its_dtype_and_a_large_position():
    x = jnp.ones((1, 1, 64), jnp.bfloat16)
    exact = rotate_half(x.astype(jnp.float32), jnp.array([3001]))
    rotated = rotate_half(x, jnp.array([3001]))
    assert rotated.dtype == jnp.bfloat16
    np.testing.assert_allclose(rotated.astype(jnp.float32), exact, atol=0.02)


def test_odd_head_dimension_is_refused():
    with pytest.raises(ValueError, match="even head dimension"):
        rotate_half(jnp.ones((4, 1, 7)), jnp.arange(4))
