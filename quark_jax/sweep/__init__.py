"""Codecs compared: each is trained, evaluated, and its codes learned by a language model."""

from quark_jax.sweep.config import CodecStage, Listening, Point, Sweep, Tokens
from quark_jax.sweep.report import write_report
from quark_jax.sweep.run import run_sweep
from quark_jax.sweep.words import PLACES, frames_by_place

__all__ = [
    "PLACES",
    "CodecStage",
    "Listening",
    "Point",
    "Sweep",
    "Tokens",
    "frames_by_place",
    "run_sweep",
    "write_report",
]
