"""Frozen networks with shapes in the place of their weights, which need not be there."""

from flax import nnx

from quark_jax.conditioning import Conditioner, ConditionerConfig
from quark_jax.encoders import (
    FeatureConfig,
    SSLFeatures,
    T5Config,
    T5Encoder,
    Wav2Vec2,
    Wav2Vec2Config,
    encoder_shapes,
)
from quark_jax.errors import UserError
from quark_jax.interop import as_shapes

# What is taken where a config names no folder, by the channels that the model takes.
_SPEECH = {768: "wavlm-base-plus", 1024: "wav2vec2-large"}
_TEXT = T5Config(width=768, heads=12, inner=3072, layers=12)  # T5-base


def abstract_features(config: FeatureConfig, channels: int, *, dtype=None) -> SSLFeatures:
    """The encoder of `config`. Where that names no folder, the published one of so many
    `channels`. Raises UserError where there is none."""
    if config.kind == "log_mel":
        return SSLFeatures(config)
    if config.folder is not None:
        return SSLFeatures(config, encoder_shapes(config.folder, dtype=dtype))
    if channels not in _SPEECH:
        raise UserError(
            f"features.folder: missing, and no published encoder has {channels} channels; give "
            "the folder of the encoder"
        )
    shape = Wav2Vec2Config.preset(_SPEECH[channels])
    encoder = as_shapes(lambda rngs: Wav2Vec2(shape, dtype=dtype, rngs=rngs))
    return SSLFeatures(config, encoder)


def abstract_conditioner(
    config: ConditionerConfig, audio_channels: int, text_channels: int, *, dtype=None
) -> Conditioner:
    """The conditioner of a language model that takes so many channels; T5-base, where captions of
    its width are taken and no folder is named. Raises UserError where a width fits no encoder."""
    conditioner = Conditioner(ConditionerConfig())
    conditioner.config = config
    conditioner.audio = abstract_features(config.audio, audio_channels, dtype=dtype)
    text = None
    if text_channels and config.text.folder is not None:
        text = encoder_shapes(config.text.folder, dtype=dtype)
    elif text_channels == _TEXT.width:
        text = as_shapes(lambda rngs: T5Encoder(_TEXT, dtype=dtype, rngs=rngs))
    elif text_channels:
        raise UserError(
            f"text.folder: missing, and T5-base has {_TEXT.width} channels, not {text_channels}; "
            "give the folder of the text encoder"
        )
    conditioner.text = nnx.data(text)
    return conditioner
