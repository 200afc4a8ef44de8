"""H-Codec `tiny` (2.2 M parameters, 16 kHz, 25 Hz, 1.6 kbit/s), small enough for a CPU.

    python launch/train_codec.py --config configs/codec/tiny.py --workdir runs/codec-tiny \
        --config.data.manifest corpus/speech.jsonl

The recordings of split "heldout" are kept for evaluation. Metrics go to metrics.jsonl and
tensorboard/ in the workdir, the codec and the discriminators to model/codec. The same command goes
on after an interruption. Fields are set on the command line: --config.run.steps=2000. All
recordings of the manifest are drawn from, in proportion to their duration: give it one of speech.

Discriminators join at step 6 000. On two CPU cores a step takes 0.2 s before and 1.0 to 1.6 s
after, 45 to 60 minutes in all; the process holds 3.2 GB. On 8 h of speech it came to STOI 0.857 and
PESQ-WB 1.48 on speakers it had not heard (README.md in this folder).

After a colon stands what is different, for ablations:

    python launch/train_codec.py --config configs/codec/tiny.py:no-adversary ...
    python launch/train_codec.py --config configs/codec/tiny.py:no-semantic ...
    python launch/train_codec.py --config configs/codec/tiny.py:dynamic ...

Without the semantic stream the acoustic one has the codebooks of both, so that the bitrate stays.
With a dynamic frame rate one codec learns all thresholds from 0.5 to 1.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from quark_jax.config import to_dict
from quark_jax.errors import UserError
from quark_jax.hcodec import AdversaryConfig, HCodecConfig
from quark_jax.hcodec.config import DynamicConfig
from quark_jax.training.codec import CodecData, CodecTraining
from quark_jax.training.codec_step import AdversarialConfig
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig

_DYNAMIC = DynamicConfig(
    lower=0.5,
    heads=4,
    aggregator_layers=1,
    aggregator_inner=128,
    bottleneck_layers=1,
    bottleneck_inner=256,
)


def get_config(variant: str = "") -> ConfigDict:
    config = CodecTraining(
        codec=HCodecConfig.preset("tiny"),
        data=CodecData(seconds=1.0, batch_size=8),
        optimiser=OptimiserConfig(peak=1e-3, warmup=100, decay=0.9998, floor=0.05, beta1=0.8),
        adversary=AdversarialConfig(
            networks=AdversaryConfig.preset("tiny"),
            optimiser=OptimiserConfig(
                peak=3e-4, warmup=100, decay=0.9998, floor=0.05, beta1=0.8, clip=10.0
            ),
            begin=6_000,
        ),
        average=0.999,
        run=RunConfig(steps=7_500, log_every=20, eval_every=1000, save_every=500),
    )
    codec = replace(config.codec, name=f"tiny-{variant}")
    match variant:
        case "":
            pass
        case "no-adversary":
            config = replace(config, adversary=None)
        case "no-semantic":
            both = replace(codec.quantiser, codebooks=2 * codec.quantiser.codebooks)
            config = replace(config, codec=replace(codec, quantiser=both, semantic_codebooks=0))
        case "dynamic":
            config = replace(config, codec=replace(codec, dynamic=_DYNAMIC))
        case _:
            raise UserError(
                f"configs/codec/tiny.py:{variant}: choose no-adversary, no-semantic or dynamic"
            )
    return ConfigDict(to_dict(config))
