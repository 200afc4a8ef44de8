"""Sequences that share rows learn what they learn alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax.lm import (
    TASK_IDS,
    Conditions,
    Packing,
    Section,
    Targets,
)

FRAMES = np.array([4, 2, 5, 0, 1, 3])  # the fourth is not there
# Task, [S], sections with their start vectors, then 2T + 2 steps.
POSITIONS = np.array([2 + 8 + 10, 2 + 3 + 6 + 6, 2 + 4 + 2 + 12, 0, 2 + 5 + 4, 2 + 8 + 8])


def section(seed: int, lengths: list[int], channels: int) -> Section:
    features = np.random.default_rng(seed).normal(size=(len(lengths), 8, channels))
    features[np.arange(8) >= np.array(lengths)[:, None]] = np.nan
    return Section(jnp.array(features, jnp.float32), jnp.array(lengths))


@pytest.fixture(scope="module")
def batch() -> tuple[Conditions, Targets]:
    conditions = Conditions(
        jnp.array([TASK_IDS[name] for name in ("sr", "edit", "tse", "sr", "tta", "sr")]),
        section(0, [0, 2, 0, 0, 4, 0], 5),
        section(1, [0, 0, 3, 8, 0, 0], 6),
        section(2, [7, 5, 1, 8, 0, 7], 6),
    )
    rng = np.random.default_rng(3)
    codes = (jnp.array(rng.integers(0, size, (6, 3, 5))) for size in (20, 10))
    return conditions, Targets(*codes, jnp.array(FRAMES))


@partial(jax.jit, static_argnames="packing")
def learn(model, conditions, targets, packing=None):
    graph, params = nnx.split(model)

    def loss(params):
        result = nnx.merge(graph, params).loss(conditions, targets, packing)
        return result.loss, result

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize(
    ("items", "changes"),
    [(2, {}), (3, {"scan": True, "remat": "dots"}), (2, {"step_stride": 0.75, "beside": True})],
)
def test_packed_sequences_learn_what_they_learn_alone(make, batch, items, changes):
    model = make(**changes)
    (loss, alone), gradient = learn(model, *batch)
    full = int(POSITIONS.reshape(-1, items).sum(1).max())
    (packed_loss, packed), packed_gradient = learn(model, *batch, Packing(items, full))
    assert packed_loss == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_array_equal(packed.count, alone.count)
    np.testing.assert_allclose(packed.nats, alone.nats, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (packed_gradient, gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    # The longest row fills its positions; one less, and the loss says so.
    (short, _), _ = learn(model, *batch, Packing(items, full - 1))
    assert np.isnan(short)
