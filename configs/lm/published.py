"""Language models of every task over the codec `1.0` in their sizes: small, base or large, named
after the colon. small is of the size of the published model of speech enhancement.

    python launch/tokenise.py --manifest corpus.jsonl --codec runs/codec-1.0/model/codec \
        --out runs/tokens --task sr,tse,rtse,vc,lass,edit,tta,aec --features wavlm-base-plus
    python launch/train_lm.py --config configs/lm/published.py:small --workdir runs/lm-small \
        --config.data.dataset runs/tokens --config.data.codec runs/codec-1.0/model/codec \
        --config.conditioner.audio.folder wavlm-base-plus --config.conditioner.text.folder t5-base
    python launch/train_lm.py --config configs/lm/published.py:base --workdir runs/lm-base \
        --config.data.dataset runs/tokens --config.data.codec runs/codec-1.0/model/codec \
        --config.conditioner.audio.folder wavlm-base-plus --config.conditioner.text.folder t5-base
    python launch/train_lm.py --config configs/lm/published.py:large --workdir runs/lm-large \
        --config.data.dataset runs/tokens --config.data.codec runs/codec-1.0/model/codec \
        --config.conditioner.audio.folder wavlm-base-plus --config.conditioner.text.folder t5-base

The folders are those of WavLM-base-plus and T5-base (768 channels each) from Hugging Face, which
condition the model. Memory is that of parameters, gradient and two moments, float32 all of them:
16 bytes a parameter.

    size    layers x width   parameters   memory     compute    layers                over devices
    small   12 x 512           47.7 M      0.76 GB   float32    unrolled              copied
    base    16 x 1024         223.9 M      3.58 GB   float32    unrolled              split (fsdp)
    large   24 x 2048        1270.0 M     20.32 GB   bfloat16   scanned, recomputed   split (fsdp)

An average of the weights (--config.average=0.999) is 4 bytes a parameter more. The activations of a
batch and the encoders' weights come on top. On several devices, --config.run.mesh.data=1
--config.run.mesh.fsdp=-1 splits parameters and moments over all, as base and large do by
themselves.

base on 256 TPUs v5e, with 32 sequences on each:

    quark aot --topology v5e:16x16 --config configs/lm/published.py:base \
        --config.lm.dtype=bfloat16 --config.lm.scan=True --config.lm.remat=full \
        --config.data.batch_size=2048

prints 1.25 GiB of 16.00 GiB at the peak, a step of at least 173.34 ms, MFU at most 70.3 % (a bound;
by the compiler's cycles 309.70 ms and 39.3 %). Sampling there, all weights and 8 recordings of 5 s
on each:

    quark aot --topology v5e:16x16 --config configs/lm/published.py:base --program sample \
        --config.lm.dtype=bfloat16 --mesh data=256,fsdp=1 --batch 2048

launch/README.md has the figures, of training on other chips too, and says how far to trust them.

A second of audio is 50 positions of the target, in each of which 4 codes are drawn, 200 tokens, and
50 positions of the input or reference.

Published are AdamW at 5e-4, the cosine warm-up, the decay, the clipping and 32 sequences of 5 s on
each device: --config.data.batch_size, 8 for every size, is rows of four sequences over all devices.
The rest is chosen here. A task is left out by --config.data.weights.vc=0.0. --config.start
runs/x/model starts from a trained model; with --config.lora.rank=16 adapters of its backbone are
trained, and added to it in what is saved.
"""

from ml_collections import ConfigDict, config_dict

from quark_jax.conditioning import ConditionerConfig
from quark_jax.config import to_dict
from quark_jax.encoders import FeatureConfig
from quark_jax.errors import UserError
from quark_jax.lm import LMConfig, Packing
from quark_jax.training.lm import LMTraining
from quark_jax.training.lm_data import LMData
from quark_jax.training.lm_step import SectionDropout
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig
from quark_jax.training.sharding import MeshConfig

_SPLIT = MeshConfig(data=1, fsdp=-1)
_MESHES = {"small": MeshConfig(), "base": _SPLIT, "large": _SPLIT}
_WEIGHTS = {
    "sr": 4.0,
    "tse": 2.0,
    "rtse": 1.0,
    "vc": 1.0,
    "lass": 1.0,
    "edit": 2.0,
    "tta": 1.0,
    "aec": 1.0,
}


def get_config(size: str = "") -> ConfigDict:
    if size not in _MESHES:
        raise UserError(
            f"configs/lm/published.py: size {size!r}: choose small, base or large after the colon"
        )
    config = LMTraining(
        lm=LMConfig.preset(size, text_channels=768),
        conditioner=ConditionerConfig(FeatureConfig("hugging_face")),
        data=LMData(weights=_WEIGHTS, batch_size=8, packing=Packing(sequences=4, positions=2048)),
        optimiser=OptimiserConfig(
            peak=5e-4, warmup=2_000, rise="cosine", decay=0.99998, floor=0.02, clip=5.0
        ),
        dropout=SectionDropout(caption=0.1, reference=0.1, input=0.1),
        run=RunConfig(
            steps=400_000,
            log_every=100,
            eval_every=5_000,
            save_every=5_000,
            mesh=_MESHES[size],
        ),
        eval_audio_every=50_000,
    )
    made = ConfigDict(to_dict(config))
    made.start = config_dict.placeholder(str)
    if made.lm.remat is None:
        made.lm.remat = config_dict.placeholder(str)
    for part in (made.conditioner.audio, made.conditioner.text):
        part.folder = config_dict.placeholder(str)
    return made
