"""Segments by hand, and aggregation against weaving each item alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from quark_jax.hcodec.dynamic import Aggregator, cosine_similarity, expand, segment
from quark_jax.nn import frame_mask

WIDTH = 8


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_hand(similarity, threshold, longest):
    """Lengths of the segments of one item, by the definition."""
    lengths = [1]
    for value in similarity:
        if value <= threshold or lengths[-1] == longest:
            lengths.append(0)
        lengths[-1] += 1
    return lengths


def directions(angles):
    """Unit frames [1, time, 2] at the given angles in degrees."""
    radians = np.deg2rad(np.asarray(angles, np.float64))
    return jnp.asarray(np.stack([np.cos(radians), np.sin(radians)], -1)[None], jnp.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-9])
def test_similarity_is_pytorchs(scale):
    x = scale * normal(2, 6, WIDTH)
    x[0, 2] = 0
    pair = torch.from_numpy(x[:, :-1]), torch.from_numpy(x[:, 1:])
    expected = torch.nn.functional.cosine_similarity(*pair, dim=-1, eps=1e-8)
    np.testing.assert_allclose(cosine_similarity(x), expected.numpy(), atol=1e-6)


def test_a_segment_begins_at_the_threshold_itself():
    frames = jnp.array([[[1.0, 0], [0, 1], [0, 1], [0, -1]]])  # similarity 0, 1, -1, exactly
    assert cosine_similarity(frames).tolist() == [[0, 1, -1]]
    assert segment(frames, 0.0, 8)[1].tolist() == [[1, 2, 1, 0]]
    assert segment(frames, -0.001, 8)[1].tolist() == [[3, 1, 0, 0]]
    assert segment(frames, 1.0, 8)[1].tolist() == [[1, 1, 1, 1]]
    assert segment(frames, -1.0, 8)[1].tolist() == [[3, 1, 0, 0]]


def test_a_long_segment_is_cut_every_so_many_frames_from_its_start():
    frames = directions([90] * 3 + [0] * 20 + [90] * 2)
    owner, lengths = segment(frames, 0.5, 8)
    assert lengths[0].tolist() == [3, 8, 8, 4, 2] + [0] * 20
    assert owner[0].tolist() == [0] * 3 + [1] * 8 + [2] * 8 + [3] * 4 + [4] * 2


@pytest.mark.parametrize("longest", [1, 3, 8])
@pytest.mark.parametrize("threshold", [-1.1, 0.3, 0.6, 1.1])
def test_segments_are_those_by_hand_and_padding_has_none(threshold, longest):
    frames = [30, 17, 1]
    x = np.repeat(normal(3, 10, WIDTH), 3, axis=1) + 0.6 * normal(3, 30, WIDTH, seed=1)
    mask = frame_mask(jnp.array(frames), 30)
    owner, lengths = segment(x, threshold, longest, mask)
    similarity = np.asarray(cosine_similarity(x))
    for i, count in enumerate(frames):
        expected = by_hand(similarity[i, : count - 1], threshold, longest)
        assert lengths[i].tolist() == expected + [0] * (30 - len(expected))
        assert (np.asarray(owner[i, :count]) == np.repeat(range(len(expected)), expected)).all()
        assert (owner[i, count:] == 30).all()


def test_expand_repeats_each_segment_by_its_length():
    x = normal(2, 4, WIDTH)
    y = np.asarray(expand(x, jnp.array([[2, 1, 3, 0], [1, 0, 0, 0]]), 6))
    np.testing.assert_array_equal(y[0], x[0, [0, 0, 1, 2, 2, 2]])
    np.testing.assert_array_equal(y[1, 0], x[1, 0])
    assert not y[1, 1:].any()


def test_aggregation_weaves_each_query_after_its_segment():
    aggregator = Aggregator(WIDTH, layers=1, heads=2, inner=16, rngs=nnx.Rngs(0))
    for seed, (_, leaf) in enumerate(nnx.iter_graph(aggregator)):
        if isinstance(leaf, nnx.Param):
            leaf.set_value(jnp.asarray(0.5 * normal(*leaf.shape, seed=seed)))
    x = normal(3, 9, WIDTH)
    lengths = [[2, 3, 1, 3], [4, 1], [1]]
    held = np.zeros((3, 9), np.int32)
    owner = np.full((3, 9), 9)
    for i, item in enumerate(lengths):
        held[i, : len(item)] = item
        owner[i, : sum(item)] = np.repeat(range(len(item)), item)
        x[i, sum(item) :] = 1e3  # padding
    run = jax.jit(lambda module, *arrays: module(*arrays))
    batched = np.asarray(run(aggregator, x, owner, jnp.asarray(held)))
    for i, item in enumerate(lengths):
        woven, places = [], []
        for frames in np.split(x[i, : sum(item)], np.cumsum(item)[:-1]):
            woven += [*frames, frames.mean(0) + np.asarray(aggregator.query[...])]
            places.append(len(woven) - 1)
        alone = np.asarray(run(aggregator.transformer, jnp.asarray(woven)[None]))[0, places]
        scale = np.abs(alone).max()
        np.testing.assert_allclose(batched[i, : len(item)], alone, atol=1e-5 * scale)
        assert not batched[i, len(item) :].any()


def test_the_threshold_may_be_traced():
    frames = directions([0, 30, 90, 100])
    lengths = jax.jit(lambda threshold: segment(frames, threshold, 8)[1])(0.6)
    assert lengths.tolist() == [[2, 2, 0, 0]]
