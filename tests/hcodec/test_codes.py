"""Codes with segment lengths mixed in, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quark_jax.errors import UserError
from quark_jax.hcodec import Codes

SIZE, LONGEST = 16, 8


@pytest.fixture
def codes():
    """Two items of 5 and 2 segments, 3 codebooks."""
    rng = np.random.default_rng(0)
    lengths = np.array([[1, 8, 2, 3, 1], [8, 4, 0, 0, 0]])
    held = lengths[:, None] > 0
    acoustic, semantic = (held * rng.integers(0, SIZE, (2, 3, 5)) for _ in range(2))
    return Codes(*(jnp.asarray(a) for a in (acoustic, semantic, lengths)))


def test_packed_is_length_minus_one_times_size_plus_code(codes):
    acoustic, semantic = codes.packed(SIZE)
    assert acoustic[0, 2, 1] == 7 * SIZE + codes.acoustic[0, 2, 1]
    assert semantic[1, 0, 1] == 3 * SIZE + codes.semantic[1, 0, 1]
    assert (acoustic[1, :, 2:] == -1).all() and (semantic[1, :, 2:] == -1).all()
    assert acoustic.max() < LONGEST * SIZE


def test_unpack_is_the_inverse_of_packed(codes):
    back = Codes.unpack(*codes.packed(SIZE), SIZE)
    for name in ("acoustic", "semantic", "lengths"):
        np.testing.assert_array_equal(getattr(back, name), getattr(codes, name))


def test_codes_of_a_fixed_rate_pack_to_themselves(codes):
    fixed = Codes(codes.acoustic, codes.semantic)
    acoustic, semantic = fixed.packed(SIZE)
    assert acoustic is codes.acoustic and semantic is codes.semantic
    assert fixed.frames == 5 and codes.frames == 15


@pytest.mark.parametrize("stream", [0, 1])
def test_layers_that_disagree_on_a_length_are_refused(codes, stream):
    packed = [np.array(a) for a in codes.packed(SIZE)]
    packed[stream][0, 2, 1] -= SIZE
    name = ("acoustic", "semantic")[stream]
    with pytest.raises(UserError, match=f"^{name} codes: layers disagree"):
        Codes.unpack(*packed, SIZE)


def test_codes_pass_through_jit(codes):
    out = jax.jit(lambda c: jax.tree.map(lambda a: a + 1, c))(codes)
    np.testing.assert_array_equal(out.lengths, codes.lengths + 1)
    assert jax.jit(lambda c: c)(Codes(codes.acoustic, codes.semantic)).lengths is None
