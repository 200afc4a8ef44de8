"""Batches become what their encoders say, and encoders travel with the model."""

import json
import pickle
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from quark_jax.conditioning import Conditioner, ConditionerConfig, TextConfig
from quark_jax.encoders import FeatureConfig, features_hash
from quark_jax.errors import UserError
from quark_jax.interop.files import write_state

WORDS = ["[PAD]", "[UNK]", "</s>", "add", "a", "dog", "barking"]
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 7}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 7,
    "max_position_embeddings": 8,
}
WHISPER = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}


@pytest.fixture(scope="module")
def folders(save_words, tmp_path_factory):
    torch.manual_seed(0)
    made = {}
    for name, network in {
        "t5": T5EncoderModel(T5Config(**T5)),
        "bert": BertModel(BertConfig(**BERT)),
        "whisper": WhisperEncoder(WhisperConfig(**WHISPER)),
    }.items():
        made[name] = tmp_path_factory.mktemp(name)
        network.save_pretrained(made[name])
        if name != "whisper":
            save_words(made[name], WORDS, "[UNK]", "</s>")
    return made


def config(folders, text="t5"):
    audio = FeatureConfig("hugging_face", str(folders["whisper"]))
    return ConditionerConfig(audio, TextConfig(str(folders[text]), max_tokens=6))


@pytest.fixture(scope="module")
def conditioner(folders):
    return Conditioner(config(folders))


@jax.jit
def conditions(conditioner, batch):
    return conditioner(batch)


def wave(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, (len(samples), 1600)).astype(np.float32) * (
        np.arange(1600) < np.array(samples)[:, None]
    )


def batch(conditioner):
    ids = np.zeros((3, 6), np.int32)
    captions = ["add a dog", "", "a dog barking"]
    counts = np.zeros(3, np.int32)
    for row, caption in enumerate(captions):
        tokens = conditioner.tokens(caption) if caption else []
        ids[row, : len(tokens)], counts[row] = tokens, len(tokens)
    return {
        "task": np.array([6, 0, 5], np.int32),
        "input": wave([1600, 1000, 640]),
        "input_samples": np.array([1600, 1000, 640], np.int32),
        "reference": wave([0, 0, 960], 1),
        "reference_samples": np.array([0, 0, 960], np.int32),
        "caption": ids,
        "caption_tokens": counts,
    }


def test_every_section_is_what_its_encoder_says_of_the_item_alone(conditioner):
    given = batch(conditioner)
    made = conditions(conditioner, given)
    assert conditioner.tokens("add a dog") == [3, 4, 5, 2]
    np.testing.assert_array_equal(made.task, given["task"])
    np.testing.assert_array_equal(made.input.lengths, [5, 3, 2])
    np.testing.assert_array_equal(made.reference.lengths, [0, 0, 3])
    np.testing.assert_array_equal(made.caption.lengths, [4, 0, 4])
    for name in ("input", "reference", "caption"):
        assert np.isfinite(getattr(made, name).features).all()
    apply = jax.jit(lambda encoder, x: encoder(x))
    alone = apply(conditioner.audio, given["reference"][2:, :960])
    np.testing.assert_allclose(made.reference.features[2, :3], alone[0], atol=1e-5)
    alone = apply(conditioner.text, np.array([[3, 4, 5, 2]]))
    np.testing.assert_allclose(made.caption.features[0, :4], alone[0], atol=1e-5)
    assert (conditioner.audio_channels, conditioner.text_channels) == (16, 16)


def test_features_take_the_place_of_waves_and_what_is_not_there_is_none(conditioner):
    given = batch(conditioner)
    made = conditions(conditioner, given)
    stored = {
        "task": given["task"],
        "input_features": np.asarray(made.input.features),
        "input_frames": np.array([5, 3, 2], np.int32),
    }
    again = conditioner(stored)
    assert again.reference is None and again.caption is None
    np.testing.assert_array_equal(again.input.features, made.input.features)
    np.testing.assert_array_equal(again.input.lengths, made.input.lengths)


def test_features_are_standardised_by_the_training_data(folders, conditioner, tmp_path):
    given = batch(conditioner)
    made = Conditioner(replace(config(folders), standardise=True))
    raw, before = conditions(conditioner, given), conditions(made, given)
    np.testing.assert_array_equal(before.input.features, raw.input.features)
    made.measure([given, given | {"reference": given["input"]}])
    frames = [raw.input.features[i, :n] for i, n in enumerate((5, 3, 2))] * 2
    other = conditions(conditioner, given | {"reference": given["input"]}).reference
    frames += [raw.reference.features[2, :3], other.features[2, :3]]
    frames = np.concatenate(frames).astype(np.float64)
    np.testing.assert_allclose(made.mean[...], frames.mean(0), atol=1e-5)
    np.testing.assert_allclose(made.deviation[...], frames.std(0), atol=1e-5)
    after = conditions(made, given)
    expected = (raw.input.features - frames.mean(0)) / frames.std(0)
    np.testing.assert_allclose(after.input.features[0], expected[0], rtol=1e-3, atol=1e-3)
    stored = {"task": given["task"], "input_features": raw.input.features}
    stored |= {"input_frames": raw.input.lengths}
    np.testing.assert_allclose(
        made(stored).input.features, after.input.features, rtol=1e-3, atol=1e-3
    )
    made.copy_to(tmp_path)
    again = conditions(Conditioner.load(tmp_path), given)
    np.testing.assert_array_equal(again.input.features, after.input.features)
    other = Conditioner(replace(config(folders), standardise=True))
    other.measure_as(made)
    np.testing.assert_array_equal(conditions(other, given).input.features, after.input.features)


def test_statistics_that_are_missing_or_of_other_channels_are_named(folders, tmp_path):
    made = Conditioner(replace(config(folders), standardise=True))
    made.copy_to(tmp_path)
    file = tmp_path / "statistics.safetensors"
    write_state(file, {"mean": np.zeros(3, np.float32), "deviation": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=r"statistics\.safetensors: holds .* of 16 channels"):
        Conditioner.load(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"statistics\.safetensors: no such file"):
        Conditioner.load(tmp_path)
    with pytest.raises(UserError, match="standardise: the training data has no audio features"):
        made.measure([{"task": np.zeros(1, int)}])


def test_no_gradient_reaches_the_encoders():
    conditioner = Conditioner(ConditionerConfig())
    given = {"task": np.zeros(1, int), "input_samples": np.array([1600])}

    @jax.jit
    @jax.grad
    def gradient(wave):
        return conditioner(given | {"input": wave}).input.features.sum()

    assert not gradient(wave([1600])).any()


@pytest.mark.parametrize("text", ["t5", "bert"])
def test_opens_again_where_it_is_moved_to(folders, text, tmp_path):
    first = Conditioner(config(folders, text))
    first.copy_to(tmp_path / "made")
    Conditioner.load(tmp_path / "made").copy_to(tmp_path / "made")  # in its own place
    shutil.move(tmp_path / "made", tmp_path / "moved")
    assert str(folders[text]) not in (tmp_path / "moved" / "config.json").read_text()
    second = Conditioner.load(tmp_path / "moved")
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert second.tokens("a dog") == first.tokens("a dog")
    assert features_hash(second.config.audio) == features_hash(first.config.audio)
    assert features_hash(FeatureConfig()) != features_hash(first.config.audio)


def test_log_mel_alone_needs_no_folder(tmp_path):
    Conditioner(ConditionerConfig()).copy_to(tmp_path)
    made = Conditioner.load(tmp_path)
    assert (made.audio_channels, made.text_channels, made.text) == (80, 0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(UserError, match=r"text\.folder: captions need a text encoder"):
        made.tokens("a dog")
    with pytest.raises(UserError, match=r"text\.folder: captions need a text encoder"):
        made({"task": np.zeros(1, int), "caption": np.zeros((1, 2), int)})


def test_workers_get_tokens_without_weights(conditioner):
    conditioner.tokens("a dog")
    data = pickle.dumps(conditioner.tokens)
    assert len(data) < 4000
    assert pickle.loads(data)("a dog") == conditioner.tokens("a dog")


def test_what_does_not_fit_is_named(folders, conditioner, tmp_path):
    with pytest.raises(UserError, match=r"caption of 7 tokens \('a a a a a a'.*at most 6 fit"):
        conditioner.tokens("a a a a a a")
    with pytest.raises(UserError, match="no text encoder"):
        Conditioner(ConditionerConfig(text=TextConfig(str(folders["whisper"]))))
    with pytest.raises(UserError, match=r"text\.max_tokens: 9, but the encoder takes 8"):
        Conditioner(ConditionerConfig(text=TextConfig(str(folders["bert"]), 9)))
    with pytest.raises(UserError, match=r"text\.max_tokens: 0"):
        TextConfig(max_tokens=0)
    conditioner.copy_to(tmp_path)
    (tmp_path / "text" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: missing"):
        Conditioner.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"texts": {}}))
    with pytest.raises(UserError, match=r"config\.json\.texts: unknown field"):
        Conditioner.load(tmp_path)
