"""The coder of SSL features against PyTorch's convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from quark_jax.hcodec import HCodecConfig
from quark_jax.hcodec.config import SemanticConfig
from quark_jax.hcodec.semantic import SemanticDecoder, SemanticEncoder, UpConv


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensor(array):
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
@pytest.mark.parametrize("frames", [1, 6])
def test_transposed_conv_and_its_gradients_are_pytorchs(stride, frames):
    layer = UpConv(4, stride, dtype=None, rngs=nnx.Rngs(0))
    layer.bias.set_value(jnp.asarray(normal(4)))
    theirs = torch.nn.ConvTranspose1d(
        4, 4, 2 * stride, stride, padding=(stride + 1) // 2, output_padding=stride % 2
    )
    theirs.load_state_dict(
        {"weight": tensor(layer.kernel[...].transpose(1, 2, 0)), "bias": tensor(layer.bias[...])}
    )
    x = normal(2, frames, 4)
    leaf = tensor(x).requires_grad_()
    expected = theirs(leaf.transpose(1, 2)).transpose(1, 2)
    expected.square().sum().backward()

    def loss(layer, x):
        y = layer(x, None)
        return jnp.sum(y**2), y

    (by_layer, by_x), y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(layer, x)
    assert y.shape == (2, frames * stride, 4)
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(by_x, leaf.grad.numpy(), atol=1e-4)
    weight = theirs.weight.grad.permute(2, 0, 1).numpy()
    np.testing.assert_allclose(by_layer.kernel[...], weight, atol=1e-4)


def test_strides_are_met_in_the_order_of_the_config_both_ways():
    config = SemanticConfig(channels=6, width=8, strides=(2, 1, 4))
    encoder = nnx.eval_shape(lambda: SemanticEncoder(config, 5, rngs=nnx.Rngs(0)))
    assert [down.kernel.shape[0] for down in encoder.downs] == [4, 3, 8]
    decoder = nnx.eval_shape(lambda: SemanticDecoder(config, 5, rngs=nnx.Rngs(0)))
    assert [up.kernel.shape[0] for up in decoder.ups] == [4, 3, 8]
    assert HCodecConfig.preset("2.0").semantic.strides == (2, 1, 2)
    assert HCodecConfig.preset("2.0-6.25hz").semantic.strides == (2, 2, 2)


def test_encoder_is_its_definition_in_pytorch_and_decoder_undoes_its_rate():
    F, elu = torch.nn.functional, torch.nn.functional.elu
    config = SemanticConfig(channels=6, width=8, strides=(2, 1))
    encoder = SemanticEncoder(config, 5, rngs=nnx.Rngs(0))
    x = normal(1, 12, 6)

    def weight(layer):
        return tensor(layer.kernel[...]).permute(2, 1, 0)

    y = F.conv1d(tensor(x).transpose(1, 2), weight(encoder.first), padding=1)
    for stride, units, down in zip((2, 1), encoder.units, encoder.downs, strict=True):
        for unit in units:
            hidden = F.conv1d(elu(y), weight(unit.conv), padding=1)
            point = tensor(unit.point.kernel[...]).T[..., None]
            y = y + F.conv1d(elu(hidden), point)
        y = F.conv1d(y, weight(down), tensor(down.bias[...]), stride, padding=1)
    expected = F.conv1d(y, weight(encoder.last), padding=1).transpose(1, 2).numpy()
    actual = jax.jit(lambda encoder, x: encoder(x))(encoder, x)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    decoder = SemanticDecoder(config, 5, rngs=nnx.Rngs(0))
    assert jax.jit(lambda decoder, x: decoder(x))(decoder, actual).shape == x.shape
