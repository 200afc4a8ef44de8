"""The small language model that these tests share."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import jax
import pytest
from flax import nnx

from quark_jax.lm import LanguageModel, LMConfig

_CONFIG = LMConfig.preset(
    "tiny",
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    mlp=48,
    codebooks=3,
    acoustic_size=20,
    semantic_size=10,
    audio_channels=6,
    text_channels=5,
)


@pytest.fixture(scope="session")
def make() -> Callable[..., LanguageModel]:
    """make(**changes): a model with random weights, the same one for the same changes of the
    config. Clone it to change its weights."""

    def model(**changes) -> LanguageModel:
        made = LanguageModel(replace(_CONFIG, **changes), rngs=nnx.Rngs(0))
        if made.beside_adapter is not None:  # which begins at zero
            kernel = made.beside_adapter.kernel
            kernel[...] = 0.3 * jax.random.normal(jax.random.key(0), kernel.shape)
        return made

    return cache(model)
