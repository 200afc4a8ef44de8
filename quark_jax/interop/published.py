"""Configurations in the form the published H-Codec checkpoints come with."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quark_jax.config import from_dict, to_dict
from quark_jax.errors import UserError
from quark_jax.hcodec.config import (
    DecoderConfig,
    HCodecConfig,
    QuantiserConfig,
    SeanetConfig,
    SemanticConfig,
    SpectralConfig,
)


def published_version(published: Mapping[str, Any]) -> str:
    """Of which H-Codec a published configuration is: "1.0", "1.5" or "2.0"."""
    if "sampling_rate" in published:
        return "2.0"
    return "1.5" if "adaptive_config" in published else "1.0"


def config_from_published(version: str, published: Mapping[str, Any]) -> HCodecConfig:
    """The `HCodecConfig` of a published configuration (its YAML as a dict).

    `version` is "1.0", "1.5" or "2.0". What the published file leaves out is as in the preset.
    Raises UserError that names a missing field, or one that cannot be used.
    """
    source = f"configuration of H-Codec {version}"
    if version not in ("1.0", "1.5", "2.0"):
        raise UserError(f"version {version!r}: unknown, choose 1.0, 1.5 or 2.0")
    if "'causal': True" in str(published):
        raise UserError(f"{source}: causal is true; no published model is, and none is supported")
    try:
        config = _spectral(published) if version == "2.0" else _seanet(version, published)
    except KeyError as error:
        raise UserError(
            f"{source}: field {error} is missing; pass the file that came with the checkpoint"
        ) from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{source}: cannot be read ({error}); correct it") from error
    return from_dict(HCodecConfig, to_dict(config), source)  # which looks at types


def _quantiser(fields: Mapping[str, Any]) -> QuantiserConfig:
    return QuantiserConfig(
        codebooks=fields["num_quantizers"],
        codebook_size=fields["codebook_size"],
        width=fields["dim"],
        decay=fields["decay"],
        kmeans_iterations=fields["kmeans_iters"],
        dropout=fields["quantize_dropout"],
    )


def _semantic(fields: Mapping[str, Any]) -> SemanticConfig:
    return SemanticConfig(
        channels=fields["input_channels"],
        width=fields["encode_channels"],
        strides=tuple(fields["strides"]),
    )


def _spectral_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What encoder and decoder of 2.0 have in common."""
    return {
        "n_fft": fields["n_fft"],
        "hop": fields["hop_length"],
        "width": fields["dim"],
        "inner": fields["intermediate_dim"],
        "blocks": fields["convnext_layers"],
        "layers": fields["transformer_layers"],
        "heads": fields["dim"] // 64,
    }


def _spectral(published: Mapping[str, Any]) -> HCodecConfig:
    encoder, decoder = published["encoder_config"], published["decoder_config"]
    preset = HCodecConfig.preset("2.0")
    rate = encoder["target_frame_rate"]
    return replace(
        preset,
        name="2.0" if rate == 12.5 else f"2.0-{rate:g}hz",
        sample_rate=published["sampling_rate"],
        frame_rate=rate,
        encoder=SpectralConfig(**_spectral_sizes(encoder)),
        semantic=_semantic(published["semantic_encoder_config"]),
        quantiser=_quantiser(published["quantizer_config"]),
        decoder=DecoderConfig(
            **_spectral_sizes(decoder),
            mlp=min(4 * decoder["dim"], 4096),
            upsample=int(published["sampling_rate"] / rate / decoder["hop_length"]),
            repeat=True,
        ),
    )


def _seanet(version: str, published: Mapping[str, Any]) -> HCodecConfig:
    preset = HCodecConfig.preset(version)
    encoder = published["encoder_config"]["encoder"]
    decoder = published["decoder_config"]["decoder"]
    strides = tuple(reversed(encoder["ratios"]))  # they are listed from the decoder's side
    dynamic = preset.dynamic
    if dynamic is not None:
        adaptive = published["adaptive_config"]
        aggregator = adaptive["aggregators"]["acoustic_aggregator"]
        bottleneck = adaptive["transformer_kwargs"]
        dynamic = replace(
            dynamic,
            threshold=adaptive["manual_threshold"],
            lower=adaptive["similarity_threshold_lower"],
            upper=adaptive["similarity_threshold_upper"],
            longest=adaptive["max_tokens_per_group"],
            heads=aggregator["num_heads"],
            aggregator_layers=aggregator["num_layers"],
            aggregator_inner=aggregator["dim_feedforward"],
            bottleneck_layers=bottleneck["num_layers"],
            bottleneck_inner=bottleneck["dim_feedforward"],
        )
    return replace(
        preset,
        encoder=SeanetConfig(filters=encoder["n_filters"], strides=strides),
        semantic=_semantic(published["encoder_config"]["semantic_encoder"]),
        quantiser=_quantiser(published["quantizer_config"]["quantizer"]),
        decoder=replace(
            preset.decoder,
            width=decoder["dim"],
            inner=decoder["intermediate_dim"],
            blocks=decoder.get("convnext_layers", preset.decoder.blocks),
            mlp=4 * decoder["dim"],
        ),
        dynamic=dynamic,
    )
