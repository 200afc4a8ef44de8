"""Frame rates of H-Codec compared: fixed ones of 50, 25, 12.5 and 6.25 Hz, and dynamic ones.

    quark sweep --config configs/sweeps/frame_rate.py --workdir runs/frame-rate \
        --config.manifest corpus.jsonl --config.alignments words.ctm

Eleven points of nine codecs that differ in the frame rate, in what a rate needs, and in the number
of codebooks of a stream. At equal bitrate all have 1.6 kbit/s, at equal codebooks four in each
stream. The dynamic codecs have 50 frames a second at most, in segments of at most eight; the
thresholds are those that come to 25, 12.5 and 8 segments a second on the clips that the codecs are
judged on. Three points of them share one codec with four codebooks; the fourth has eight. It and
the first of the three have the equal bitrate, but for the lengths of segments.

The report goes to runs/frame-rate/report.md and .html. The same command goes on after an
interruption. What is no list can be set on the command line, as --config.codec.run.steps=7500 or
--config.listening.metrics="('stoi', 'mel')"; without --config.alignments nothing is said of words.
On several machines, with a folder that all see: --index 0 --of 4, --index 1 --of 4 and so on, then
--report.

What the codecs are is `tiny` (configs/codec/tiny.py) with sub-pixel upsampling, as in the published
1.0, and at a size for two CPU cores (README.md in this folder has the report). After a colon stands
a larger one:

    quark sweep --config configs/sweeps/frame_rate.py:2.0 --workdir runs/frame-rate-2.0 \
        --config.manifest corpus.jsonl --config.encoder hubert-base-ls960

These have the networks of the published 2.0, at 48 kHz; where bitrates are equal, that of 16
codebooks in each stream at 12.5 Hz, 4 kbit/s; and language models `base`.
"""

from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict, config_dict

from data_pipelines import Degradation
from quark_jax.conditioning import ConditionerConfig
from quark_jax.config import to_dict
from quark_jax.errors import UserError
from quark_jax.hcodec import AdversaryConfig, HCodecConfig
from quark_jax.hcodec.config import DynamicConfig
from quark_jax.hcodec.losses import LossConfig
from quark_jax.lm import LMConfig
from quark_jax.sweep import CodecStage, Listening, Point, Sweep, Tokens
from quark_jax.training.codec import CodecData
from quark_jax.training.codec_step import AdversarialConfig, PerceptualConfig
from quark_jax.training.lm import LMTraining
from quark_jax.training.lm_data import LMData
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig

_RATES = (50.0, 25.0, 12.5, 6.25)  # Hz
_SLOWEST = 8.0  # segments a second of the last dynamic point; there can be no fewer than 6.25


def get_config(size: str = "") -> ConfigDict:
    if size not in ("", "2.0"):
        raise UserError(
            f"configs/sweeps/frame_rate.py:{size}: choose 2.0, or nothing after the colon"
        )
    sweep = _large() if size else _tiny()
    fields = to_dict(sweep)
    for name in ("metrics", "seconds"):  # lists cannot be set on the command line, tuples can
        fields["listening"][name] = tuple(fields["listening"][name])
    config = ConfigDict(fields)
    config.alignments = config_dict.placeholder(str)
    config.encoder = config_dict.placeholder(str)
    if size:  # one encoder, and one field for it on the command line
        config.codec.perceptual.features.folder = config.get_ref("encoder")
    return config


def _tiny() -> Sweep:
    preset = HCodecConfig.preset("tiny")
    dynamic = DynamicConfig(
        lower=0.5,
        heads=4,
        aggregator_layers=1,
        aggregator_inner=128,
        bottleneck_layers=1,
        bottleneck_inner=256,
    )
    return Sweep(
        title="Frame rates of a tiny H-Codec",
        **_compared(preset, dynamic, rate=25.0, other=12.5),
        codec=CodecStage(
            data=CodecData(seconds=1.28, batch_size=8, heldout=8),
            optimiser=OptimiserConfig(peak=1e-3, warmup=30, decay=0.995, floor=0.1, beta1=0.8),
            run=RunConfig(steps=160, log_every=20, eval_every=0, save_every=80),
        ),
        lm=LMTraining(
            lm=LMConfig.preset("tiny", layers=3, width=128, mlp=352, stack_features=True),
            conditioner=ConditionerConfig(standardise=True),
            data=LMData(batch_size=8),
            optimiser=OptimiserConfig(
                peak=2e-3, warmup=20, decay=0.99, floor=0.1, beta2=0.98, weight_decay=0.1
            ),
            run=RunConfig(steps=100, log_every=10, eval_every=0, save_every=50),
        ),
        tokens=Tokens(
            seconds=1.92,
            train=384,
            # No rooms, which take long to make.
            degradation=Degradation(reverberation_probability=0.0),
        ),
        listening=Listening(
            clips=18, seconds=(2.0, 8.0), metrics=("stoi", "mel", "si_sdr", "dnsmos"), words=40
        ),
    )


def _large() -> Sweep:
    preset = HCodecConfig.preset("2.0")
    optimiser = OptimiserConfig(peak=2e-4, clip=5.0)
    return Sweep(
        title="Frame rates of H-Codec 2.0",
        **_compared(preset, DynamicConfig(), rate=12.5, other=25.0),
        codec=CodecStage(
            data=CodecData(
                weights={"speech": 2, "music": 1, "audio": 1}, seconds=4.8, batch_size=32
            ),
            losses=LossConfig(perceptual=1.0),
            optimiser=optimiser,
            adversary=AdversarialConfig(AdversaryConfig.preset("48khz"), optimiser),
            perceptual=PerceptualConfig(replace(preset.features, compress=False), begin=400_000),
            run=RunConfig(steps=1_000_000, log_every=100, eval_every=10_000, save_every=5_000),
        ),
        lm=LMTraining(
            lm=LMConfig.preset("base", audio_channels=80, stack_features=True, dtype="bfloat16"),
            conditioner=ConditionerConfig(standardise=True),
            data=LMData(batch_size=64),
            optimiser=OptimiserConfig(
                peak=3e-4, warmup=2_000, decay=0.99998, floor=0.05, beta2=0.95, weight_decay=0.1
            ),
            run=RunConfig(steps=200_000, log_every=100, eval_every=10_000, save_every=5_000),
        ),
        tokens=Tokens(seconds=4.8, train=1_000_000, heldout=64),
    )


def _compared(
    preset: HCodecConfig, dynamic: DynamicConfig, *, rate: float, other: float
) -> dict[str, Any]:
    """Codecs, points and series. At equal bitrate all have that of `preset` at `rate`, at equal
    codebooks as many as it has; `other` is a second rate at that bitrate of a dynamic codec."""
    same = preset.quantiser.codebooks
    needed = {frames: round(rate * same / frames) for frames in (*_RATES, other)}
    codecs = {
        (frames, count): _codec(preset, f"{frames:g}Hz-{count}", frames, count)
        for frames in _RATES
        for count in (needed[frames], same)
    }
    points = [Point(codec.name, codec.name) for codec in codecs.values()]
    for count, rates in {same: (25.0, 12.5, _SLOWEST), needed[other]: (other,)}.items():
        codec = _codec(preset, f"dynamic-{count}", _RATES[0], count, dynamic)
        codecs[codec.name] = codec
        points += [Point(_at(count, frames), codec.name, rate=frames) for frames in rates]
    return {
        "points": tuple(points),
        "codecs": tuple(codecs.values()),
        "series": {
            "equal bitrate": tuple(codecs[r, needed[r]].name for r in _RATES),
            "equal codebooks": tuple(codecs[r, same].name for r in _RATES),
            "dynamic, equal bitrate": tuple(
                _at(needed[r], r) for r in sorted((rate, other), reverse=True)
            ),
            "dynamic, equal codebooks": tuple(_at(same, r) for r in (25.0, 12.5, _SLOWEST)),
        },
    }


def _at(codebooks: int, rate: float) -> str:
    return f"dynamic-{codebooks}-at-{rate:g}Hz"


def _codec(
    preset: HCodecConfig,
    name: str,
    rate: float,
    codebooks: int,
    dynamic: DynamicConfig | None = None,
) -> HCodecConfig:
    """The preset at another rate; its spectra and waves have 50 frames a second at any."""
    factor = int(50 / rate)
    return replace(
        preset,
        name=name,
        frame_rate=rate,
        semantic=replace(preset.semantic, strides=(2,) * (factor.bit_length() - 1) or (1,)),
        quantiser=replace(preset.quantiser, codebooks=codebooks),
        decoder=replace(preset.decoder, upsample=factor, repeat=False),
        dynamic=dynamic,
    )
