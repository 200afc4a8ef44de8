"""H-Codec `tiny` (2.2 M parameters, 16 kHz, 25 Hz, 1.6 kbit/s), small enough for a CPU.

    python launch/train_codec.py --config configs/codec/tiny.py --workdir runs/codec-tiny \
        --config.data.manifest data_pipelines/samples/manifest.jsonl

The recordings of split "heldout" are kept for evaluation. Metrics go to metrics.jsonl and
tensorboard/ in the workdir, the codec to model/codec. The same command goes on after an
interruption. Any field can be set on the command line: --config.run.steps=2000.
"""

from ml_collections import ConfigDict

from quark_jax.config import to_dict
from quark_jax.hcodec import HCodecConfig
from quark_jax.training.codec import CodecData, CodecTraining
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig


def get_config() -> ConfigDict:
    return ConfigDict(
        to_dict(
            CodecTraining(
                codec=HCodecConfig.preset("tiny"),
                data=CodecData(seconds=1.0, batch_size=8),
                optimiser=OptimiserConfig(
                    peak=1e-3, warmup=20, decay=0.9995, floor=0.05, beta1=0.8
                ),
                run=RunConfig(steps=10_000, log_every=20, eval_every=500, save_every=500),
            )
        )
    )
