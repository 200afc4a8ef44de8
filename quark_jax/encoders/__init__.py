"""Frozen networks that condition the codec and the language model: speech and text encoders."""

from quark_jax.encoders.features import FeatureConfig, SSLFeatures, compress_magnitude
from quark_jax.encoders.loading import build_encoder, load_encoder
from quark_jax.encoders.log_mel import LogMel
from quark_jax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from quark_jax.encoders.whisper import WhisperConfig, WhisperEncoder, whisper_log_mel

__all__ = [
    "FeatureConfig",
    "LogMel",
    "SSLFeatures",
    "Wav2Vec2",
    "Wav2Vec2Config",
    "WhisperConfig",
    "WhisperEncoder",
    "build_encoder",
    "compress_magnitude",
    "load_encoder",
    "whisper_log_mel",
]
