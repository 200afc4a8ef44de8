"""Frozen text encoders for captions: T5 (arXiv 1910.10683) and BERT (1810.04805), MiniLM included.

Token ids [batch, tokens] and mask [batch, tokens] (true or 1 where a token is) -> hidden states
[batch, tokens, channels]. Items never see padding.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from quark_jax.encoders.transformer import (
    SelfAttention,
    activation,
    layers,
    linear_entries,
    norm_entries,
    relative_buckets,
    renamed,
)
from quark_jax.errors import UserError
from quark_jax.interop.table import Entry
from quark_jax.nn import embed, layer_norm, linear, rms_norm
from quark_jax.nn.placement import batch_split


def mean_pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `hidden` [batch, tokens, channels] over each item's tokens, [batch, channels]."""
    weight = jnp.asarray(mask, hidden.dtype)[..., None]
    return (hidden * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def _key_mask(mask: jax.Array | None) -> jax.Array | None:
    return None if mask is None else jnp.asarray(mask, bool)[:, None, None, :]


@dataclass(frozen=True)
class T5Config:
    """Shape of a T5 encoder; the defaults are T5-small."""

    vocabulary: int = 32128
    width: int = 512
    head_width: int = 64
    heads: int = 8
    inner: int = 2048
    layers: int = 6
    buckets: int = 32
    max_distance: int = 128  # tokens
    epsilon: float = 1e-6
    feed_forward: str = "relu"  # an activation, "gated-" before it for a gated unit (T5 1.1, Flan)

    @classmethod
    def from_hugging_face(cls, config: dict) -> "T5Config":
        """From config.json of a t5 model."""
        return cls(**renamed(config, _T5_FIELDS))

    @property
    def gated(self) -> bool:
        """Whether the MLP is a gated unit."""
        return self.feed_forward.startswith("gated-")

    @property
    def activation(self) -> str:
        """Name of the activation, as `transformer.activation` takes it."""
        name = self.feed_forward.removeprefix("gated-")
        return "gelu_new" if self.feed_forward == "gated-gelu" else name


_T5_FIELDS = {
    "vocabulary": "vocab_size",
    "width": "d_model",
    "head_width": "d_kv",
    "heads": "num_heads",
    "inner": "d_ff",
    "layers": "num_layers",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "epsilon": "layer_norm_epsilon",
    "feed_forward": "feed_forward_proj",
}


class T5Layer(nnx.Module):
    """Attention, then a plain or gated MLP, RMSNorm before each, no biases;
    [batch, tokens, width] -> same."""

    def __init__(self, config: T5Config, *, dtype=None, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "rngs": rngs}
        width, inner = config.width, config.inner
        self.activation = activation(config.activation)
        self.attention_norm = rms_norm(width, epsilon=config.epsilon, **kwargs)
        self.attention = SelfAttention(
            width,
            config.heads,
            head_width=config.head_width,
            bias=False,
            scale=1.0,
            **kwargs,
        )
        self.mlp_norm = rms_norm(width, epsilon=config.epsilon, **kwargs)
        self.mlp_in = linear(width, inner, axes=("embed", "mlp"), bias=False, **kwargs)
        self.mlp_gate = (
            linear(width, inner, axes=("embed", "mlp"), bias=False, **kwargs)
            if config.gated
            else None
        )
        self.mlp_out = linear(inner, width, axes=("mlp", "embed"), bias=False, **kwargs)

    def __call__(self, x: jax.Array, mask=None, bias=None) -> jax.Array:
        x = batch_split(x)
        x = x + self.attention(self.attention_norm(x), mask, bias)
        y = self.mlp_norm(x)
        if self.mlp_gate is None:
            return x + self.mlp_out(self.activation(self.mlp_in(y)))
        return x + self.mlp_out(self.activation(self.mlp_gate(y)) * self.mlp_in(y))


class T5Encoder(nnx.Module):
    """The encoder half of T5, ids [batch, tokens] -> [batch, tokens, width]. `channels` is the
    width."""

    def __init__(self, config: T5Config, *, dtype=None, rngs: nnx.Rngs):
        self.config = config
        self.channels = config.width
        kwargs = {"dtype": dtype, "rngs": rngs}
        self.tokens = embed(config.vocabulary, config.width, **kwargs)
        self.position_bias = embed(config.buckets, config.heads, axes=(None, None), **kwargs)
        self.layers = nnx.List(T5Layer(config, **kwargs) for _ in range(config.layers))
        self.norm = rms_norm(config.width, epsilon=config.epsilon, **kwargs)

    def hidden_states(self, ids: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """`layers` + 1 hidden states [batch, tokens, width]: 0 is the embeddings, the last is
        after the final norm (as transformers counts)."""
        buckets = relative_buckets(ids.shape[1], self.config.buckets, self.config.max_distance)
        bias = self.position_bias(buckets).transpose(2, 0, 1)[None]
        states = [self.tokens(ids)]
        for layer in self.layers:
            states.append(layer(states[-1], _key_mask(mask), bias))
        states[-1] = self.norm(states[-1])
        return tuple(states)

    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The last hidden state, [batch, tokens, width]."""
        return self.hidden_states(ids, mask)[-1]


def t5_table(config: T5Config) -> list[Entry]:
    """Tensors under transformers' names."""
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    entries = [
        Entry("shared.weight", "tokens.embedding"),
        Entry(bias, "position_bias.embedding"),
    ]
    mlp = {"wi_0": "mlp_gate", "wi_1": "mlp_in"} if config.gated else {"wi": "mlp_in"}
    for i in range(config.layers):
        torch, ours = f"encoder.block.{i}.layer", f"layers.{i}"
        for theirs, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
            entries += linear_entries(
                f"{torch}.0.SelfAttention.{theirs}", f"{ours}.attention.{name}", bias=False
            )
        for theirs, name in {**mlp, "wo": "mlp_out"}.items():
            entries += linear_entries(
                f"{torch}.1.DenseReluDense.{theirs}", f"{ours}.{name}", bias=False
            )
        entries.append(Entry(f"{torch}.0.layer_norm.weight", f"{ours}.attention_norm.scale"))
        entries.append(Entry(f"{torch}.1.layer_norm.weight", f"{ours}.mlp_norm.scale"))
    return [*entries, Entry("encoder.final_layer_norm.weight", "norm.scale")]


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT encoder; the defaults are BERT-base."""

    vocabulary: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    activation: str = "gelu"
    positions: int = 512  # tokens
    segments: int = 2
    epsilon: float = 1e-12

    @classmethod
    def from_hugging_face(cls, config: dict) -> "BertConfig":
        """From config.json of a bert model; UserError where it is a variant not supported."""
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(
                "config.json: position_embedding_type is not absolute, which is not supported"
            )
        if config.get("is_decoder"):
            raise UserError("config.json: is_decoder is set; use a model that is an encoder")
        return cls(**renamed(config, _BERT_FIELDS))


_BERT_FIELDS = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "inner": "intermediate_size",
    "activation": "hidden_act",
    "positions": "max_position_embeddings",
    "segments": "type_vocab_size",
    "epsilon": "layer_norm_eps",
}


class BertEncoder(nnx.Module):
    """BERT for single sentences (segment 0 throughout), ids [batch, tokens] -> [batch, tokens,
    width]. `channels` is the width."""

    def __init__(self, config: BertConfig, *, dtype=None, rngs: nnx.Rngs):
        self.config = config
        self.channels = config.width
        kwargs = {"dtype": dtype, "rngs": rngs}
        self.tokens = embed(config.vocabulary, config.width, **kwargs)
        self.positions = embed(config.positions, config.width, axes=(None, "embed"), **kwargs)
        self.segments = embed(config.segments, config.width, axes=(None, "embed"), **kwargs)
        self.norm = layer_norm(config.width, epsilon=config.epsilon, **kwargs)
        self.layers = layers(config, epsilon=config.epsilon, pre_norm=False, **kwargs)

    def hidden_states(self, ids: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """`layers` + 1 hidden states [batch, tokens, width], 0 is what enters the first layer.

        Raises UserError where there are more tokens than positions.
        """
        tokens = ids.shape[1]
        if tokens > self.config.positions:
            raise UserError(
                f"text: {tokens} tokens are more than the {self.config.positions} that this model "
                "takes; shorten it, or tokenise with max_tokens"
            )
        position, segment = self.positions(np.arange(tokens)), self.segments(np.zeros(1, int))
        states = [self.norm(batch_split(self.tokens(ids) + segment + position))]
        for layer in self.layers:
            states.append(layer(states[-1], _key_mask(mask)))
        return tuple(states)

    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The last hidden state, [batch, tokens, width]; `mean_pool` gives sentence vectors."""
        return self.hidden_states(ids, mask)[-1]


def bert_table(config: BertConfig) -> list[Entry]:
    """Tensors under transformers' names."""
    entries = [
        Entry("embeddings.word_embeddings.weight", "tokens.embedding"),
        Entry("embeddings.position_embeddings.weight", "positions.embedding"),
        Entry("embeddings.token_type_embeddings.weight", "segments.embedding"),
    ]
    entries += norm_entries("embeddings.LayerNorm", "norm")
    for i in range(config.layers):
        torch, ours = f"encoder.layer.{i}", f"layers.{i}"
        for name in ("query", "key", "value"):
            entries += linear_entries(f"{torch}.attention.self.{name}", f"{ours}.attention.{name}")
        entries += linear_entries(f"{torch}.attention.output.dense", f"{ours}.attention.out")
        entries += norm_entries(f"{torch}.attention.output.LayerNorm", f"{ours}.attention_norm")
        entries += linear_entries(f"{torch}.intermediate.dense", f"{ours}.mlp_in")
        entries += linear_entries(f"{torch}.output.dense", f"{ours}.mlp_out")
        entries += norm_entries(f"{torch}.output.LayerNorm", f"{ours}.mlp_norm")
    return entries
