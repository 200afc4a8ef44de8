"""What is measured of a clip of a test set, by what was asked of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import TypeAlias

import numpy as np

from quark_jax.evaluation import clap as clap_models
from quark_jax.evaluation import codec, quality
from quark_jax.evaluation.metrics import best_permutation, mel_distance, sdr, si_sdr, stoi
from quark_jax.evaluation.readers import Item
from quark_jax.evaluation.report import Metric


@dataclass(frozen=True)
class Heard:
    """A clip and its waves, float32 [samples] at one rate; None where it has none."""

    item: Item
    targets: tuple[np.ndarray, ...]
    input: np.ndarray | None = None
    reference: np.ndarray | None = None
    other: np.ndarray | None = None


Waves: TypeAlias = tuple[np.ndarray, ...]  # of a row: one for each target, and as long
Value: TypeAlias = Callable[[Heard, Waves, int], float | None]
Pair: TypeAlias = Callable[[np.ndarray, np.ndarray, int], float]  # reference, estimate, rate
Judge: TypeAlias = Callable[[np.ndarray, int], float]  # estimate, rate


def _beside_target(score: Pair) -> Value:
    """A score of results beside their targets; of several, in the best permutation."""

    def value(clip: Heard, waves: Waves, rate: int) -> float:
        return best_permutation(clip.targets, waves, lambda x, y: score(x, y, rate))[1]

    return value


def _gain(score: Pair) -> Value:
    """How much better results are than the input as it is."""
    value = _beside_target(score)

    def better(clip: Heard, waves: Waves, rate: int) -> float:
        untouched = (clip.input,) * len(clip.targets)
        return value(clip, waves, rate) - value(clip, untouched, rate)

    return better


def _alone(heading: str, digits: int, judge: Judge) -> Metric:
    """A mean over results that are judged by themselves."""

    def value(clip: Heard, waves: Waves, rate: int) -> float:
        return float(np.mean([judge(wave, rate) for wave in waves]))

    return Metric(heading, digits, value, needs_reference=False)


def _of_codec(metric: Metric) -> Metric:
    """A metric of `codec.METRICS`, which takes an entry, its wave and a result."""

    def value(clip: Heard, waves: Waves, rate: int) -> float | None:
        return metric.value(clip.item.targets[0], clip.targets[0], waves[0], rate)

    return replace(metric, value=value, weight=lambda clip: metric.weight(clip.item.targets[0]))


def _p835(part: str, wave: np.ndarray, rate: int) -> float:
    return quality.dnsmos_p835(wave, rate)[part]


def _voice(clip: Heard, waves: Waves, rate: int) -> float:
    return quality.speaker_similarity(clip.reference, waves[0], rate)


def _nearer(clip: Heard, waves: Waves, rate: int) -> float:
    """Whether a voice is more like the wanted than like the other one."""
    other = clip.targets[0] if clip.other is None else clip.other
    found = [quality.speaker_similarity(v, waves[0], rate) for v in (clip.reference, other)]
    return float(found[0] > found[1])


def _si_sdr(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    return si_sdr(reference, estimate)


def _sdr(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    return sdr(reference, estimate)


_CODEC = {name: _of_codec(metric) for name, metric in codec.METRICS.items()}
_WORDS = {name: _CODEC[name] for name in ("wer", "cer")}
_MOS = {"dnsmos": _alone("DNSMOS OVRL", 2, partial(_p835, "ovrl"))}
_RESTORED = {
    **_MOS,
    "dnsmos_sig": _alone("DNSMOS SIG", 2, partial(_p835, "sig")),
    "dnsmos_bak": _alone("DNSMOS BAK", 2, partial(_p835, "bak")),
    "plcmos": _alone("PLCMOS", 2, lambda wave, rate: quality.plcmos(wave, rate)),
}
_SPEECH = {
    "pesq_wb": Metric("PESQ-WB", 2, _beside_target(lambda *pair: quality.pesq_wb(*pair))),
    "stoi": Metric("STOI", 3, _beside_target(stoi)),
    "similarity": Metric(
        "speaker similarity", 3, _beside_target(lambda *pair: quality.speaker_similarity(*pair))
    ),
}
_SI_SDR = {"si_sdr": Metric("SI-SDR (dB)", 2, _beside_target(_si_sdr))}
_SI_SDR_GAIN = {"si_sdr_gain": Metric("SI-SDRi (dB)", 2, _gain(_si_sdr))}
_NEARER = {"nearer": Metric("nearer to the wanted voice", 3, _nearer, needs_reference=False)}

METRICS: Mapping[str, Mapping[str, Metric]] = {
    "codec": _CODEC,
    "codec-audio": {
        **{name: _of_codec(metric) for name, metric in codec.SOUND.items()},
        "visqol": Metric(
            "ViSQOL (audio)", 2, _beside_target(lambda *pair: quality.visqol(*pair, "audio"))
        ),
    },
    "sr": {**_RESTORED, **_SPEECH, **_SI_SDR, **_WORDS},
    "ss": {**_SI_SDR, **_SI_SDR_GAIN, **_SPEECH, **_MOS},
    "tse": {**_SI_SDR, **_SI_SDR_GAIN, **_SPEECH, **_NEARER, **_MOS},
    "vc": {
        "similarity": Metric("similarity to the voice", 3, _voice, needs_reference=False),
        **_NEARER,
        **_WORDS,
        **_MOS,
    },
    "lass": {
        "sdr": Metric("SDR (dB)", 2, _beside_target(_sdr)),
        "sdr_gain": Metric("SDRi (dB)", 2, _gain(_sdr)),
        **_SI_SDR,
        "mel": Metric("mel distance", 3, _beside_target(mel_distance)),
    },
}
"""Columns by what is asked: "codec" of speech and "codec-audio", or a task of the model."""


def metrics_of(kind: str, clap: str | PathLike | None = None) -> dict[str, Metric]:
    """The columns of a kind in `METRICS`; with the folder of a CLAP model, of queries also how well
    a result fits the words."""
    if clap is None or kind != "lass":
        return dict(METRICS[kind])

    def fits(heard: Heard, waves: Waves, rate: int) -> float:
        return clap_models.loaded(clap).similarity(heard.item.query, waves[0], rate)

    return METRICS[kind] | {"clap": Metric("CLAP", 3, fits, needs_reference=False)}
