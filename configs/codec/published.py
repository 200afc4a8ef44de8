"""The published H-Codecs in their sizes: 1.0, 1.5, 2.0 or 2.0-6.25hz, named after the colon.

    python launch/train_codec.py --config configs/codec/published.py:1.0 --workdir runs/codec-1.0 \
        --config.data.manifest corpus.jsonl --config.codec.features.folder hubert-base-ls960
    python launch/train_codec.py --config configs/codec/published.py:1.5 --workdir runs/codec-1.5 \
        --config.data.manifest corpus.jsonl --config.codec.features.folder wav2vec2-large-xlsr-53
    python launch/train_codec.py --config configs/codec/published.py:2.0 --workdir runs/codec-2.0 \
        --config.data.manifest corpus.jsonl --config.codec.features.folder hubert-base-ls960
    python launch/train_codec.py --config configs/codec/published.py:2.0-6.25hz \
        --workdir runs/codec-2.0-6.25hz \
        --config.data.manifest corpus.jsonl --config.codec.features.folder hubert-base-ls960

The manifest has the domains speech, music and audio; recordings of split "heldout" are kept for
evaluation. The folder is that of HuBERT-base or wav2vec2-large-xlsr-53 from Hugging Face; its
features are the semantic stream's and, without compression, those of the perceptual loss.

Published are the codecs, 5 s cuts of speech, music and audio 2 : 1 : 1, the rates of 2e-4, the
clipping at 5 and the step at which the perceptual loss joins. The rest is chosen here: losses and
discriminators as in DAC, perceptual weight, batch, steps, AdamW without warm-up or decay.

Memory in float32, computed from shapes (the state: parameters, two moments of each, codebooks and
their statistics):

    version      codec      discriminators   state      gradients   frozen encoder
    1.0           137.1 M   42.5 M            2.19 GB   0.72 GB     0.38 GB
    1.5           678.4 M   42.5 M            8.68 GB   2.88 GB     1.26 GB
    2.0          1243.2 M   42.5 M           15.56 GB   5.14 GB     0.38 GB
    2.0-6.25hz   1260.5 M   42.5 M           15.77 GB   5.21 GB     0.38 GB

What a step holds besides, activations above all, comes on top and grows with the batch and the cut;
--config.run.mesh.fsdp splits the state over devices. XLA's count for one step of 1.0 compiled for a
CPU, at batch 1: temporary memory of 1.76 GB for cuts of 1 s, 2.40 GB for 5 s. A step of 1.0 with
all its parts takes 17 s for 8 cuts of 1 s on two CPU cores, 10 s of them for the discriminators
(README.md in this folder).

A step of 1.0 on 256 TPUs v5e, one cut on each (with JAX_OPTIMIZATION_LEVEL=O1 it compiles in 14
minutes of a core), and tokenising, 8 recordings of 5 s on each:

    quark aot --topology v5e:16x16 --config configs/codec/published.py:1.0 \
        --config.data.batch_size 256
    quark aot --topology v5e:16x16 --config configs/codec/published.py:1.0 --program tokenise \
        --batch 2048

launch/README.md has what it prints, and says how far to trust it.
"""

from dataclasses import replace

from ml_collections import ConfigDict, FieldReference

from quark_jax.config import to_dict
from quark_jax.errors import UserError
from quark_jax.hcodec import AdversaryConfig, HCodecConfig
from quark_jax.hcodec.losses import LossConfig
from quark_jax.training.codec import CodecData, CodecTraining
from quark_jax.training.codec_step import AdversarialConfig, PerceptualConfig
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig

_VERSIONS = ("1.0", "1.5", "2.0", "2.0-6.25hz")


def get_config(version: str = "") -> ConfigDict:
    if version not in _VERSIONS:
        raise UserError(
            f"configs/codec/published.py: version {version!r}: choose {', '.join(_VERSIONS)} after "
            "the colon"
        )
    codec = HCodecConfig.preset(version)
    networks = AdversaryConfig.preset(f"{codec.sample_rate // 1000}khz")
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
                adversary=AdversarialConfig(networks, optimiser),
                perceptual=PerceptualConfig(replace(codec.features, compress=False), begin=400_000),
                run=RunConfig(steps=1_000_000, log_every=100, eval_every=10_000, save_every=5_000),
            )
        )
    )
    # One encoder, and one field for it on the command line.
    folder = FieldReference(None, field_type=str)
    config.codec.features.folder = folder
    config.perceptual.features.folder = folder
    return config
