"""CLAP in a Hugging Face folder: the real class, small, with random weights."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from quark_jax.errors import UserError
from quark_jax.evaluation import Clap, tasks
from quark_jax.evaluation.judging import Heard, metrics_of
from quark_jax.evaluation.readers import Item

RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What save_pretrained writes of a ClapModel of 0.1 million weights that hears 1 s."""
    folder = tmp_path_factory.mktemp("clap")
    words = {
        word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "dog", "rain"])
    }
    tokeniser = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokeniser, model_max_length=8, **special)
    fast.save_pretrained(folder)
    text = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 12}
    heard = {"spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 8, "patch_size": 4}
    heard |= {"depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 16, "window_size": 4}
    heard |= {"patch_stride": [4, 4], "num_classes": 2}
    torch.manual_seed(0)
    config = ClapConfig(text_config=text, audio_config=heard, projection_dim=8)
    ClapModel(config).eval().save_pretrained(folder)
    features = {"feature_size": 16, "sampling_rate": RATE, "hop_length": 160, "max_length_s": 1}
    features |= {"fft_window_size": 512, "frequency_max": 8000, "truncation": "rand_trunc"}
    ClapFeatureExtractor(padding="repeatpad", **features).save_pretrained(folder)
    return folder


def _wave(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(int(seconds * RATE)).astype(np.float32) / 4


def test_similarity_is_that_of_the_whole_model(folder):
    wave, clap = _wave(0.8), Clap(folder)
    model = ClapModel.from_pretrained(folder).eval()
    features = ClapFeatureExtractor.from_pretrained(folder)
    tokens = PreTrainedTokenizerFast.from_pretrained(folder)
    inputs = dict(tokens(["a dog"], return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    inputs |= features(wave, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits_per_audio.item()
        expected = logits / model.logit_scale_a.exp().item()
    assert clap.similarity("a dog", wave, RATE) == pytest.approx(expected, abs=1e-5)
    assert -1 <= expected <= 1
    assert clap.similarity("rain", wave, RATE) != pytest.approx(expected, abs=1e-4)


def test_all_of_a_long_sound_is_heard_and_always_alike(folder):
    wave, clap = _wave(2.5), Clap(folder)
    pieces = [clap.audio(wave[i : i + RATE], RATE) for i in (0, RATE, 2 * RATE)]
    mean = np.mean(pieces, axis=0)
    np.testing.assert_allclose(clap.audio(wave, RATE), mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(clap.audio(wave, RATE), clap.audio(wave, RATE))
    assert np.linalg.norm(clap.text("a dog")) == pytest.approx(1, abs=1e-6)


def test_a_folder_that_is_none_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        Clap(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clap"}')
    with pytest.raises(UserError, match="is no CLAP model") as error:
        Clap(tmp_path)
    assert "\n" not in str(error.value)


def test_results_of_queries_are_judged_by_it(folder):
    wave = _wave(0.5)
    heard = Heard(Item("0", (), query="a dog"), (wave,), wave)
    metric = metrics_of("lass", folder)["clap"]
    assert metric.value(heard, (wave,), RATE) == Clap(folder).similarity("a dog", wave, RATE)
    assert not metric.needs_reference
    assert "clap" not in metrics_of("lass")
    same = tasks.columns("lass", folder)["clap"].value(heard, (wave,), RATE)
    assert same == metric.value(heard, (wave,), RATE) and "clap" not in tasks.columns("lass")
