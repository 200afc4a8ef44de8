"""Losses and counts by other means: librosa, and by hand."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from quark_jax.hcodec.losses import MEL_SCALES, LossConfig, codec_loss, mel_loss
from quark_jax.hcodec.model import Reconstruction
from quark_jax.hcodec.quantiser import DROPPED
from quark_jax.training.codec import codebook_use
from quark_jax.training.lm import unigram_entropy

RATE = 16_000


# Compiled once, for waves of one shape.
mel_loss_and_gradient = jax.jit(
    jax.value_and_grad(lambda estimate, reference: mel_loss(reference, estimate, RATE))
)


def waves(seed: int, samples: int = 6400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, samples)) * [[0.3], [0.01]]
    return (noise + np.sin(np.arange(samples) * 0.1 * (seed + 1))).astype(np.float32)


def librosa_mel(wave: np.ndarray, window: int, bands: int) -> np.ndarray:
    """log10 mel magnitudes [batch, bands, frames] of frames that start half a window less half a
    hop early."""
    padding = (window - window // 4) // 2
    spectrum = librosa.stft(
        np.pad(wave, ((0, 0), (padding, padding))).astype(np.float64),
        n_fft=window,
        hop_length=window // 4,
        window="hann",
        center=False,
    )
    filters = librosa.filters.mel(sr=RATE, n_fft=window, n_mels=bands, dtype=np.float64)
    return np.log10(np.maximum(filters @ np.abs(spectrum), 1e-5))


@pytest.mark.filterwarnings("ignore:Empty filters")
def test_mel_loss_is_librosas():
    reference, estimate = waves(0), waves(1)
    wanted = sum(
        np.mean(np.abs(librosa_mel(reference, *scale) - librosa_mel(estimate, *scale)))
        for scale in ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
    )
    assert len(MEL_SCALES) == 7
    loss, _ = mel_loss_and_gradient(estimate, reference)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_mel_loss_of_equals_is_nothing():
    assert float(mel_loss_and_gradient(waves(0), waves(0))[0]) < 1e-5


@pytest.mark.parametrize("silent", [(0,), (1,), (0, 1)])
def test_mel_loss_has_a_gradient_at_silence(silent):
    pair = [waves(i) * np.float32(i not in silent) for i in range(2)]
    loss, gradient = mel_loss_and_gradient(*pair)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert (float(loss) > 1) == (silent != (0, 1))


def test_codec_loss_is_the_weighted_sum_of_its_terms():
    rng = np.random.default_rng(0)
    features, guess = rng.normal(size=(2, 2, 20, 5)).astype(np.float32)
    codes = jnp.zeros((2, 1, 10), jnp.int32)
    output = Reconstruction(waves(1), guess, jnp.asarray(0.25), codes, codes, None)
    config = LossConfig(mel=2.0, semantic=3.0, commitment=5.0)
    loss, terms = jax.jit(lambda o, *wanted: codec_loss(o, *wanted, RATE, config))(
        output, waves(0), features
    )
    assert set(terms) == {"mel", "semantic", "commitment"}
    mel = mel_loss_and_gradient(waves(1), waves(0))[0]
    assert float(terms["mel"]) == pytest.approx(float(mel), rel=1e-5)
    assert float(terms["semantic"]) == pytest.approx(np.mean((features - guess) ** 2), rel=1e-5)
    wanted = 2 * terms["mel"] + 3 * terms["semantic"] + 5 * 0.25
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)


def test_codebook_use_counts_each_layer_and_no_dropped_one():
    codes = jnp.asarray(
        [
            [[0, 1, 1, 0], [7, 7, 7, 7], [DROPPED] * 4],
            [[2, 3, 0, 1], [7, 7, 7, 0], [DROPPED] * 4],
        ]
    )
    np.testing.assert_allclose(codebook_use(codes, 8), [4 / 8, 2 / 8, 0])


def test_unigram_entropy_of_layers_and_streams_by_themselves():
    class Dataset:
        metadata = {"codebooks": 2}  # noqa: RUF012

        def records(self, split):
            assert split == "train"
            even, four, one = [0, 1, 0, 1], [0, 1, 2, 3], [5, 5, 5, 5]
            yield {"acoustic": np.array([even, four]), "semantic": np.array([one, one])}
            yield {"acoustic": np.array([even, four]), "semantic": np.array([one, even])}

    mixed = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))  # half 5, a quarter 0, a quarter 1
    wanted = np.mean([np.log(2), np.log(4), 0.0, mixed])
    assert unigram_entropy(Dataset(), "train", 8) == pytest.approx(wanted)
