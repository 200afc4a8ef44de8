"""Training codecs of other kinds than that of the tests of resuming."""

from dataclasses import replace

import numpy as np

from quark_jax.hcodec import Codes, Tokeniser
from quark_jax.hcodec.config import DynamicConfig
from quark_jax.training.codec import CodecTraining, train
from quark_jax.training.metrics import read_metrics

DYNAMIC = DynamicConfig(
    lower=0.5,
    heads=2,
    aggregator_layers=1,
    aggregator_inner=32,
    bottleneck_layers=1,
    bottleneck_inner=32,
)


def test_a_dynamic_frame_rate(small, tmp_path):
    tokeniser = train(config_of(small, dynamic=DYNAMIC), tmp_path)
    rates = [row["heldout/frame_rate"] for row in read_metrics(tmp_path) if "loss" not in row]
    assert len(rates) == 2 and all(1 <= rate <= 25 for rate in rates)
    codes = codes_of(tokeniser)
    assert codes.acoustic.shape[1] == codes.semantic.shape[1] == 2


def test_no_semantic_stream_over_a_checkpoint(small, tmp_path):
    config = config_of(small, semantic_codebooks=0)
    train(config, tmp_path)
    tokeniser = train(replace(config, run=replace(config.run, steps=2)), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path) if "loss" in row] == [1, 2]
    codes = codes_of(tokeniser)
    assert codes.acoustic.shape[1] == 2 and codes.semantic.shape[1] == 0
    saved = Tokeniser.load(tmp_path / "model" / "codec")
    np.testing.assert_array_equal(codes_of(saved).acoustic, codes.acoustic)
    waves = [each.decode_batch(codes) for each in (tokeniser, saved)]
    np.testing.assert_array_equal(*waves)


def config_of(small, **codec) -> CodecTraining:
    config = small.codec_config(steps=1, eval_every=1)
    return replace(config, codec=replace(small.CODEC, **codec), adversary=None)


def codes_of(tokeniser: Tokeniser) -> Codes:
    return tokeniser.encode(np.random.default_rng(0).normal(size=16_000) / 10, 16_000).codes
