"""Noise, and adding one signal to another at a given ratio."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.simulation.levels import active_power


def scale_to_ratio(speech: np.ndarray, other: np.ndarray, ratio_db: float, rate: int) -> np.ndarray:
    """`other` [samples] scaled so that `speech` [samples] is `ratio_db` above it: float32.

    The ratio is that of the powers of the two over their own non-silent parts, so that neither
    pauses in the speech nor gaps in the noise shift it.
    """
    speech_power, other_power = active_power(speech, rate), active_power(other, rate)
    if speech_power == 0 or other_power == 0:
        raise ValueError("the ratio of a signal to silence has no meaning")
    gain = np.sqrt(speech_power / other_power / 10 ** (ratio_db / 10))
    return (gain * other).astype(np.float32)


def add_noise(speech: np.ndarray, noise: np.ndarray, snr_db: float, rate: int) -> np.ndarray:
    """Adds `noise` [samples] to `speech` [samples] at `snr_db`, measured as in `scale_to_ratio`."""
    return speech + scale_to_ratio(speech, noise, snr_db, rate)


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
