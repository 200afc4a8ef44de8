"""How good audio is: metrics that compare an estimate with its reference or judge it alone."""

from quark_jax.evaluation.clap import Clap
from quark_jax.evaluation.frechet import frechet_audio_distance, frechet_distance
from quark_jax.evaluation.metrics import (
    best_permutation,
    codebook_use,
    log_spectral_distance,
    mel_distance,
    sdr,
    si_sdr,
    stoi,
)
from quark_jax.evaluation.quality import (
    character_error_rate,
    dnsmos,
    dnsmos_p835,
    pesq_wb,
    plcmos,
    speaker_similarity,
    transcribe_english,
    visqol,
    word_error_rate,
)

__all__ = [
    "Clap",
    "best_permutation",
    "character_error_rate",
    "codebook_use",
    "dnsmos",
    "dnsmos_p835",
    "frechet_audio_distance",
    "frechet_distance",
    "log_spectral_distance",
    "mel_distance",
    "pesq_wb",
    "plcmos",
    "sdr",
    "si_sdr",
    "speaker_similarity",
    "stoi",
    "transcribe_english",
    "visqol",
    "word_error_rate",
]
