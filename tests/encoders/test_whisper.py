"""Against transformers on the same random weights, a small configuration."""

import jax
import numpy as np
import pytest
import torch
from transformers import (
    WhisperConfig as TorchWhisperConfig,
)
from transformers import (
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from quark_jax.encoders import (
    FeatureConfig,
    SSLFeatures,
    build_encoder,
    load_encoder,
    whisper_log_mel,
)
from quark_jax.errors import UserError

SMALL = TorchWhisperConfig(
    d_model=48,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=96,
    decoder_layers=1,
    decoder_attention_heads=4,
    decoder_ffn_dim=96,
    vocab_size=99,
    num_mel_bins=20,
    max_source_positions=100,  # a window of 2 s
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    suppress_tokens=[],
    begin_suppress_tokens=[],
)


def _torch_model(task=WhisperModel):
    torch.manual_seed(0)
    model = task(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
    return model


@pytest.fixture(scope="module")
def encoder():
    theirs = _torch_model()
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return build_encoder(theirs.config.to_dict(), state), theirs.encoder


def _wave(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


@jax.jit
def _states(model, wave, lengths=None):
    return model.hidden_states(wave, lengths)


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("seconds", [4.5, 30])
def test_log_mel_equals_the_published_extractor(bands, seconds):
    wave = _wave(int(seconds * 16000))
    expected = WhisperFeatureExtractor(feature_size=bands)(
        wave, sampling_rate=16000, return_tensors="np"
    ).input_features
    window = np.pad(wave, (0, 480000 - len(wave)))[None]
    ours = jax.jit(whisper_log_mel, static_argnums=1)(window, bands)
    np.testing.assert_allclose(ours, expected.transpose(0, 2, 1), atol=2e-5)


def test_every_hidden_state_equals_transformers(encoder):
    ours, theirs = encoder
    wave = _wave(1, 16160)
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=2)
    mel = extractor(wave[0], sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = theirs(mel, output_hidden_states=True)
    states = _states(ours, wave)
    assert len(states) == len(expected.hidden_states) == 3
    for a, b in zip(states, expected.hidden_states, strict=True):
        assert a.shape[1] == 50
        b = b.numpy()
        assert np.abs(a - b[:, :50]).max() < 1e-5 * np.abs(b).max()
    np.testing.assert_array_equal(expected.hidden_states[-1], expected.last_hidden_state)


def test_item_of_a_padded_batch_gets_what_it_gets_alone(encoder):
    ours, _ = encoder
    wave, lengths = _wave(2, 16000), np.array([16000, 9600])
    together = _states(ours, wave, lengths)
    alone = _states(ours, wave[1:, :9600])
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a[1, :30], b[0], atol=1e-5)


@pytest.mark.parametrize("task", [WhisperModel, WhisperForConditionalGeneration])
def test_folder_with_a_decoder_becomes_features(tmp_path, encoder, task):
    torch.manual_seed(0)
    model = _torch_model(task)
    model.save_pretrained(tmp_path)
    features = SSLFeatures(FeatureConfig("hugging_face", str(tmp_path), layers=(2,)))
    wave = _wave(1, 9600)
    expected = _states(load_encoder(tmp_path), wave)[-1]
    ours = jax.jit(lambda f, w: f(w))(features, wave)
    assert ours.shape == (1, 30, features.channels)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    kernel = model.get_encoder().conv1.weight.detach().numpy()
    np.testing.assert_array_equal(features.encoder.conv_in.kernel[...].transpose(2, 1, 0), kernel)


def test_a_shorter_window_is_what_transformers_hears_in_it(tmp_path):
    model = _torch_model()
    model.save_pretrained(tmp_path)
    features = SSLFeatures(FeatureConfig("hugging_face", str(tmp_path), layers=(2,), window=0.5))
    wave = _wave(1, 6400)
    mel = WhisperFeatureExtractor(feature_size=20, chunk_length=0.5, n_samples=8000)(
        np.pad(wave[0], (0, 1600)), sampling_rate=16000, return_tensors="pt", padding="do_not_pad"
    ).input_features
    short = WhisperModel(
        TorchWhisperConfig.from_dict(SMALL.to_dict() | {"max_source_positions": 25})
    ).encoder.eval()
    state = model.encoder.state_dict()
    short.load_state_dict(state | {"embed_positions.weight": state["embed_positions.weight"][:25]})
    with torch.no_grad():
        expected = short(mel).last_hidden_state.numpy()
    ours = jax.jit(lambda f, w: f(w))(features, wave)
    assert ours.shape == (1, 20, features.channels)
    np.testing.assert_allclose(ours, expected[:, :20], atol=1e-5 * np.abs(expected).max())
    with pytest.raises(UserError, match=r"0\.52 s is more than the 0\.5 s"):
        features(_wave(1, 8320))


@pytest.mark.parametrize("window", [0.0, 2.1, -1.0])
def test_a_window_that_the_encoder_does_not_have_is_refused(encoder, window):
    with pytest.raises(UserError, match=r"features\.window: .* hears 0\.02 to 2 s"):
        SSLFeatures(FeatureConfig("hugging_face", "unused", window=window), encoder[0])


def test_longer_than_the_window_is_refused(encoder):
    with pytest.raises(UserError, match=r"2\.02 s is more than the 2 s"):
        encoder[0](_wave(1, 32320))
