"""Codecs whose semantic stream has other codebooks than the acoustic one, or none at all."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from quark_jax.config import from_dict, to_dict
from quark_jax.errors import UserError
from quark_jax.hcodec import Codes, HCodec, HCodecConfig, Tokeniser, read_codes, write_codes
from quark_jax.interop import torch_hcodec
from quark_jax.lm import LMConfig
from quark_jax.training.lm import LMTraining, train
from quark_jax.training.lm_data import LMData


@pytest.fixture(params=[0, 1])
def codec(request, micro) -> HCodec:
    config = replace(micro("spectral").config, semantic_codebooks=request.param)
    return HCodec(config, rngs=nnx.Rngs(0))


@pytest.fixture
def inputs(codec, recipe) -> tuple[np.ndarray, np.ndarray]:
    config, frames = codec.config, 6
    wave = recipe.signal(2, 2, frames * config.hop, config.sample_rate)
    shape = 2, config.semantic.channels, frames * config.feature_stride
    return wave, recipe.features(2, *shape)


def test_streams_have_their_own_codebooks(codec, inputs):
    number = codec.config.semantic_codebooks
    assert from_dict(HCodecConfig, to_dict(codec.config)) == codec.config
    assert codec.config.bitrate == 12.5 * (2 + number) * 4
    codes = codec.encode(*inputs)
    assert codes.acoustic.shape == (2, 2, 6) and codes.semantic.shape == (2, number, 6)
    wave = codec.decode(codes)
    assert wave.shape == inputs[0].shape and np.isfinite(wave).all()
    # Only a semantic stream carries anything of the features.
    others = codec.encode(inputs[0], np.roll(inputs[1], 3, axis=1))
    assert np.array_equal(codec.decode(others), wave) == (number == 0)
    with pytest.raises(UserError, match=f"2 acoustic and {number} semantic codebooks"):
        codec.decode(Codes(codes.acoustic, codes.acoustic))


def test_pytorch_makes_the_same_codes(codec, inputs, relative_rms):
    theirs = torch_hcodec.HCodec(to_dict(codec.config))
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in codec.to_torch().items()})
    acoustic, semantic, _ = theirs.eval().encode(*map(torch.from_numpy, inputs))
    codes = codec.encode(*inputs)
    np.testing.assert_array_equal(codes.acoustic, acoustic)
    np.testing.assert_array_equal(codes.semantic, semantic)
    assert relative_rms(codec.decode(codes), theirs.decode(acoustic, semantic)) < 1e-5


def test_training_moves_what_is_there(codec, inputs):
    wave, features = inputs
    graph, params, rest = nnx.split(codec, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, rest)
        out = model.reconstruct(wave, features.swapaxes(1, 2), jax.random.key(0))
        return jnp.mean((out.wave - wave) ** 2) + out.commitment, out.state

    (value, states), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, states, gradient)))
    assert states[1].initialised.all() and len(states[1].counts) == codec.config.semantic_codebooks


def test_files_hold_both_streams(codec, tmp_path):
    tokeniser = Tokeniser(codec)
    rate = codec.config.sample_rate
    wave = np.random.default_rng(0).standard_normal(rate, np.float32) / 10
    file = tokeniser.encode(wave, rate)
    write_codes(tmp_path / "wave.hq", file)
    back = read_codes(tmp_path / "wave.hq")
    for stream in ("acoustic", "semantic"):
        written, read = getattr(file.codes, stream), getattr(back.codes, stream)
        np.testing.assert_array_equal(written, read)
    np.testing.assert_array_equal(tokeniser.decode(file)[0], tokeniser.decode(back)[0])


def test_a_language_model_needs_as_many_of_both(codec, tmp_path):
    Tokeniser(codec).save(tmp_path)
    config = LMTraining(
        lm=LMConfig.preset("tiny"),
        data=LMData(codec=str(tmp_path)),
    )
    number = codec.config.semantic_codebooks
    with pytest.raises(UserError, match=f"2 acoustic and {number} semantic codebooks"):
        train(config, tmp_path / "run")


def test_configs_that_cannot_be(micro):
    with pytest.raises(UserError, match="semantic_codebooks -1; choose at least 0"):
        replace(micro("spectral").config, semantic_codebooks=-1)
    with pytest.raises(UserError, match="or 1 where the frame rate is dynamic"):
        replace(micro("dynamic").config, semantic_codebooks=0)
