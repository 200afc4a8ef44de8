"""Language model `tiny`, small enough for a CPU, over the `tiny` codec.

Speech restoration alone, conditioned by log-mel features: 4.3 M parameters.

    python launch/tokenise.py --manifest data_pipelines/samples/manifest.jsonl \
        --codec runs/codec-tiny/model/codec --out runs/tokens-tiny
    python launch/train_lm.py --config configs/lm/tiny.py --workdir runs/lm-tiny \
        --config.data.dataset runs/tokens-tiny/sr --config.data.codec runs/codec-tiny/model/codec

All tasks at once, conditioned by a Whisper encoder and a MiniLM or T5, which are read from Hugging
Face folders: 5.2 M parameters with Whisper-tiny and MiniLM of 384 channels each. --features keeps
the encoder's features in the datasets, so that no step has to compute them. Examples have 5 s, so
Whisper hears windows of 5 s, not of 30, at a twentieth of the cost; and its lowest two hidden
states tell more of an unknown voice than all of them:

    python launch/tokenise.py --manifest corpus.jsonl --codec runs/codec-tiny/model/codec \
        --out runs/tokens-mix --task sr,tse,rtse,vc,lass,edit,tta,aec \
        --features whisper-tiny --features_layers 0,1 --features_window 5
    python launch/train_lm.py --config configs/lm/tiny.py:mix --workdir runs/lm-mix \
        --config.data.dataset runs/tokens-mix --config.data.codec runs/codec-tiny/model/codec \
        --config.conditioner.audio.folder whisper-tiny --config.conditioner.text.folder minilm

A task is left out by --config.data.weights.vc=0.0. vc wants pip install -e '.[voice]', the tasks of
sounds want recordings with captions.

A second of audio is 50 positions of the target, in each of which 4 codes are drawn, 200 tokens, and
50 positions of the input or reference (25 in the mixture). Memory in float32: parameters, gradient
and two moments are 16 bytes a parameter, 0.07 GB, or for the mixture, at 16 bytes a parameter, 0.08
GB; the activations of a batch come on top.

Metrics go to metrics.jsonl and tensorboard/ in the workdir, the model with its codec and encoders
to model/, which `quark restore --model runs/lm-tiny/model` takes. The same command goes on after an
interruption. Fields are set on the command line: --config.run.steps=2000,
--config.data.weights.sr=3.0. --config.start runs/x/model starts from a trained model; with
--config.lora.rank=8 adapters of its backbone are trained, and added to it in what is saved.
"""

from dataclasses import replace

from ml_collections import ConfigDict, config_dict

from quark_jax.conditioning import ConditionerConfig, TextConfig
from quark_jax.config import to_dict
from quark_jax.encoders import FeatureConfig
from quark_jax.errors import UserError
from quark_jax.lm import LMConfig
from quark_jax.training.lm import LMTraining
from quark_jax.training.lm_data import LMData
from quark_jax.training.lm_step import SectionDropout
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig

_WEIGHTS = {
    "sr": 3.0,
    "tse": 3.0,
    "rtse": 1.0,
    "vc": 0.5,
    "lass": 1.0,
    "edit": 1.0,
    "tta": 0.2,
    "aec": 0.5,
}


def get_config(variant: str = "") -> ConfigDict:
    config = LMTraining(
        lm=LMConfig.preset("tiny"),
        data=LMData(batch_size=16),
        optimiser=OptimiserConfig(
            peak=1e-3, warmup=50, decay=0.9995, floor=0.05, beta2=0.98, weight_decay=0.1
        ),
        run=RunConfig(steps=10_000, log_every=20, eval_every=500, save_every=500),
    )
    if variant == "mix":
        config = replace(
            config,
            lm=replace(config.lm, stack_features=True, step_stride=0.5, beside=True),
            conditioner=ConditionerConfig(
                FeatureConfig("hugging_face", layers=(0, 1), window=5.0),
                TextConfig(max_tokens=48),
                standardise=True,
            ),
            data=replace(config.data, weights=_WEIGHTS, batch_size=8, buckets=2),
            optimiser=replace(config.optimiser, decay=0.9994),
            dropout=SectionDropout(caption=0.1, reference=0.1, input=0.1),
            average=0.999,
            eval_audio_every=2_000,
        )
    elif variant:
        raise UserError(f"configs/lm/tiny.py:{variant}: choose mix, or nothing after the colon")
    made = ConfigDict(to_dict(config))
    made.start = config_dict.placeholder(str)
    if config.lm.step_stride is None:
        made.lm.step_stride = config_dict.placeholder(float)
    for part in (made.conditioner.audio, made.conditioner.text):
        part.folder = config_dict.placeholder(str)
    return made
