import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax.nn import linear
from quark_jax.nn.stack import REMAT_POLICIES, Stack


class Block(nnx.Module):
    def __init__(self, rngs):
        self.inner = linear(8, 8, axes=("embed", "mlp"), rngs=rngs)

    def __call__(self, x, gain):
        return x + gain * jnp.tanh(self.inner(x))


def make(scan=False, remat=None):
    return Stack(Block, 3, scan=scan, remat=remat, rngs=nnx.Rngs(0))


def value_and_gradient(stack):
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    loss, grads = jax.value_and_grad(lambda s: jnp.sum(s(x, 0.5) ** 2))(stack)
    kernels = [b.inner.kernel[...] for b in grads.unstacked()]
    return loss, jnp.stack(kernels)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", [None, "full", "dots"])
def test_scanned_and_rematerialised_stacks_equal_the_plain_one(scan, remat):
    loss, kernels = value_and_gradient(make(scan, remat))
    expected_loss, expected_kernels = value_and_gradient(make())
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(kernels, expected_kernels, rtol=1e-5, atol=1e-5)


def test_dots_keeps_products_with_long_sums_alone(capsys):
    def apply(x, wide, narrow):
        return jnp.sin(jnp.sin(x @ wide) @ narrow).sum()

    arrays = [jnp.ones(shape) for shape in ((4, 256), (256, 64), (64, 64))]
    kept = jax.checkpoint(apply, policy=REMAT_POLICIES["dots"])
    jax.ad_checkpoint.print_saved_residuals(kept, *arrays)
    made = [line for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    assert len(made) == 1 and made[0].startswith("f32[4,64] ")


def test_scanned_parameters_name_their_leading_axis():
    kernel = make(scan=True).blocks.inner.kernel
    assert kernel.shape == (3, 8, 8)
    assert kernel.get_metadata()["axes"] == ("layers", "embed", "mlp")
    assert make().blocks[0].inner.kernel.get_metadata()["axes"] == ("embed", "mlp")


def test_scanned_stack_compiles_one_block():
    def operations(stack):
        jaxpr = jax.make_jaxpr(lambda s, x: s(x, 0.5))(stack, jnp.ones((2, 8)))
        return str(jaxpr).count("dot_general[")

    assert operations(make()) == 3
    assert operations(make(scan=True)) == 1


def test_unstacked_blocks_are_the_stack():
    stack = make(scan=True)
    x = expected = jnp.ones((2, 8))
    for block in stack.unstacked():
        x = block(x, 0.5)
    np.testing.assert_allclose(x, stack(expected, 0.5), atol=1e-6)


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="remat='all'"):
        make(remat="all")
