"""The TPU kernel, interpreted, attends as XLA does; so does a step to caches as a TPU has them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quark_jax.lm.attention import as_cached, attend, attend_step, splash_flops
from quark_jax.nn.stack import REMAT_POLICIES


def inputs(time: int = 128, heads: int = 4, kv_heads: int = 2) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, count, time, 8) for count in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("packed", [False, True])
def test_the_kernel_gives_what_xla_gives(packed):
    """Values and gradients, with grouped heads; rows of one sequence, and of three."""
    arguments = inputs()
    segments = jnp.repeat(jnp.array([[0, 1, 2], [0, 0, 1]]), 43, axis=1)[:, :128]

    def weighed(kind, *arguments):
        y = attend(*arguments, segments if packed else None, kind=kind)
        return jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y), y

    (_, plain), wanted = jax.value_and_grad(partial(weighed, "xla"), (0, 1, 2), has_aux=True)(
        *arguments
    )
    (_, made), gradients = jax.jit(
        jax.value_and_grad(partial(weighed, "splash"), (0, 1, 2), has_aux=True)
    )(*arguments)
    np.testing.assert_allclose(made, plain, atol=2e-6)
    for ours, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_policy_dots_keeps_what_the_kernel_gives(capsys):
    """Values and the logarithms of sums, of which the backward kernels are made."""
    kept = jax.checkpoint(partial(attend, kind="splash"), policy=REMAT_POLICIES["dots"])
    jax.ad_checkpoint.print_saved_residuals(kept, *inputs())
    made = [line for line in capsys.readouterr().out.splitlines() if "output of" in line]
    assert [line.split()[0] for line in made] == ["f32[2,4,128,8]", "f32[2,4,128]"]


def test_rows_that_the_kernel_does_not_take_are_refused():
    with pytest.raises(ValueError, match="rows of 100 positions"):
        attend(*inputs(time=100), kind="splash")


def test_without_a_tpu_it_is_xla_that_attends():
    arguments = inputs()
    jaxpr = str(jax.make_jaxpr(attend)(*arguments))
    assert "pallas_call" not in jaxpr
    assert "pallas_call" in str(jax.make_jaxpr(partial(attend, kind="splash"))(*arguments))


def test_operations_of_the_kernel():
    """One block: all pairs; two: three of four. Two products forward, seven backward."""
    assert splash_flops(1, 1, 128, 1, forward=1) == 128**2 * 2 * (2 + 7)
    assert splash_flops(1, 1, 1024, 1, forward=1) == 0.75 * 1024**2 * 18


def test_heads_side_by_side_attend_as_they_do_one_by_one(monkeypatch):
    query, key, value = inputs(time=9)
    mask = jnp.arange(9) < jnp.array([[4], [9]])
    apart = attend_step(query[:, :, 4:5], as_cached(key), as_cached(value), mask)
    monkeypatch.setattr("quark_jax.lm.attention.platform", lambda: "tpu")
    beside = as_cached(key)
    assert beside.shape == (2, 9, 16)
    together = attend_step(query[:, :, 4:5], beside, as_cached(value), mask)
    np.testing.assert_allclose(together, apart, atol=1e-6)
