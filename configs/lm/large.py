"""Language model `large`, every task, over the codec `1.0`: 24 layers of 2048.

1270.0 M parameters, conditioned by WavLM-base-plus and T5-base (768 channels each), which are read
from Hugging Face folders.

    python launch/tokenise.py --manifest corpus.jsonl --codec runs/codec-1.0/model/codec \
        --out runs/tokens --task sr,tse,rtse,vc,lass,edit,tta,aec --features wavlm-base-plus
    python launch/train_lm.py --config configs/lm/large.py --workdir runs/lm-large \
        --config.data.dataset runs/tokens --config.data.codec runs/codec-1.0/model/codec \
        --config.conditioner.audio.folder wavlm-base-plus --config.conditioner.text.folder t5-base

A second of audio is 50 positions of the target, in each of which 4 codes are drawn, 200 tokens, and
50 positions of the input or reference. Memory: parameters, gradient and two moments, float32 all of
them, are 16 bytes a parameter, 20.32 GB; an average of the weights (--config.average=0.999) is 4
more. The activations of a batch and the encoders' weights come on top. They are computed in
bfloat16; layers are scanned and recomputed, and the state is split over all devices (fsdp).

Published are AdamW at 5e-4, the cosine warm-up, the decay, the clipping and 32 sequences of 5 s on
each device: --config.data.batch_size is rows of four sequences over all devices. The rest is chosen
here. A task is left out by --config.data.weights.vc=0.0. --config.start runs/x/model starts from a
trained model; with --config.lora.rank=16 adapters of its backbone are trained, and added to it in
what is saved.
"""

from ml_collections import ConfigDict, config_dict

from quark_jax.conditioning import ConditionerConfig
from quark_jax.config import to_dict
from quark_jax.encoders import FeatureConfig
from quark_jax.lm import LMConfig, Packing
from quark_jax.training.lm import LMTraining
from quark_jax.training.lm_data import LMData
from quark_jax.training.lm_step import SectionDropout
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig
from quark_jax.training.sharding import MeshConfig

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


def get_config() -> ConfigDict:
    config = LMTraining(
        lm=LMConfig.preset("large", text_channels=768),
        conditioner=ConditionerConfig(FeatureConfig("hugging_face")),
        data=LMData(weights=_WEIGHTS, batch_size=8, packing=Packing(items=4, positions=2048)),
        optimiser=OptimiserConfig(
            peak=5e-4, warmup=2_000, rise="cosine", decay=0.99998, floor=0.02, clip=5.0
        ),
        dropout=SectionDropout(caption=0.1, reference=0.1, input=0.1),
        run=RunConfig(
            steps=400_000,
            log_every=100,
            eval_every=5_000,
            save_every=5_000,
            mesh=MeshConfig(data=1, fsdp=-1),
        ),
        eval_audio_every=50_000,
    )
    made = ConfigDict(to_dict(config))
    made.start = config_dict.placeholder(str)
    for part in (made.conditioner.audio, made.conditioner.text):
        part.folder = config_dict.placeholder(str)
    return made
