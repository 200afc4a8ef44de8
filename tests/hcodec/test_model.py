"""The codec as a whole: padded batches, odd lengths, what does not fit, and the training pass."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax.errors import UserError
from quark_jax.hcodec import Codes, HCodec, HCodecConfig
from quark_jax.interop import as_shapes

FRAMES = [5, 1]


def inputs(codec, recipe, frames, seed=0):
    """Wave [1, samples] and features [1, 50 Hz frames, channels] of `frames` codec frames."""
    config = codec.config
    wave = recipe.signal(seed, 1, frames * config.hop, config.sample_rate)
    stride = config.feature_stride
    features = recipe.features(seed, 1, config.semantic.channels, frames * stride, 2 * stride)
    return wave, features.swapaxes(1, 2)


@jax.jit
def through(codec: HCodec, wave, features, frames=None):
    """What a batch becomes on its way from wave to wave."""
    embedding = codec.embed(wave, features, None, frames)
    codes = Codes(
        codec.quantiser.encode(embedding.acoustic),
        codec.semantic_quantiser.encode(embedding.semantic),
        embedding.lengths,
    )
    places = wave.shape[1] // codec.config.hop
    streams = [
        codec.spread(quantiser.decode(stream), codes.lengths, places)
        for quantiser, stream in (
            (codec.quantiser, codes.acoustic),
            (codec.semantic_quantiser, codes.semantic),
        )
    ]
    features = codec.semantic_decoder(streams[1], frames)
    return embedding, codes, features, codec.synthesise(*streams, frames)


@pytest.mark.parametrize("name", ["dynamic", "spectral"])
def test_an_item_of_a_padded_batch_gets_what_it_gets_alone(name, micro, recipe):
    codec = micro(name)
    items = [inputs(codec, recipe, frames, seed) for seed, frames in enumerate(FRAMES)]
    longest = max(FRAMES) + 1  # no item fills the batch
    rng = np.random.default_rng(0)

    def batch(arrays, places, noise):
        # The wave's padding is silence; whatever stands in that of features must not matter.
        out = noise * rng.standard_normal((len(arrays), places, *arrays[0].shape[2:]), np.float32)
        for row, array in zip(out, arrays, strict=True):
            row[: array.shape[1]] = array[0]
        return out

    waves = batch([wave for wave, _ in items], longest * codec.config.hop, 0)
    features = batch([f for _, f in items], longest * codec.config.feature_stride, 100)
    batched = through(codec, waves, features, jnp.array(FRAMES))
    for i, (frames, item) in enumerate(zip(FRAMES, items, strict=True)):
        mine = jax.tree.map(lambda a, i=i: a[i : i + 1], batched)
        embedding, codes, predicted, wave = through(codec, *item)
        places = frames
        if codes.lengths is not None:
            np.testing.assert_array_equal(mine[1].lengths[:, :frames], codes.lengths)
            assert not mine[1].lengths[:, frames:].any()
            places = int((codes.lengths > 0).sum())
            assert frames == 1 or places < frames or name != "dynamic"  # something was merged
        for stream in ("acoustic", "semantic"):
            expected = getattr(embedding, stream)[:, :places]
            np.testing.assert_allclose(
                getattr(mine[0], stream)[:, :places], expected, atol=1e-5 * np.abs(expected).max()
            )
            np.testing.assert_array_equal(
                getattr(mine[1], stream)[..., :places], getattr(codes, stream)[..., :places]
            )
        stride = frames * codec.config.feature_stride
        scale = np.abs(predicted).max()
        np.testing.assert_allclose(mine[2][:, :stride], predicted, atol=1e-5 * scale)
        samples = frames * codec.config.hop
        np.testing.assert_allclose(mine[3][:, :samples], wave, atol=1e-5 * np.abs(wave).max())
        assert not mine[3][:, samples:].any()


@pytest.mark.parametrize("name", ["dynamic", "spectral"])
def test_encode_and_decode_are_the_parts_in_order(name, micro, recipe):
    codec = micro(name)
    wave, features = inputs(codec, recipe, 5)
    _, expected, _, wave_out = through(codec, wave, features)
    # A wave that ends within a frame is the same as with zeros to the frame's end.
    cut = wave[:, : -codec.config.hop // 3]
    wave[:, cut.shape[1] :] = 0
    codes = codec.encode(cut, features.swapaxes(1, 2))
    padded = codec.encode(wave, features.swapaxes(1, 2))
    groups = codes.acoustic.shape[-1]
    for stream in ("acoustic", "semantic"):
        assert getattr(codes, stream).dtype == jnp.int32
        np.testing.assert_array_equal(getattr(codes, stream), getattr(padded, stream))
    np.testing.assert_array_equal(codes.semantic, expected.semantic[..., :groups])
    if name == "dynamic":
        assert groups == (expected.lengths > 0).sum() < 5  # no more places than segments
        assert codes.lengths.shape == (1, groups) and codes.frames == 5
        expected = jax.tree.map(lambda a: a[..., :groups], expected)
    out = codec.decode(expected)
    assert out.shape == wave.shape
    np.testing.assert_allclose(out, wave_out, atol=1e-5 * np.abs(wave_out).max())


def test_decode_follows_a_shorter_item_with_silence(micro):
    codec, rng = micro("dynamic"), np.random.default_rng(0)
    acoustic, semantic = rng.integers(0, 16, (2, 2, 2, 4))
    lengths = jnp.array([[3, 1, 2, 1], [2, 2, 0, 0]])
    wave = codec.decode(Codes(jnp.asarray(acoustic), jnp.asarray(semantic), lengths))
    hop = codec.config.hop
    assert wave.shape == (2, 7 * hop) and not wave[1, 4 * hop :].any() and wave[1, : 4 * hop].all()
    alone = codec.decode(
        Codes(jnp.asarray(acoustic[1:, :, :2]), jnp.asarray(semantic[1:, :, :2]), lengths[1:, :2])
    )
    np.testing.assert_allclose(wave[1:, : 4 * hop], alone, atol=1e-5 * np.abs(alone).max())


def test_the_threshold_of_encode_decides_the_segments(micro, recipe):
    codec = micro("dynamic")
    wave, features = inputs(codec, recipe, 5)
    features = features.swapaxes(1, 2)
    assert codec.encode(wave, features, 1.1).lengths.tolist() == [[1] * 5]
    assert codec.encode(wave, features, -1.1).lengths.tolist() == [[3, 2]]
    default = codec.encode(wave, features).lengths
    np.testing.assert_array_equal(default, codec.encode(wave, features, 0.0).lengths)


def test_what_does_not_fit_is_refused(micro):
    fixed, dynamic = micro("spectral"), micro("dynamic")
    hop, channels = fixed.config.hop, fixed.config.semantic.channels
    wave, features = jnp.zeros((1, 2 * hop)), jnp.zeros((1, channels, 8))
    codes = jnp.zeros((1, 2, 3), int)
    cases = {
        "pass a wave": lambda: fixed.encode(wave[0], features),
        "of one batch": lambda: fixed.encode(wave, jnp.zeros((2, channels, 8))),
        r"need \[channels, frames\] \[80, 8\]": lambda: fixed.encode(wave, features[..., :7]),
        r"need \[channels, frames\] \[80, 12\]": lambda: fixed.encode(
            jnp.zeros((1, 2 * hop + 1)), features
        ),
        r"\[80, 0\]": lambda: fixed.encode(wave[:, :0], features[..., :0]),
        "leave out the threshold": lambda: fixed.encode(wave, features, 0.5),
        "pass 2 acoustic and 2 semantic": lambda: fixed.decode(Codes(codes[:, :1], codes[:, :1])),
        r"semantic codebooks$": lambda: fixed.decode(Codes(codes, codes[..., :2])),
        "has no segment lengths": lambda: fixed.decode(Codes(codes, codes, codes[:, 0])),
        "needs segment lengths": lambda: dynamic.decode(Codes(codes, codes)),
    }
    for message, call in cases.items():
        with pytest.raises(UserError, match=message):
            call()


def training_loss(codec, wave, features):
    """Of the weights: a loss that all of them should lower, and what the training pass gives."""
    graph, params, rest = nnx.split(codec, nnx.Param, ...)

    def loss(params):
        out = nnx.merge(graph, params, rest).reconstruct(wave, features, jax.random.key(0))
        return jnp.mean(out.wave**2) + jnp.mean(out.features**2) + out.commitment, out

    return loss, params


@pytest.mark.parametrize("name", ["dynamic", "spectral"])
def test_the_training_pass_computes_what_inference_does(name, micro, recipe):
    codec = micro(name)
    config = replace(
        codec.config,
        quantiser=replace(codec.config.quantiser, dropout=False),
        decoder=replace(codec.config.decoder, dropout=0.0),
    )
    wave, features = inputs(codec, recipe, 5)
    loss, params = training_loss(HCodec.from_torch(codec.to_torch(), config), wave, features)
    _, out = jax.jit(loss)(params)
    _, codes, predicted, expected = through(codec, wave, features)
    held = np.ones(codes.acoustic.shape, bool)
    if codes.lengths is not None:
        held &= np.asarray(codes.lengths)[:, None] > 0
    for stream in ("acoustic", "semantic"):
        plain = jnp.where(held, getattr(codes, stream), -1)
        np.testing.assert_array_equal(getattr(out, stream), plain)
    np.testing.assert_allclose(out.wave, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(out.features, predicted, atol=1e-4 * np.abs(predicted).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynamic", "spectral"])
def test_the_training_pass_reaches_every_weight(name, micro, recipe):
    loss, params = training_loss(micro(name), *inputs(micro(name), recipe, 5))
    gradient, _ = jax.jit(jax.grad(loss, has_aux=True))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        weight = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), weight
        # Rounding aside, the bias of keys moves all scores of a query alike.
        assert np.any(leaf != 0) or ("key" in weight and "bias" in weight), weight


@pytest.mark.parametrize("name", ["dynamic", "spectral"])
def test_norms_have_the_epsilons_of_the_published_models(name, micro):
    seen = set()
    for path, module in nnx.iter_modules(micro(name)):
        if isinstance(module, nnx.LayerNorm | nnx.RMSNorm | nnx.GroupNorm):
            plain = path[0] not in ("aggregator", "semantic_aggregator", "bottleneck")
            assert module.epsilon == (1e-6 if plain else 1e-5), path
            assert not module.use_fast_variance
            assert not isinstance(module, nnx.GroupNorm) or module.num_groups == 32
            seen.add(type(module))
    assert seen == {nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm}


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("1.0", 137.1), ("1.5", 678.4), ("2.0", 1243.2)],
)
def test_presets_have_the_published_number_of_parameters(preset, millions):
    codec = as_shapes(lambda rngs: HCodec(HCodecConfig.preset(preset), rngs=rngs))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(codec, nnx.Param)))
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
