"""What a channel does to speech: a narrower band, clipping, packet loss."""

import numpy as np

from quark_jax import audio


def limit_band(wave: np.ndarray, rate: int, band_rate: int) -> np.ndarray:
    """`wave` [samples] at `rate` Hz, resampled to `band_rate` Hz and back (soxr HQ): what is above
    `band_rate` / 2 is gone. A `band_rate` of `rate` or above leaves it as it is."""
    if band_rate >= rate:
        return wave
    narrow = audio.resample(audio.resample(wave, rate, band_rate), band_rate, rate)
    return np.pad(narrow[: len(wave)], (0, max(0, len(wave) - len(narrow))))


def clip_quantiles(wave: np.ndarray, lower: float, upper: float) -> np.ndarray:
    """Clips `wave` [samples] at its own `lower` and `upper` quantiles (0..1)."""
    low, high = np.quantile(wave, (lower, upper))
    return np.clip(wave, low, high).astype(np.float32)


def lost_packets(
    packets: int, loss_rate: float, longest: int, rng: np.random.Generator
) -> np.ndarray:
    """Which of `packets` are lost: bool [packets], a share of `loss_rate` (to the nearest packet).

    Losses come in bursts of 1 to `longest` packets, uniformly; between two bursts at least one
    packet arrives, so no more than `longest` are lost in a row.
    """
    left = min(round(packets * loss_rate), packets * longest // (longest + 1))
    received = packets - left
    bursts = []
    while left:
        bursts.append(min(int(rng.integers(1, longest + 1)), left))
        left -= bursts[-1]
    if len(bursts) > received:  # too few packets between them: take the fewest bursts
        lost = packets - received
        bursts = [longest] * (lost // longest) + [lost % longest] * (lost % longest > 0)
    before = np.zeros(received, np.int64)  # packets lost just before each one that arrives
    before[rng.choice(received, len(bursts), replace=False)] = bursts
    lost = np.ones(packets, bool)
    lost[np.cumsum(before) + np.arange(received)] = False
    # Turned round as a ring, so that the first and last packets are lost as often as the others.
    return np.roll(lost, rng.integers(packets))


def lose_packets(wave: np.ndarray, lost: np.ndarray, packet: int) -> np.ndarray:
    """Zeroes the packets (of `packet` samples each) of `wave` [samples] that `lost` marks."""
    return np.where(np.repeat(lost, packet)[: len(wave)], np.float32(0), wave)
