"""Degradation of clean speech: pure functions of (audio, np.random.Generator).

Waves are float32 [samples] at one rate (Hz), full scale at 1. Every random choice is drawn from the
generator that is passed in, so the same generator state gives the same result. The values are those
published for the QuarkAudio speech tasks.
"""

from data_pipelines.simulation.chain import Degradation, degrade
from data_pipelines.simulation.effects import clip_quantiles, lose_packets, lost_packets
from data_pipelines.simulation.levels import (
    active,
    active_power,
    fit,
    is_silent,
    limit_peak,
    set_peak,
)
from data_pipelines.simulation.noise import add_noise, babble, coloured_noise, hum

__all__ = [
    "Degradation",
    "active",
    "active_power",
    "add_noise",
    "babble",
    "clip_quantiles",
    "coloured_noise",
    "degrade",
    "fit",
    "hum",
    "is_silent",
    "limit_peak",
    "lose_packets",
    "lost_packets",
    "set_peak",
]
