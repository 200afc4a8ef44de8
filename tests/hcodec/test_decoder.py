"""The decoder's parts against PyTorch, where golden vectors are blind."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from quark_jax.hcodec.decoder import ISTFTHead, RepeatUpsample, ResidualBlock, SubPixelUpsample

WIDTH = 64


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensor(array):
    return torch.from_numpy(np.array(array))


def block():
    module = ResidualBlock(WIDTH, 0.5, dtype=None, rngs=nnx.Rngs(0))
    for seed, (_, leaf) in enumerate(nnx.iter_graph(module)):
        if isinstance(leaf, nnx.Param):
            leaf.set_value(jnp.asarray(0.2 * normal(*leaf.shape, seed=seed)))
    return module


@jax.jit
def run(block, x, mask=None, key=None):
    return block(x, mask, key)


def test_residual_block_is_its_definition_where_epsilon_matters():
    F, module = torch.nn.functional, block()
    # The second norm gets a variance near its epsilon too.
    module.conv1.kernel.set_value(module.conv1.kernel[...] * 1e-3)
    module.conv1.bias.set_value(module.conv1.bias[...] * 1e-3)
    x = 1e-3 * normal(2, 7, WIDTH)
    y = tensor(x).transpose(1, 2)
    for norm, conv in ((module.norm1, module.conv1), (module.norm2, module.conv2)):
        y = F.group_norm(y, 32, tensor(norm.scale[...]), tensor(norm.bias[...]), 1e-6)
        weight = tensor(conv.kernel[...]).permute(2, 1, 0)
        y = F.conv1d(F.silu(y), weight, tensor(conv.bias[...]), padding=1)
    expected = x + y.transpose(1, 2).numpy()
    np.testing.assert_allclose(run(module, x), expected, atol=1e-5 * np.abs(expected).max())


def test_dropout_is_on_with_a_key_and_drawn_from_it():
    module, x = block(), normal(1, 7, WIDTH)
    plain, *drawn = (
        run(module, x, None, key) for key in (None, *jax.random.split(jax.random.key(0)))
    )
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3 < np.abs(drawn[0] - plain).max()
    keys = jax.random.split(jax.random.key(1), 400)
    mean = jax.jit(jax.vmap(lambda key: module(x, None, key)))(keys).mean(0)
    spread = np.abs(drawn[0] - plain).mean()
    assert np.abs(mean - plain).mean() < 0.1 * spread  # dropout keeps the mean


def test_sub_pixel_upsample_takes_each_step_from_its_channels():
    up = SubPixelUpsample(6, 5, 2, dtype=None, rngs=nnx.Rngs(0))
    up.smooth.kernel.set_value(jnp.zeros((5, 5)).at[2].set(1.0))  # passes through
    x = normal(1, 3, 6)
    y = up(x, None, None)
    expanded = np.asarray(up.expand(x))
    for frame in range(3):
        np.testing.assert_allclose(y[0, 2 * frame], expanded[0, frame, :5], atol=1e-6)
        np.testing.assert_allclose(y[0, 2 * frame + 1], expanded[0, frame, 5:], atol=1e-6)


def test_repeat_upsample_is_pytorchs_interpolation_and_conv():
    for factor in (2, 4, 8):
        up = RepeatUpsample(6, 5, factor, dtype=None, rngs=nnx.Rngs(0))
        x = normal(2, 3, 6)
        repeated = torch.nn.functional.interpolate(tensor(x).transpose(1, 2), scale_factor=factor)
        weight = tensor(up.conv.kernel[...]).permute(2, 1, 0)
        expected = torch.nn.functional.conv1d(repeated, weight, padding=factor // 2)
        np.testing.assert_allclose(up(x, None, None), expected.transpose(1, 2).numpy(), atol=1e-6)


def test_istft_head_caps_magnitudes_and_inverts_the_stft():
    n_fft, hop = 64, 16
    head = ISTFTHead(8, n_fft, hop, dtype=None, rngs=nnx.Rngs(0))
    bias = normal(n_fft + 2)
    bias[:3] = 4.0, 5.0, 50.0  # 55, and two that are capped at 100
    head.out.bias.set_value(jnp.asarray(bias))
    x = normal(1, 9, 8)
    log_magnitude, phase = torch.from_numpy(np.array(head.out(x))).transpose(1, 2).chunk(2, dim=1)
    assert (log_magnitude.exp() > 100).any()
    spectrum = torch.polar(log_magnitude.exp().clip(max=100), phase)
    frames = torch.fft.irfft(spectrum, n_fft, dim=1) * torch.hann_window(n_fft)[:, None]
    size, pad = (1, n_fft + 8 * hop), (n_fft - hop) // 2
    fold = {"output_size": size, "kernel_size": (1, n_fft), "stride": (1, hop)}
    wave = torch.nn.functional.fold(frames, **fold)[0, 0, 0]
    squares = (torch.hann_window(n_fft) ** 2)[None, :, None].expand(1, -1, 9)
    wave = (wave / torch.nn.functional.fold(squares, **fold)[0, 0, 0])[pad:-pad]
    expected = wave.numpy()
    actual = head(jnp.asarray(x), None)[0]
    assert actual.shape == (9 * hop,) and actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
