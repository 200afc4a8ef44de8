"""Levels: what is silent, power over what is not, peaks, lengths."""

from collections.abc import Sequence

import numpy as np

_FRAME_SECONDS = 0.02
_ACTIVE_BELOW_LOUDEST_DB = 40.0
_SILENT_PEAK = 1e-3


def is_silent(wave: np.ndarray) -> bool:
    """True where no sample of `wave` [samples] reaches -60 dB of full scale."""
    return wave.size == 0 or float(np.max(np.abs(wave))) < _SILENT_PEAK


def active(wave: np.ndarray, rate: int) -> np.ndarray:
    """Which samples of `wave` [samples] are not silent: bool [samples].

    A sample is active where its 20 ms frame holds at least a 10 000th (-40 dB) of the power of the
    loudest frame.
    """
    frame = max(1, round(rate * _FRAME_SECONDS))
    starts = np.arange(0, len(wave), frame)
    lengths = np.diff(np.append(starts, len(wave)))
    power = np.add.reduceat(np.square(wave, dtype=np.float64), starts) / lengths
    loud = (power > 0) & (power >= power.max() * 10 ** (-_ACTIVE_BELOW_LOUDEST_DB / 10))
    return np.repeat(loud, lengths)


def active_power(wave: np.ndarray, rate: int) -> float:
    """Mean square of the active samples of `wave` [samples]; 0 for digital silence."""
    mask = active(wave, rate)
    return float(np.mean(np.square(wave[mask], dtype=np.float64))) if mask.any() else 0.0


def fit(wave: np.ndarray, samples: int, start: int = 0) -> np.ndarray:
    """`samples` samples of `wave` from `start`; audio that is too short wraps round."""
    if start + samples <= len(wave):
        return wave[start : start + samples]
    return np.take(wave, np.arange(start, start + samples), mode="wrap")


def set_peak(wave: np.ndarray, peak: float) -> np.ndarray:
    """Scales `wave` [samples], which must not be digital silence, to the given peak."""
    return (wave * (peak / np.max(np.abs(wave)))).astype(np.float32)


def limit_peak(waves: Sequence[np.ndarray], limit: float) -> tuple[np.ndarray, ...]:
    """Scales all `waves` by one factor so that no peak passes `limit`; quieter ones stay as is."""
    peak = max(float(np.max(np.abs(wave))) for wave in waves)
    if peak <= limit:
        return tuple(waves)
    return tuple(np.clip(wave * np.float32(limit / peak), -limit, limit) for wave in waves)
