"""Frozen networks that condition the codec and the language model.

Speech: `SSLFeatures` is the one interface, over `LogMel`, `Wav2Vec2` (HuBERT, wav2vec 2.0, WavLM)
and `WhisperEncoder`. Text: `TextTokeniser`, then `T5Encoder` or `BertEncoder`. `load_encoder` reads
any of them from a Hugging Face folder.
"""

from quark_jax.encoders.features import (
    FeatureConfig,
    SSLFeatures,
    compress_magnitude,
    features_hash,
)
from quark_jax.encoders.loading import (
    build_encoder,
    copy_encoder,
    encoder_hash,
    encoder_shapes,
    load_encoder,
)
from quark_jax.encoders.log_mel import LogMel
from quark_jax.encoders.text import BertConfig, BertEncoder, T5Config, T5Encoder, mean_pool
from quark_jax.encoders.tokenise import TextTokeniser
from quark_jax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from quark_jax.encoders.whisper import WhisperConfig, WhisperEncoder, whisper_log_mel

__all__ = [
    "BertConfig",
    "BertEncoder",
    "FeatureConfig",
    "LogMel",
    "SSLFeatures",
    "T5Config",
    "T5Encoder",
    "TextTokeniser",
    "Wav2Vec2",
    "Wav2Vec2Config",
    "WhisperConfig",
    "WhisperEncoder",
    "build_encoder",
    "compress_magnitude",
    "copy_encoder",
    "encoder_hash",
    "encoder_shapes",
    "features_hash",
    "load_encoder",
    "mean_pool",
    "whisper_log_mel",
]
