"""How good audio is: metrics that compare an estimate with its reference."""

from quark_jax.evaluation.metrics import log_spectral_distance, mel_distance, si_sdr, stoi

__all__ = ["log_spectral_distance", "mel_distance", "si_sdr", "stoi"]
