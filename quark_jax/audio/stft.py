"""Short-time Fourier transform and its inverse, with "same" padding.

(n_fft - hop) / 2 zeros go on both sides and no frame is centred, so samples // hop frames come out
and frames * hop samples go back (the ISTFT head of Vocos, arXiv 2306.00814). Because hop divides
n_fft, framing and overlap-add are reshapes and shifted copies: no gather, no scatter.
"""

import jax
import jax.numpy as jnp
import numpy as np

from quark_jax.errors import UserError


def stft(wave: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Spectrum complex64 [..., samples // hop, n_fft // 2 + 1] of a wave [..., samples].

    Periodic Hann window. Samples after the last whole hop are left out. No part is ever a negative
    zero and the first and last bin have imaginary part +0, so that the angle of silence is 0 and
    that of a negative real number +pi, whatever the FFT library returns.

    Raises:
        UserError: if hop does not divide n_fft as it has to, or the wave is shorter than a hop.
    """
    overlap = _overlap(n_fft, hop)
    frames = wave.shape[-1] // hop
    if frames == 0:
        raise UserError(f"wave: {wave.shape[-1]} samples are less than one hop of {hop}; pad it")
    pad = (n_fft - hop) // 2
    widths = [(0, 0)] * (wave.ndim - 1) + [(pad, n_fft)]
    padded = jnp.pad(wave.astype(jnp.float32), widths)[..., : (frames + overlap - 1) * hop]
    rows = padded.reshape(*wave.shape[:-1], frames + overlap - 1, hop)
    framed = jnp.concatenate([rows[..., k : k + frames, :] for k in range(overlap)], axis=-1)
    spectrum = jnp.fft.rfft(framed * _hann(n_fft))
    real, imaginary = spectrum.real, spectrum.imag
    zero = jnp.zeros((), real.dtype)
    silent = (imaginary == 0) | _is_edge_bin(n_fft)
    return jax.lax.complex(jnp.where(real == 0, zero, real), jnp.where(silent, zero, imaginary))


def istft(spectrum: jax.Array, n_fft: int, hop: int, lengths: jax.Array | None = None) -> jax.Array:
    """Wave float32 [..., frames * hop] of a spectrum [..., frames, n_fft // 2 + 1].

    Windows by a periodic Hann, overlaps, adds, and divides by the overlap-added squared window.
    Imaginary parts of the first and the last bin have no effect. `lengths` [...] counts the frames
    of each item: it gets the wave that it gets alone, and zeros after it.

    Raises:
        UserError: if hop does not divide n_fft as it has to, or the bins do not fit n_fft.
    """
    overlap = _overlap(n_fft, hop)
    frames, bins = spectrum.shape[-2:]
    if bins != n_fft // 2 + 1:
        raise UserError(f"spectrum: {bins} bins, n_fft {n_fft} has {n_fft // 2 + 1}; match the two")
    window = _hann(n_fft)
    # The FFT libraries disagree on what these imaginary parts do, hence none are passed.
    imaginary = jnp.where(_is_edge_bin(n_fft), jnp.zeros((), jnp.float32), spectrum.imag)
    framed = jnp.fft.irfft(jax.lax.complex(spectrum.real, imaginary), n_fft) * window
    pieces = framed.reshape(*framed.shape[:-1], overlap, hop)
    if lengths is not None:
        held = np.arange(frames) < lengths[..., None]
        pieces = jnp.where(held[..., None, None], pieces, 0)
    # Row j of the sum holds piece k of frame j - k, wherever there is such a frame.
    row = np.arange(frames + overlap - 1)
    wave, envelope = 0.0, 0.0
    for k in range(overlap):
        shift = [(0, 0)] * (framed.ndim - 2) + [(k, overlap - 1 - k), (0, 0)]
        wave += jnp.pad(pieces[..., k, :], shift)
        last = k + (frames if lengths is None else lengths[..., None])
        present = ((row >= k) & (row < last)).astype(np.float32)
        envelope += present[..., None] * window[k * hop : (k + 1) * hop] ** 2
    trim = (n_fft - hop) // 2
    kept = slice(trim, trim + frames * hop)
    wave = wave.reshape(*framed.shape[:-2], -1)[..., kept]
    envelope = envelope.reshape(*envelope.shape[:-2], -1)[..., kept]
    if lengths is None:
        return wave / envelope
    inside = np.arange(frames * hop) < lengths[..., None] * hop
    return jnp.where(inside, wave / jnp.where(inside, envelope, 1), 0)


def _overlap(n_fft: int, hop: int) -> int:
    """Hops in a window; refuses the pairs that "same" padding cannot serve."""
    if hop < 1 or n_fft % 2 or n_fft % hop or (n_fft - hop) % 2 or n_fft == hop:
        raise UserError(
            f"n_fft {n_fft}, hop {hop}: n_fft has to be even and a multiple of hop, at least twice "
            "it, and n_fft - hop even; choose others, such as 1280 and 320"
        )
    return n_fft // hop


def _hann(size: int) -> np.ndarray:
    """Periodic Hann window, float32 [size]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def _is_edge_bin(n_fft: int) -> np.ndarray:
    """bool [bins]: the first and the last, which are real for a real signal."""
    bins = np.arange(n_fft // 2 + 1)
    return (bins == 0) | (bins == n_fft // 2)
