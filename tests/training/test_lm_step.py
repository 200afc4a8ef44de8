"""One step of the language model: the same in parts, by hand, and of adapters alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax.conditioning import Conditioner, ConditionerConfig
from quark_jax.errors import UserError
from quark_jax.interop.lm import lm_to_torch
from quark_jax.lm import TASK_IDS, LanguageModel, LMConfig, LMLoss, Packing
from quark_jax.lm.lora import LoraConfig
from quark_jax.training.lm_step import (
    Frozen,
    LearningConfig,
    LMLearning,
    SectionDropout,
    measures,
    sums_by_task,
)
from quark_jax.training.optimiser import OptimiserConfig

LM = LMConfig.preset(
    "tiny",
    layers=2,
    width=16,
    heads=2,
    kv_heads=1,
    mlp=24,
    codebooks=2,
    acoustic_size=5,
    semantic_size=5,
    scan=True,
)
TASKS = ("sr", "tse", "vc")
LEARNING = LearningConfig(OptimiserConfig(peak=1e-2), SectionDropout(reference=0.5, input=0.3))
FRAMES = np.array([4, 2, 3, 0, 1, 4, 2, 3], np.int32)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    lengths = np.array([8, 4, 6, 8, 2, 8, 4, 6], np.int32)
    return {
        "task": np.array([TASK_IDS[n] for n in ("sr", "tse") * 4], np.int32),
        "input_features": rng.normal(size=(8, 8, 80)).astype(np.float32),
        "input_frames": lengths,
        "reference_features": rng.normal(size=(8, 3, 80)).astype(np.float32),
        "reference_frames": np.array([0, 3] * 4, np.int32),
        "acoustic": rng.integers(0, 5, (8, 2, 4)).astype(np.int32),
        "semantic": rng.integers(0, 5, (8, 2, 4)).astype(np.int32),
        "frames": FRAMES,
    }


@pytest.fixture(scope="module")
def frozen():
    return Frozen(Conditioner(ConditionerConfig()))


def learn(config, batch, frozen, *, packing=None, steps=2, params=None):
    """The states after each step, and the metrics of the last."""
    learning = LMLearning(LM, config, tasks=TASKS, packing=packing, seed=3)
    states, step = [learning.init(params)], jax.jit(learning.step)
    for _ in range(steps):
        state, metrics = step(states[-1], batch, frozen)
        states.append(state)
    return learning, states, metrics


@pytest.fixture(scope="module")
def whole(batch, frozen):
    return learn(replace(LEARNING, average=0.9), batch, frozen)


def test_a_packed_batch_in_parts_is_the_whole_batch(whole, batch, frozen):
    config, packing = replace(LEARNING, accumulate=2), Packing(2, 60)
    _, states, metrics = learn(config, batch, frozen, packing=packing)
    assert set(metrics) == set(whole[2])
    for name, value in whole[2].items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, err_msg=name)
    for ours, theirs in zip(
        *(map(jax.tree.leaves, (states[1].params, whole[1][1].params))), strict=True
    ):
        # Where a gradient is nearly 0, Adam makes a whole step of its rounding error.
        assert np.mean(np.abs(ours - theirs) < 1e-5) > 0.99


def test_sections_are_dropped_as_often_as_was_said(batch):
    learning = LMLearning(LM, LEARNING, tasks=(), packing=None, seed=0)
    dropped = learning._draw_dropped(jax.random.key(1), 4000)
    np.testing.assert_allclose(dropped.mean(0), [0, 0.5, 0.3], atol=0.03)
    both = (dropped[:, 1] & dropped[:, 2]).mean()
    assert both == pytest.approx(0.15, abs=0.03)  # independent of each other
    with pytest.raises(UserError, match=r"dropout\.input: 1\.0"):
        SectionDropout(input=1.0)


def test_a_task_is_measured_by_itself_and_not_where_it_is_not():
    nats, correct = (
        np.array([[2.0, 4.0], [6.0, 1.0], [5.0, 5.0]]),
        np.array([[1, 0], [2, 3], [0, 1]]),
    )
    codes = np.array([[2, 2], [4, 4], [1, 1]])
    result = LMLoss(*(jnp.array(a) for a in (0.0, nats, codes, correct, codes)))
    task = jnp.array([TASK_IDS[n] for n in ("tse", "sr", "tse")])
    found = measures(sums_by_task(result, task, TASKS), TASKS)
    assert float(found["sr/nats_per_code"]) == pytest.approx(7 / 8)
    assert float(found["tse/nats_per_code"]) == pytest.approx(16 / 6)
    assert float(found["tse/accuracy"]) == pytest.approx(2 / 6)
    assert float(found["tse/accuracy/1"]) == pytest.approx(1 / 3)
    assert float(found["nats_per_code"]) == pytest.approx(23 / 14)
    assert float(found["accuracy/0"]) == pytest.approx(3 / 7)
    assert np.isnan(found["vc/accuracy"]) and np.isnan(found["vc/nats_per_code"])


def test_averaged_weights_are_those_that_are_kept(whole, frozen):
    learning, states, _ = whole
    wanted = states[0].params
    for number, state in enumerate(states[1:]):
        decay = (1 + number) / (10 + number)  # of so early a step
        wanted = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, wanted, state.params)
    kept = nnx.state(learning.model(states[-1], frozen))
    for ours, theirs in zip(*map(jax.tree.leaves, (kept, wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_adapters_change_the_backbone_by_little_and_export_as_llama(batch, frozen):
    model = LanguageModel(LM, rngs=nnx.Rngs(7))
    base = nnx.state(model)
    lora = LoraConfig(rank=2, alpha=3.0, kernels=("query", "down"), parts=("tasks",))
    frozen = frozen._replace(base=base)
    learning, states, _ = learn(replace(LEARNING, lora=lora), batch, frozen, params=base)
    before, first, last = (
        lm_to_torch(m) for m in (model, *(learning.model(states[i], frozen) for i in (0, 2)))
    )
    assert list(before) == list(first) == list(last)
    changed = set()
    for name, value in before.items():
        np.testing.assert_array_equal(first[name], value)
        difference = last[name] - value
        if difference.any():
            changed.add(name)
            rank = np.linalg.matrix_rank(difference, tol=1e-4 * np.abs(difference).max())
            assert name == "tasks" or rank == 2
    layers = ("self_attn.q_proj", "mlp.down_proj")
    assert changed == {
        "tasks",
        *(f"model.layers.{i}.{layer}.weight" for i in range(2) for layer in layers),
    }
    trained = sum(leaf.size for leaf in jax.tree.leaves(states[0].params))
    assert trained == 16 * 16 + 2 * 2 * ((16 + 16) + (24 + 16))


def test_what_cannot_be_learned_so_is_refused():
    with pytest.raises(UserError, match="accumulate: 0"):
        LearningConfig(accumulate=0)
    with pytest.raises(ValueError, match="kernel 'head'"):
        LoraConfig(kernels=("head",))
