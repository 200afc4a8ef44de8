"""Learning rates by hand, and AdamW as it is written down."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from quark_jax.errors import UserError
from quark_jax.training.optimiser import OptimiserConfig, optimiser, schedule


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (OptimiserConfig(peak=2e-4), {0: 2e-4, 1: 2e-4, 10**6: 2e-4}),
        (
            OptimiserConfig(peak=1.0, decay=0.5, floor=0.1),
            {0: 1, 1: 0.5, 3: 0.125, 4: 0.1, 99: 0.1},
        ),
        (
            OptimiserConfig(peak=1.0, warmup=4, decay=0.5, floor=0.1),
            {0: 0.25, 1: 0.4375, 2: 0.625, 3: 0.8125, 4: 1, 5: 0.5, 7: 0.125, 8: 0.1, 99: 0.1},
        ),
        (OptimiserConfig(peak=1.0, warmup=4), {0: 0.25, 4: 1, 5: 1, 1000: 1}),
        (
            OptimiserConfig(peak=2.0, warmup=4, rise="cosine", decay=0.5),
            {0: 0, 1: 1 - 0.5**0.5, 2: 1, 3: 1 + 0.5**0.5, 4: 2, 5: 1},
        ),
        (OptimiserConfig(peak=1.0, decay=0.5, floor=0.0), {20: 0.5**20}),
    ],
)
def test_schedule(config, wanted):
    rate = schedule(config)
    for step, value in wanted.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-6)
        assert float(jax.jit(rate)(step)) == pytest.approx(value, rel=1e-6)


def test_a_rise_there_is_not_is_refused():
    with pytest.raises(UserError, match=r"optimiser\.rise 'steep': choose linear or cosine"):
        OptimiserConfig(rise="steep")


def state(**arrays) -> nnx.State:
    axes = {"kernel": ("embed", "mlp"), "stacked": ("layers", "embed", "mlp")}
    return nnx.State(
        {
            name: nnx.Param(jnp.asarray(array), **({"axes": axes[name]} if name in axes else {}))
            for name, array in arrays.items()
        }
    )


def plain(tree: nnx.State) -> dict[str, np.ndarray]:
    return {path[0]: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(tree)}


def test_adamw_with_clipping_and_decay_of_kernels_alone():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "stacked": (2, 3, 4), "norms": (2, 4)}
    values = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    config = OptimiserConfig(
        peak=0.1, warmup=2, decay=0.9, beta1=0.8, beta2=0.95, weight_decay=0.3, clip=1.0
    )
    transform, rate = optimiser(config), schedule(config)
    params = state(**values)
    moments = transform.init(params)
    first = {name: 0.0 for name in values}
    second = {name: 0.0 for name in values}
    for step in range(5):
        gradients = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
        updates, moments = transform.update(state(**gradients), moments, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum(np.sum(g.astype("f8") ** 2) for g in gradients.values()))
        assert norm > config.clip
        for name, gradient in gradients.items():
            g = gradient / norm
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            mean, square = (
                first[name] / (1 - 0.8 ** (step + 1)),
                second[name] / (1 - 0.95 ** (step + 1)),
            )
            decay = 0.3 if name in ("kernel", "stacked") else 0.0
            values[name] = values[name] - float(rate(step)) * (
                mean / (np.sqrt(square) + 1e-8) + decay * values[name]
            )
        for name, array in plain(params).items():
            np.testing.assert_allclose(array, values[name], rtol=2e-5, atol=2e-6)


def test_small_gradients_are_not_scaled_up():
    transform = optimiser(OptimiserConfig(clip=5.0))
    params = state(kernel=np.ones((3, 4), "f4"))
    gradient = np.full((3, 4), 1e-3, "f4")
    _, moments = transform.update(state(kernel=gradient), transform.init(params), params)
    adam = next(part for part in jax.tree.leaves(moments, is_leaf=_is_adam) if _is_adam(part))
    np.testing.assert_allclose(plain(adam.mu)["kernel"], 0.1 * gradient, rtol=1e-6)


def _is_adam(node) -> bool:
    return isinstance(node, optax.ScaleByAdamState)
