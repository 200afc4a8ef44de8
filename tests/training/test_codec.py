"""Training a codec of every kind from its beginning, over a checkpoint, to its end."""

from dataclasses import replace

import numpy as np
import pytest

from quark_jax.hcodec.config import DynamicConfig
from quark_jax.training.codec import train
from quark_jax.training.metrics import read_metrics

DYNAMIC = DynamicConfig(
    lower=0.5,
    heads=2,
    aggregator_layers=1,
    aggregator_inner=32,
    bottleneck_layers=1,
    bottleneck_inner=32,
)


@pytest.mark.parametrize(
    "change",
    [{"dynamic": DYNAMIC}, {"semantic_codebooks": 0}],
    ids=["dynamic rate", "no semantic stream"],
)
def test_a_run_of_another_kind_of_codec(small, tmp_path, change):
    config = small.codec_config(steps=1, eval_every=1)
    config = replace(config, codec=replace(small.CODEC, **change), adversary=None)
    train(config, tmp_path)
    tokeniser = train(replace(config, run=replace(config.run, steps=2)), tmp_path)  # goes on
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    rates = [row.get("heldout/frame_rate", 25) for row in rows if "loss" not in row]
    assert len(rates) == 3 and all(1 <= rate <= 25 for rate in rates)
    codes = tokeniser.encode(np.random.default_rng(0).normal(size=16_000) / 10, 16_000).codes
    assert codes.acoustic.shape[1] == 2
    assert codes.semantic.shape[1] == change.get("semantic_codebooks", 2)
