"""Pictures of recordings, for eyes."""

from collections.abc import Mapping
from os import PathLike

import numpy as np

from quark_jax.files import replacing

_FLOOR = -80.0  # dB below the loudest of all


def compare(path: str | PathLike, waves: Mapping[str, np.ndarray], rate: int) -> None:
    """Write a PNG of waveform and spectrogram of each wave [samples] at `rate` Hz, one under
    another under its name, on shared axes of time, amplitude, frequency and level."""
    with replacing(path) as beside:
        _figure(waves, rate).savefig(str(beside), dpi=100)


def picture(waves: Mapping[str, np.ndarray], rate: int) -> np.ndarray:
    """What `compare` writes, as pixels uint8 [height, width, 3]."""
    figure = _figure(waves, rate)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _figure(waves: Mapping[str, np.ndarray], rate: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from quark_jax.audio import stft

    n_fft, hop = 512, 128
    levels = {}
    for name, wave in waves.items():
        magnitude = np.abs(np.asarray(stft(wave, n_fft, hop)))
        levels[name] = 20 * np.log10(np.maximum(magnitude, 1e-6)).T
    top = max(level.max() for level in levels.values())
    reach = max(np.abs(wave).max() for wave in waves.values())
    seconds = max(len(wave) for wave in waves.values()) / rate

    figure = Figure(figsize=(12, 2.6 * len(waves)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(waves), 2, squeeze=False, sharex=True)
    for (left, right), (name, wave) in zip(axes, waves.items(), strict=True):
        left.plot(np.arange(len(wave)) / rate, wave, linewidth=0.4)
        left.set(title=name, ylabel="amplitude", xlim=(0, seconds), ylim=(-reach, reach))
        image = right.imshow(
            levels[name],
            origin="lower",
            aspect="auto",
            extent=(0, len(wave) / rate, 0, rate / 2000),
            vmin=top + _FLOOR,
            vmax=top,
            cmap="magma",
        )
        right.set(title=name, ylabel="kHz")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.colorbar(image, ax=list(axes[:, 1]), label="dB")
    return figure
