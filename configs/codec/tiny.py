"""H-Codec `tiny` (2.2 M parameters, 16 kHz, 25 Hz, 1.6 kbit/s), small enough for a CPU.

    python launch/train_codec.py --config configs/codec/tiny.py --workdir runs/codec-tiny \
        --config.data.manifest corpus/manifest.jsonl

The recordings of split "heldout" are kept for evaluation. Metrics go to metrics.jsonl and
tensorboard/ in the workdir, the codec and the discriminators to model/codec. The same command goes
on after an interruption. Any field can be set on the command line: --config.run.steps=2000. With
domains in the manifest, --config.data.weights sets how often each is drawn.

Discriminators join at step 10 000: a step takes several times as long from there on.
"""

from ml_collections import ConfigDict

from quark_jax.config import to_dict
from quark_jax.hcodec import AdversaryConfig, HCodecConfig
from quark_jax.training.codec import CodecData, CodecTraining
from quark_jax.training.codec_step import AdversarialConfig
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig


def get_config() -> ConfigDict:
    return ConfigDict(
        to_dict(
            CodecTraining(
                codec=HCodecConfig.preset("tiny"),
                data=CodecData(seconds=1.0, batch_size=8),
                optimiser=OptimiserConfig(
                    peak=1e-3, warmup=100, decay=0.9998, floor=0.05, beta1=0.8
                ),
                adversary=AdversarialConfig(
                    networks=AdversaryConfig.preset("tiny"),
                    optimiser=OptimiserConfig(
                        peak=3e-4, warmup=100, decay=0.9998, floor=0.05, beta1=0.8, clip=10.0
                    ),
                    begin=10_000,
                ),
                average=0.999,
                run=RunConfig(steps=16_000, log_every=20, eval_every=1000, save_every=500),
            )
        )
    )
