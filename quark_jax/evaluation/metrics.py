"""Intrusive metrics: pure functions of a reference and an estimate, NumPy [samples] each.

Every one raises `UserError` if the two differ in length, hold NaN or infinite samples, or are too
short for it; `sdr`, `si_sdr` and `stoi`, which mean nothing there, also if one of the two is silent
(`sdr`: the reference).
"""

import warnings
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pystoi

from quark_jax.audio import mel_filterbank
from quark_jax.errors import UserError

# Window in samples: mel bands, those of the DAC codec (arXiv 2306.06546).
MEL_SCALES = {32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320}
_MEL_FLOOR = 1e-5
_POWER_FLOOR = 1e-10
_FRAMES_AT_ONCE = 4096  # bounds the memory that a long recording takes


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508).

    10 log10(|a s|^2 / |a s - x|^2) with a = <x, s> / <s, s>, s the reference and x the estimate; no
    mean is removed. Infinite for a perfect estimate, minus infinite for an orthogonal one.
    """
    reference, estimate = check_pair(reference, estimate, shortest=1, sound=True)
    target = np.dot(estimate, reference) / np.dot(reference, reference) * reference
    kept, lost = np.sum(target**2), np.sum((target - estimate) ** 2)
    with np.errstate(divide="ignore"):
        return float(10 * (np.log10(kept) - np.log10(lost)))


def sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Signal-to-distortion ratio in dB, 10 log10(|s|^2 / |s - x|^2), s the reference and x the
    estimate: no scale and no filter is allowed for. So SDR is computed in language-queried
    separation (AudioSep, arXiv 2308.05037); BSS Eval's is another. Infinite for a perfect estimate.
    """
    reference, estimate = check_pair(reference, estimate, shortest=1)
    check_wave("reference", reference, shortest=1, sound=True)
    with np.errstate(divide="ignore"):
        lost = np.log10(np.sum((reference - estimate) ** 2))
        return float(10 * (np.log10(np.sum(reference**2)) - lost))


def best_permutation(
    references: Sequence[np.ndarray],
    estimates: Sequence[np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], float] = si_sdr,
) -> tuple[tuple[int, ...], float]:
    """Which estimate belongs to which reference, where a separation says nothing of it.

    Args:
        references, estimates: as many of the one as of the other.
        score: of a reference and an estimate, higher is better.

    Returns:
        For each reference the number of its estimate, in the order whose mean score is the highest
        (of Kolbaek et al. 2017, arXiv 1703.06284); and that mean.
    """
    if len(references) != len(estimates):
        raise UserError(
            f"estimates: {len(estimates)} of {len(references)} references; give one for each"
        )
    scores = np.array([[score(one, other) for other in estimates] for one in references])
    rows = np.arange(len(references))
    means = {order: float(np.mean(scores[rows, order])) for order in permutations(rows.tolist())}
    best = max(means, key=means.__getitem__)
    return best, means[best]


def codebook_use(counts: np.ndarray) -> tuple[float, float]:
    """How much of a codebook is in use, from how often each of its codes was sent [codes]: the
    share that was sent at all, and the perplexity, exp of the entropy in nats: as many codes,
    equally often, would carry as much."""
    sent = counts[counts > 0] / counts.sum()
    return len(sent) / len(counts), float(np.exp(-np.sum(sent * np.log(sent))))


def mel_distance(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Multi-scale mel distance: mean absolute difference of log10 mel magnitudes, lower is better.

    For windows of 32, 64, ... 2048 samples (periodic Hann, hop a quarter of it, frames centred with
    reflected edges) with 5, 10, ... 320 bands from 0 Hz to half the rate: the mean over frames and
    bands of |log10(max(R, 1e-5)) - log10(max(E, 1e-5))|, where R and E are the mel-weighted
    magnitudes (Slaney's scale and area normalisation). The result is the mean of the seven values.
    These are the terms that DAC (arXiv 2306.06546) sums for its training loss. The value depends on
    the rate and on sum or mean, so compare it only with figures computed in the same way.

    Args:
        rate: in Hz.
    """
    longest = max(MEL_SCALES)
    reference, estimate = check_pair(reference, estimate, shortest=longest // 2 + 1)
    distances = []
    for window, bands in MEL_SCALES.items():
        filters = mel_filterbank(rate, window, bands).astype(np.float64)
        total, count = 0.0, 0
        for magnitudes in _magnitudes(reference, estimate, window, window // 4):
            mels = np.log10(np.maximum(magnitudes @ filters, _MEL_FLOOR))
            total += np.sum(np.abs(mels[0] - mels[1]))
            count += mels[0].size
        distances.append(total / count)
    return float(np.mean(distances))


def log_spectral_distance(
    reference: np.ndarray, estimate: np.ndarray, n_fft: int = 2048, hop: int = 512
) -> float:
    """Log-spectral distance: the mean over frames of the root mean square over bins of
    log10(|R|^2 + 1e-10) - log10(|E|^2 + 1e-10), lower is better; 1 is a factor of ten in power.

    Args:
        n_fft, hop: window (periodic Hann) and step in samples; frames centred, edges reflected.
    """
    reference, estimate = check_pair(reference, estimate, shortest=n_fft // 2 + 1)
    frames = []
    for magnitudes in _magnitudes(reference, estimate, n_fft, hop):
        powers = np.log10(magnitudes**2 + _POWER_FLOOR)
        frames.append(np.sqrt(np.mean((powers[0] - powers[1]) ** 2, axis=-1)))
    return float(np.mean(np.concatenate(frames)))


def stoi(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Short-time objective intelligibility, at most 1 (Taal et al. 2011), through pystoi.

    Args:
        rate: in Hz; pystoi resamples to 10 kHz.
    """
    # 30 frames of 256 samples at 10 kHz, half overlapped, are the least that STOI is defined on.
    reference, estimate = check_pair(
        reference, estimate, shortest=-(-rate * 4096 // 10_000), sound=True
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, estimate, rate, extended=False))
        except RuntimeWarning as warning:
            raise UserError(
                "reference: less than 0.4 s of it is not silence, too little for STOI; "
                "give a longer recording"
            ) from warning


def check_wave(name: str, wave: np.ndarray, *, shortest: int, sound: bool = False) -> np.ndarray:
    """The wave [samples] as float64; UserError, which calls it `name`, where it is no such thing,
    has fewer than `shortest` samples, is not finite, or silent and `sound` is needed."""
    wave = np.asarray(wave, np.float64)
    if wave.ndim != 1:
        raise UserError(f"{name}: shape {list(wave.shape)}; give one channel, [samples]")
    if len(wave) < shortest:
        raise UserError(f"{name}: {len(wave)} samples; this metric needs {shortest} or more")
    if not np.isfinite(wave).all():
        raise UserError(f"{name}: holds NaN or infinite samples; repair the recording")
    if sound and not wave.any():
        raise UserError(f"{name}: is silent; this metric needs sound")
    return wave


def check_pair(
    reference: np.ndarray, estimate: np.ndarray, *, shortest: int, sound: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Both as `check_wave` gives them, once they can be compared: UserError also where they differ
    in length."""
    reference = check_wave("reference", reference, shortest=shortest, sound=sound)
    estimate = check_wave("estimate", estimate, shortest=shortest, sound=sound)
    if len(reference) != len(estimate):
        raise UserError(
            f"estimate: {len(estimate)} samples, the reference has {len(reference)}; "
            "cut or pad them to one length"
        )
    return reference, estimate


def _magnitudes(reference: np.ndarray, estimate: np.ndarray, n_fft: int, hop: int):
    """Yields STFT magnitudes [2, frames, n_fft // 2 + 1] of both, some frames at a time."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    waves = np.pad(np.stack([reference, estimate]), ((0, 0), (n_fft // 2,) * 2), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(waves, n_fft, axis=1)[:, ::hop]
    for start in range(0, frames.shape[1], _FRAMES_AT_ONCE):
        yield np.abs(np.fft.rfft(frames[:, start : start + _FRAMES_AT_ONCE] * window))
