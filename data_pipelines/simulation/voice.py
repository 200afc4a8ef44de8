"""Giving an utterance another voice, at the same times: pitch, formants, timbre."""

import threading
from dataclasses import dataclass

import numpy as np
from scipy.signal import sosfilt

from quark_jax.errors import optional_import

_PITCH_HZ = (75.0, 600.0)
_EQUALISER_HZ = (60.0, 10_000.0)
_BANDS = 8
_praat = threading.Lock()  # its random generator is one for the process


@dataclass(frozen=True)
class VoiceChange:
    """Ranges of the change, after NANSY's information perturbation (Choi et al., 2021).

    Each ratio is drawn uniformly and turned into its reciprocal every other time.

    Attributes:
        formant_ratio, pitch_ratio: of the frequencies of formants and median pitch.
        range_ratio: of the pitch's distance from its median.
        gain_db, quality: of each of the 8 bands of the equaliser, log-spaced from 60 Hz to 10 kHz.
    """

    formant_ratio: tuple[float, float] = (1.0, 1.4)
    pitch_ratio: tuple[float, float] = (1.0, 2.0)
    range_ratio: tuple[float, float] = (1.0, 1.5)
    gain_db: tuple[float, float] = (-12.0, 12.0)
    quality: tuple[float, float] = (2.0, 5.0)


@dataclass(frozen=True)
class Voice:
    """One drawn change: three ratios, (gain in dB, quality) of each band of the equaliser, and the
    seed of what Praat draws for unvoiced speech."""

    formant_ratio: float = 1.0
    pitch_ratio: float = 1.0
    range_ratio: float = 1.0
    bands: tuple[tuple[float, float], ...] = ()
    seed: int = 0


def draw_voice(config: VoiceChange, rng: np.random.Generator) -> Voice:
    """Draws a change of voice."""

    def ratio(limits: tuple[float, float]) -> float:
        return float(rng.uniform(*limits) ** rng.choice((-1, 1)))

    low, high = config.quality
    return Voice(
        formant_ratio=ratio(config.formant_ratio),
        pitch_ratio=ratio(config.pitch_ratio),
        range_ratio=ratio(config.range_ratio),
        bands=tuple(
            (rng.uniform(*config.gain_db), low * (high / low) ** rng.random())
            for _ in range(_BANDS)
        ),
        seed=int(rng.integers(1, 2**31)),
    )


def change_voice(wave: np.ndarray, rate: int, voice: Voice) -> np.ndarray:
    """`wave` [samples] in another voice, every sound at its time: float32 [samples].

    Pitch and formants are changed by Praat's "Change gender" (pitch-synchronous overlap-add, and
    resampling for the formants), the timbre by an equaliser. Speech without a voiced frame keeps
    its pitch; its range grows to two octaves below the median at most.

    Raises:
        MissingPackage: without parselmouth, of the extra `voice`.
    """
    parselmouth = optional_import("parselmouth", use="change voices", extra="voice")
    sound = parselmouth.Sound(wave.astype(np.float64), float(rate))
    low, high = _PITCH_HZ
    pitch = sound.to_pitch(time_step=0.8 / low, pitch_floor=low, pitch_ceiling=high)
    frequencies = pitch.selected_array["frequency"]
    voiced = frequencies[frequencies > 0]
    median = float(np.median(voiced)) * voice.pitch_ratio if len(voiced) else 0.0  # 0: unchanged
    change = (voice.formant_ratio, median, _range(voiced, voice.range_ratio), 1.0)
    with _praat:
        parselmouth.praat.run(f"random_initializeWithSeedUnsafelyButPredictably ({voice.seed})")
        changed = parselmouth.praat.call([sound, pitch], "Change gender", *change).values[0]
    changed = np.pad(changed[: len(wave)], (0, max(0, len(wave) - len(changed))))
    return equalise(changed, rate, voice.bands)


def _range(pitches: np.ndarray, ratio: float) -> float:
    """`ratio`, or as much of it as leaves all of `pitches` within two octaves below their median:
    Praat does not come to an end with pitches below zero."""
    below = 1 - pitches.min() / np.median(pitches) if len(pitches) else 0.0
    return ratio if below * ratio <= 0.75 else float(0.75 / below)


def equalise(wave: np.ndarray, rate: int, bands: tuple[tuple[float, float], ...]) -> np.ndarray:
    """A row of peaking filters over `wave` [samples]: float32 [samples].

    `bands` are (gain in dB, quality), log-spaced from 60 Hz to 10 kHz, or to 0.45 `rate` where that
    is less. The filters are those of Bristow-Johnson's "Audio EQ Cookbook".
    """
    top = min(_EQUALISER_HZ[1], 0.45 * rate)
    sections = []
    for frequency, (gain_db, quality) in zip(
        np.geomspace(_EQUALISER_HZ[0], top, len(bands)), bands, strict=True
    ):
        angle = 2 * np.pi * frequency / rate
        gain, slope = 10 ** (gain_db / 40), np.sin(angle) / (2 * quality)
        row = (
            *(1 + slope * gain, -2 * np.cos(angle), 1 - slope * gain),
            *(1 + slope / gain, -2 * np.cos(angle), 1 - slope / gain),
        )
        sections.append(np.array(row) / row[3])
    return (sosfilt(np.stack(sections), wave) if sections else wave).astype(np.float32)
