"""The wave encoder's convolution against PyTorch, at lengths too short to reflect too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from quark_jax.hcodec import HCodecConfig
from quark_jax.hcodec.config import SeanetConfig
from quark_jax.hcodec.seanet import ResidualUnit, SeanetEncoder, WeightNormConv
from quark_jax.nn import frame_mask


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensor(array):
    return torch.from_numpy(np.array(array))


def randomise(module):
    for seed, (_, leaf) in enumerate(nnx.iter_graph(module)):
        if isinstance(leaf, nnx.Param):
            leaf.set_value(jnp.asarray(normal(*leaf.shape, seed=seed)))
    return module


@jax.jit
def run(module, x, mask=None):
    return module(x, mask)


def reference(layer, x, stride):
    """[batch, channels, time]: reflect-padded, weight-normalised, as EnCodec's non-causal conv."""
    F = torch.nn.functional
    direction = tensor(layer.direction[...]).permute(2, 1, 0)
    weight = torch._weight_norm(direction, tensor(layer.gain[...])[:, None, None], 0)
    kernel, time = weight.shape[-1], x.shape[-1]
    total = kernel - stride
    frames = (time - kernel + total) / stride + 1
    extra = (int(np.ceil(frames)) - 1) * stride + kernel - total - time
    left, right = total - total // 2, total // 2 + extra
    short = max(0, max(left, right) + 1 - time)
    x = F.pad(x, (0, short))
    x = F.pad(x, (left, right), mode="reflect") if left or right else x
    return F.conv1d(x[..., : x.shape[-1] - short], weight, tensor(layer.bias[...]), stride)


@pytest.mark.parametrize(
    ("kernel", "stride", "lengths"),
    [
        (7, 1, (1, 2, 3, 4, 9)),
        (3, 1, (1, 2, 5)),
        (1, 1, (1, 4)),
        (4, 2, (1, 2, 3, 7, 8)),
        (10, 5, (1, 3, 5, 9, 11)),
        (16, 8, (2, 5, 8, 17)),
    ],
)
def test_conv_is_pytorchs_at_any_length(kernel, stride, lengths):
    layer = randomise(WeightNormConv(3, 4, kernel, stride=stride, rngs=nnx.Rngs(0)))
    for length in lengths:
        x = normal(2, length, 3)
        expected = reference(layer, tensor(x).transpose(1, 2), stride).transpose(1, 2).numpy()
        actual = run(layer, x)
        assert actual.shape[1] == -(-length // stride)
        np.testing.assert_allclose(actual, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kernel", "stride", "lengths"),
    [(7, 1, (1, 2, 3, 4, 11, 12)), (4, 2, (2, 4, 12)), (16, 8, (8, 16))],
)
def test_conv_of_a_padded_item_is_its_own(kernel, stride, lengths):
    layer = randomise(WeightNormConv(3, 4, kernel, stride=stride, rngs=nnx.Rngs(0)))
    frames = max(lengths)
    x = normal(len(lengths), frames, 3)
    batched = run(layer, x, frame_mask(jnp.array(lengths), frames))
    for i, length in enumerate(lengths):
        alone = np.asarray(run(layer, x[i : i + 1, :length]))
        kept = batched[i : i + 1, : length // stride]
        np.testing.assert_allclose(kept, alone, atol=2e-6 * np.abs(alone).max())


def test_residual_unit_is_its_definition():
    unit = randomise(ResidualUnit(6, dtype=None, rngs=nnx.Rngs(0)))
    x = normal(1, 9, 6)
    elu, y = torch.nn.functional.elu, tensor(x).transpose(1, 2)
    body = reference(unit.widen, elu(reference(unit.narrow, elu(y), 1)), 1)
    expected = (reference(unit.shortcut, y, 1) + body).transpose(1, 2).numpy()
    np.testing.assert_allclose(run(unit, x), expected, atol=2e-6 * np.abs(expected).max())


def test_strides_are_met_in_the_order_of_the_config():
    config = SeanetConfig(filters=2, strides=(4, 2), layers=1, heads=1)
    encoder = nnx.eval_shape(lambda: SeanetEncoder(config, 8, rngs=nnx.Rngs(0)))
    assert [down.direction.shape for down in encoder.downs] == [(8, 2, 4), (4, 4, 8)]
    assert HCodecConfig.preset("1.0").encoder.strides == (2, 4, 5, 8)
    assert HCodecConfig.preset("1.5").encoder.strides == (8, 5, 4, 2)
