"""H-Codec's PyTorch names, as published checkpoints have them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from quark_jax.errors import UserError
from quark_jax.hcodec.config import DecoderConfig, HCodecConfig, SeanetConfig, SpectralConfig
from quark_jax.hcodec.model import HCodec
from quark_jax.interop.files import named_state
from quark_jax.interop.table import (
    CHANNELS,
    CONV,
    CONV_TRANSPOSED,
    DEPTHWISE,
    FLAG,
    LEADING,
    LINEAR,
    POINTWISE,
    QUERY,
    Entry,
    Kind,
    as_shapes,
    load_torch,
    to_torch,
)
from quark_jax.nn import hann_buffer

Entries = Iterator[Entry]


def _affine(torch: str, path: str, kind: Kind = LINEAR) -> Entries:
    yield Entry(f"{torch}.weight", f"{path}.kernel", kind)
    yield Entry(f"{torch}.bias", f"{path}.bias")


def _norm(torch: str, path: str) -> Entries:
    yield Entry(f"{torch}.weight", f"{path}.scale")
    yield Entry(f"{torch}.bias", f"{path}.bias")


def _weight_norm(torch: str, path: str) -> Entries:
    yield Entry(f"{torch}.conv.conv.bias", f"{path}.bias")
    yield Entry(f"{torch}.conv.conv.weight_g", f"{path}.gain", CHANNELS)
    yield Entry(f"{torch}.conv.conv.weight_v", f"{path}.direction", CONV)


def _recurrent(torch: str, path: str, layers: int) -> Entries:
    for i in range(layers):
        t, p = f"{torch}.layers.{i}", f"{path}.layers.{i}"
        yield Entry(f"{t}.self_attn.rnn.weight_ih_l0", f"{p}.attention.lstm.input_kernel", LINEAR)
        yield Entry(f"{t}.self_attn.rnn.weight_hh_l0", f"{p}.attention.lstm.hidden_kernel", LINEAR)
        yield Entry(f"{t}.self_attn.rnn.bias_ih_l0", f"{p}.attention.lstm.input_bias")
        yield Entry(f"{t}.self_attn.rnn.bias_hh_l0", f"{p}.attention.lstm.hidden_bias")
        for short, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            yield from _affine(f"{t}.self_attn.{short}_proj", f"{p}.attention.{ours}")
        yield Entry(f"{t}.self_attn.o_proj.weight", f"{p}.attention.out.kernel", LINEAR)
        for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            yield Entry(f"{t}.mlp.{theirs}.weight", f"{p}.mlp.{ours}.kernel", LINEAR)
        yield Entry(f"{t}.input_layernorm.weight", f"{p}.attention_norm.scale")
        yield Entry(f"{t}.post_attention_layernorm.weight", f"{p}.mlp_norm.scale")


def _convnext(torch: str, path: str, blocks: int) -> Entries:
    for i in range(blocks):
        t, p = f"{torch}.{i}", f"{path}.blocks.{i}"
        yield Entry(f"{t}.gamma", f"{p}.gamma")
        yield from _affine(f"{t}.dwconv.conv", f"{p}.depthwise", DEPTHWISE)
        yield from _norm(f"{t}.norm", f"{p}.norm")
        yield from _affine(f"{t}.pwconv1.linear", f"{p}.up")
        yield from _affine(f"{t}.pwconv2.linear", f"{p}.down")


def _seanet(config: SeanetConfig) -> Entries:
    # The published module is one sequence: a convolution; a residual unit, an activation and a
    # strided convolution for each stride; the transformer between two permutations; an activation
    # and the last convolution.
    yield from _weight_norm("encoder.model.0", "encoder.first")
    for i in range(len(config.strides)):
        t, p = f"encoder.model.{3 * i + 1}", f"encoder.units.{i}"
        yield from _weight_norm(f"{t}.block.1", f"{p}.narrow")
        yield from _weight_norm(f"{t}.block.3", f"{p}.widen")
        yield from _weight_norm(f"{t}.shortcut", f"{p}.shortcut")
        yield from _weight_norm(f"encoder.model.{3 * i + 3}", f"encoder.downs.{i}")
    place = 3 * len(config.strides) + 2
    yield from _recurrent(f"encoder.model.{place}", "encoder.transformer", config.layers)
    yield from _weight_norm(f"encoder.model.{place + 3}", "encoder.last")


def _spectral(config: SpectralConfig) -> Entries:
    yield Entry("encoder.stft.window", "encoder.window")
    yield from _affine("encoder.embed.conv", "encoder.embed", CONV)
    yield from _norm("encoder.norm", "encoder.norm")
    yield from _convnext("encoder.prior_net", "encoder.blocks", config.blocks)
    yield from _recurrent("encoder.post_net.1", "encoder.transformer", config.layers)
    yield from _norm("encoder.final_layer_norm", "encoder.final_norm")
    yield from _affine("encoder.out.conv", "encoder.out", CONV)


def _decoder(config: DecoderConfig) -> Entries:
    if config.repeat:
        yield from _affine("decoder.embed.conv", "decoder.upsample.conv", CONV)
    else:
        yield from _affine("decoder.embed.up", "decoder.upsample.expand", POINTWISE)
        yield from _affine("decoder.embed.dw", "decoder.upsample.smooth", DEPTHWISE)
    yield from _norm("decoder.norm", "decoder.norm")
    yield from _convnext("decoder.post_net", "decoder.blocks", config.blocks)
    yield from _norm("decoder.final_layer_norm", "decoder.final_norm")
    for place, path in ((0, "before.0"), (1, "before.1"), (5, "after.0"), (6, "after.1")):
        t, p = f"decoder.prior_net.{place}", f"decoder.{path}"
        for half in (1, 2):
            yield from _norm(f"{t}.norm{half}", f"{p}.norm{half}")
            yield from _affine(f"{t}.conv{half}.conv", f"{p}.conv{half}", CONV)
    yield from _recurrent("decoder.prior_net.3", "decoder.transformer", config.layers)
    yield from _norm("decoder.prior_net.7", "decoder.group_norm")
    yield from _affine("decoder.head.out", "decoder.head.out")
    yield Entry("decoder.head.istft.window", "decoder.head.window")


def _semantic_units(torch: str, path: str, stage: int) -> Entries:
    for j in range(2):
        t, p = f"{torch}.conv_blocks.{stage}.res_units.{j}", f"{path}.units.{stage}.{j}"
        yield Entry(f"{t}.conv1.conv.weight", f"{p}.conv.kernel", CONV)
        yield Entry(f"{t}.conv2.weight", f"{p}.point.kernel", POINTWISE)


def _semantic(strides: tuple[int, ...]) -> Entries:
    t = "semantic_encoder"
    yield Entry(f"{t}.conv.conv.weight", f"{t}.first.kernel", CONV)
    for i in range(len(strides)):
        yield from _semantic_units(t, t, i)
        yield from _affine(f"{t}.conv_blocks.{i}.conv.conv", f"{t}.downs.{i}", CONV)
    yield Entry(f"{t}.conv2.conv.weight", f"{t}.last.kernel", CONV)
    t = "semantic_decoder"
    yield Entry(f"{t}.conv1.conv.weight", f"{t}.first.kernel", CONV)
    for i, stride in enumerate(strides):
        theirs, kind = ("conv.conv", CONV) if stride == 1 else ("conv.deconv", CONV_TRANSPOSED)
        yield from _affine(f"{t}.conv_blocks.{i}.{theirs}", f"{t}.ups.{i}", kind)
        yield from _semantic_units(t, t, i)
    yield Entry(f"{t}.conv2.conv.weight", f"{t}.last.kernel", CONV)


def _quantiser(torch: str, path: str, codebooks: int) -> Entries:
    for i in range(codebooks):
        t = f"{torch}.layers.{i}._codebook"
        yield Entry(f"{t}.initted", f"{path}.initialised", FLAG, i)
        yield Entry(f"{t}.cluster_size", f"{path}.counts", LEADING, i)
        yield Entry(f"{t}.embed_avg", f"{path}.sums", LEADING, i)
        yield Entry(f"{t}.embed", f"{path}.embed", LEADING, i)


def _transformer(torch: str, path: str, layers: int) -> Entries:
    for i in range(layers):
        t, p = f"{torch}.transformer.layers.{i}", f"{path}.layers.{i}"
        yield Entry(f"{t}.self_attn.in_proj_weight", f"{p}.qkv.kernel", LINEAR)
        yield Entry(f"{t}.self_attn.out_proj.weight", f"{p}.out.kernel", LINEAR)
        yield from _norm(f"{t}.norm1", f"{p}.norm1")
        yield from _norm(f"{t}.norm2", f"{p}.norm2")
        yield Entry(f"{t}.linear1.weight", f"{p}.up.kernel", LINEAR)
        yield Entry(f"{t}.linear2.weight", f"{p}.down.kernel", LINEAR)
        yield Entry(f"{t}.layer_scale_1.scale", f"{p}.scale1")
        yield Entry(f"{t}.layer_scale_2.scale", f"{p}.scale2")


def hcodec_table(config: HCodecConfig) -> list[Entry]:
    """Every tensor of a checkpoint that a module of ours holds."""
    seanet = isinstance(config.encoder, SeanetConfig)
    entries = [*(_seanet if seanet else _spectral)(config.encoder)]
    entries += _decoder(config.decoder)
    entries += _quantiser("quantizer", "quantiser", config.quantiser.codebooks)
    entries += _quantiser(
        "semantic_quantizer", "semantic_quantiser", config.semantic_quantiser.codebooks
    )
    entries += _semantic(config.semantic.strides)
    if dynamic := config.dynamic:
        entries += _transformer("bottleneck_transformer", "bottleneck", dynamic.bottleneck_layers)
        for torch, path in (
            ("semantic_aggregator", "semantic_aggregator"),
            ("acoustic_aggregator", "aggregator"),
        ):
            entries.append(Entry(f"{torch}.query_embedding", f"{path}.query", QUERY))
            entries += _transformer(
                f"{torch}.transformer", f"{path}.transformer", dynamic.aggregator_layers
            )
    return entries


def load_hcodec(
    state: Mapping[str, np.ndarray] | str | Path, config: HCodecConfig, *, dtype=None
) -> HCodec:
    """See `HCodec.from_torch`."""
    state, source = named_state(state)
    codec = as_shapes(lambda rngs: HCodec(config, dtype=dtype, rngs=rngs))
    table = hcodec_table(config)
    load_torch(codec, table, state, source=source)
    for name in (entry.torch for entry in table if entry.torch.endswith(".window")):
        window = np.asarray(state[name])
        if not np.allclose(window, hann_buffer(window.size)[...], atol=1e-2):
            raise UserError(
                f"{source}: {name} is not a periodic Hann window; no other is supported"
            )
    return codec


def hcodec_to_torch(codec: HCodec) -> dict[str, np.ndarray]:
    """See `HCodec.to_torch`."""
    return to_torch(codec, hcodec_table(codec.config))
