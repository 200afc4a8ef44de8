"""What the STFT encoder sees: log-magnitude with its floor, and phase over pi."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from quark_jax.hcodec.config import SpectralConfig
from quark_jax.hcodec.spectral import SpectralEncoder

N_FFT, HOP = 64, 32


@pytest.fixture(scope="module")
def encoder():
    config = SpectralConfig(n_fft=N_FFT, hop=HOP, width=8, inner=8, blocks=1, layers=1, heads=1)
    return SpectralEncoder(config, 4, 6, rngs=nnx.Rngs(0))


def seen(encoder, wave):
    """What enters the first convolution."""

    class Seen(Exception):
        pass

    def stop(x):
        raise Seen(x)

    encoder.embed = stop
    with pytest.raises(Seen) as caught:
        encoder(jnp.asarray(wave, jnp.float32))
    return np.asarray(caught.value.args[0])


def test_features_are_log_magnitude_and_phase(encoder):
    wave = np.random.default_rng(0).standard_normal((2, 6 * HOP)).astype(np.float32)
    x = seen(encoder, wave)
    pad = (N_FFT - HOP) // 2
    spectrum = torch.stft(
        torch.nn.functional.pad(torch.from_numpy(wave), (pad, pad)),
        N_FFT,
        HOP,
        window=torch.hann_window(N_FFT),
        center=False,
        return_complex=True,
    ).transpose(1, 2)
    bins = N_FFT // 2 + 1
    np.testing.assert_allclose(x[..., :bins], spectrum.abs().log().numpy(), atol=1e-3)
    turn = x[..., bins:] - spectrum.angle().numpy() / np.pi
    assert np.abs((turn + 1) % 2 - 1).max() < 1e-3  # equal but for a whole turn


def test_silence_is_the_floor_and_angle_zero(encoder):
    x = seen(encoder, np.zeros((1, 4 * HOP)))
    bins = N_FFT // 2 + 1
    np.testing.assert_allclose(x[..., :bins], np.log(1e-5), rtol=1e-6)
    assert not x[..., bins:].any()


def test_a_negative_edge_bin_has_angle_plus_pi(encoder):
    x = seen(encoder, -np.ones((1, 4 * HOP)))
    assert (x[0, :, N_FFT // 2 + 1] == 1).all()
