"""The encoder of Whisper (arXiv 2212.04356) and its log-mel front end.

Whisper only knows windows of 30 s: shorter audio is filled with silence, which the network hears
(its attention has no mask), so that is done here too, whatever the length. An item of a batch
therefore gets what it gets alone, and one second costs as much as thirty. `shortened` makes windows
of fewer seconds: cheaper by more than their share, but other features than those the model was
trained to make.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from quark_jax.audio import mel_filterbank
from quark_jax.encoders.transformer import (
    activation,
    layers,
    linear_entries,
    norm_entries,
    renamed,
)
from quark_jax.errors import UserError
from quark_jax.interop.table import CONV, Entry
from quark_jax.nn import conv, layer_norm
from quark_jax.nn.masking import frame_mask, masked

_RATE, _N_FFT, _HOP = 16000, 400, 160


@dataclass(frozen=True)
class WhisperConfig:
    """Shape of the encoder; the defaults are Whisper tiny."""

    width: int = 384
    layers: int = 4
    heads: int = 6
    inner: int = 1536
    activation: str = "gelu"
    bands: int = 80
    positions: int = 1500  # frames at 50 Hz in a window

    @property
    def samples(self) -> int:
        """Length of the window in samples at 16 kHz."""
        return self.positions * 2 * _HOP

    @classmethod
    def from_hugging_face(cls, config: dict) -> "WhisperConfig":
        """From config.json of a whisper model."""
        return cls(**renamed(config, _FIELDS))


_FIELDS = {
    "width": "d_model",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "inner": "encoder_ffn_dim",
    "activation": "activation_function",
    "bands": "num_mel_bins",
    "positions": "max_source_positions",
}


def whisper_log_mel(wave: jax.Array, bands: int = 80) -> jax.Array:
    """Whisper's input: wave [batch, samples at 16 kHz] -> [batch, samples // 160, bands], 100 Hz.

    Base-10 logarithm of mel powers (25 ms periodic Hann windows, centred, edges reflected), at most
    8 below an item's highest, plus 4, over 4. `samples` is a multiple of 160; the published model
    fills 30 s with zeros first.
    """
    frames = wave.shape[1] // _HOP
    half = _N_FFT // 2
    padded = jnp.pad(wave.astype(jnp.float32), ((0, 0), (half, half)), mode="reflect")
    # A window is two and a half hops: rows of half a hop, five to a window, every second a start.
    rows = padded.reshape(wave.shape[0], -1, _HOP // 2)
    framed = jnp.concatenate([rows[:, k : k + 2 * frames : 2] for k in range(5)], axis=-1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_N_FFT) / _N_FFT)
    spectrum = jnp.fft.rfft(framed * window.astype(np.float32))
    power = spectrum.real**2 + spectrum.imag**2
    filters = mel_filterbank(_RATE, _N_FFT, bands, 0.0, _RATE / 2)
    mel = jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST)
    level = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(level, level.max(axis=(1, 2), keepdims=True) - 8.0) + 4.0) / 4.0


class WhisperEncoder(nnx.Module):
    """Frozen speech encoder: wave [batch, samples at 16 kHz] -> [batch, samples // 320, width].

    At most `config.samples` (30 s, or what `shortened` left); UserError where the wave is longer.
    `channels` is the width.
    """

    padding = 0  # frames are centred, no zeros are needed before

    def __init__(self, config: WhisperConfig, *, dtype=None, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.channels = config.width
        kwargs = {"dtype": dtype, "rngs": rngs}
        self.activation = activation("gelu")
        self.conv_in = conv(config.bands, config.width, 3, padding=1, **kwargs)
        self.conv_down = conv(config.width, config.width, 3, stride=2, padding=1, **kwargs)
        table = jax.random.normal(rngs.params(), (config.positions, config.width)) * 0.02
        self.positions = nnx.Param(table)
        self.layers = layers(config, epsilon=1e-5, pre_norm=True, key_bias=False, **kwargs)
        self.norm = layer_norm(config.width, epsilon=1e-5, **kwargs)

    def shortened(self, seconds: float) -> "WhisperEncoder":
        """The encoder with windows of `seconds`. UserError where that is no length from one frame
        to the window there is."""
        frames = round(seconds * _RATE / (2 * _HOP))
        if not 1 <= frames <= self.config.positions:
            raise UserError(
                f"features.window: {seconds:g} s; this Whisper encoder hears 0.02 to "
                f"{self.config.samples / _RATE:g} s"
            )
        short = nnx.clone(self)
        short.config = replace(self.config, positions=frames)
        short.positions = nnx.Param(self.positions[...][:frames])
        return short

    def encode_log_mel(self, mel: jax.Array) -> tuple[jax.Array, ...]:
        """Hidden states of a whole window: mel [batch, 2 * positions, bands] -> `layers` + 1 of
        [batch, positions, width], the last after the final norm (as transformers counts)."""
        x = mel if self.dtype is None else mel.astype(self.dtype)
        x = self.activation(self.conv_in(x))
        x = self.activation(self.conv_down(x))
        states = [x + self.positions[...].astype(x.dtype)]
        for layer in self.layers:
            states.append(layer(states[-1]))
        states[-1] = self.norm(states[-1])
        return tuple(states)

    def hidden_states(
        self, wave: jax.Array, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """`layers` + 1 hidden states [batch, samples // 320, width].

        0 is what enters the first layer, the last is after the final norm. What lies past an
        item's `lengths` [batch] (samples) is taken as silence.
        """
        samples, window = wave.shape[1], self.config.samples
        if samples > window:
            raise UserError(
                f"wave: {samples / _RATE:g} s is more than the {window / _RATE:g} s that this "
                "Whisper encoder hears at once; cut it"
            )
        if lengths is not None:
            wave = masked(wave[..., None], frame_mask(lengths, samples))[..., 0]
        mel = whisper_log_mel(jnp.pad(wave, ((0, 0), (0, window - samples))), self.config.bands)
        return tuple(state[:, : samples // (2 * _HOP)] for state in self.encode_log_mel(mel))

    def __call__(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """The last hidden state, [batch, samples // 320, width]."""
        return self.hidden_states(wave, lengths)[-1]


def whisper_table(config: WhisperConfig) -> list[Entry]:
    """Tensors under transformers' names."""
    entries = []
    for theirs, ours in (("conv1", "conv_in"), ("conv2", "conv_down")):
        entries.append(Entry(f"{theirs}.weight", f"{ours}.kernel", CONV))
        entries.append(Entry(f"{theirs}.bias", f"{ours}.bias"))
    entries.append(Entry("embed_positions.weight", "positions"))
    for i in range(config.layers):
        torch, ours = f"layers.{i}", f"layers.{i}"
        for theirs, name in _PROJECTIONS.items():
            entries += linear_entries(
                f"{torch}.self_attn.{theirs}", f"{ours}.attention.{name}", bias=name != "key"
            )
        entries += norm_entries(f"{torch}.self_attn_layer_norm", f"{ours}.attention_norm")
        entries += linear_entries(f"{torch}.fc1", f"{ours}.mlp_in")
        entries += linear_entries(f"{torch}.fc2", f"{ours}.mlp_out")
        entries += norm_entries(f"{torch}.final_layer_norm", f"{ours}.mlp_norm")
    return entries + norm_entries("layer_norm", "norm")


_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
