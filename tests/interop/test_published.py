"""Configurations of the published form."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from quark_jax.errors import UserError
from quark_jax.hcodec import HCodec, HCodecConfig
from quark_jax.interop import as_shapes
from quark_jax.interop.hcodec import hcodec_table
from quark_jax.interop.published import config_from_published, published_version

SMALL = ["1.5_small", "2.0_small", "2.0_small_6.25hz"]


def shapes(config):
    codec = as_shapes(lambda rngs: HCodec(config, rngs=rngs))
    found = {}
    for entry in hcodec_table(config):
        node = codec
        for part in entry.path.split("."):
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        shape = node.shape if entry.index is None else node.shape[1:]
        found[entry.torch] = list(entry.kind.to_torch(np.zeros(shape)).shape)
    return found


@pytest.mark.parametrize("name", SMALL)
def test_every_tensor_has_the_published_shape(name, golden):
    golden = golden(name)
    assert published_version(golden.facts["config"]) == golden.facts["version"]
    expected = {name: shape for name, (shape, _) in golden.manifest.items()}
    assert shapes(golden.config) == expected


def test_fields_are_read_where_they_stand(golden):
    facts = golden("1.5_small").facts["config"]
    config = config_from_published("1.5", facts)
    assert config.encoder.strides == (8, 5, 4, 2)  # listed from the decoder's side
    assert (config.dynamic.threshold, config.dynamic.longest) == (0.6, 8)
    assert (config.dynamic.lower, config.dynamic.upper) == (0.7, 1.0)
    assert (config.quantiser.codebooks, config.quantiser.codebook_size) == (3, 64)
    assert config.features == HCodecConfig.preset("1.5").features
    slow = golden("2.0_small_6.25hz").config
    assert (slow.frame_rate, slow.hop, slow.name) == (6.25, 7680, "2.0-6.25hz")
    assert slow.semantic.strides == (2, 2, 2) and slow.decoder.upsample == 8
    assert golden("2.0_small").config.semantic.strides == (2, 2, 1)


def test_the_strides_of_1_0_are_listed_the_other_way_round(golden):
    facts = copy.deepcopy(golden("1.5_small").facts["config"])
    del facts["adaptive_config"]
    facts["encoder_config"]["encoder"]["ratios"] = [8, 5, 4, 2]
    assert published_version(facts) == "1.0"
    config = config_from_published("1.0", facts)
    assert config.encoder.strides == (2, 4, 5, 8) == HCodecConfig.preset("1.0").encoder.strides
    assert config.dynamic is None and config.encoder.filters == 4


def full(preset):
    """The full-size configuration in the published form, as the preset has it."""
    config = HCodecConfig.preset(preset)
    encoder, decoder, semantic = config.encoder, config.decoder, config.semantic
    quantiser = {
        "dim": 512,
        "codebook_size": 1024,
        "num_quantizers": config.quantiser.codebooks,
        "decay": 0.99,
        "kmeans_iters": 50,
        "quantize_dropout": config.quantiser.dropout,
    }
    return {
        "sampling_rate": 48000,
        "encoder_config": {
            "dim": encoder.width,
            "intermediate_dim": encoder.inner,
            "n_fft": 1920,
            "hop_length": 960,
            "convnext_layers": 24,
            "transformer_layers": 2,
            "target_frame_rate": config.frame_rate,
        },
        "decoder_config": {
            "dim": decoder.width,
            "intermediate_dim": decoder.inner,
            "convnext_layers": 32,
            "transformer_layers": 2,
            "n_fft": 1920,
            "hop_length": 960,
        },
        "quantizer_config": quantiser,
        "semantic_encoder_config": {
            "input_channels": 768,
            "encode_channels": 1536,
            "strides": list(semantic.strides),
        },
    }


@pytest.mark.parametrize("preset", ["2.0", "2.0-6.25hz"])
def test_full_2_0_is_the_preset(preset):
    config = config_from_published("2.0", full(preset))
    assert config == replace(HCodecConfig.preset(preset), quantiser=config.quantiser)
    assert config.quantiser == HCodecConfig.preset(preset).quantiser


def test_what_cannot_be_used_is_named(golden):
    facts = golden("2.0_small").facts["config"]

    def refused(message, change, version="2.0"):
        fields = copy.deepcopy(facts)
        change(fields)
        with pytest.raises(UserError, match=message) as error:
            config_from_published(version, fields)
        assert "\n" not in str(error.value)

    refused("version '3.0': unknown", lambda f: None, "3.0")
    refused("field 'dim' is missing", lambda f: f["encoder_config"].pop("dim"))
    refused("field 'quantizer_config' is missing", lambda f: f.pop("quantizer_config"))
    refused("causal is true", lambda f: f["decoder_config"].update(causal=True))
    refused("decay: 'x' is not of type float", lambda f: f["quantizer_config"].update(decay="x"))
    refused("configuration of H-Codec 2.0: ", lambda f: f.update(encoder_config=[1]))
    refused("do not bring 50 Hz", lambda f: f["semantic_encoder_config"].update(strides=[2]))
    refused("field 'encoder' is missing", lambda f: None, "1.0")
