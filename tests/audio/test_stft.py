"""STFT, its inverse and mel spectrograms against SciPy and librosa."""

import warnings

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal

from quark_jax import audio
from quark_jax.errors import UserError

SIZES = [(1280, 320), (1920, 960), (32, 8), (12, 2)]


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


def _relative(result, reference) -> float:
    return float(np.abs(np.asarray(result) - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
@pytest.mark.parametrize("extra", [0, 1])
def test_stft_equals_scipy(n_fft, hop, extra):
    wave = _noise(2, 20 * hop + extra * (hop - 1))
    result = jax.jit(audio.stft, static_argnums=(1, 2))(wave, n_fft, hop)
    pad = (n_fft - hop) // 2
    _, _, reference = scipy.signal.stft(
        np.pad(wave.astype(np.float64), ((0, 0), (pad, pad))),
        window=scipy.signal.get_window("hann", n_fft),
        nperseg=n_fft,
        noverlap=n_fft - hop,
        boundary=None,
        padded=False,
        scaling="spectrum",
    )
    reference = reference.transpose(0, 2, 1) * n_fft / 2  # SciPy divides by the window's sum
    assert result.dtype == np.complex64 and result.shape == (2, 20, n_fft // 2 + 1)
    assert _relative(result, reference) < 1e-6


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
def test_istft_gives_the_wave_back_in_the_interior(n_fft, hop):
    wave = _noise(2, 3, 20 * hop)
    spectrum = audio.stft(wave, n_fft, hop)
    back = jax.jit(audio.istft, static_argnums=(1, 2))(spectrum, n_fft, hop)
    assert back.shape == wave.shape
    inside = slice(n_fft, -n_fft)
    np.testing.assert_allclose(back[..., inside], wave[..., inside], atol=1e-6)
    np.testing.assert_allclose(back, wave, atol=1e-5)  # zeros beyond the edges make it whole there


def test_istft_of_any_spectrum_equals_a_plain_overlap_add():
    n_fft, hop, frames = 1280, 320, 9
    parts = np.random.default_rng(1).standard_normal((2, 2, frames, n_fft // 2 + 1))
    spectrum = (parts[0] + 1j * parts[1]).astype(np.complex64)
    window = scipy.signal.get_window("hann", n_fft)
    wave = np.zeros((2, (frames - 1) * hop + n_fft))
    envelope = np.zeros(wave.shape[1])
    for t in range(frames):
        place = slice(t * hop, t * hop + n_fft)
        wave[:, place] += np.fft.irfft(spectrum[:, t].astype(complex), n_fft) * window
        envelope[place] += window**2
    pad = (n_fft - hop) // 2
    reference = (wave / np.where(envelope, envelope, 1))[:, pad:-pad]
    assert _relative(audio.istft(jnp.asarray(spectrum), n_fft, hop), reference) < 1e-6


def test_imaginary_parts_of_the_edge_bins_have_no_effect():
    spectrum = audio.stft(_noise(3200), 1280, 320)
    tilted = spectrum.at[:, 0].add(5j).at[:, -1].add(-7j)
    np.testing.assert_array_equal(audio.istft(tilted, 1280, 320), audio.istft(spectrum, 1280, 320))


@pytest.mark.parametrize("jit", [False, True])
def test_angles_of_silence_and_of_negative_edge_bins(jit):
    phase = lambda wave: jnp.angle(audio.stft(wave, 1280, 320))  # noqa: E731
    phase = jax.jit(phase) if jit else phase
    for silence in (np.zeros(3200, np.float32), np.full(3200, -0.0, np.float32)):
        angle = np.asarray(phase(silence))
        assert (angle == 0).all() and not np.signbit(angle).any()
    # A negative constant has a negative first bin, a negative alternation a negative last one.
    for wave in (-np.ones(3200), np.cos(np.pi * np.arange(3200)), -np.cos(np.pi * np.arange(3200))):
        spectrum = np.asarray(audio.stft(wave, 1280, 320))
        edges = spectrum[:, [0, -1]]
        assert (edges.imag == 0).all() and not np.signbit(edges.imag).any()
        angle = np.asarray(phase(wave.astype(np.float32)))[:, [0, -1]]
        np.testing.assert_array_equal(angle, np.where(edges.real < 0, np.float32(np.pi), 0))
        assert (angle > 0).any()


@pytest.mark.parametrize("args", [(16_000, 1280, 80, 0.0, None), (48_000, 2048, 320, 0.0, None)])
def test_mel_filterbank_equals_librosa(args):
    rate, n_fft, n_mels, fmin, fmax = args
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 320 filters are more than this resolution fills
        reference = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax).T
    filters = audio.mel_filterbank(*args)
    assert filters.dtype == np.float32 and filters.shape == reference.shape
    assert _relative(filters, reference) < 1e-6


def test_mel_filterbank_with_edges_equals_librosa():
    reference = librosa.filters.mel(sr=24_000, n_fft=1024, n_mels=64, fmin=55, fmax=7600).T
    assert _relative(audio.mel_filterbank(24_000, 1024, 64, 55, 7600), reference) < 1e-6


def test_mel_spectrogram_equals_librosa():
    wave = _noise(16_000)
    result = jax.jit(audio.mel_spectrogram, static_argnums=(1, 2, 3, 4))(wave, 16_000, 640, 160, 80)
    reference = librosa.feature.melspectrogram(
        y=np.pad(wave, 240), sr=16_000, n_fft=640, hop_length=160, n_mels=80, power=1, center=False
    )
    assert _relative(result, reference.T) < 1e-5


def test_gradients_are_finite_and_right():
    wave = _noise(3200).copy()
    wave[1600:] = 0  # digital silence: where a square root or an angle would give NaN

    def energy(x):
        return jnp.sum(audio.istft(audio.stft(x, 1280, 320), 1280, 320) ** 2) / 2

    np.testing.assert_allclose(jax.grad(energy)(wave), wave, atol=1e-5)
    gradient = jax.grad(lambda x: audio.mel_spectrogram(x, 16_000, 640, 160, 80).sum())(wave)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    assert np.isfinite(jax.grad(lambda x: audio.resample_sinc(x, 48_000, 16_000).sum())(wave)).all()


@pytest.mark.parametrize(("n_fft", "hop"), [(1280, 300), (1281, 427), (320, 320), (6, 3), (8, 0)])
def test_sizes_that_do_not_fit_are_refused(n_fft, hop):
    with pytest.raises(UserError, match=f"n_fft {n_fft}, hop {hop}"):
        audio.stft(np.zeros(5000, np.float32), n_fft, hop)
    with pytest.raises(UserError, match=f"n_fft {n_fft}, hop {hop}"):
        audio.istft(jnp.zeros((4, n_fft // 2 + 1), jnp.complex64), n_fft, hop)


def test_too_short_waves_and_wrong_bins_are_refused():
    with pytest.raises(UserError, match="less than one hop"):
        audio.stft(np.zeros(319, np.float32), 1280, 320)
    with pytest.raises(UserError, match="640 bins"):
        audio.istft(jnp.zeros((4, 640), jnp.complex64), 1280, 320)
    with pytest.raises(UserError, match="fmin 9000"):
        audio.mel_filterbank(16_000, 1280, 80, 9000)
