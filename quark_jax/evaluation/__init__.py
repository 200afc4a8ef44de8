"""How good audio is: metrics that compare an estimate with its reference or judge it alone."""

from quark_jax.evaluation.metrics import log_spectral_distance, mel_distance, si_sdr, stoi
from quark_jax.evaluation.quality import (
    dnsmos,
    pesq_wb,
    speaker_similarity,
    transcribe_english,
    word_error_rate,
)

__all__ = [
    "dnsmos",
    "log_spectral_distance",
    "mel_distance",
    "pesq_wb",
    "si_sdr",
    "speaker_similarity",
    "stoi",
    "transcribe_english",
    "word_error_rate",
]
