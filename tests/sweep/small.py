"""A sweep of two points that takes seconds: a fixed and a dynamic frame rate of one small codec."""

import importlib.util
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict, config_dict

from data_pipelines import samples_manifest
from quark_jax import demo
from quark_jax.conditioning import ConditionerConfig
from quark_jax.config import to_dict
from quark_jax.hcodec.config import DynamicConfig
from quark_jax.sweep import CodecStage, Listening, Point, Sweep, Tokens
from quark_jax.training.codec import CodecData
from quark_jax.training.lm import LMTraining
from quark_jax.training.lm_data import LMData
from quark_jax.training.loop import RunConfig

_SPEC = importlib.util.spec_from_file_location(
    "tests_small_of_training", Path(__file__).parents[1] / "training" / "small.py"
)
small = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(small)

DYNAMIC = DynamicConfig(
    heads=2, aggregator_layers=1, aggregator_inner=16, bottleneck_layers=1, bottleneck_inner=16
)
SWEEP = Sweep(
    title="Two small codecs",
    points=(Point("fixed", "small"), Point("dynamic", "small-dynamic", threshold=0.9)),
    codecs=(small.CODEC, replace(small.CODEC, name="small-dynamic", dynamic=DYNAMIC)),
    series={"fixed rate": ("fixed",)},
    codec=CodecStage(
        data=CodecData(seconds=0.48, batch_size=4, heldout=2, heldout_seconds=1.0),
        optimiser=small.OPTIMISER,
        run=RunConfig(steps=4, log_every=1, eval_every=0, save_every=2),
    ),
    lm=LMTraining(
        lm=replace(small.LM, layers=1),
        conditioner=ConditionerConfig(standardise=True),
        data=LMData(batch_size=4, heldout=8),
        optimiser=small.OPTIMISER,
        run=RunConfig(steps=3, log_every=1, eval_every=0, save_every=2),
    ),
    tokens=Tokens(seconds=0.48, train=12, heldout=8, degradation=demo.DEGRADATION),
    listening=Listening(clips=3, seconds=(1.0, 4.0), metrics=("stoi", "mel"), words=2),
    manifest=str(samples_manifest()),
)


def get_config() -> ConfigDict:
    fields = to_dict(SWEEP)
    fields["listening"]["metrics"] = SWEEP.listening.metrics
    config = ConfigDict(fields)
    config.alignments = config_dict.placeholder(str)
    return config
