"""Each layer against PyTorch's own on the same weights; norms where their epsilon shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from quark_jax.nn import (
    ConvNeXt,
    DepthwiseConv,
    conv,
    embed,
    frame_mask,
    group_norm,
    hann_buffer,
    layer_norm,
    linear,
    masked,
    rms_norm,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def randomise(module, scale=0.3):
    """Fill all parameters of `module`, biases and gains too, with random numbers."""
    for seed, (_, leaf) in enumerate(nnx.iter_graph(module)):
        if isinstance(leaf, nnx.Param):
            leaf.set_value(jnp.asarray(scale * normal(*leaf.shape, seed=seed)))
    return module


def tensor(array):
    return torch.from_numpy(np.array(array))


def channels_first(function, x):
    """A PyTorch function of [batch, channels, time] applied to [batch, time, channels]."""
    return function(tensor(x).transpose(1, 2)).transpose(1, 2).detach().numpy()


def assert_close(actual, expected, tolerance=1e-6):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorchs(bias):
    layer = randomise(linear(6, 5, axes=("embed", "mlp"), bias=bias, rngs=nnx.Rngs(0)))
    x = normal(2, 3, 6)
    weight, offset = tensor(layer.kernel[...].T), tensor(layer.bias[...]) if bias else None
    assert_close(layer(x), torch.nn.functional.linear(tensor(x), weight, offset).numpy())
    assert layer.kernel.get_metadata()["axes"] == ("embed", "mlp")


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"), [(3, 1, 1, 1), (4, 2, 1, 2), (9, 4, 4, 1)]
)
@pytest.mark.parametrize("frames", [1, 5, 8])
def test_conv_is_pytorchs(kernel, stride, padding, groups, frames):
    options = {"stride": stride, "padding": padding, "groups": groups}
    layer = randomise(conv(4, 6, kernel, **options, rngs=nnx.Rngs(0)))
    x = normal(2, frames, 4)
    weight = tensor(layer.kernel[...].transpose(2, 1, 0))

    def reference(x):
        return torch.nn.functional.conv1d(x, weight, tensor(layer.bias[...]), **options)

    if frames + 2 * padding >= kernel:
        assert_close(layer(x), channels_first(reference, x))
    assert layer.kernel.get_metadata()["axes"] == (None, "channels_in", "channels_out")


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("frames", [1, 3, 20])
def test_depthwise_conv_is_pytorchs(kernel, frames):
    layer = randomise(DepthwiseConv(6, kernel, rngs=nnx.Rngs(0)))
    weight = tensor(layer.kernel[...].T[:, None])

    def reference(x):
        bias = tensor(layer.bias[...])
        return torch.nn.functional.conv1d(x, weight, bias, padding=kernel // 2, groups=6)

    x = normal(2, frames, 6)
    assert_close(layer(x), channels_first(reference, x))


# Deviation 1e-3 makes the variance 1e-6: an epsilon of another power of ten is far off.
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_layer_norm_is_pytorchs_where_epsilon_matters(epsilon):
    norm = randomise(layer_norm(8, epsilon=epsilon, rngs=nnx.Rngs(0)))
    x = 1e-3 * normal(2, 5, 8)
    weight, bias = tensor(norm.scale[...]), tensor(norm.bias[...])
    expected = torch.nn.functional.layer_norm(tensor(x), (8,), weight, bias, epsilon)
    assert_close(norm(x), expected.numpy())


def test_layer_norm_and_group_norm_default_to_1e_6():
    x = 1e-3 * normal(2, 5, 64)
    expected = torch.nn.functional.layer_norm(tensor(x), (64,), eps=1e-6).numpy()
    assert_close(layer_norm(64, rngs=nnx.Rngs(0))(x), expected)
    expected = channels_first(lambda x: torch.nn.functional.group_norm(x, 32, eps=1e-6), x)
    assert_close(group_norm(64, rngs=nnx.Rngs(0))(x), expected)


def test_rms_norm_is_pytorchs_where_epsilon_matters():
    norm = randomise(rms_norm(8, rngs=nnx.Rngs(0)))
    x = 1e-3 * normal(2, 5, 8)
    expected = torch.nn.functional.rms_norm(tensor(x), (8,), tensor(norm.scale[...]), 1e-6)
    assert_close(norm(x), expected.numpy())


def test_group_norm_of_a_padded_item_is_its_own():
    norm = randomise(group_norm(64, rngs=nnx.Rngs(0)))
    x, lengths = normal(2, 9, 64), jnp.array([9, 4])
    mask = frame_mask(lengths, 9)
    x[1, 4:] = 1e3  # whatever stands in the padding
    batched = norm(x, mask=jnp.broadcast_to(mask, x.shape))

    def reference(x):
        weight, bias = tensor(norm.scale[...]), tensor(norm.bias[...])
        return torch.nn.functional.group_norm(x, 32, weight, bias, 1e-6)

    assert_close(batched[:1], channels_first(reference, x[:1]))
    assert_close(batched[1:, :4], channels_first(reference, x[1:, :4]))


def test_norms_keep_precision_far_from_zero():
    x = 1e3 + normal(1, 4, 64)
    expected = torch.nn.functional.layer_norm(tensor(x).double(), (64,), eps=1e-6).numpy()
    assert_close(layer_norm(64, rngs=nnx.Rngs(0))(x), expected, 1e-4)


def test_embed_looks_up_rows():
    table = embed(5, 3, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(table(jnp.array([4, 0])), table.embedding[...][::-4])
    assert table.embedding.get_metadata()["axes"] == ("vocab", "embed")


def test_convnext_is_its_definition_in_pytorch():
    stack = randomise(ConvNeXt(6, 10, 2, rngs=nnx.Rngs(0)))
    x = normal(2, 9, 6)

    def reference(x):
        F = torch.nn.functional
        for block in stack.blocks:
            weight = tensor(block.depthwise.kernel[...].T[:, None])
            y = F.conv1d(x, weight, tensor(block.depthwise.bias[...]), padding=3, groups=6)
            scale, bias = tensor(block.norm.scale[...]), tensor(block.norm.bias[...])
            y = F.layer_norm(y.transpose(1, 2), (6,), scale, bias, 1e-6)
            y = F.linear(y, tensor(block.up.kernel[...].T), tensor(block.up.bias[...]))
            y = F.gelu(y)  # exact
            y = F.linear(y, tensor(block.down.kernel[...].T), tensor(block.down.bias[...]))
            x = x + (tensor(block.gamma[...]) * y).transpose(1, 2)
        return x

    assert_close(stack(x), channels_first(reference, x))


def test_convnext_gamma_begins_at_one_over_blocks_and_padding_does_not_show():
    stack = ConvNeXt(6, 10, 4, rngs=nnx.Rngs(0))
    assert all((block.gamma[...] == 0.25).all() for block in stack.blocks)
    x = normal(1, 9, 6)
    padded = np.concatenate([x, 1e3 * normal(1, 3, 6)], axis=1)
    batched = stack(padded, frame_mask(jnp.array([9]), 12))
    assert_close(batched[:, :9], np.asarray(stack(x)))


def test_compute_dtype_leaves_parameters_in_float32():
    x = jnp.asarray(normal(1, 4, 64), jnp.bfloat16)
    options = {"dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    for layer in (
        linear(64, 3, axes=("embed", "mlp"), **options),
        conv(64, 3, 3, **options),
        DepthwiseConv(64, 3, **options),
        layer_norm(64, **options),
        rms_norm(64, **options),
        group_norm(64, **options),
    ):
        assert layer(x).dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(layer)} == {jnp.dtype(jnp.float32)}


def test_masks():
    mask = frame_mask(jnp.array([0, 2, 3]), 3)
    np.testing.assert_array_equal(mask[..., 0], [[0, 0, 0], [1, 1, 0], [1, 1, 1]])
    x = jnp.full((3, 3, 2), jnp.nan)
    assert jnp.isnan(masked(x, mask)).sum() == 10 and masked(x, None) is x


def test_hann_buffer_is_pytorchs_periodic_window_and_no_parameter():
    buffer = hann_buffer(640)
    np.testing.assert_allclose(buffer[...], torch.hann_window(640).numpy(), atol=1e-6)
    assert not isinstance(buffer, nnx.Param)
