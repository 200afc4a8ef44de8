import dataclasses
import functools
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax.lm.attention import attend_step
from quark_jax.lm.layout import Conditions, Section, drop_sections
from quark_jax.lm.sampling import GREEDY, Sampling, _pick, generate, generate_loop
from quark_jax.lm.tasks import TASK_IDS
from quark_jax.training.sharding import MeshConfig

FRAMES = np.array([4, 6, 3])
KEYS = jax.vmap(jax.random.key)(jnp.array([5, 6, 7]))


@pytest.fixture(scope="module")
def make(make):
    """Random weights, with heads strong enough that what is most probable is so by far."""

    @functools.cache
    def strong(**changes):
        model = nnx.clone(make(**{"text_channels": 0} | changes))
        model.head.kernel.set_value(3 * model.head.kernel[...])
        model.embedding.embedding.set_value(20 * model.embedding.embedding[...])
        return model

    return strong


def conditions(tasks=("sr", "tse", "sr"), padding=0, text_channels=0):
    rng = np.random.default_rng(0)

    def section(lengths, channels):
        features = rng.normal(size=(3, 7, channels)).astype(np.float32)
        features = jnp.pad(features, ((0, 0), (0, padding), (0, 0)), constant_values=np.nan)
        return Section(features, jnp.array(lengths))

    reference, source = section([0, 4, 0], 6), section([7, 3, 5], 6)
    caption = section([0, 2, 7], text_channels) if text_channels else None
    return Conditions(jnp.array([TASK_IDS[t] for t in tasks]), caption, reference, source)


def item(tree, i):
    return jax.tree.map(lambda a: a[i : i + 1], tree)


@functools.partial(jax.jit, static_argnames=("aligned", "sampling"))
def uncached_step(model, conditions, tokens, step, frames, aligned, sampling):
    """Draw one step from a pass over the whole sequence."""
    pattern = model.pattern
    steps = jnp.array([tokens.shape[1] - 1])

    def logits(conditions):
        return model.logits(model(conditions, tokens, steps)[:, step])

    wanted = logits(conditions)
    if sampling.guidance != 1:
        other = logits(drop_sections(conditions, sampling.guided))
        wanted = other + sampling.guidance * (wanted - other)
    wanted = jnp.where(pattern.allowed(step, frames, aligned), wanted, -jnp.inf)
    drawn, frames = pattern.settle(wanted.argmax(-1), step, frames)
    return tokens.at[:, step].set(drawn), frames


def uncached_greedy(model, conditions, frames, aligned=True, sampling=GREEDY, longest=6):
    """Token by token, the whole sequence anew each time, one item, without a cache."""
    pattern = model.pattern
    shape = (1, pattern.steps(longest) + 1, pattern.heads)
    tokens = jnp.full(shape, pattern.vocabulary.pad)
    step, frames = 0, jnp.array([frames])
    while step < pattern.steps(int(frames[0])):
        tokens, frames = uncached_step(model, conditions, tokens, step, frames, aligned, sampling)
        step += 1
    tokens = tokens.at[:, pattern.steps(int(frames[0]))].set(pattern.vocabulary.end)
    return pattern.revert(tokens)


def assert_same(codes, i, expected):
    acoustic, semantic, frames = expected
    n = int(frames[0])
    assert codes.frames[i] == n
    for ours, theirs in ((codes.acoustic, acoustic), (codes.semantic, semantic)):
        np.testing.assert_array_equal(ours[i, :, :n], theirs[0, :, :n])
        assert not np.any(ours[i, :, n:])


@pytest.mark.parametrize(
    "changes",
    [
        {"text_channels": 5},
        {"pattern": "parallel", "scan": True},
        {"pattern": "flat"},
        {"step_stride": 0.5},
        {"step_stride": 0.5, "stack_features": True, "beside": True},
    ],
)
def test_greedy_equals_the_uncached_reference(make, changes):
    model = make(**changes)
    given = conditions(text_channels=model.config.text_channels)
    codes = generate(model, given, FRAMES, KEYS, GREEDY)
    assert codes.acoustic.shape == (3, 3, 6)
    for i in range(3):
        expected = uncached_greedy(model, item(given, i), FRAMES[i])
        assert_same(codes, i, expected)
    assert len(np.unique(codes.acoustic)) > 4  # it does not say one thing only


def test_codes_on_a_tpu_are_those_on_a_cpu(make, monkeypatch):
    """With the caches that are laid out for it."""
    given = make(), conditions(), FRAMES, KEYS, Sampling(0.8)
    expected, shapes = generate(*given), []

    def seen(query, key, value, mask):
        shapes.append(key.shape)
        return attend_step(query, key, value, mask)

    monkeypatch.setattr("quark_jax.lm.model.attend_step", seen)
    monkeypatch.setattr("quark_jax.lm.attention.platform", lambda: "tpu")
    generate_loop.clear_cache()
    try:
        codes = generate(*given)
    finally:
        generate_loop.clear_cache()
    assert shapes and all(len(shape) == 3 for shape in shapes)
    for ours, theirs in zip(jax.tree.leaves(codes), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_guidance_equals_the_uncached_reference(make):
    model = make()
    sampling = dataclasses.replace(GREEDY, guidance=3.0, guided=("input",))
    codes = generate(model, conditions(), FRAMES, KEYS, sampling)
    for i in range(2):
        expected = uncached_greedy(model, item(conditions(), i), FRAMES[i], sampling=sampling)
        assert_same(codes, i, expected)
    plain = generate(model, conditions(), FRAMES, KEYS, GREEDY)
    assert np.any(plain.acoustic != codes.acoustic)


def test_codes_do_not_depend_on_the_batch(make):
    model, sampling = make(), Sampling(0.8, top_k=15, top_p=0.9)
    tasks = ("sr", "edit", "tse")
    together = generate(model, conditions(tasks), FRAMES, KEYS, sampling)
    for i in range(3):
        one, frames, keys = item((conditions(tasks, padding=5), FRAMES, KEYS), i)
        alone = generate(model, one, frames, keys, sampling, max_frames=9)
        assert alone.acoustic.shape == (1, 3, 9)
        assert_same(together, i, (alone.acoustic, alone.semantic, alone.frames))
    order = np.array([2, 0, 1])
    shuffled, frames, keys = jax.tree.map(lambda a: a[order], (conditions(tasks), FRAMES, KEYS))
    again = generate(model, shuffled, frames, keys, sampling)
    np.testing.assert_array_equal(again.acoustic, together.acoustic[order])


def test_codes_do_not_depend_on_the_devices(tmp_path):
    path = Path(__file__).with_name("eight.py")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [sys.executable, path, tmp_path / "eight.npz"]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, check=True)
    split = np.load(tmp_path / "eight.npz")
    alone = runpy.run_path(str(path))["codes"](MeshConfig())
    for name in ("acoustic", "semantic", "frames"):
        np.testing.assert_array_equal(split[name], getattr(alone, name))
    assert len(np.unique(split["acoustic"])) > 10


def test_another_key_gives_other_codes_and_the_same_key_the_same(make):
    model, keys = make(), jax.random.split(KEYS[0], 3)
    first, again = (generate(model, conditions(), FRAMES, KEYS, max_frames=20) for _ in range(2))
    other = generate(model, conditions(), FRAMES, keys, max_frames=20)
    np.testing.assert_array_equal(first.semantic, again.semantic)
    inside = np.arange(20) < FRAMES[:, None, None]
    assert np.mean(first.semantic != other.semantic, where=inside) > 0.2


def test_aligned_items_have_exactly_their_frames_and_open_ones_end_early(make):
    model = make()
    frames = np.array([20, 20, 0])
    runs = [
        generate(model, conditions(("sr", "edit", "tse")), frames, jax.random.split(key, 3))
        for key in jax.random.split(jax.random.key(0), 12)
    ]
    for run in runs:
        assert run.frames[0] == 20 and run.frames[2] == 0
        assert 1 <= run.frames[1] <= 20
        assert np.all((run.acoustic >= 0) & (run.acoustic < 20))
        assert np.all((run.semantic >= 0) & (run.semantic < 10))
    ends = {int(run.frames[1]) for run in runs}
    assert len(ends) > 2 and min(ends) < 20


def test_open_end_equals_the_uncached_reference(make):
    model = make()
    ends = set()
    for seed in range(4):
        one = item(conditions(("edit", "edit", "edit")), 0)
        section = Section(one.input.features + seed, one.input.lengths)
        one = dataclasses.replace(one, input=section)
        codes = generate(model, one, np.array([30]), KEYS[:1], GREEDY)
        assert_same(codes, 0, uncached_greedy(model, one, 30, aligned=False, longest=30))
        ends.add(int(codes.frames[0]))
    assert min(ends) < 30


@pytest.mark.parametrize("pattern", ["delay", "parallel"])
def test_dynamic_segments_agree_and_add_up_to_the_frames(make, pattern):
    model = make(pattern=pattern, max_segment=4, layers=1)
    frames = np.array([13, 1, 9])
    codes = generate(model, conditions(), frames, KEYS)
    for i in range(3):
        n = int(codes.frames[i])
        acoustic, semantic = codes.acoustic[i, :, :n] // 20 + 1, codes.semantic[i, :, :n] // 10 + 1
        lengths = np.asarray(semantic[0])
        np.testing.assert_array_equal(acoustic, np.tile(lengths, (3, 1)))
        np.testing.assert_array_equal(semantic, np.tile(lengths, (3, 1)))
        assert lengths.sum() == frames[i]
    assert codes.frames[0] < 13


def frequencies(sampling, logits, allowed, draws=20000):
    keys = jax.random.split(jax.random.key(0), draws)
    shape = (draws, 1, len(logits))
    pick = jax.jit(functools.partial(_pick, sampling=sampling))
    tokens = pick(jnp.broadcast_to(logits, shape), jnp.broadcast_to(allowed, shape), keys=keys)
    return np.bincount(np.ravel(tokens), minlength=len(logits))


@pytest.mark.parametrize(
    "sampling, kept",
    [
        (Sampling(), [0, 1, 2, 3, 4]),
        (Sampling(temperature=0.5), [0, 1, 2, 3, 4]),
        (Sampling(top_k=3), [0, 1, 2]),
        (Sampling(top_p=0.75), [0, 1]),  # 0.5 + 0.26 = 0.76
        (Sampling(top_k=4, top_p=0.9), [0, 1, 2]),
    ],
)
def test_samples_have_the_distribution_they_should(sampling, kept):
    p = np.array([0.5, 0.26, 0.14, 0.06, 0.04, 0.0])
    logits = np.log(np.array([*p[:5], 9.0])).astype(np.float32)  # the last is not allowed
    counts = frequencies(sampling, logits, np.arange(6) < 5)
    expected = np.zeros(6)
    expected[kept] = p[kept] ** (1 / sampling.temperature)
    expected *= counts.sum() / expected.sum()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 20  # 4 degrees of freedom: exceeded once in 2000


def test_heads_are_drawn_independently():
    logits = jnp.zeros((4000, 2, 4))
    keys = jax.random.split(jax.random.key(0), 4000)
    tokens = np.asarray(_pick(logits, jnp.array(True), keys=keys, sampling=Sampling()))
    joint = np.bincount(4 * tokens[:, 0] + tokens[:, 1], minlength=16)
    assert ((joint - 250) ** 2 / 250).sum() < 40  # 15 degrees of freedom


def test_bad_arguments_are_refused(make):
    model = make()
    with pytest.raises(ValueError, match=r"must be in \[0, 5\]"):
        generate(model, conditions(), FRAMES, KEYS, max_frames=5)
    with pytest.raises(ValueError, match="3 typed keys"):
        generate(model, conditions(), FRAMES, KEYS[:2])
    for bad in (
        {"temperature": -1},
        {"top_k": 0},
        {"top_p": 0.0},
        {"guidance": -1.0},
        {"guided": ("x",)},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Sampling(**bad)
