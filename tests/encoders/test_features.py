from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from quark_jax.encoders import FeatureConfig, LogMel, SSLFeatures, compress_magnitude
from quark_jax.errors import UserError

HUBERT = HubertConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    conv_dim=[16] * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    """A small random HuBERT and the folder that it is saved in."""
    torch.manual_seed(0)
    model = HubertModel(HUBERT).eval()
    folder = tmp_path_factory.mktemp("hubert")
    model.save_pretrained(folder)
    return model, str(folder)


@jax.jit
def _apply(features, wave, lengths=None):
    return features(wave, lengths)


def _wave(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def test_compression_equals_the_published_values():
    golden = np.load(Path(__file__).parents[1] / "golden" / "compression.npz")
    assert (golden["raw"] == 0).any()
    ours = np.asarray(compress_magnitude(jnp.asarray(golden["raw"])))
    np.testing.assert_allclose(ours, golden["compressed"], rtol=1e-6)
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(golden["compressed"]))


@pytest.mark.parametrize("layers", [None, (0, 2)])
def test_padded_mixed_and_compressed_as_published(hubert, layers):
    model, folder = hubert
    features = SSLFeatures(FeatureConfig("hugging_face", folder, layers=layers, compress=True))
    wave = _wave(1, 3200)
    with torch.no_grad():
        padded = torch.nn.functional.pad(torch.from_numpy(wave), (160, 160))
        states = model(padded, output_hidden_states=True).hidden_states
    chosen = range(3) if layers is None else layers
    mixed = torch.stack([states[i] for i in chosen]).mean(0).numpy()
    expected = np.where(mixed > 0, 1, -1) * np.abs(mixed) ** 0.3
    ours = _apply(features, wave)
    assert ours.shape == (1, 10, features.channels)
    np.testing.assert_allclose(ours, expected, atol=1e-3)  # the root is steep at 0
    np.testing.assert_allclose(np.sign(ours) * np.abs(ours) ** (1 / 0.3), mixed, atol=1e-5)


@pytest.mark.parametrize("kind", ["log_mel", "hugging_face"])
def test_item_of_a_batch_gets_what_it_gets_alone(hubert, kind):
    folder = hubert[1] if kind == "hugging_face" else None
    features = SSLFeatures(FeatureConfig(kind, folder, normalise=True))
    # The second item ends within a frame, the third is empty.
    wave, lengths = _wave(3, 4800), np.array([4800, 2000, 0])
    together = _apply(features, wave, lengths)
    alone = _apply(features, wave[1:2, :2000])
    assert together.shape[1] == 15
    assert alone.shape[1] == 6
    np.testing.assert_allclose(together[1, :6], alone[0], atol=1e-5)
    np.testing.assert_allclose(together[0], _apply(features, wave[:1])[0], atol=1e-5)
    assert not together[1, 6:].any()
    assert not together[2].any()
    with pytest.raises(UserError, match="319 samples"):
        features(wave[:, :319])


def test_normalises_as_the_model_s_own_extractor(hubert):
    _, folder = hubert
    wave = 0.02 * _wave(1, 3200) + 0.1
    scaled = Wav2Vec2FeatureExtractor(do_normalize=True)(
        wave[0], sampling_rate=16000, return_tensors="np"
    ).input_values
    config = FeatureConfig("hugging_face", folder)
    expected = _apply(SSLFeatures(config), scaled)
    ours = _apply(SSLFeatures(FeatureConfig("hugging_face", folder, normalise=True)), wave)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert not np.allclose(_apply(SSLFeatures(config), wave), expected, atol=1e-2)


def test_log_mel_goes_through_the_same_door():
    features = SSLFeatures(FeatureConfig())
    wave = _wave(1, 3200)
    assert features.channels == 80
    np.testing.assert_array_equal(_apply(features, wave), _apply(LogMel(), wave))


def test_gradient_reaches_the_wave_as_in_transformers(hubert):
    model, folder = hubert
    features = SSLFeatures(FeatureConfig("hugging_face", folder))
    wave = _wave(1, 3200)
    ours = jax.jit(jax.grad(lambda wave: jnp.sum(jnp.sin(features(wave)))))(wave)
    leaf = torch.from_numpy(wave).requires_grad_()
    padded = torch.nn.functional.pad(leaf, (160, 160))
    states = model(padded, output_hidden_states=True).hidden_states
    torch.stack(states).mean(0).sin().sum().backward()
    np.testing.assert_allclose(ours, leaf.grad, atol=1e-4 * leaf.grad.abs().max())


def test_gradient_of_silence_is_finite():
    features = SSLFeatures(FeatureConfig(compress=True))
    gradient = jax.jit(jax.grad(lambda wave: features(wave).sum()))(jnp.zeros((1, 640)))
    assert np.isfinite(gradient).all()
    assert jax.grad(lambda f: compress_magnitude(f).sum())(jnp.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda folder: FeatureConfig("mfcc"), "mfcc"),
        (lambda folder: FeatureConfig("log_mel", folder), "log_mel"),
        (lambda folder: FeatureConfig("hugging_face", folder, layers=()), "layers"),
        (lambda folder: FeatureConfig(window=5.0), "window"),
        (
            lambda folder: SSLFeatures(FeatureConfig("hugging_face", folder, window=5.0)),
            "hears any length",
        ),
        (lambda folder: SSLFeatures(FeatureConfig("hugging_face")), "features.folder"),
        (
            lambda folder: SSLFeatures(FeatureConfig("hugging_face", folder, layers=(1, 3))),
            r"\[3\]",
        ),
    ],
)
def test_bad_configs_are_refused(hubert, make, word):
    with pytest.raises(UserError, match=word):
        make(hubert[1])
