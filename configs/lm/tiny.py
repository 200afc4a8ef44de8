"""Language model `tiny`, small enough for a CPU: speech restoration over the `tiny` codec.

    python launch/tokenise.py --manifest data_pipelines/samples/manifest.jsonl \
        --codec runs/codec-tiny/model/codec --out runs/tokens-tiny
    python launch/train_lm.py --config configs/lm/tiny.py --workdir runs/lm-tiny \
        --config.data.dataset runs/tokens-tiny/sr --config.data.codec runs/codec-tiny/model/codec

Metrics go to metrics.jsonl and tensorboard/ in the workdir, the model with its codec to model/,
which `quark restore --model runs/lm-tiny/model` takes. The same command goes on after an
interruption. Any field can be set on the command line: --config.run.steps=2000.
"""

from ml_collections import ConfigDict

from quark_jax.config import to_dict
from quark_jax.encoders import FeatureConfig
from quark_jax.lm import LMConfig
from quark_jax.training.lm import LMData, LMTraining
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig


def get_config() -> ConfigDict:
    return ConfigDict(
        to_dict(
            LMTraining(
                lm=LMConfig.preset("tiny"),
                features=FeatureConfig(kind="log_mel"),
                data=LMData(batch_size=16),
                optimiser=OptimiserConfig(
                    peak=1e-3, warmup=50, decay=0.9995, floor=0.05, beta2=0.98, weight_decay=0.1
                ),
                run=RunConfig(steps=10_000, log_every=20, eval_every=500, save_every=500),
            )
        )
    )
