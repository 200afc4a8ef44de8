"""The reach of the convolutions, felt by touching one place and looking how far it shows."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax.hcodec import HCodec, HCodecConfig
from quark_jax.hcodec.config import DecoderConfig, QuantiserConfig, SeanetConfig, SemanticConfig
from quark_jax.hcodec.reach import decoder_reach, encoder_reach

_TINY = HCodecConfig.preset("tiny")
_SMALL = {
    "spectral": replace(
        _TINY,
        encoder=replace(_TINY.encoder, width=32, inner=32, heads=2),
        semantic=SemanticConfig(channels=8, width=8, strides=(2,)),
        quantiser=QuantiserConfig(codebooks=1, codebook_size=4, width=8),
        decoder=replace(_TINY.decoder, width=32, inner=32, heads=2, mlp=32),
    ),
    "seanet": replace(
        _TINY,
        encoder=SeanetConfig(filters=2, layers=1, heads=2),
        semantic=SemanticConfig(channels=8, width=8, strides=(2, 1)),
        quantiser=QuantiserConfig(codebooks=1, codebook_size=4, width=8),
        decoder=DecoderConfig(width=32, inner=32, blocks=3, layers=1, heads=2, mlp=32),
    ),
}


class Identity(nnx.Module):
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return x


def local_codec(config: HCodecConfig) -> HCodec:
    """A codec without what has no finite reach."""
    codec = HCodec(config, rngs=nnx.Rngs(0))
    for part in (codec.encoder, codec.decoder):
        for layer in part.transformer.layers:
            kernel = layer.attention.out.kernel
            kernel.set_value(jnp.zeros_like(kernel[...]))
    codec.decoder.group_norm = Identity()
    for block in (*codec.decoder.before, *codec.decoder.after):
        block.norm1 = block.norm2 = Identity()
    return codec


def touched(change: np.ndarray) -> tuple[int, int]:
    """First and last index along the second axis at which anything changed."""
    places = np.flatnonzero(np.abs(change).reshape(*change.shape[:2], -1).max((0, 2)) > 1e-7)
    return int(places[0]), int(places[-1])


@pytest.mark.parametrize("name", _SMALL)
def test_encoder_reach_is_that_of_a_changed_sample(name):
    config, frames, middle = _SMALL[name], 80, 40
    codec = local_codec(config)
    rng = np.random.default_rng(0)
    wave = rng.standard_normal((1, frames * config.hop), np.float32)
    features = rng.standard_normal((1, 2 * frames, 8), np.float32)
    other_wave, other_features = wave.copy(), features.copy()
    other_wave[0, middle * config.hop + config.hop // 2] += 1
    other_features[0, 2 * middle] += 1
    encode = jax.jit(lambda c, w, f: (c.encoder(w), c.semantic_encoder(f)))
    before = encode(codec, wave, features)
    after = encode(codec, other_wave, other_features)
    first, last = zip(
        *(touched(np.asarray(b - a)) for a, b in zip(before, after, strict=True)), strict=True
    )
    farthest = max(middle - min(first), max(last) - middle)
    bound = encoder_reach(config) * config.frame_rate
    assert 0.5 * bound < farthest <= np.ceil(bound)


@pytest.mark.parametrize("name", _SMALL)
def test_decoder_reach_is_that_of_a_changed_frame(name):
    config, frames, middle = _SMALL[name], 100, 50
    codec = local_codec(config)
    streams = np.random.default_rng(0).standard_normal((2, 1, frames, 8), np.float32)
    other = streams.copy()
    other[0, 0, middle] += 1
    synthesise = jax.jit(lambda c, s: c.synthesise(s[0], s[1]))
    change = np.asarray(synthesise(codec, other) - synthesise(codec, streams))
    first, last = touched(change[..., None])
    begin, end = middle * config.hop, (middle + 1) * config.hop
    bound = decoder_reach(config) * config.sample_rate
    assert 0.5 * bound < max(begin - first, last - end) <= bound
