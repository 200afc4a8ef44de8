"""Degradation of clean speech: pure functions of (audio, np.random.Generator).

Waves are float32 [samples] at one rate (Hz), full scale at 1. Every random choice is drawn from the
generator that is passed in, so the same generator state gives the same result. The values are those
published for the QuarkAudio speech tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FRAME_SECONDS = 0.02
_ACTIVE_BELOW_LOUDEST_DB = 40.0
_SILENT_PEAK = 1e-3


@dataclass(frozen=True)
class Degradation:
    """How often each effect is applied and the range its values are drawn from, uniformly."""

    noise_probability: float = 0.8
    snr_db: tuple[float, float] = (-5.0, 20.0)
    clipping_probability: float = 0.3
    clip_lower_quantile: tuple[float, float] = (0.0, 0.1)
    clip_upper_quantile: tuple[float, float] = (0.9, 1.0)
    packet_loss_probability: float = 0.3
    packet_seconds: float = 0.02
    loss_rate: tuple[float, float] = (0.05, 0.25)
    longest_loss: int = 10  # packets in a row
    peak: tuple[float, float] = (0.1, 0.99)
    peak_limit: float = 0.99


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


def add_noise(speech: np.ndarray, noise: np.ndarray, snr_db: float, rate: int) -> np.ndarray:
    """Adds `noise` [samples] to `speech` [samples] at `snr_db`.

    The ratio is that of the powers of the two over their own non-silent parts, so that neither
    pauses in the speech nor gaps in the noise shift it.
    """
    speech_power, noise_power = active_power(speech, rate), active_power(noise, rate)
    if speech_power == 0 or noise_power == 0:
        raise ValueError("the signal-to-noise ratio of a silent signal has no meaning")
    gain = np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10))
    return (speech + gain * noise).astype(np.float32)


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


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise [samples] of unit power whose power falls as 1 / frequency ** `exponent`.

    0 is white, 1 pink, 2 brown. The mean (0 Hz) is taken out.
    """
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    bins = np.arange(len(spectrum), dtype=np.float64)
    bins[0] = np.inf if exponent else 1.0
    spectrum *= bins ** (-exponent / 2)
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, samples)
    return (noise / np.sqrt(np.mean(np.square(noise)))).astype(np.float32)


def hum(samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Mains hum [samples] of unit power: 50 or 60 Hz and up to 19 harmonics that fall off."""
    mains = rng.choice((50.0, 60.0)) * (1 + rng.uniform(-0.002, 0.002))
    harmonics = np.arange(1, 21)
    harmonics = harmonics[harmonics * mains < rate / 2]
    gains = rng.uniform(0.2, 1.0, len(harmonics)) / harmonics
    gains = gains * np.exp(2j * np.pi * rng.random(len(harmonics)))
    # Harmonic k is the k-th power of the first: a polynomial costs a tenth of as many sines.
    first = np.exp(2j * np.pi * mains / rate * np.arange(samples))
    wave = np.polynomial.polynomial.polyval(first, (0, *gains)).imag
    return (wave / np.sqrt(np.mean(np.square(wave)))).astype(np.float32)


def babble(voices: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """Several people talking at once [samples]: `voices`, each brought to the same active power."""
    powers = [active_power(voice, rate) for voice in voices]
    levelled = [v / np.sqrt(p) for v, p in zip(voices, powers, strict=True) if p > 0]
    if not levelled:
        raise ValueError("babble needs a voice that is not silent")
    return np.sum(levelled, axis=0).astype(np.float32)


def degrade(
    clean: np.ndarray,
    noise: np.ndarray | None,
    rng: np.random.Generator,
    config: Degradation,
    *,
    rate: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Makes the (input, target) pair of speech restoration: float32 [samples] each.

    `clean` [samples] must not be silent; `noise` has the same length, or is None for none. The
    clean speech takes a random peak, then noise, then clipping and packet loss in random order;
    last, both are scaled together so that no peak passes the limit.
    """
    target = set_peak(clean, rng.uniform(*config.peak))
    degraded = target
    if noise is not None and rng.random() < config.noise_probability:
        degraded = add_noise(target, noise, rng.uniform(*config.snr_db), rate)

    def clip(wave: np.ndarray) -> np.ndarray:
        lower = rng.uniform(*config.clip_lower_quantile)
        return clip_quantiles(wave, lower, rng.uniform(*config.clip_upper_quantile))

    def lose(wave: np.ndarray) -> np.ndarray:
        packet = round(rate * config.packet_seconds)
        packets = -(-len(wave) // packet)
        share = rng.uniform(*config.loss_rate)
        return lose_packets(wave, lost_packets(packets, share, config.longest_loss, rng), packet)

    effects = [(clip, config.clipping_probability), (lose, config.packet_loss_probability)]
    for place in rng.permutation(len(effects)):
        effect, probability = effects[place]
        if rng.random() < probability:
            degraded = effect(degraded)
    degraded, target = limit_peak((degraded, target), config.peak_limit)
    return degraded, target
