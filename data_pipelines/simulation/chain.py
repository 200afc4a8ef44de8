"""The degradations of the speech tasks, drawn first, then applied one after another.

All that is random is drawn by `draw` into a `Plan`, which says which signals are needed and is kept
with the example; `degrade` is a function of audio and plan alone.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.simulation.effects import (
    clip_quantiles,
    limit_band,
    lose_packets,
    lost_packets,
)
from data_pipelines.simulation.levels import active_power, limit_peak, set_peak
from data_pipelines.simulation.noise import scale_to_ratio
from data_pipelines.simulation.rooms import direct_path, reverberate


@dataclass(frozen=True)
class Degradation:
    """How often each effect is applied and the range its values are drawn from, uniformly.

    The values are those published for speech restoration; `EXTRACTION` has those of the tasks with
    an enrolment.
    """

    interference_probability: float = 0.2
    sir_db: tuple[float, float] = (2.0, 20.0)
    reverberation_probability: float = 0.3
    noise_probability: float = 0.8
    snr_db: tuple[float, float] = (-5.0, 20.0)
    bandwidth_probability: float = 0.3
    bandwidth_rates: tuple[int, ...] = (4000, 8000, 16000)  # Hz; each as often
    clipping_probability: float = 0.3
    clip_lower_quantile: tuple[float, float] = (0.0, 0.1)
    clip_upper_quantile: tuple[float, float] = (0.9, 1.0)
    packet_loss_probability: float = 0.3
    packet_seconds: float = 0.02
    loss_rate: tuple[float, float] = (0.05, 0.25)
    longest_loss: int = 10  # packets in a row
    peak: tuple[float, float] = (0.1, 0.99)
    peak_limit: float = 0.99


EXTRACTION = Degradation(interference_probability=1.0, sir_db=(-5.0, 5.0))


@dataclass(frozen=True)
class BandLimit:
    """Resampling to `band_rate` Hz and back; see `limit_band`."""

    band_rate: int

    def __call__(self, wave: np.ndarray, rate: int) -> np.ndarray:
        return limit_band(wave, rate, self.band_rate)


@dataclass(frozen=True)
class Clipping:
    """Clipping at two quantiles; see `clip_quantiles`."""

    lower: float
    upper: float

    def __call__(self, wave: np.ndarray, rate: int) -> np.ndarray:
        return clip_quantiles(wave, self.lower, self.upper)


@dataclass(frozen=True)
class PacketLoss:
    """Loss of a share of the packets, those that `seed` gives; see `lost_packets`."""

    packet_seconds: float
    share: float
    longest: int
    seed: int

    def __call__(self, wave: np.ndarray, rate: int) -> np.ndarray:
        packet = round(rate * self.packet_seconds)
        rng = np.random.default_rng(self.seed)
        lost = lost_packets(-(-len(wave) // packet), self.share, self.longest, rng)
        return lose_packets(wave, lost, packet)


@dataclass(frozen=True)
class Plan:
    """What is done to one example.

    Attributes:
        peak: of the clean speech.
        sir_db: of the interfering speaker; None for none.
        reverberant: whether there is a room.
        snr_db: of the noise; None for none.
        channel: the last effects, in order.
        peak_limit: that no signal passes in the end.
    """

    peak: float
    sir_db: float | None = None
    reverberant: bool = False
    snr_db: float | None = None
    channel: tuple[BandLimit | Clipping | PacketLoss, ...] = ()
    peak_limit: float = 0.99


def draw(config: Degradation, rng: np.random.Generator) -> Plan:
    """Draws which effects there are, their values, and the order of the last three."""
    effects = (
        (config.bandwidth_probability, BandLimit(int(rng.choice(config.bandwidth_rates)))),
        (
            config.clipping_probability,
            Clipping(
                rng.uniform(*config.clip_lower_quantile), rng.uniform(*config.clip_upper_quantile)
            ),
        ),
        (
            config.packet_loss_probability,
            PacketLoss(
                config.packet_seconds,
                rng.uniform(*config.loss_rate),
                config.longest_loss,
                int(rng.integers(2**32)),
            ),
        ),
    )
    order = (effects[place] for place in rng.permutation(len(effects)))
    sir_db, snr_db = rng.uniform(*config.sir_db), rng.uniform(*config.snr_db)
    return Plan(
        peak=rng.uniform(*config.peak),
        sir_db=sir_db if rng.random() < config.interference_probability else None,
        reverberant=bool(rng.random() < config.reverberation_probability),
        snr_db=snr_db if rng.random() < config.noise_probability else None,
        channel=tuple(effect for probability, effect in order if rng.random() < probability),
        peak_limit=config.peak_limit,
    )


def degrade(
    clean: np.ndarray,
    plan: Plan,
    *,
    rate: int,
    interferer: np.ndarray | None = None,
    response: np.ndarray | None = None,
    noise: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Makes the (input, target) pair of a speech task: float32 [samples] each.

    Interference, reverberation and noise, then the channel. The interferer goes through the same
    room response as the speech. The ratio of the noise is to all reverberant speech. The target
    keeps the direct path of the room, so that it is aligned with the input. Last, both are scaled
    together so that no peak passes the limit.

    Args:
        clean: the speech to restore [samples], not silent.
        plan: what to do.
        rate: of all signals in Hz.
        interferer, noise: [samples] as `clean`; needed where the plan has a ratio for them.
        response: of the room, peak 1 [samples]; needed where the plan is reverberant.
    """
    target = degraded = set_peak(clean, plan.peak)
    if plan.sir_db is not None:
        degraded = target + scale_to_ratio(target, _needed(interferer), plan.sir_db, rate)
    if plan.reverberant:
        degraded = reverberate(degraded, _needed(response))
        target = reverberate(target, direct_path(response))
    # Speech in the last millisecond alone may have left the cut with the way through the room.
    if plan.snr_db is not None and active_power(degraded, rate) > 0:
        degraded = degraded + scale_to_ratio(degraded, _needed(noise), plan.snr_db, rate)
    for effect in plan.channel:
        degraded = effect(degraded, rate)
    return limit_peak((degraded, target), plan.peak_limit)


def _needed(wave: np.ndarray | None) -> np.ndarray:
    if wave is None:
        raise ValueError("the plan needs an interferer, a room response or noise that is not given")
    return wave
