"""Audio files, resampling, short-time Fourier transforms and mel spectrograms.

`read`, `write`, `info`, `read_blocks`, `resample` and `mel_filterbank` work on NumPy arrays on the
host; `resample_sinc`, `stft`, `istft` and `mel_spectrogram` are JAX functions that can be jitted
and differentiated.
"""

from quark_jax.audio.io import FORMATS, AudioInfo, info, read, read_blocks, write
from quark_jax.audio.mel import mel_filterbank, mel_spectrogram
from quark_jax.audio.resample import resample, resample_sinc
from quark_jax.audio.stft import istft, stft

__all__ = [
    "FORMATS",
    "AudioInfo",
    "info",
    "istft",
    "mel_filterbank",
    "mel_spectrogram",
    "read",
    "read_blocks",
    "resample",
    "resample_sinc",
    "stft",
    "write",
]
