import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax.lm.config import LMConfig
from quark_jax.lm.layout import (
    Conditions,
    Section,
    Targets,
    drop_sections,
    feature_length,
    lay,
    stack_pairs,
)
from quark_jax.lm.model import LanguageModel
from quark_jax.lm.tasks import TASK_IDS, TASKS, is_aligned, task

LENGTHS = {"caption": [0, 2, 3], "reference": [4, 0, 1], "input": [7, 5, 0]}
FRAMES = np.array([4, 2, 5])
loss = jax.jit(LanguageModel.loss)
hidden_states = jax.jit(LanguageModel.__call__)


def section(seed, lengths, channels, padding=0):
    """Random features; what is beyond the lengths is NaN, so that using it shows."""
    lengths = np.array(lengths)
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(lengths), 8, channels)).astype(np.float32)
    features = np.pad(features, ((0, 0), (0, padding), (0, 0)))
    features[np.arange(8 + padding) >= lengths[:, None]] = np.nan
    return Section(jnp.array(features), jnp.array(lengths))


def batch(padding=0):
    conditions = Conditions(
        jnp.array([TASK_IDS["tse"], TASK_IDS["edit"], TASK_IDS["tta"]]),
        section(0, LENGTHS["caption"], 5, padding),
        section(1, LENGTHS["reference"], 6, padding),
        section(2, LENGTHS["input"], 6, padding),
    )
    rng = np.random.default_rng(3)
    codes = [rng.integers(0, size, (3, 3, 6)) for size in (20, 10)]
    codes = [jnp.array(np.pad(c, ((0, 0), (0, 0), (0, padding)))) for c in codes]
    return conditions, Targets(*codes, jnp.array(FRAMES))


def item(tree, i):
    return jax.tree.map(lambda a: a[i : i + 1], tree)


def test_lay_puts_pieces_end_to_end():
    rng = np.random.default_rng(0)
    lengths = np.array([[2, 0, 3], [0, 0, 1], [3, 4, 0], [0, 0, 0]])
    arrays = [rng.normal(size=(4, size, 2)).astype(np.float32) for size in (3, 4, 3)]
    laid = lay(
        [Section(jnp.array(a), jnp.array(n)) for a, n in zip(arrays, lengths.T, strict=True)]
    )
    for i in range(4):
        parts = [a[i, :n] for a, n in zip(arrays, lengths[i], strict=True)]
        expected = np.zeros((10, 2), np.float32)
        expected[: lengths[i].sum()] = np.concatenate(parts)
        np.testing.assert_array_equal(laid.features[i], expected)
    np.testing.assert_array_equal(laid.lengths, lengths.sum(1))


def test_prefix_is_task_sections_with_their_start_vectors_and_s(make):
    model = make()
    conditions, _ = batch()
    prefix = jax.jit(LanguageModel.prefix)(model, conditions)
    tasks, starts = model.tasks[...], model.starts[...]
    for i, name in enumerate(("tse", "edit", "tta")):
        rows = [tasks[TASK_IDS[name]][None]]
        for number, kind in enumerate(("caption", "reference", "input")):
            length = LENGTHS[kind][i]
            if length:
                features = getattr(conditions, kind).features[i, :length]
                adapter = model.text_adapter if kind == "caption" else model.audio_adapter
                rows += [starts[number][None], adapter(features)]
        expected = jnp.concatenate([*rows, starts[3][None]])
        assert prefix.lengths[i] == len(expected)
        np.testing.assert_allclose(prefix.features[i, : len(expected)], expected, atol=1e-6)


def test_strided_steps_stand_beside_the_input_of_their_time(make):
    model = make(step_stride=0.5)
    conditions, _ = batch()
    prefix = jax.jit(LanguageModel.prefix)(model, conditions)
    positions = prefix.positions(jnp.arange(24), 0.5)
    # tse: T R 4 I 7 S; edit: T C 2 I 5 S; tta, without input: T C 3 R 1 S
    for i, (length, first) in enumerate([(15, 7), (11, 5), (8, 8)]):
        assert prefix.lengths[i] == length
        np.testing.assert_array_equal(positions[i, : length - 1], np.arange(length - 1))
        steps = first + 0.5 * np.arange(-1, 24 - length)
        np.testing.assert_array_equal(positions[i, length - 1 :], steps)


def test_hidden_states_follow_the_strided_positions(make):
    model, plain = make(step_stride=0.5), make()
    conditions, targets = batch()
    tokens, _ = model.pattern.build(targets.acoustic, targets.semantic, targets.frames)
    steps = model.pattern.steps(targets.frames)
    got = hidden_states(model, conditions, tokens, steps)
    prefix = jax.jit(LanguageModel.prefix)(model, conditions)
    for i in range(3):
        n, count = int(prefix.lengths[i]), int(steps[i])
        sequence = [prefix.features[i, :n], model.embed_steps(tokens[i, :count])]
        positions = prefix.positions(jnp.arange(n + count), 0.5)[i]
        expected = model.backbone(jnp.concatenate(sequence)[None], positions)[0, n - 1 :]
        np.testing.assert_allclose(got[i, : count + 1], expected, rtol=1e-4, atol=1e-5)
    unlike = np.abs(got - hidden_states(plain, conditions, tokens, steps))
    assert unlike[0, :5].max() > 1e-3


def test_steps_hear_the_input_of_their_time(make):
    """The adapter's output at floor(s / 2) stands where step s is drawn, and nothing where the
    input is over."""
    model = make(step_stride=0.5, beside=True)
    conditions, targets = batch()
    prefix = jax.jit(LanguageModel.prefix)(model, conditions)
    features = np.where(np.isnan(conditions.input.features), 0, conditions.input.features)
    adapter = model.beside_adapter
    kernel, bias = np.array(adapter.conv.kernel[...]), np.array(adapter.conv.bias[...])
    padded = np.pad(features, ((0, 0), (1, 1), (0, 0)))
    convolved = sum(padded[:, k : k + 8] @ kernel[k] for k in range(3)) + bias
    convolved *= 0.1 / np.sqrt(np.square(convolved).mean(-1, keepdims=True) + 1e-6)
    added = prefix.heard(jnp.arange(18), 0.5)
    for i, length in enumerate(LENGTHS["input"]):
        expected = np.repeat(convolved[i, :length], 2, axis=0)
        np.testing.assert_allclose(added[i, : 2 * length], expected, rtol=1e-4, atol=1e-5)
        assert not np.any(added[i, 2 * length :])
        start = int(prefix.lengths[i]) - 1
        first = convolved[i, 0] if length else 0
        np.testing.assert_allclose(
            prefix.features[i, start], model.starts[...][3] + first, rtol=1e-4, atol=1e-5
        )
    without = loss(model, drop_sections(conditions, ("input",)), targets)
    full = loss(model, conditions, targets)
    assert np.abs(full.nats - without.nats)[:2].max() > 1e-3
    np.testing.assert_allclose(full.nats[2], without.nats[2], atol=1e-5)  # it has no input


def test_a_stride_that_means_nothing_is_refused(make):
    with pytest.raises(ValueError, match=r"step_stride 0\.0 must be positive"):
        make(step_stride=0.0)
    with pytest.raises(ValueError, match="dynamic frame rate"):
        make(step_stride=1.0, max_segment=2)
    with pytest.raises(ValueError, match="beside needs a step_stride"):
        make(beside=True)


def test_stacked_features_pair_neighbours_and_ignore_padding():
    pairs = stack_pairs(section(0, [5, 8, 0], 3).cleared())
    features = section(0, [5, 8, 0], 3).features
    assert pairs.lengths.tolist() == [3, 4, 0]
    np.testing.assert_array_equal(pairs.features[1, 1], features[1, 2:4].ravel())
    np.testing.assert_array_equal(pairs.features[0, 2], [*features[0, 4], 0, 0, 0])
    assert feature_length(16000) == 50 and feature_length(16319) == 50


def test_a_dropped_section_is_as_if_never_given(make):
    model = make()
    conditions, targets = batch()
    dropped = drop_sections(conditions, ("caption",), jnp.array([True, True, False]))
    without = loss(model, dataclasses.replace(conditions, caption=None), targets)
    with_drop, full = (loss(model, c, targets) for c in (dropped, conditions))
    np.testing.assert_allclose(with_drop.nats[:2], without.nats[:2], atol=1e-5)
    np.testing.assert_allclose(with_drop.nats[2], full.nats[2], atol=1e-5)
    assert np.abs(full.nats[1] - without.nats[1]).max() > 1e-3


@pytest.mark.parametrize("stacked", [False, True])
def test_padding_and_other_items_never_change_an_item(make, stacked):
    model = make(stack_features=stacked)
    together = loss(model, *batch())
    padded = loss(model, *batch(padding=5))
    assert np.isfinite(together.loss)
    np.testing.assert_allclose(padded.loss, together.loss, atol=1e-6)
    np.testing.assert_allclose(padded.nats, together.nats, rtol=1e-5, atol=1e-5)
    alone = [loss(model, *item(batch(), i)) for i in range(3)]
    np.testing.assert_allclose(
        np.concatenate([a.nats for a in alone]), together.nats, rtol=1e-5, atol=1e-5
    )
    weights = np.array([a.count.sum() for a in alone])
    mean = np.average([a.loss for a in alone], weights=weights)
    np.testing.assert_allclose(mean, together.loss, atol=1e-5)


def test_loss_by_hand(make):
    model = make(label_smoothing=0.1)
    conditions, targets = batch()
    tokens, scored = model.pattern.build(targets.acoustic, targets.semantic, targets.frames)
    steps = model.pattern.steps(targets.frames)
    logits = model.logits(hidden_states(model, conditions, tokens, steps))
    logits, tokens, scored = (np.array(a) for a in (logits, tokens, scored))
    for i in (1, 2):  # edit and tta: head 0 announces the end where frame 2T would begin
        tokens[i, 2 * FRAMES[i], 0] = model.pattern.vocabulary.end
        scored[i, 2 * FRAMES[i], 0] = True
    logits = logits.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    smoothed = 0.9 * np.eye(32)[tokens] + 0.1 / 32
    nats = -np.log(np.take_along_axis(p, tokens[..., None], -1))[..., 0]
    got = loss(model, conditions, targets)
    expected = -(smoothed * np.log(p)).sum(-1)[scored].mean()
    np.testing.assert_allclose(got.loss, expected, rtol=1e-5)
    by_head = [nats[..., h][scored[..., h]].mean() for h in range(3)]
    np.testing.assert_allclose(got.nats.sum(0) / got.count.sum(0), by_head, rtol=1e-5)
    codes = scored & (tokens != model.pattern.vocabulary.end)
    hits = [(p.argmax(-1) == tokens)[..., h][codes[..., h]].mean() for h in range(3)]
    np.testing.assert_allclose(got.accuracy, hits, rtol=1e-6)
    np.testing.assert_array_equal(got.codes.sum(1), 2 * 3 * FRAMES)
    np.testing.assert_array_equal(got.count.sum(1), 2 * 3 * FRAMES + 3 + np.array([0, 1, 1]))


def test_a_filler_item_weighs_nothing(make):
    model = make()
    conditions, targets = batch()
    filled = dataclasses.replace(targets, frames=targets.frames.at[1].set(0))
    got = loss(model, conditions, filled)
    kept = [loss(model, *item((conditions, targets), i)) for i in (0, 2)]
    weights = [k.count.sum() for k in kept]
    expected = np.average([k.loss for k in kept], weights=weights)
    np.testing.assert_allclose(got.loss, expected, atol=1e-5)
    assert got.count[1].sum() == 0


def test_no_step_sees_its_own_target(make):
    model = make(pattern="parallel")
    conditions, targets = batch()
    tokens, _ = model.pattern.build(targets.acoustic, targets.semantic, targets.frames)
    steps = model.pattern.steps(targets.frames)
    changed = tokens.at[0, 2].set((tokens[0, 2] + 1) % 10)
    before, after = (hidden_states(model, conditions, t, steps) for t in (tokens, changed))
    np.testing.assert_array_equal(before[0, :3], after[0, :3])
    assert np.abs(before[0, 3] - after[0, 3]).max() > 1e-4


@pytest.mark.parametrize("pattern", ["delay", "flat"])
def test_training_learns_a_batch_by_heart(make, pattern):
    model = make(pattern=pattern, label_smoothing=0.0)
    conditions, targets = batch()

    @jax.jit
    def step(model):
        value, grads = jax.value_and_grad(lambda m: m.loss(conditions, targets).loss)(model)
        return value, jax.tree.map(lambda p, g: p - 0.3 * g, model, grads)

    first, model = step(model)
    for _ in range(60):
        last, model = step(model)
    assert last < 0.3 * first


@pytest.mark.parametrize("pattern", ["delay", "flat"])
@pytest.mark.parametrize(
    "changes", [{"scan": True}, {"remat": "full"}, {"scan": True, "remat": "dots"}]
)
def test_what_is_scanned_or_computed_again_is_the_same(make, changes, pattern):
    conditions, targets = batch()

    @jax.jit
    def learn(model):
        def loss(model):
            loss = model.loss(conditions, targets)
            return loss.loss, loss

        (_, loss), gradient = jax.value_and_grad(loss, has_aux=True)(model)
        return loss, gradient.head.kernel[...], gradient.embedding.embedding[...]

    plain, other = (learn(make(pattern=pattern, **more)) for more in ({}, changes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), plain, other)


@pytest.mark.parametrize(("remat", "whole"), [(None, True), ("full", False)])
def test_logits_of_all_heads_are_not_held_where_layers_are_computed_again(make, remat, whole):
    conditions, targets = batch()
    model = make(remat=remat)
    learn = jax.grad(lambda model: model.loss(conditions, targets).loss)
    heads, size = model.pattern.heads, model.pattern.vocabulary.size
    rows = model.pattern.steps(targets.acoustic.shape[-1]) + 1
    logits = f"f32[{len(FRAMES)},{rows},{heads},{size}]"
    assert (logits in str(jax.make_jaxpr(learn)(model))) is whole


def test_bfloat16_compute_stays_near_float32(make):
    conditions, targets = batch()
    half, full = (loss(make(dtype=d), conditions, targets) for d in ("bfloat16", "float32"))
    assert half.loss.dtype == jnp.float32
    np.testing.assert_allclose(half.loss, full.loss, rtol=0.02)


@pytest.mark.parametrize("name, low, high", [("small", 3e7, 6e7), ("large", 1.2e9, 1.4e9)])
def test_sizes_and_logical_axes_without_making_the_weights(name, low, high):
    model = nnx.eval_shape(lambda: LanguageModel(LMConfig.preset(name), rngs=nnx.Rngs(0)))
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert low < sum(np.prod(p.shape) for _, p in parameters) < high
    for path, parameter in parameters:
        if path[-1] in ("kernel", "embedding", "tasks", "starts"):
            assert len(parameter.get_metadata()["axes"]) == len(parameter.shape), path


def test_tasks_are_those_of_the_specification_in_order():
    assert list(TASK_IDS) == ["sr", "tse", "rtse", "ss", "vc", "lass", "edit", "tta", "aec"]
    ends = {t.name for t in TASKS if not t.aligned}
    assert ends == {"edit", "tta"}
    assert is_aligned(jnp.arange(12)).tolist() == [i not in (6, 7) for i in range(12)]
    with pytest.raises(ValueError, match="'denoise' is unknown: choose one of sr, tse"):
        task("denoise")


def test_a_caption_without_a_text_adapter_is_refused(make):
    with pytest.raises(ValueError, match="text_channels is 0"):
        make(text_channels=0).loss(*batch())
