"""H-Codec 2.0 (48 kHz, 12.5 Hz, 4 kbit/s), in its published size.

    python launch/train_codec.py --config configs/codec/v2_0.py --workdir runs/codec-2.0 \
        --config.data.manifest corpus.jsonl --config.codec.features.folder hubert-base-ls960

The manifest has the domains speech, music and audio; recordings of split "heldout" are kept for
evaluation. The folder is that of HuBERT-base from Hugging Face; its features are the semantic
stream's and, without compression, those of the perceptual loss.

Published are the codec, 5 s cuts of speech, music and audio 2 : 1 : 1, the rates of 2e-4, the
clipping at 5 and the step at which the perceptual loss joins. The rest is chosen here: losses and
discriminators as in DAC, perceptual weight, batch, steps, AdamW without warm-up or decay.

Memory, computed from shapes: the codec has 1243.2 M parameters, the discriminators 42.5 M. The
state (parameters, two moments of each, codebooks and their statistics) takes 15.56 GB in float32,
all gradients 5.14 GB, the frozen encoder 0.38 GB. What a step holds besides, activations above all,
comes on top and grows with the batch and the cut; --config.run.mesh.fsdp splits the state over
devices.
"""

from dataclasses import replace

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from quark_jax.config import to_dict
from quark_jax.hcodec import AdversaryConfig, HCodecConfig
from quark_jax.hcodec.losses import LossConfig
from quark_jax.training.codec import CodecData, CodecTraining
from quark_jax.training.codec_step import AdversarialConfig, PerceptualConfig
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig


def get_config() -> ConfigDict:
    codec = HCodecConfig.preset("2.0")
    optimiser = OptimiserConfig(peak=2e-4, clip=5.0)
    config = ConfigDict(
        to_dict(
            CodecTraining(
                codec=codec,
                data=CodecData(
                    weights={"speech": 2, "music": 1, "audio": 1}, seconds=5.0, batch_size=32
                ),
                losses=LossConfig(perceptual=1.0),
                optimiser=optimiser,
                adversary=AdversarialConfig(AdversaryConfig.preset("48khz"), optimiser),
                perceptual=PerceptualConfig(replace(codec.features, compress=False), begin=400_000),
                run=RunConfig(steps=1_000_000, log_every=100, eval_every=10_000, save_every=5_000),
            )
        )
    )
    # One encoder, and one field for it on the command line.
    folder = placeholder(str)
    config.codec.features.folder = folder
    config.perceptual.features.folder = folder
    return config
