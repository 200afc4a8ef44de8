"""The recurrent transformer against PyTorch's LSTM and attention on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from quark_jax.nn import LSTM, RecurrentTransformer, frame_mask

WIDTH, HEADS, INNER = 16, 2, 24


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensor(array):
    return torch.from_numpy(np.array(array))


def randomise(module):
    for seed, (_, leaf) in enumerate(nnx.iter_graph(module)):
        if isinstance(leaf, nnx.Param):
            leaf.set_value(jnp.asarray(0.5 * normal(*leaf.shape, seed=seed)))
    return module


def torch_lstm(lstm):
    ours = {
        "weight_ih_l0": lstm.input_kernel[...].T,
        "weight_hh_l0": lstm.hidden_kernel[...].T,
        "bias_ih_l0": lstm.input_bias[...],
        "bias_hh_l0": lstm.hidden_bias[...],
    }
    reference = torch.nn.LSTM(WIDTH, WIDTH, batch_first=True)
    reference.load_state_dict({name: tensor(array) for name, array in ours.items()})
    return reference


def rotate_half(x):
    """Rotary positions of [batch, heads, time, dim], as in the RoFormer paper's code."""
    time, dim = x.shape[-2:]
    angles = torch.outer(torch.arange(time), 10000.0 ** (-torch.arange(0, dim, 2) / dim))
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def reference_layer(layer, x):
    F = torch.nn.functional
    batch, time, _ = x.shape

    def heads(dense, y):
        y = F.linear(y, tensor(dense.kernel[...].T), tensor(dense.bias[...]))
        return y.reshape(batch, time, HEADS, -1).transpose(1, 2)

    attention, mlp = layer.attention, layer.mlp
    y = F.rms_norm(x, (WIDTH,), tensor(layer.attention_norm.scale[...]), 1e-6)
    y = torch_lstm(attention.lstm)(y)[0]
    q, k = (rotate_half(heads(dense, y)) for dense in (attention.query, attention.key))
    y = F.scaled_dot_product_attention(q, k, heads(attention.value, y))
    y = y.transpose(1, 2).reshape(batch, time, WIDTH)
    x = x + F.linear(y, tensor(attention.out.kernel[...].T))
    y = F.rms_norm(x, (WIDTH,), tensor(layer.mlp_norm.scale[...]), 1e-6)
    gate, up, down = (tensor(dense.kernel[...].T) for dense in (mlp.gate, mlp.up, mlp.down))
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)


@pytest.fixture(scope="module")
def transformer():
    return randomise(
        RecurrentTransformer(WIDTH, layers=2, heads=HEADS, inner=INNER, rngs=nnx.Rngs(0))
    )


@jax.jit
def run(transformer, x, mask=None):
    return transformer(x, mask)


@pytest.mark.parametrize("frames", [1, 12])
def test_lstm_and_its_gradients_are_pytorchs(frames):
    lstm, x = randomise(LSTM(WIDTH, rngs=nnx.Rngs(0))), normal(2, frames, WIDTH)
    reference, theirs = torch_lstm(lstm), tensor(x).requires_grad_()
    expected = reference(theirs)[0]
    expected.square().sum().backward()

    def loss(lstm, x):
        y = lstm(x)
        return jnp.sum(y**2), y

    (by_lstm, by_x), y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(lstm, x)
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(by_x, theirs.grad.numpy(), atol=2e-5)
    for ours, name in (
        (by_lstm.input_kernel[...].T, "weight_ih_l0"),
        (by_lstm.hidden_kernel[...].T, "weight_hh_l0"),
        (by_lstm.input_bias[...], "bias_ih_l0"),
        (by_lstm.hidden_bias[...], "bias_hh_l0"),
    ):
        np.testing.assert_allclose(ours, getattr(reference, name).grad.numpy(), atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-3])  # the small one shows RMSNorm's epsilon
def test_transformer_is_its_definition_in_pytorch(transformer, scale):
    x = scale * normal(2, 12, WIDTH)
    expected = tensor(x)
    with torch.no_grad():
        for layer in transformer.layers:
            expected = reference_layer(layer, expected)
    scale = expected.abs().max().item()
    np.testing.assert_allclose(run(transformer, x), expected.numpy(), atol=3e-6 * scale)


def test_padding_does_not_show(transformer):
    x = normal(1, 12, WIDTH)
    alone = np.asarray(run(transformer, x))
    padded = np.concatenate([x, 1e2 * normal(1, 4, WIDTH)], axis=1)
    batched = run(transformer, padded, frame_mask(jnp.array([12]), 16))
    np.testing.assert_allclose(batched[:, :12], alone, atol=1e-5)
    without = run(transformer, padded, frame_mask(jnp.array([16]), 16))
    assert np.abs(without[:, :12] - alone).max() > 1e-2  # the mask is what keeps it out


def test_bfloat16_stays_near_float32(transformer):
    low = RecurrentTransformer(
        WIDTH, layers=2, heads=HEADS, inner=INNER, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    nnx.update(low, nnx.state(transformer))
    x = normal(2, 12, WIDTH)
    y = run(low, jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    expected = np.asarray(run(transformer, x))
    error = np.sqrt(np.mean((np.asarray(y, np.float32) - expected) ** 2) / np.mean(expected**2))
    assert error < 0.05
