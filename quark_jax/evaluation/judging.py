"""What is measured of a clip, by what was asked of the codec or the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import TypeAlias

import numpy as np

from quark_jax.evaluation import clap as clap_models
from quark_jax.evaluation import quality
from quark_jax.evaluation.metrics import (
    best_permutation,
    log_spectral_distance,
    mel_distance,
    sdr,
    si_sdr,
    stoi,
)
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
Parts: TypeAlias = Callable[[str], Sequence[str]]  # of a text


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


def _words(heading: str, score: Callable[[str, np.ndarray, int], float], parts: Parts) -> Metric:
    """A share of the `parts` of what a target says, where that is known and English."""

    def value(clip: Heard, waves: Waves, rate: int) -> float | None:
        said = clip.item.targets[0]
        known = said.language == "en" and said.text
        return score(said.text, waves[0], rate) if known else None

    def weight(clip: Heard) -> float:
        return float(len(parts(quality.normalise_english(clip.item.targets[0].text))))

    return Metric(heading, 3, value, needs_reference=False, weight=weight)


def _p835(part: str, wave: np.ndarray, rate: int) -> float:
    return quality.dnsmos_p835(wave, rate)[part]


def _voice(clip: Heard, waves: Waves, rate: int) -> float:
    voice = clip.targets[0] if clip.reference is None else clip.reference
    return quality.speaker_similarity(voice, waves[0], rate)


def _nearer(clip: Heard, waves: Waves, rate: int) -> float | None:
    """Whether a voice is more like the wanted than like the other one."""
    if clip.reference is None:
        return None
    other = clip.targets[0] if clip.other is None else clip.other
    found = [quality.speaker_similarity(v, waves[0], rate) for v in (clip.reference, other)]
    return float(found[0] > found[1])


def _si_sdr(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    return si_sdr(reference, estimate)


def _sdr(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    return sdr(reference, estimate)


def _log_spectral(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    return log_spectral_distance(reference, estimate)


def _coarser(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """With a digit less."""
    return {name: replace(metric, digits=metric.digits - 1) for name, metric in metrics.items()}


_WORDS = {
    "wer": _words("WER (en)", lambda *heard: quality.word_error_rate(*heard), str.split),
    "cer": _words("CER (en)", lambda *heard: quality.character_error_rate(*heard), str),
}
_MOS = {"dnsmos": _alone("DNSMOS OVRL", 2, partial(_p835, "ovrl"))}
_PLCMOS = {"plcmos": _alone("PLCMOS", 2, lambda wave, rate: quality.plcmos(wave, rate))}
_RESTORED = {
    **_MOS,
    "dnsmos_sig": _alone("DNSMOS SIG", 2, partial(_p835, "sig")),
    "dnsmos_bak": _alone("DNSMOS BAK", 2, partial(_p835, "bak")),
    **_PLCMOS,
}
_STOI = {"stoi": Metric("STOI", 3, _beside_target(stoi))}
_PESQ = {"pesq_wb": Metric("PESQ-WB", 2, _beside_target(lambda *pair: quality.pesq_wb(*pair)))}
_SIMILARITY = {
    "similarity": Metric(
        "speaker similarity", 3, _beside_target(lambda *pair: quality.speaker_similarity(*pair))
    )
}
_SPEECH = {**_PESQ, **_STOI, **_SIMILARITY}
_SI_SDR = {"si_sdr": Metric("SI-SDR (dB)", 2, _beside_target(_si_sdr))}
_SI_SDR_GAIN = {"si_sdr_gain": Metric("SI-SDRi (dB)", 2, _gain(_si_sdr))}
_NEARER = {"nearer": Metric("nearer to the wanted voice", 3, _nearer, needs_reference=False)}
_SDR = {"sdr": Metric("SDR (dB)", 2, _beside_target(_sdr))}
_MEL = {"mel": Metric("mel distance", 3, _beside_target(mel_distance))}
_SOUND = {
    **_MEL,
    "stft": Metric("log-spectral distance", 3, _beside_target(_log_spectral)),
    **_coarser(_SI_SDR),
}

METRICS: Mapping[str, Mapping[str, Metric]] = {
    "codec": {
        **_STOI,
        **_PESQ,
        "visqol": Metric("ViSQOL", 2, _beside_target(lambda *pair: quality.visqol(*pair))),
        **_SOUND,
        "dnsmos": _alone("DNSMOS", 2, partial(_p835, "ovrl")),
        **_SIMILARITY,
        **_WORDS,
    },
    "codec-audio": {
        **_SOUND,
        "visqol": Metric(
            "ViSQOL (audio)", 2, _beside_target(lambda *pair: quality.visqol(*pair, "audio"))
        ),
    },
    "speech": {
        "dnsmos": _alone("DNSMOS", 2, partial(_p835, "ovrl")),
        **_PLCMOS,
        **_STOI,
        **_coarser(_SI_SDR),
        "similarity": Metric("speaker similarity", 3, _voice),
        **_coarser(_NEARER),
        **_WORDS,
        **_MEL,
    },
    "sound": {**_coarser(_SDR), **_MEL},
    "sr": {**_RESTORED, **_SPEECH, **_SI_SDR, **_WORDS},
    "ss": {**_SI_SDR, **_SI_SDR_GAIN, **_SPEECH, **_MOS},
    "tse": {**_SI_SDR, **_SI_SDR_GAIN, **_SPEECH, **_NEARER, **_MOS},
    "vc": {
        "similarity": Metric("similarity to the voice", 3, _voice, needs_reference=False),
        **_NEARER,
        **_WORDS,
        **_MOS,
    },
    "lass": {**_SDR, "sdr_gain": Metric("SDRi (dB)", 2, _gain(_sdr)), **_SI_SDR, **_MEL},
}
"""Columns by what is asked: "codec" of speech and "codec-audio", examples that were made for a task
of "speech" or of "sound", or a task of the model on a test set of the field."""


def metrics_of(kind: str, clap: str | PathLike | None = None) -> dict[str, Metric]:
    """The columns of a kind in `METRICS`; with the folder of a CLAP model also how well a result
    fits the words."""
    if clap is None:
        return dict(METRICS[kind])

    def fits(heard: Heard, waves: Waves, rate: int) -> float:
        return clap_models.loaded(clap).similarity(heard.item.query, waves[0], rate)

    return METRICS[kind] | {"clap": Metric("CLAP", 3, fits, needs_reference=False)}
