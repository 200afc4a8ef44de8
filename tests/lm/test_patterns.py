import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quark_jax.lm.config import LMConfig
from quark_jax.lm.patterns import Delay, Flat, Parallel, Vocabulary, make_pattern

VOCABULARY = Vocabulary(acoustic=100, semantic=50)
PAD, END = 150, 151
KINDS = [Delay, Parallel, Flat]
ORDERS = [("acoustic", "semantic"), ("semantic", "acoustic")]


def codes(seed, batch, codebooks, length):
    rng = np.random.default_rng(seed)
    acoustic = rng.integers(0, 100, (batch, codebooks, length), dtype=np.int32)
    semantic = rng.integers(0, 50, (batch, codebooks, length), dtype=np.int32)
    return acoustic, semantic


def named_codes():
    """T = 2, N = 4: acoustic code 10 * layer + frame, semantic the same plus 4."""
    layer, frame = np.meshgrid(np.arange(1, 5), np.arange(2), indexing="ij")
    acoustic = (10 * layer + frame)[None]
    return acoustic, acoustic + 4, np.array([2])


def test_delay_is_the_table_of_the_specification():
    tokens, scored = Delay(4, VOCABULARY).build(*named_codes())
    s = 100 + 4  # semantic codes follow the acoustic ones
    by_layer = [
        [10, s + 10, 11, s + 11, PAD, PAD, PAD, END],
        [PAD, 20, s + 20, 21, s + 21, PAD, PAD, END],
        [PAD, PAD, 30, s + 30, 31, s + 31, PAD, END],
        [PAD, PAD, PAD, 40, s + 40, 41, s + 41, END],
    ]
    np.testing.assert_array_equal(tokens[0].T, by_layer)
    np.testing.assert_array_equal(scored, tokens != PAD)


def test_delay_with_the_semantic_stream_first():
    tokens, _ = Delay(4, VOCABULARY, ORDERS[1]).build(*named_codes())
    np.testing.assert_array_equal(tokens[0, :5, 0], [114, 10, 115, 11, PAD])
    np.testing.assert_array_equal(tokens[0, 3:, 3], [144, 40, 145, 41, END])


def test_parallel_by_hand():
    tokens, scored = Parallel(4, VOCABULARY).build(*named_codes())
    expected = [
        [10, 20, 30, 40, 114, 124, 134, 144],
        [11, 21, 31, 41, 115, 125, 135, 145],
        [END] * 8,
    ]
    np.testing.assert_array_equal(tokens[0], expected)
    assert scored.all()


def test_flat_by_hand():
    tokens, scored = Flat(4, VOCABULARY).build(*named_codes())
    written = [10, 20, 30, 40, 114, 124, 134, 144, 11, 21, 31, 41, 115, 125, 135, 145]
    expected = np.full((17, 4), PAD)
    expected[np.arange(16), np.arange(16) % 4] = written
    expected[16] = END
    np.testing.assert_array_equal(tokens[0], expected)
    np.testing.assert_array_equal(scored[0], expected != PAD)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_revert_is_the_exact_inverse_for_items_of_unlike_length(kind, order):
    for codebooks, length in ((1, 1), (1, 6), (2, 5), (4, 2), (4, 9), (16, 3)):
        pattern = kind(codebooks, VOCABULARY, order)
        acoustic, semantic = codes(length, length + 1, codebooks, length)
        frames = np.arange(length + 1)
        tokens, scored = jax.jit(pattern.build)(acoustic, semantic, frames)
        inside = np.arange(length) < frames[:, None, None]
        back_acoustic, back_semantic, back_frames = jax.jit(pattern.revert)(tokens)
        np.testing.assert_array_equal(back_frames, frames)
        np.testing.assert_array_equal(back_acoustic, acoustic * inside)
        np.testing.assert_array_equal(back_semantic, semantic * inside)
        # Each code and one END a head is scored, and nothing of an item without frames.
        counts = np.where(frames > 0, 2 * codebooks * frames + pattern.heads, 0)
        np.testing.assert_array_equal(scored.sum((1, 2)), counts)


@pytest.mark.parametrize("kind", KINDS)
def test_longer_padding_changes_nothing(kind):
    pattern = kind(3, VOCABULARY)
    acoustic, semantic = codes(0, 2, 3, 6)
    frames = np.array([4, 6])
    padded = [np.pad(c, ((0, 0), (0, 0), (0, 5)), constant_values=7) for c in (acoustic, semantic)]
    build = jax.jit(pattern.build)
    tokens, scored = build(acoustic, semantic, frames)
    more_tokens, more_scored = build(*padded, frames)
    rows = tokens.shape[1]
    np.testing.assert_array_equal(more_tokens[:, :rows], tokens)
    np.testing.assert_array_equal(more_scored[:, :rows], scored)
    assert (more_tokens[:, rows:] == PAD).all() and not more_scored[:, rows:].any()


def test_dynamic_rate_codes_survive():
    config = LMConfig.preset("tiny", max_segment=8)
    pattern = make_pattern(config)
    assert pattern.vocabulary == Vocabulary(8 * 1024, 8 * 1024)
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 8 * 1024, (2, 2, 4, 7))
    packed[:, 0, 0, 0] = 8 * 1024 - 1
    acoustic, semantic, frames = pattern.revert(pattern.build(*packed, np.array([7, 7]))[0])
    np.testing.assert_array_equal(np.stack([acoustic, semantic]), packed)
    np.testing.assert_array_equal(frames, [7, 7])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_built_token_is_allowed_and_aligned_items_end_exactly(kind, order):
    pattern = kind(4, VOCABULARY, order)
    acoustic, semantic = codes(0, 6, 4, 5)
    frames = np.arange(6)
    tokens, _ = jax.jit(pattern.build)(acoustic, semantic, frames)
    step = np.arange(tokens.shape[1])
    allowed = np.asarray(jax.jit(pattern.allowed)(step, frames[:, None]))
    assert np.take_along_axis(allowed, np.asarray(tokens)[..., None], -1).all()
    ends = step == pattern.steps(frames)[:, None]
    np.testing.assert_array_equal(allowed[..., END], np.repeat(ends[..., None], pattern.heads, -1))
    # PAD, END or one whole stream: 100 acoustic or 50 semantic codes.
    assert set(allowed.sum(-1).ravel()) <= {1, 50, 100}


def test_an_open_end_may_be_announced_where_a_frame_would_begin():
    aligned = np.array([[True], [False]])
    for pattern, starts in ((Delay(4, VOCABULARY), (2, 4)), (Flat(4, VOCABULARY), (8, 16))):
        step = np.arange(pattern.steps(3))
        ends = np.asarray(jax.jit(pattern.allowed)(step, 3, aligned))[..., END]
        assert not ends[0].any() and not ends[1, :, 1:].any()
        assert np.flatnonzero(ends[1, :, 0]).tolist() == list(starts)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_announce_the_end_once_where_the_length_is_open(kind):
    pattern = kind(4, VOCABULARY)
    acoustic, semantic = codes(0, 3, 4, 3)
    frames = np.array([2, 2, 0])
    tokens, scored = pattern.build(acoustic, semantic, frames)
    targets, mask = pattern.targets(tokens, scored, frames, np.array([True, False, False]))
    for item in (0, 2):
        np.testing.assert_array_equal(targets[item], tokens[item])
        np.testing.assert_array_equal(mask[item], scored[item])
    step = int(pattern.announcement(2))
    assert step == {Delay: 4, Parallel: 2, Flat: 16}[kind]
    assert targets[1, step, 0] == END and mask[1, step, 0]
    changed = np.argwhere(np.asarray(targets != tokens)).tolist()
    assert changed == ([[1, 4, 0]] if kind is Delay else [])
    assert not (mask & (targets == PAD)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_settling_an_announced_end_gives_a_well_formed_sequence(kind):
    pattern = kind(3, VOCABULARY)
    acoustic, semantic = codes(0, 2, 3, 5)
    frames = np.array([5, 5])
    tokens, _ = jax.jit(pattern.build)(acoustic, semantic, frames)
    expected, _ = jax.jit(pattern.build)(acoustic, semantic, np.array([2, 5]))
    announce = int(pattern.announcement(2))
    settle = jax.jit(pattern.settle)
    rows = []
    for step in range(tokens.shape[1]):
        drawn = tokens[:, step]
        if step == announce:
            drawn = drawn.at[0, 0].set(END)
        row, frames = settle(drawn, step, frames)
        rows.append(row)
    assert frames.tolist() == [2, 5]
    np.testing.assert_array_equal(jnp.stack(rows, 1), expected)


def test_build_and_revert_run_under_jit():
    pattern = Delay(4, VOCABULARY)
    acoustic, semantic = codes(0, 2, 4, 5)
    frames = np.array([3, 5])
    tokens, _ = jax.jit(pattern.build)(acoustic, semantic, frames)
    back = jax.jit(pattern.revert)(tokens)
    np.testing.assert_array_equal(back[0][1], acoustic[1])
    np.testing.assert_array_equal(back[2], frames)


def test_codes_of_another_codec_are_refused():
    with pytest.raises(ValueError, match=r"\[batch, 4, frames\]"):
        Delay(4, VOCABULARY).build(*codes(0, 1, 3, 5), np.array([5]))


def test_config_names_the_field_that_does_not_fit():
    for change in ({"pattern": "random"}, {"kv_heads": 3}, {"width": 190}, {"order": ("a", "b")}):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(LMConfig.preset("tiny"), **change)
