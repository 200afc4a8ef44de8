import jax
import librosa
import numpy as np

from quark_jax.encoders import LogMel


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def test_matches_librosa():
    wave = _noise(16000)
    padded = np.pad(wave, 160)
    magnitude = librosa.feature.melspectrogram(
        y=padded, sr=16000, n_fft=640, hop_length=320, n_mels=80, power=1.0, center=False
    )
    expected = (np.log(np.maximum(magnitude.T, 1e-5)) + 5.3) / 2.3
    np.testing.assert_allclose(LogMel()(wave[None])[0], expected, atol=1e-4)


def test_silence_is_finite_and_bands_are_counted():
    features = LogMel()(np.zeros((1, 3200), np.float32))
    assert features.shape == (1, 10, LogMel.channels)
    np.testing.assert_allclose(features, (np.log(1e-5) + 5.3) / 2.3, rtol=1e-6)


def test_item_of_a_batch_gets_what_it_gets_alone():
    wave = _noise(2, 6400)
    lengths = np.array([6400, 3333])
    together = jax.jit(lambda m, w, n: m(w, n))(LogMel(), wave, lengths)
    alone = LogMel()(wave[1:, :3333])
    np.testing.assert_allclose(together[1, :10], alone[0], atol=1e-6)
    assert not together[1, 10:].any()
    np.testing.assert_allclose(together[0], LogMel()(wave[:1])[0], atol=1e-6)
