"""Metrics against values worked out by hand, librosa and pystoi."""

import warnings

import librosa
import numpy as np
import pystoi
import pytest

from quark_jax import evaluation
from quark_jax.errors import UserError
from quark_jax.evaluation.metrics import MEL_SCALES

RATE = 16_000
ALL = {
    "sdr": evaluation.sdr,
    "si_sdr": evaluation.si_sdr,
    "mel_distance": lambda r, e: evaluation.mel_distance(r, e, RATE),
    "log_spectral_distance": evaluation.log_spectral_distance,
    "stoi": lambda r, e: evaluation.stoi(r, e, RATE),
}


def _noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) / 4


def _babble(samples: int) -> np.ndarray:
    """Noise with a syllable-like envelope, which STOI can follow."""
    envelope = 1 + np.sin(2 * np.pi * 4 * np.arange(samples) / RATE)
    return (_noise(samples) * envelope).astype(np.float32)


def test_si_sdr_by_hand():
    reference, across = np.array([3.0, 4.0]), np.array([4.0, -3.0])
    # 2 s + n with n orthogonal to s: 10 log10(4 * 25 / 25)
    assert evaluation.si_sdr(reference, 2 * reference + across) == pytest.approx(6.0206, abs=1e-4)
    for scale in (-1, 1e-3, 100):
        scaled = scale * (2 * reference + across)
        assert evaluation.si_sdr(reference, scaled) == pytest.approx(6.0206, abs=1e-4)
    assert evaluation.si_sdr(reference, 5 * reference) == np.inf
    assert evaluation.si_sdr(reference, across) == -np.inf
    # The mean is part of the signal: a constant added to it is distortion.
    assert evaluation.si_sdr(np.array([1.0, -1.0]), np.array([2.0, 0.0])) == pytest.approx(0)


def test_sdr_by_hand():
    reference, across = np.array([3.0, 4.0]), np.array([4.0, -3.0])
    # |s|^2 = 25 over |s - 2 s - n|^2 = 25 + 25
    assert evaluation.sdr(reference, 2 * reference + across) == pytest.approx(-3.0103, abs=1e-4)
    assert evaluation.sdr(reference, reference + 0.1 * across) == pytest.approx(20)
    assert evaluation.sdr(reference, np.zeros(2)) == 0
    assert evaluation.sdr(reference, reference) == np.inf
    with pytest.raises(UserError, match="reference: is silent"):
        evaluation.sdr(np.zeros(2), reference)


def test_the_best_permutation_is_found():
    voices = [_noise(4000, seed) for seed in range(3)]
    order = [2, 0, 1]
    estimates = [voices[i] + 0.1 * _noise(4000, 7) for i in order]
    found, score = evaluation.best_permutation(voices, estimates)
    assert [order[i] for i in found] == [0, 1, 2]
    pairs = zip(voices, (estimates[i] for i in found), strict=True)
    assert score == pytest.approx(np.mean([evaluation.si_sdr(*pair) for pair in pairs]))
    # The best pair alone would be 5, but leaves the other two together.
    table = {(0, 0): 5.0, (0, 1): 4.0, (1, 0): 4.0, (1, 1): 0.0}
    one = [np.array([0.0]), np.array([1.0])]
    found, score = evaluation.best_permutation(one, one, lambda a, b: table[int(a[0]), int(b[0])])
    assert (found, score) == ((1, 0), 4.0)
    with pytest.raises(UserError, match="1 of 3 references"):
        evaluation.best_permutation(voices, estimates[:1])


def test_codebook_use_by_hand():
    assert evaluation.codebook_use(np.array([3, 3, 0, 0])) == pytest.approx((0.5, 2))
    # entropy of 1/2, 1/4, 1/4 is 1.5 bits
    assert evaluation.codebook_use(np.array([2, 1, 1, 0])) == pytest.approx((0.75, 2**1.5))


def test_mel_distance_equals_librosa():
    reference, estimate = _noise(40_000), 0.5 * _noise(40_000) + 0.2 * _noise(40_000, 1)

    def logmel(wave, window, bands):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the widest scale has bands that hold no bin
            mel = librosa.feature.melspectrogram(
                y=wave.astype(np.float64),
                sr=RATE,
                n_fft=window,
                hop_length=window // 4,
                n_mels=bands,
                power=1,
                pad_mode="reflect",
            )
        return np.log10(np.maximum(mel, 1e-5))

    expected = np.mean(
        [
            np.mean(np.abs(logmel(reference, w, bands) - logmel(estimate, w, bands)))
            for w, bands in MEL_SCALES.items()
        ]
    )
    assert evaluation.mel_distance(reference, estimate, RATE) == pytest.approx(expected, rel=1e-6)


def test_mel_distance_by_hand():
    reference = _noise(8000)
    assert evaluation.mel_distance(reference, reference, RATE) == 0
    # Ten times the amplitude is 1 in every band that holds a bin, 0 in the others.
    filled = []
    for window, bands in MEL_SCALES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filters = librosa.filters.mel(sr=RATE, n_fft=window, n_mels=bands)
        filled.append(np.mean(filters.any(axis=1)))
    distance = evaluation.mel_distance(reference, 10 * reference, RATE)
    assert distance == pytest.approx(np.mean(filled), abs=1e-6)
    assert evaluation.mel_distance(np.zeros(8000), np.zeros(8000), RATE) == 0


def test_log_spectral_distance_by_hand():
    reference = _noise(20_000)
    assert evaluation.log_spectral_distance(reference, reference) == 0
    # Ten times the amplitude is a hundred times the power, in every bin of every frame.
    distance = evaluation.log_spectral_distance(reference, 10 * reference)
    assert distance == pytest.approx(2, abs=1e-6)
    # Silence against a wave is the wave's power over the floor.
    frames = librosa.util.frame(
        np.pad(reference, 1024, mode="reflect"), frame_length=2048, hop_length=512
    )
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    power = np.abs(np.fft.rfft(frames.T.astype(np.float64) * window)) ** 2
    expected = np.mean(np.sqrt(np.mean(np.log10(power / 1e-10 + 1) ** 2, axis=1)))
    silence = evaluation.log_spectral_distance(reference, np.zeros(20_000))
    assert silence == pytest.approx(expected, rel=1e-6)


def test_stoi_is_pystoi_and_orders_noise():
    clean = _babble(3 * RATE)
    scores = []
    for level in (0.0, 0.3, 1.0, 3.0):
        noisy = clean + level * _noise(len(clean), 1)
        scores.append(evaluation.stoi(clean, noisy, RATE))
        reference = pystoi.stoi(clean.astype(np.float64), noisy.astype(np.float64), RATE)
        assert scores[-1] == pytest.approx(reference, abs=1e-9)
    assert scores[0] == pytest.approx(1)
    assert scores == sorted(scores, reverse=True) and scores[-1] < 0.6


@pytest.mark.parametrize("metric", ALL)
def test_what_cannot_be_compared_is_refused(metric):
    wave = _babble(RATE)
    bad = wave.copy()
    bad[7] = np.nan
    with pytest.raises(UserError, match="estimate: 15999 samples, the reference has 16000"):
        ALL[metric](wave, wave[1:])
    with pytest.raises(UserError, match="estimate: holds NaN"):
        ALL[metric](wave, bad)
    with pytest.raises(UserError, match=r"reference: shape \[2, 8000\]"):
        ALL[metric](wave.reshape(2, -1), wave.reshape(2, -1))
    with pytest.raises(UserError, match="reference: 0 samples"):
        ALL[metric](wave[:0], wave[:0])


@pytest.mark.parametrize("metric", ["si_sdr", "stoi"])
def test_silence_is_refused_where_it_means_nothing(metric):
    wave, silence = _babble(RATE), np.zeros(RATE)
    with pytest.raises(UserError, match="reference: is silent"):
        ALL[metric](silence, wave)
    with pytest.raises(UserError, match="estimate: is silent"):
        ALL[metric](wave, silence)


def test_too_short_is_refused():
    for metric, samples in (
        ("mel_distance", 1024),
        ("log_spectral_distance", 1024),
        ("stoi", 6553),
    ):
        with pytest.raises(UserError, match=f"needs {samples + 1} or more"):
            ALL[metric](_babble(samples), _babble(samples))
    mostly_silent = np.zeros(RATE)
    mostly_silent[:3000] = _babble(3000)
    with pytest.raises(UserError, match=r"less than 0\.4 s of it is not silence"):
        evaluation.stoi(mostly_silent, mostly_silent, RATE)
