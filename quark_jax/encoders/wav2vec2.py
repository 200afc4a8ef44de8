"""wav2vec 2.0 (arXiv 2006.11477), HuBERT (2106.07447) and WavLM (2110.13900): one network.

Strided convolutions bring 16 kHz to 50 Hz; a grouped convolution gives positions; transformer
layers follow. The config says where the three differ.

Every item of a padded batch gets what it gets alone. The published models do not: where the first
convolution is normalised over time (HuBERT-base, WavLM-base-plus), padding enters the mean and the
deviation there. Here they are taken over the item's own frames.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from quark_jax.encoders.transformer import (
    activation,
    layers,
    linear_entries,
    norm_entries,
    relative_buckets,
    renamed,
)
from quark_jax.errors import UserError
from quark_jax.interop.table import CONV, Entry, Kind
from quark_jax.nn import conv, embed, group_norm, layer_norm, linear
from quark_jax.nn.masking import frame_mask, key_mask, masked
from quark_jax.nn.placement import platform


@dataclass(frozen=True)
class Wav2Vec2Config:
    """Shape of the network; the defaults are HuBERT-base."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    activation: str = "gelu"
    epsilon: float = 1e-5
    pre_norm: bool = False  # "stable layer norm"
    conv_widths: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: str = "group"  # over time after the first convolution, or "layer": after each
    conv_activation: str = "gelu"
    projection_norm: bool = True
    position_kernel: int = 128
    position_groups: int = 16
    buckets: int | None = None  # of relative positions (WavLM)
    max_distance: int = 800  # frames

    @classmethod
    def preset(cls, name: str) -> "Wav2Vec2Config":
        """The published "hubert-base", "wav2vec2-large" (also XLSR-53) or "wavlm-base-plus"."""
        if name not in _PRESETS:
            raise UserError(f"encoder {name!r}: unknown, choose one of {', '.join(_PRESETS)}")
        return _PRESETS[name]

    @classmethod
    def from_hugging_face(cls, config: dict) -> "Wav2Vec2Config":
        """From config.json of a hubert, wav2vec2 or wavlm model; UserError where it asks for a
        variant that is not supported."""
        for field in ("conv_pos_batch_norm", "adapter_attn_dim"):
            if config.get(field):
                raise UserError(f"config.json: {field} is not supported; use a model without it")
        if config.get("feat_extract_norm", "group") not in ("group", "layer"):
            raise UserError("config.json: feat_extract_norm is neither group nor layer; correct it")
        ours = renamed(config, _FIELDS)
        ours = {name: tuple(v) if isinstance(v, list) else v for name, v in ours.items()}
        if config["model_type"] == "wavlm":
            ours["buckets"] = config.get("num_buckets", 320)
        return cls(**ours)

    def frames(self, samples):
        """Frames that come from `samples` (an int or an array of them)."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples


_FIELDS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "inner": "intermediate_size",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
    "pre_norm": "do_stable_layer_norm",
    "conv_widths": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_norm": "feat_extract_norm",
    "conv_activation": "feat_extract_activation",
    "projection_norm": "feat_proj_layer_norm",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "max_distance": "max_bucket_distance",
}

_BASE = Wav2Vec2Config()
_PRESETS = {
    "hubert-base": _BASE,
    "wav2vec2-large": replace(
        _BASE,
        width=1024,
        layers=24,
        heads=16,
        inner=4096,
        pre_norm=True,
        conv_bias=True,
        conv_norm="layer",
    ),
    "wavlm-base-plus": replace(_BASE, buckets=320),
}


class ConvLayer(nnx.Module):
    """One strided convolution of the feature extractor, its norm (if any) and its activation."""

    def __init__(self, config: Wav2Vec2Config, index: int, *, dtype=None, rngs: nnx.Rngs):
        inputs = config.conv_widths[index - 1] if index else 1
        width = config.conv_widths[index]
        self.kernel, self.stride = config.conv_kernels[index], config.conv_strides[index]
        self.over_time = config.conv_norm == "group" and index == 0
        self.activation = activation(config.conv_activation)
        self.conv = conv(
            inputs,
            width,
            self.kernel,
            stride=self.stride,
            bias=config.conv_bias,
            # A wave's one channel is not split.
            axes=(None, "channels_in" if index else None, "channels_out"),
            dtype=dtype,
            rngs=rngs,
        )
        norm = None
        if self.over_time:  # one group a channel
            norm = group_norm(width, groups=width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        elif config.conv_norm == "layer":
            norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.norm = norm

    def __call__(self, x: jax.Array, lengths: jax.Array | None):
        """x [batch, time, channels] and lengths [batch] -> the same after the convolution."""
        x = self.conv(x)
        if lengths is not None:
            lengths = (lengths - self.kernel) // self.stride + 1
        if self.over_time:
            own = None if lengths is None else frame_mask(lengths, x.shape[1])
            x = self.norm(x, mask=None if own is None else jnp.broadcast_to(own, x.shape))
        elif self.norm is not None:
            x = self.norm(x)
        return self.activation(x), lengths


class PositionalConv(nnx.Module):
    """Positions by a wide grouped convolution, [batch, time, width] -> same.

    On a CPU as one convolution a group, where XLA's grouped convolution is slow; on a TPU grouped,
    where the compiler sits minutes over the others.
    """

    def __init__(self, config: Wav2Vec2Config, *, dtype=None, rngs: nnx.Rngs):
        self.groups = config.position_groups
        self.activation = activation(config.conv_activation)
        self.conv = conv(
            config.width,
            config.width,
            config.position_kernel,
            groups=self.groups,
            axes=(None, None, "channels_out"),  # a group has few channels in
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = (p.astype(x.dtype) for p in (self.conv.kernel[...], self.conv.bias[...]))
        left = kernel.shape[0] // 2
        x = jnp.pad(x, ((0, 0), (left, kernel.shape[0] - 1 - left), (0, 0)))
        apart = self.groups if platform() == "cpu" else 1
        parts = [
            lax.conv_general_dilated(
                part,
                taps,
                (1,),
                "VALID",
                dimension_numbers=("NWC", "WIO", "NWC"),
                feature_group_count=self.groups // apart,
            )
            for part, taps in zip(
                jnp.split(x, apart, axis=-1), jnp.split(kernel, apart, axis=-1), strict=True
            )
        ]
        return self.activation(jnp.concatenate(parts, axis=-1) + bias)


class Wav2Vec2(nnx.Module):
    """Frozen speech encoder: wave [batch, samples at 16 kHz] -> [batch, frames at 50 Hz, width].

    `channels` is the width; `padding` the zeros (samples on each side) with which n * 320 samples
    give n frames.
    """

    padding = 160

    def __init__(self, config: Wav2Vec2Config, *, dtype=None, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.channels = config.width
        kwargs = {"dtype": dtype, "rngs": rngs}
        self.convs = nnx.List(
            ConvLayer(config, index, **kwargs) for index in range(len(config.conv_widths))
        )
        last = config.conv_widths[-1]
        self.projection_norm = (
            layer_norm(last, epsilon=config.epsilon, **kwargs) if config.projection_norm else None
        )
        self.projection = linear(last, config.width, axes=(None, "embed"), **kwargs)
        self.position = PositionalConv(config, **kwargs)
        self.norm = layer_norm(config.width, epsilon=config.epsilon, **kwargs)
        self.position_bias = (
            None
            if config.buckets is None
            else embed(config.buckets, config.heads, axes=(None, None), **kwargs)
        )
        self.layers = layers(
            config,
            epsilon=config.epsilon,
            pre_norm=config.pre_norm,
            gated=config.buckets is not None,
            **kwargs,
        )

    def hidden_states(
        self, wave: jax.Array, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """`layers` + 1 hidden states [batch, frames, width], counted as transformers does.

        0 is what enters the first layer. `lengths` [batch] (samples) says how much of each item is
        there; frames past it hold no meaning. With `pre_norm` the last one is as the last layer
        leaves it, before the final norm.
        """
        x = wave[..., None] if self.dtype is None else wave[..., None].astype(self.dtype)
        for layer in self.convs:
            x, lengths = layer(x, lengths)
        if self.projection_norm is not None:
            x = self.projection_norm(x)
        mask = None if lengths is None else frame_mask(lengths, x.shape[1])
        x = masked(self.projection(x), mask)
        x = x + self.position(x)
        if not self.config.pre_norm:
            x = self.norm(x)
        bias = self._bias(x.shape[1])
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], key_mask(mask), bias))
        return tuple(states)

    def __call__(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """The last hidden state, [batch, frames, width], after the final norm where there is one.

        `wave` is taken as it is, without padding: `config.frames` counts the frames.
        """
        last = self.hidden_states(wave, lengths)[-1]
        return self.norm(last) if self.config.pre_norm else last

    def _bias(self, frames: int) -> jax.Array | None:
        if self.position_bias is None:
            return None
        buckets = relative_buckets(frames, self.config.buckets, self.config.max_distance)
        return self.position_bias(buckets).transpose(2, 0, 1)[None]


_GATE = Kind(  # [1, heads, 1, 1] <-> [heads]
    lambda a: a[0, :, 0, 0], lambda a: a[None, :, None, None]
)


def wav2vec2_table(config: Wav2Vec2Config) -> list[Entry]:
    """Tensors under transformers' names, the weight norm of the positional convolution fused."""
    entries = []
    for i in range(len(config.conv_widths)):
        torch, ours = f"feature_extractor.conv_layers.{i}", f"convs.{i}"
        entries.append(Entry(f"{torch}.conv.weight", f"{ours}.conv.kernel", CONV))
        if config.conv_bias:
            entries.append(Entry(f"{torch}.conv.bias", f"{ours}.conv.bias"))
        if config.conv_norm == "layer" or i == 0:
            entries += norm_entries(f"{torch}.layer_norm", f"{ours}.norm")
    if config.projection_norm:
        entries += norm_entries("feature_projection.layer_norm", "projection_norm")
    entries += linear_entries("feature_projection.projection", "projection")
    entries += [
        Entry("encoder.pos_conv_embed.conv.weight", "position.conv.kernel", CONV),
        Entry("encoder.pos_conv_embed.conv.bias", "position.conv.bias"),
    ]
    entries += norm_entries("encoder.layer_norm", "norm")
    if config.buckets is not None:
        name = "encoder.layers.0.attention.rel_attn_embed.weight"
        entries.append(Entry(name, "position_bias.embedding"))
    for i in range(config.layers):
        entries += _layer_table(f"encoder.layers.{i}", f"layers.{i}", config.buckets is not None)
    return entries


def _layer_table(torch: str, ours: str, gated: bool) -> list[Entry]:
    entries = []
    for theirs, name in _PROJECTIONS.items():
        entries += linear_entries(f"{torch}.attention.{theirs}", f"{ours}.attention.{name}")
    if gated:
        entries += linear_entries(
            f"{torch}.attention.gru_rel_pos_linear", f"{ours}.attention.gate.linear"
        )
        entries.append(
            Entry(f"{torch}.attention.gru_rel_pos_const", f"{ours}.attention.gate.scale", _GATE)
        )
    entries += norm_entries(f"{torch}.layer_norm", f"{ours}.attention_norm")
    entries += linear_entries(f"{torch}.feed_forward.intermediate_dense", f"{ours}.mlp_in")
    entries += linear_entries(f"{torch}.feed_forward.output_dense", f"{ours}.mlp_out")
    return entries + norm_entries(f"{torch}.final_layer_norm", f"{ours}.mlp_norm")


_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
