"""Every config file loads, and what it names fits together; by shapes alone."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from quark_jax.audio import resample_sinc
from quark_jax.config import from_dict, to_dict
from quark_jax.encoders import FeatureConfig, LogMel, SSLFeatures, Wav2Vec2, Wav2Vec2Config
from quark_jax.errors import UserError
from quark_jax.hcodec import Adversary, HCodec, HCodecConfig
from quark_jax.interop import as_shapes
from quark_jax.lm import TASK_IDS, LanguageModel, LMConfig
from quark_jax.training.codec import CodecTraining, whole_frames
from quark_jax.training.lm import LMTraining

ROOT = Path(__file__).parents[1]
PUBLISHED = ["1.0", "1.5", "2.0", "2.0-6.25hz"]
# What stands after --config.
TINY = "configs/codec/tiny.py"
ABLATIONS = [f"{TINY}:{name}" for name in ("no-adversary", "no-semantic", "dynamic")]
CODECS = [TINY, *ABLATIONS, *(f"configs/codec/published.py:{name}" for name in PUBLISHED)]
# What stands after --config; the preset; channels of audio features and captions; the codec.
LMS = {
    "configs/lm/tiny.py": ("tiny", 80, 0, "tiny"),
    "configs/lm/tiny.py:mix": ("tiny", 384, 384, "tiny"),
    "configs/lm/published.py:small": ("small", 768, 768, "1.0"),
    "configs/lm/published.py:base": ("base", 768, 768, "1.0"),
    "configs/lm/published.py:large": ("large", 768, 768, "1.0"),
}
# The encoders that the published codecs were trained with, by the channels of their features.
ENCODERS = {768: "hubert-base", 1024: "wav2vec2-large"}


def load(name: str) -> CodecTraining | LMTraining:
    path, *version = name.split(":")
    fields = runpy.run_path(str(ROOT / path))["get_config"](*version).to_dict()
    return from_dict(CodecTraining if name in CODECS else LMTraining, fields)


def encoder(config: FeatureConfig, channels: int) -> SSLFeatures:
    """Features as a run has them, but shapes in the place of an encoder's weights."""
    if config.kind == "log_mel":
        return SSLFeatures(config, LogMel())
    shape = Wav2Vec2Config.preset(ENCODERS[channels])
    return SSLFeatures(config, as_shapes(lambda rngs: Wav2Vec2(shape, rngs=rngs)))


def test_every_config_is_tested():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py")}
    files.remove("configs/sweeps/frame_rate.py")  # tests/sweep/test_frame_rate.py
    assert files == {name.split(":")[0] for name in [*CODECS, *LMS]}


@pytest.mark.parametrize("name", [*CODECS, *LMS])
def test_a_config_comes_back_from_json(name):
    config = load(name)
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config
    path, *version = name.split(":")
    assert f"--config {name} " in (ROOT / path).read_text()
    if name in ABLATIONS:
        assert config.codec.bitrate == HCodecConfig.preset("tiny").bitrate
        assert config != load(TINY)
    elif name in CODECS:
        assert config.codec == HCodecConfig.preset(*version or ["tiny"])
    else:
        mixed = (
            {"stack_features": True, "step_stride": 0.5, "beside": True}
            if name.endswith(":mix")
            else {}
        )
        size = LMConfig.preset(LMS[name][0], text_channels=config.lm.text_channels, **mixed)
        assert config.lm == size
        assert set(config.data.weights or ()) <= set(TASK_IDS)


@pytest.mark.parametrize("name", LMS)
def test_language_models_are_of_the_size_that_is_said(name):
    preset, audio, text, codec = LMS[name]
    codec = HCodecConfig.preset(codec)
    size = codec.quantiser.codebook_size
    config = replace(
        load(name).lm,
        codebooks=codec.quantiser.codebooks,
        acoustic_size=size,
        semantic_size=size,
        audio_channels=audio,
        text_channels=text,
    )
    model = as_shapes(lambda rngs: LanguageModel(config, rngs=rngs))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model))
    said = " ".join((ROOT / name.split(":")[0]).read_text().split())
    count, memory = f"{parameters / 1e6:.1f} M", f"{16 * parameters / 1e9:.2f} GB"
    if preset == "tiny":
        assert f"{count} parameters" in said and f"16 bytes a parameter, {memory}" in said
        assert parameters <= 30e6
    else:
        shape = f"{config.layers} x {config.width}"
        assert f" {preset} {shape} {count} {memory} {config.dtype} " in said
        assert "16 bytes a parameter." in said
    second = model.pattern.steps(50) - model.pattern.steps(50 - int(codec.frame_rate))
    heads = model.pattern.heads
    assert (
        f"{second} positions of the target, in each of which {heads} codes are drawn, "
        f"{second * heads} tokens" in said
    )


@pytest.mark.parametrize("version", ["", ":", ":tiny", ":3.0"])
def test_a_published_codec_is_named_by_its_version(version):
    with pytest.raises(UserError, match=r"choose 1\.0, 1\.5, 2\.0, 2\.0-6\.25hz after"):
        load(f"configs/codec/published.py{version}")


@pytest.mark.parametrize("size", ["", ":", ":tiny", ":Base"])
def test_a_published_language_model_is_named_by_its_size(size):
    with pytest.raises(UserError, match="choose small, base or large after the colon"):
        load(f"configs/lm/published.py{size}")


@pytest.mark.parametrize("name", CODECS)
def test_codec_features_and_discriminators_fit(name):
    config = load(name)
    codec = config.codec
    features = encoder(codec.features, codec.semantic.channels)
    assert features.channels == codec.semantic.channels
    wave = jax.ShapeDtypeStruct((2, whole_frames(config.data.seconds, codec)), "float32")

    def code(codec: HCodec, features: SSLFeatures, wave: jax.Array) -> jax.Array:
        mixed = features(resample_sinc(wave, codec.config.sample_rate, 16000))
        codes = codec.encode(wave, mixed.swapaxes(1, 2))
        return codec.decode(codes, wave.shape[1] // codec.config.hop)

    model = as_shapes(lambda rngs: HCodec(codec, rngs=rngs))
    assert jax.eval_shape(code, model, features, wave) == wave
    if config.perceptual:
        assert SSLFeatures(config.perceptual.features, features.encoder)
    if config.adversary:
        networks = config.adversary.networks
        judge = as_shapes(lambda rngs: Adversary(networks, rngs=rngs))
        judgements = jax.eval_shape(lambda judge, wave: judge(wave), judge, wave)
        assert len(judgements) == len(networks.periods) + len(networks.windows)


@pytest.mark.parametrize("name", CODECS[1 + len(ABLATIONS) :])
def test_published_training(name, monkeypatch):
    """What the publication says, and one flag for the folder of both uses of the encoder."""
    arguments = ["train", f"--config={ROOT / name}", "--config.codec.features.folder=encoder"]
    monkeypatch.setattr(sys, "argv", arguments)  # where config_flags looks for what is overridden
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values(arguments)
    config = from_dict(CodecTraining, holder.value.to_dict())
    assert config.codec.features.folder == config.perceptual.features.folder == "encoder"
    assert config.data.weights == {"speech": 2.0, "music": 1.0, "audio": 1.0}
    assert (config.data.seconds, config.perceptual.begin) == (5.0, 400_000)
    assert config.perceptual.begin < config.run.steps and config.adversary.begin == 0
    for optimiser in (config.optimiser, config.adversary.optimiser):
        assert (optimiser.peak, optimiser.clip) == (2e-4, 5.0)
    assert config.perceptual.features.layers == config.codec.features.layers
