"""What is on every device although parameters are split: on purpose, and small."""

import re

import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from quark_jax.hcodec import HCodec, HCodecConfig
from quark_jax.hcodec.adversary import Adversary, AdversaryConfig
from quark_jax.interop import as_shapes
from quark_jax.lm import LanguageModel, LMConfig
from quark_jax.training.sharding import AXES, shardings

MODELS = {
    **{
        f"lm {name}": lambda rngs, name=name: LanguageModel(
            LMConfig.preset(name, text_channels=768), rngs=rngs
        )
        for name in ("base", "large")
    },
    **{
        f"codec {name}": lambda rngs, name=name: HCodec(HCodecConfig.preset(name), rngs=rngs)
        for name in ("1.0", "2.0")
    },
    **{
        f"discriminators {name}": lambda rngs, name=name: Adversary(
            AdversaryConfig.preset(name), rngs=rngs
        )
        for name in ("16khz", "48khz")
    },
}
# By the last parts of their paths.
WHOLE = {
    "scale",  # of norms
    "gamma",  # of ConvNeXt blocks
    "bias",
    "input_bias",  # of LSTMs
    "hidden_bias",
    "gain",  # of weight-normalised convolutions
    *("depthwise.kernel", "smooth.kernel"),  # a few taps of each channel
    "window",  # a constant
    # Codebooks with their statistics: every device quantises with all of them, and adds up what the
    # others have counted.
    *("quantiser.embed", "quantiser.sums", "quantiser.counts", "quantiser.initialised"),
    *("semantic_quantiser." + name for name in ("embed", "sums", "counts", "initialised")),
}
# First convolutions have one or two channels in, and few out.
FIRST = {
    "encoder.first.direction",
    *("discriminators.convs.direction", "discriminators.bands.direction"),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_every_device_holds_is_listed(name):
    mesh = AbstractMesh((1, 16, 2, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    state = nnx.state(as_shapes(MODELS[name]))
    placed = dict(nnx.to_flat_state(shardings(state, mesh)))
    whole, total = {}, 0
    for path, variable in nnx.to_flat_state(state):
        size = variable.get_value().size
        total += size
        if all(axis is None for axis in placed[path].get_value().spec):
            whole[re.sub(r"\.\d+", "", ".".join(map(str, path)))] = size
    unlisted = {
        path
        for path in whole
        if path not in FIRST and not any(f".{path}".endswith(f".{end}") for end in WHOLE)
    }
    assert not unlisted
    codebooks = sum(size for path, size in whole.items() if "quantiser" in path)
    assert sum(whole.values()) - codebooks < 0.01 * total
