"""Features of 16 kHz audio at 50 Hz: what conditions the codec and the language model."""

import hashlib
import json
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.encoders.loading import encoder_hash, load_encoder
from quark_jax.encoders.log_mel import LogMel
from quark_jax.encoders.whisper import WhisperEncoder
from quark_jax.errors import UserError
from quark_jax.nn.masking import frame_mask, masked

SAMPLES_PER_FRAME = 320
_KINDS = ("log_mel", "hugging_face")


@dataclass(frozen=True)
class FeatureConfig:
    """Which encoder, and how its hidden states become features."""

    kind: str = "log_mel"  # or "hugging_face"
    folder: str | None = None  # with config.json and weights, for "hugging_face"
    layers: tuple[int, ...] | None = None  # hidden states to average, 0 enters layer one; None: all
    compress: bool = False  # magnitudes to the power 0.3
    normalise: bool = False  # each wave to mean 0, deviation 1 (do_normalize of some models)
    window: float | None = None  # seconds that a Whisper hears at once; None: its own 30

    def __post_init__(self):
        if self.kind not in _KINDS:
            raise UserError(f"features.kind {self.kind!r}: choose one of {', '.join(_KINDS)}")
        of_network = (self.folder, self.layers, self.window)
        if self.kind == "log_mel" and any(value is not None for value in of_network):
            raise UserError(
                "features: log_mel takes neither folder nor layers nor window; leave them None"
            )
        if self.layers is not None and not self.layers:
            raise UserError("features.layers: empty; name hidden states, or None for all")


def features_hash(config: FeatureConfig) -> str:
    """Sixteen hexadecimal digits that tell apart features of other weights or settings, wherever
    the encoder's folder lies and in whichever files its weights are."""
    fields = {name: value for name, value in asdict(config).items() if name != "folder"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    if config.folder is not None:
        digest.update(encoder_hash(config.folder).encode())
    return digest.hexdigest()[:16]


def compress_magnitude(features: jax.Array) -> jax.Array:
    """sign(f) * |f|^0.3 of any shape, where the sign of 0 counts as -1 (so 0 gives -0)."""
    # The gradient of a power below one is not finite at zero; nothing flows there.
    zero = features == 0
    magnitude = jnp.where(zero, 0, jnp.abs(jnp.where(zero, 1, features)) ** 0.3)
    return jnp.where(features > 0, 1.0, -1.0).astype(features.dtype) * magnitude


class SSLFeatures(nnx.Module):
    """Frozen features: wave [batch, samples at 16 kHz] -> [batch, samples // 320, channels].

    Samples after the last whole frame are left out: pad the wave to a multiple of 320 to keep them.
    The wave is zero-padded as the encoder needs it for one frame every 320 samples; the chosen
    hidden states are averaged. The gradient passes to the wave: stop it where it is not wanted.

    Raises UserError where the config names no folder and `encoder` is not given, or names hidden
    states that the encoder does not have.
    """

    def __init__(self, config: FeatureConfig, encoder: nnx.Module | None = None, *, dtype=None):
        if encoder is None:
            if config.kind == "log_mel":
                encoder = LogMel()
            elif config.folder is None:
                raise UserError("features.folder: missing; give the folder of the encoder")
            else:
                encoder = load_encoder(config.folder, dtype=dtype)
        if config.kind == "hugging_face":
            if not hasattr(encoder, "padding"):  # of text
                raise UserError(f"{config.folder}: no speech encoder; give the folder of one")
            count = encoder.config.layers + 1
            wrong = [i for i in config.layers or () if not 0 <= i < count]
            if wrong:
                raise UserError(
                    f"features.layers: {wrong} are not among the {count} hidden states; use the "
                    "encoder that they were chosen for, or choose others"
                )
        if config.window is not None:
            if not isinstance(encoder, WhisperEncoder):
                raise UserError("features.window: this encoder hears any length; leave it None")
            encoder = encoder.shortened(config.window)
        self.config = config
        self.encoder = encoder
        self.channels = encoder.channels

    def __call__(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Features [batch, samples // 320, channels]; `lengths` [batch] counts samples of each.

        An item's frames are those that it has alone; frames past it are zero. UserError where the
        wave is shorter than a frame.
        """
        frames = wave.shape[1] // SAMPLES_PER_FRAME
        if frames == 0:
            raise UserError(
                f"wave: {wave.shape[1]} samples are less than one frame of {SAMPLES_PER_FRAME}; "
                "pad it"
            )
        wave = wave[:, : frames * SAMPLES_PER_FRAME]
        mask = None
        if lengths is not None:
            lengths = lengths // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME
            mask = frame_mask(lengths // SAMPLES_PER_FRAME, frames)
            wave = _zero_past(wave, lengths)
        if self.config.normalise:
            wave = _normalise(wave, lengths)
        features = self._mix(wave, lengths)
        if self.config.compress:
            features = compress_magnitude(features)
        return masked(features, mask)

    def _mix(self, wave: jax.Array, lengths: jax.Array | None) -> jax.Array:
        if self.config.kind == "log_mel":
            return self.encoder(wave, lengths)
        pad = self.encoder.padding
        wave = jnp.pad(wave, ((0, 0), (pad, pad)))
        states = self.encoder.hidden_states(wave, None if lengths is None else lengths + 2 * pad)
        chosen = self.config.layers or range(len(states))
        return sum(states[i].astype(jnp.float32) for i in chosen) / len(chosen)


def _zero_past(wave: jax.Array, lengths: jax.Array) -> jax.Array:
    return masked(wave[..., None], frame_mask(lengths, wave.shape[1]))[..., 0]


def _normalise(wave: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """Each item of `wave` [batch, samples] to mean 0 and deviation 1 (as Wav2Vec2FeatureExtractor:
    1e-7 added to the variance), zero past its length."""
    heard = None if lengths is None else frame_mask(lengths, wave.shape[1])[..., 0]
    mean = wave.mean(axis=1, keepdims=True, where=heard)
    variance = jnp.square(wave - mean).mean(axis=1, keepdims=True, where=heard)
    scaled = (wave - mean) / jnp.sqrt(variance + 1e-7)
    return scaled if lengths is None else _zero_past(scaled, lengths)
