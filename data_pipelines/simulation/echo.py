"""Acoustic echo: far-end speech that comes back through a loudspeaker and a room."""

from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, sosfilt

from data_pipelines.simulation.levels import is_silent, limit_peak, set_peak
from data_pipelines.simulation.noise import add_noise, scale_to_ratio
from data_pipelines.simulation.rooms import reverberate

_LOWEST_HZ = 80.0
_FADE_SECONDS = 0.01


@dataclass(frozen=True)
class Echo:
    """How echoes are drawn, uniformly.

    Probabilities of distortion and noise, the ratios, and the share of the near end follow the
    synthetic data of the ICASSP 2021 AEC Challenge (Sridhar et al., 2021); the others are our
    choice.

    Attributes:
        ser_db: near-end speech over echo.
        distortion_probability, clip: of the loudspeaker; see `loudspeaker`.
        near_noise_probability, far_noise_probability, snr_db: of noise at each end.
        near_share, far_share: of the example in which each end speaks, in one piece. They overlap
            by chance: double talk, and each end alone.
        delay_seconds: from the far-end signal to the loudspeaker.
    """

    ser_db: tuple[float, float] = (-10.0, 10.0)
    distortion_probability: float = 0.8
    clip: tuple[float, float] = (0.6, 1.0)
    near_noise_probability: float = 0.5
    far_noise_probability: float = 0.5
    snr_db: tuple[float, float] = (0.0, 40.0)
    near_share: tuple[float, float] = (0.3, 0.7)
    far_share: tuple[float, float] = (0.6, 1.0)
    delay_seconds: tuple[float, float] = (0.0, 0.1)
    peak: tuple[float, float] = (0.1, 0.99)
    peak_limit: float = 0.99


@dataclass(frozen=True)
class EchoPlan:
    """One drawn echo. Spans are (start, stop) as shares of the example; None is for none."""

    ser_db: float
    near_peak: float
    far_peak: float
    near_span: tuple[float, float]
    far_span: tuple[float, float]
    delay_seconds: float
    clip: float | None = None
    near_snr_db: float | None = None
    far_snr_db: float | None = None
    peak_limit: float = 0.99


def draw_echo(config: Echo, rng: np.random.Generator) -> EchoPlan:
    """Draws an echo."""

    def maybe(probability: float, limits: tuple[float, float]) -> float | None:
        value = rng.uniform(*limits)
        return value if rng.random() < probability else None

    def span(limits: tuple[float, float]) -> tuple[float, float]:
        share = rng.uniform(*limits)
        start = rng.uniform(0, 1 - share)
        return start, start + share

    return EchoPlan(
        ser_db=rng.uniform(*config.ser_db),
        near_peak=rng.uniform(*config.peak),
        far_peak=rng.uniform(*config.peak),
        near_span=span(config.near_share),
        far_span=span(config.far_share),
        delay_seconds=rng.uniform(*config.delay_seconds),
        clip=maybe(config.distortion_probability, config.clip),
        near_snr_db=maybe(config.near_noise_probability, config.snr_db),
        far_snr_db=maybe(config.far_noise_probability, config.snr_db),
        peak_limit=config.peak_limit,
    )


def add_echo(
    near: np.ndarray,
    far: np.ndarray,
    plan: EchoPlan,
    *,
    rate: int,
    response: np.ndarray,
    near_noise: np.ndarray | None = None,
    far_noise: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the microphone hears, the near-end speech in it, and the far-end signal.

    Each end speaks in its span. The far end with its noise is delayed, distorted, and goes through
    the room; the echo is scaled to its ratio over the active parts of both; noise of the near end
    is added last. Microphone and near end are scaled together so that no peak passes the limit.
    Where none of it arrives before the end, there is no echo.

    Args:
        near, far: speech [samples], not silent.
        plan: what to do.
        rate: of all signals in Hz.
        response: from loudspeaker to microphone [samples].
        near_noise, far_noise: [samples]; needed where the plan has a ratio for them.

    Returns:
        float32 [samples] each.
    """
    near = set_peak(speak_in(near, plan.near_span, rate), plan.near_peak)
    far = speak_in(far, plan.far_span, rate)
    if plan.far_snr_db is not None:
        far = add_noise(far, far_noise, plan.far_snr_db, rate)
    far = set_peak(far, plan.far_peak)
    delay = round(plan.delay_seconds * rate)
    played = np.concatenate((np.zeros(delay, np.float32), far))[: len(far)]
    if plan.clip is not None and not is_silent(played):
        played = loudspeaker(played, rate, plan.clip)
    echo = reverberate(played, response)
    # What is said at the very end alone leaves the example on its way to the microphone.
    gone = is_silent(echo)
    echo = np.zeros_like(near) if gone else scale_to_ratio(near, echo, plan.ser_db, rate)
    microphone = near + echo
    if plan.near_snr_db is not None:
        microphone = add_noise(near, near_noise, plan.near_snr_db, rate) + echo
    return *limit_peak((microphone, near), plan.peak_limit), far


def speak_in(wave: np.ndarray, span: tuple[float, float], rate: int) -> np.ndarray:
    """`wave` [samples], silent but for `span` (shares of it), faded over 10 ms at its ends; all of
    it where nothing is heard within the span."""
    start, stop = (round(share * len(wave)) for share in span)
    fade = np.arange(1, round(_FADE_SECONDS * rate) + 1) / round(_FADE_SECONDS * rate)
    fade = fade[: (stop - start) // 2].astype(np.float32)
    part = np.zeros_like(wave)
    part[start:stop] = wave[start:stop]
    part[start : start + len(fade)] *= fade
    part[stop - len(fade) : stop] *= fade[::-1]
    return wave if is_silent(part) else part


def loudspeaker(wave: np.ndarray, rate: int, clip: float) -> np.ndarray:
    """`wave` [samples], not silent, as a small overdriven loudspeaker plays it: float32 [samples].

    The memoryless distortion of Zhang and Wang ("Deep learning for acoustic echo cancellation in
    noisy and double-talk scenarios", 2018): the amplifier clips at `clip` (0..1) of the peak, then
    an asymmetric sigmoid stands for the cone. What is below 80 Hz, which the sigmoid makes much of,
    is not radiated.
    """
    x = np.clip(wave / np.max(np.abs(wave)), -clip, clip)
    bent = 1.5 * x - 0.3 * np.square(x)
    driven = 4 * np.tanh(np.where(bent > 0, 4.0, 0.5) * bent / 2)
    high_pass = butter(2, _LOWEST_HZ, "highpass", fs=rate, output="sos")
    return sosfilt(high_pass, driven).astype(np.float32)
