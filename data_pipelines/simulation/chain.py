"""The degradations of speech restoration, one after another."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.simulation.effects import clip_quantiles, lose_packets, lost_packets
from data_pipelines.simulation.levels import limit_peak, set_peak
from data_pipelines.simulation.noise import add_noise


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
