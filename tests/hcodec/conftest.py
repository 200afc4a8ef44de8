"""The three shapes of codec at a size that compiles in seconds."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from quark_jax.encoders.features import FeatureConfig
from quark_jax.hcodec import HCodec, HCodecConfig
from quark_jax.hcodec.config import (
    DecoderConfig,
    DynamicConfig,
    QuantiserConfig,
    SeanetConfig,
    SemanticConfig,
    SpectralConfig,
)
from quark_jax.interop import as_shapes

_SEANET = HCodecConfig(
    name="seanet",
    sample_rate=800,
    frame_rate=25.0,
    features=FeatureConfig(),
    encoder=SeanetConfig(filters=4, strides=(2, 4, 2), layers=1, heads=2),
    semantic=SemanticConfig(channels=80, width=16, strides=(2, 1)),
    quantiser=QuantiserConfig(codebooks=2, codebook_size=16, width=8),
    decoder=DecoderConfig(
        width=32, inner=48, blocks=1, layers=1, heads=2, mlp=64, n_fft=64, hop=16
    ),
)
MICRO = {
    "seanet": _SEANET,  # as 1.0
    "dynamic": replace(  # as 1.5
        _SEANET,
        name="dynamic",
        dynamic=DynamicConfig(
            threshold=0.0,
            longest=3,
            heads=2,
            aggregator_layers=1,
            aggregator_inner=24,
            bottleneck_layers=1,
            bottleneck_inner=24,
        ),
    ),
    "spectral": replace(  # as 2.0
        _SEANET,
        name="spectral",
        sample_rate=1600,
        frame_rate=12.5,
        encoder=SpectralConfig(n_fft=64, hop=32, width=32, inner=48, blocks=1, layers=1, heads=2),
        semantic=replace(_SEANET.semantic, strides=(2, 1, 2)),
        quantiser=replace(_SEANET.quantiser, dropout=False),
        decoder=replace(_SEANET.decoder, hop=32, upsample=4, repeat=True),
    ),
}


@pytest.fixture(autouse=True)
def unoptimised() -> Iterator[None]:
    """Programs this small take longer to optimise than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def codebooks(x: np.ndarray, layers: int, size: int) -> np.ndarray:
    """Rows [layers, size, width] that frames `x` [frames, width] make good use of."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(layers):
        rows.append(x[rng.choice(len(x), size, replace=False)])
        distance = ((x[:, None] - rows[-1]) ** 2).sum(-1)
        x = (x - rows[-1][distance.argmin(1)])[distance.min(1) > 0]  # no row twice
    return np.stack(rows)


@pytest.fixture(scope="session")
def micro(recipe) -> Callable[[str], HCodec]:
    """micro("seanet" | "dynamic" | "spectral"): a small codec with weights of the golden recipe, in
    which attention is sharp and layer scales are large, so that errors show."""

    @cache
    def build(name: str) -> HCodec:
        config, frames = MICRO[name], 50
        # Empty arrays of the right shapes: initialising layer by layer would compile for long.
        shapes = as_shapes(lambda rngs: HCodec(config, rngs=rngs))
        state = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), shapes).to_torch()
        manifest = {name: (list(a.shape), str(a.dtype)) for name, a in state.items()}
        codec = HCodec.from_torch(recipe.weights(manifest, seed=1), config)
        wave = recipe.signal(2, 1, frames * config.hop, config.sample_rate)
        features = recipe.features(
            2, 1, config.semantic.channels, frames * config.feature_stride
        ).swapaxes(1, 2)
        embed = jax.jit(lambda c, *a: c.embed(*a, 1.1))
        embedding = embed(codec, wave, features)
        for quantiser, x in (
            (codec.quantiser, embedding.acoustic),
            (codec.semantic_quantiser, embedding.semantic),
        ):
            rows = codebooks(
                np.asarray(x[0]), config.quantiser.codebooks, config.quantiser.codebook_size
            )
            quantiser.embed.set_value(rows)
        return codec

    return build
