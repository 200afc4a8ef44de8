"""The quantiser's training step against vector-quantize-pytorch on the same state and input."""

import os
import random
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from vector_quantize_pytorch import ResidualVQ
from vector_quantize_pytorch import vector_quantize_pytorch as reference

from quark_jax.hcodec.config import QuantiserConfig
from quark_jax.hcodec.quantiser import (
    DROPPED,
    QuantiserState,
    ResidualQuantiser,
    kmeans,
    nearest,
    rotate_to,
)
from quark_jax.nn import frame_mask

LAYERS, SIZE, WIDTH = 3, 16, 8
SHAPE = (4, 10, WIDTH)  # batch, time, width


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensor(array):
    return torch.from_numpy(np.array(array))


def quantiser(**options):
    config = QuantiserConfig(codebooks=LAYERS, codebook_size=SIZE, width=WIDTH, dropout=False)
    config = QuantiserConfig(**(vars(config) | options))
    return ResidualQuantiser(config, rngs=nnx.Rngs(0))


def begun(**options):
    """A quantiser in the midst of training: codebooks that are not their statistics' means."""
    ours = quantiser(**options)
    counts = np.random.default_rng(3).uniform(0.5, 5, (LAYERS, SIZE)).astype(np.float32)
    ours.set_state(
        QuantiserState(
            embed=jnp.asarray(normal(LAYERS, SIZE, WIDTH, seed=1)),
            sums=jnp.asarray(normal(LAYERS, SIZE, WIDTH, seed=2)),
            counts=jnp.asarray(counts),
            initialised=jnp.ones(LAYERS, bool),
        )
    )
    return ours


def pytorch(ours, **options):
    """The reference with the state of `ours`, in training."""
    theirs = ResidualVQ(
        dim=WIDTH,
        num_quantizers=ours.config.codebooks,
        codebook_size=SIZE,
        decay=0.99,
        kmeans_init=True,
        kmeans_iters=50,
        rotation_trick=True,
        quantize_dropout=ours.config.dropout,
        **options,
    )
    for i, layer in enumerate(theirs.layers):
        codebook = layer._codebook
        codebook.initted.copy_(tensor(ours.initialised[...][i]))
        codebook.cluster_size.copy_(tensor(ours.counts[...][i])[None])
        codebook.embed_avg.copy_(tensor(ours.sums[...][i])[None])
        codebook.embed.copy_(tensor(ours.embed[...][i])[None])
    return theirs.train()


def assert_state(state, theirs, tolerance=1e-5):
    for i, layer in enumerate(theirs.layers):
        codebook = layer._codebook
        assert bool(state.initialised[i]) == bool(codebook.initted)
        for ours, name in (("embed", "embed"), ("sums", "embed_avg"), ("counts", "cluster_size")):
            expected = getattr(codebook, name)[0].numpy()
            scale = max(1, np.abs(expected).max())
            np.testing.assert_allclose(
                getattr(state, ours)[i], expected, rtol=0, atol=tolerance * scale, err_msg=name
            )


@jax.jit
def train(quantiser, x, key, mask=None):
    return quantiser.train(x, key, mask)


@jax.jit
def step(quantiser, x, key, mask, weights):
    def loss(x):
        out = quantiser.train(x, key, mask)
        return jnp.sum(out.output * weights) + out.commitment, out

    return jax.grad(loss, has_aux=True)(x)


def assert_step(ours, theirs, x, key, mask=None, seed=None):
    """One step of both: the same codes, output, loss, gradient and next state."""
    weights = normal(*SHAPE, seed=7)
    gradient, out = step(ours, x, key, None if mask is None else mask[..., None], weights)
    leaf = tensor(x).requires_grad_()
    options = {} if seed is None else {"rand_quantize_dropout_fixed_seed": seed}
    torch_mask = None if mask is None else tensor(mask)
    output, codes, losses = theirs(leaf, mask=torch_mask, **options)
    ((output * tensor(weights)).sum() + losses.mean()).backward()
    expected = codes.transpose(1, 2).numpy()
    np.testing.assert_array_equal(out.codes, expected)
    np.testing.assert_allclose(out.output, output.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(out.commitment, losses.mean().item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=1e-5)
    assert_state(out.state, theirs)
    return out


def test_steps_are_the_references():
    ours = begun()
    theirs = pytorch(ours)
    for number in range(3):
        out = assert_step(ours, theirs, normal(*SHAPE, seed=10 + number), jax.random.key(number))
        ours.set_state(out.state)


def test_masked_steps_are_the_references():
    ours = begun()
    theirs = pytorch(ours)
    mask = np.asarray(frame_mask(jnp.array([10, 7, 1, 4]), 10)[..., 0])
    x = normal(*SHAPE)
    x[~mask] = 100.0
    assert_step(ours, theirs, x, jax.random.key(0), mask)


def test_padding_may_hold_anything_and_counts_nowhere():
    ours, x = begun(), normal(2, 6, WIDTH)
    mask = frame_mask(jnp.array([6, 2]), 6)
    padded = jnp.where(mask, x, jnp.nan)
    flat = jnp.concatenate([x[0], x[1, :2]])[None]
    key = jax.random.key(0)
    out, alone = train(ours, padded, key, mask), train(ours, flat, key)
    np.testing.assert_array_equal(out.codes[0], alone.codes[0, :, :6])
    np.testing.assert_array_equal(out.codes[1, :, :2], alone.codes[0, :, 6:])
    np.testing.assert_allclose(out.output[1, :2], alone.output[0, 6:], atol=1e-6)
    assert (out.codes[1, :, 2:] == DROPPED).all() and not out.output[1, 2:].any()
    np.testing.assert_allclose(out.commitment, alone.commitment, rtol=1e-6)
    for masked, plain in zip(out.state, alone.state, strict=True):
        np.testing.assert_allclose(masked, plain, atol=1e-6)


@pytest.mark.parametrize("key", range(4))
def test_steps_with_dropout_are_the_references(key):
    ours, key = begun(dropout=True), jax.random.key(key)
    theirs = pytorch(ours)
    _, out = step(ours, normal(*SHAPE), key, None, normal(*SHAPE, seed=7))
    kept = int((out.codes[0, :, 0] != DROPPED).sum())
    seed = next(s for s in range(100) if random.Random(s).randrange(0, LAYERS) + 1 == kept)
    assert_step(ours, theirs, normal(*SHAPE), key, seed=seed)


def test_dropout_keeps_one_to_all_layers_and_leaves_the_others_alone():
    ours, x = quantiser(dropout=True, kmeans_iterations=2), normal(*SHAPE)
    seen = set()
    for seed in range(30):
        out = train(ours, x, jax.random.key(seed))
        on = np.asarray(out.codes != DROPPED)
        assert (on == on[:1, :, :1]).all()  # one choice for the whole batch
        kept = int(on[0, :, 0].sum())
        assert on[0, :kept].all()
        # A layer that was dropped from the first batch begins when it is kept.
        np.testing.assert_array_equal(out.state.initialised, np.arange(LAYERS) < kept)
        np.testing.assert_array_equal(out.state.embed[kept:], ours.embed[...][kept:])
        np.testing.assert_array_equal(out.state.counts[kept:], 1)
        if kept == 1:  # the others have no loss
            loss = np.mean((np.asarray(out.output) - x) ** 2)
            np.testing.assert_allclose(out.commitment * LAYERS, loss, rtol=1e-4)
        seen.add(kept)
    assert seen == set(range(1, LAYERS + 1))


def test_without_k_means_codebooks_begin_at_random_as_the_references():
    ours = quantiser(kmeans_iterations=0)
    theirs = pytorch(ours)
    assert all(bool(layer._codebook.initted) for layer in theirs.layers)
    assert_step(ours, theirs, normal(*SHAPE), jax.random.key(0))


def test_rotation_passes_the_references_gradient():
    source, target, weights = (normal(20, WIDTH, seed=seed) for seed in range(3))
    target[0] = -source[0]  # opposite
    leaf = tensor(source).requires_grad_()
    expected = reference.rotate_to(leaf, tensor(target))
    (expected * tensor(weights)).sum().backward()
    value, pull = jax.vjp(rotate_to, source, target)
    np.testing.assert_allclose(value[1:], target[1:], atol=1e-5)
    np.testing.assert_allclose(value, expected.detach().numpy(), atol=1e-5)
    by_source, by_target = pull(weights)
    np.testing.assert_allclose(by_source, leaf.grad.numpy(), atol=1e-5)
    assert not by_target.any()


def test_rotation_of_silence_has_a_finite_gradient():
    zero = np.zeros((2, WIDTH), np.float32)
    target = np.stack([zero[0], normal(WIDTH)])
    gradient = jax.grad(lambda source: rotate_to(source, target).sum())(zero)
    assert np.isfinite(gradient).all()


def test_kmeans_is_the_references_from_the_same_rows():
    x, key = normal(60, WIDTH), jax.random.key(0)
    valid = np.arange(60) % 5 != 0
    x[~valid] = 50.0
    start, _ = kmeans(x, valid, SIZE, 0, key)
    rows = {row.tobytes() for row in x[valid]}
    drawn = {row.tobytes() for row in np.asarray(start)}
    assert len(drawn) == SIZE and drawn <= rows
    means, counts = jax.jit(kmeans, static_argnums=(2, 3))(x, valid, SIZE, 50, key)
    expected, bins = reference.kmeans(
        tensor(x[valid])[None], SIZE, 50, sample_fn=lambda samples, num: tensor(start)[None]
    )
    np.testing.assert_allclose(means, expected[0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(counts, bins[0].numpy())
    assert counts.sum() == valid.sum()
    index = np.asarray(nearest(x, means))
    for cluster in range(SIZE):
        members = x[valid & (index == cluster)]
        assert len(members) == counts[cluster] > 0
        np.testing.assert_allclose(means[cluster], members.mean(0), atol=1e-5)


def test_kmeans_of_fewer_rows_than_clusters_takes_every_row():
    x = normal(5, WIDTH)
    means, counts = kmeans(x, np.arange(5) < 3, SIZE, 10, jax.random.key(0))
    assert counts.sum() == 3 and counts.max() == 1
    for row in x[:3]:
        assert np.abs(np.asarray(means) - row).max(1).min() < 1e-6


def test_the_first_step_is_the_references():
    """k-means from the same rows, then the step, of one layer."""
    ours, key, x = quantiser(codebooks=1), jax.random.key(5), normal(*SHAPE)
    theirs = pytorch(ours)
    start, _ = kmeans(x.reshape(-1, WIDTH), np.ones(40, bool), SIZE, 0, jax.random.split(key, 2)[1])
    theirs.layers[0]._codebook.sample_fn = lambda samples, num: tensor(start)[None]
    assert not theirs.layers[0]._codebook.initted
    out = assert_step(ours, theirs, x, key)
    assert out.state.initialised.all()


def test_codebooks_do_not_begin_on_padding_alone():
    ours = quantiser()
    nothing = jnp.zeros((2, 6, 1), bool)
    out = train(ours, jnp.ones((2, 6, WIDTH)), jax.random.key(0), nothing)
    assert not out.state.initialised.any() and np.isfinite(out.state.embed).all()
    assert out.commitment == 0


def test_dead_codes_are_replaced_from_the_batch():
    mask = frame_mask(jnp.array([10, 7, 1, 4]), 10)
    x, key = jnp.where(mask, normal(*SHAPE), 99.0), jax.random.key(0)
    plain = train(begun(), x, key, mask).state
    state = train(begun(dead_code_threshold=2.0), x, key, mask).state
    dead = np.asarray(plain.counts) < 2.0
    assert dead.any() and not dead.all()
    np.testing.assert_array_equal(state.embed[~dead], plain.embed[~dead])
    np.testing.assert_array_equal(state.counts, np.where(dead, 2.0, plain.counts))
    np.testing.assert_allclose(state.sums[dead], 2 * state.embed[dead], rtol=1e-6)
    rows = np.asarray(x)[np.asarray(mask[..., 0])]  # what the first layer quantises
    for row in np.asarray(state.embed)[0][dead[0]]:
        assert (rows == row).all(1).any()


def test_those_far_from_every_code_replace_the_dead_ones():
    ours = begun(dead_code_threshold=100.0)  # all are dead
    x = np.array(ours.embed[...][0, np.zeros((4, 10), int)])  # all where there is a code
    x[2, 5] += 3.0  # but for this one
    state = train(ours, x, jax.random.key(0)).state
    np.testing.assert_array_equal(state.embed[0], np.broadcast_to(x[2, 5], (SIZE, WIDTH)))


def test_rounding_does_not_choose_between_equal_rows():
    """As another number of devices would, the input differs in its last digits."""
    ours, x = begun(), normal(*SHAPE)
    embed = np.array(ours.embed[...])
    twins = embed[:, : SIZE // 2] * (1 + 1e-7 * normal(LAYERS, SIZE // 2, 1))
    embed[:, SIZE // 2 :] = twins
    ours.set_state(ours.state._replace(embed=jnp.asarray(embed)))
    moved = (x * (1 + 3e-7 * normal(*SHAPE, seed=1))).astype(np.float32)
    (codes, state), (other, other_state) = (
        (np.asarray(out.codes), out.state)
        for out in (train(ours, wave, jax.random.key(0)) for wave in (x, moved))
    )
    np.testing.assert_array_equal(codes, other)
    assert codes.max() < SIZE // 2  # the first of two
    assert (ours.encode(moved) >= SIZE // 2).any()  # what is nearest to the digit
    np.testing.assert_allclose(state.embed, other_state.embed, atol=1e-5)


def test_encode_takes_the_first_of_equals_and_decode_leaves_out_what_was_dropped():
    ours = begun()
    embed = ours.embed[...].at[0, 9].set(ours.embed[...][0, 4])
    ours.set_state(ours.state._replace(embed=embed))
    x = embed[0, jnp.array([[9, 4, 2]])]
    codes = ours.encode(x)
    assert codes.dtype == jnp.int32 and codes[0, 0].tolist() == [4, 4, 2]
    np.testing.assert_array_equal(codes, train(ours, x, jax.random.key(0)).codes)
    first = ours.decode(codes.at[:, 1:].set(DROPPED))
    np.testing.assert_array_equal(first, x)
    everything = sum(embed[i, codes[0, i]] for i in range(LAYERS))
    np.testing.assert_allclose(ours.decode(codes)[0], everything, atol=1e-6)


MESH = """
    import jax, numpy as np
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec
    from quark_jax.hcodec.config import QuantiserConfig
    from quark_jax.hcodec.quantiser import ResidualQuantiser

    assert jax.device_count() == 8
    config = QuantiserConfig(codebooks=3, codebook_size=16, width=8, dead_code_threshold=0.1)
    quantiser = ResidualQuantiser(config, rngs=nnx.Rngs(0))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    @jax.jit
    def steps(quantiser, xs, masks, key):
        for i in range(2):  # the first begins the codebooks
            out = quantiser.train(xs[i], jax.random.fold_in(key, i), masks[i])
            quantiser.set_state(out.state)
        return out

    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((16, 10, 8), np.float32) for _ in range(2)]
    masks = [rng.random((16, 10, 1)) < 0.7 for _ in range(2)]
    for seed in range(2):
        one = steps(quantiser, xs, masks, jax.random.key(seed))
        placed = jax.device_put((xs, masks), rows)
        assert len(placed[0][0].sharding.device_set) == 8
        many = steps(quantiser, *placed, jax.random.key(seed))
        assert np.array_equal(one.codes, many.codes)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)
"""


def test_one_device_and_eight_give_the_same_codebooks():
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = textwrap.dedent(MESH)
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
