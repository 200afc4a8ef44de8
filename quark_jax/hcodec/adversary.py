"""Discriminators that a codec is trained against: of periods of the wave (HiFi-GAN, 2010.05646) and
of bands of its complex spectrum (DAC, 2306.06546)."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from quark_jax.audio import stft
from quark_jax.config import from_dict, to_dict
from quark_jax.errors import UserError
from quark_jax.files import read_json, replacing
from quark_jax.nn.layers import Dtype

_SLOPE = 0.1  # of the leaky ReLU
_PEAK = 0.8  # that every wave is scaled to
_SPECTRAL_STRIDES = (1, 2, 2, 2, 1)  # along frequency


@dataclass(frozen=True)
class AdversaryConfig:
    """What the discriminators look at, and how wide they are.

    Windows are samples and bands are shares of half the sample rate. DAC has the same ones at
    16, 24 and 44.1 kHz, so they are the same here for 16 and for 48 kHz: windows of 128, 64 and
    32 ms, or of 43, 21 and 11 ms, and a lowest band up to 800 Hz or 2.4 kHz.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)  # samples
    period_widths: tuple[int, ...] = (32, 128, 512, 1024, 1024)  # channels after each convolution
    windows: tuple[int, ...] = (2048, 1024, 512)  # samples; hop a quarter
    bands: tuple[tuple[float, float], ...] = (
        (0.0, 0.1),
        (0.1, 0.25),
        (0.25, 0.5),
        (0.5, 0.75),
        (0.75, 1.0),
    )
    band_width: int = 32  # channels

    def __post_init__(self):
        if not self.periods and not self.windows:
            raise UserError("adversary: neither periods nor windows; name at least one")
        if min(self.periods, default=1) < 1 or not self.period_widths:
            raise UserError(
                f"adversary: periods {list(self.periods)} of widths {list(self.period_widths)}; "
                "use periods of at least 1 and at least one width"
            )
        for window in self.windows:
            if window < 8 or window % 8:
                raise UserError(f"adversary.windows: {window} is not a multiple of 8; use one")
            if not self.bands or not all(
                0 <= low < high <= window // 2 + 1 for low, high in self.bins(window)
            ):
                raise UserError(
                    f"adversary.bands: {[list(band) for band in self.bands]} leave a band without "
                    f"bins of a window of {window} samples; use wider ones between 0 and 1"
                )

    def bins(self, window: int) -> list[tuple[int, int]]:
        """First bin of each band, and the one after its last, in spectra of that window."""
        count = window // 2 + 1
        return [(int(low * count), int(high * count)) for low, high in self.bands]

    @classmethod
    def preset(cls, name: str) -> "AdversaryConfig":
        """The config called `name`: "16khz", "48khz" or "tiny"."""
        if name not in _PRESETS:
            raise UserError(
                f"adversary preset {name!r}: unknown, choose one of {', '.join(_PRESETS)}"
            )
        return _PRESETS[name]


_FULL = AdversaryConfig()
# 0.75 M, for a codec of a few million at 16 kHz.
_TINY = replace(_FULL, period_widths=(16, 32, 64, 128, 128), windows=(1024, 256), band_width=8)
_PRESETS = {"16khz": _FULL, "48khz": _FULL, "tiny": _TINY}


class Judgement(NamedTuple):
    """What one discriminator makes of a batch; real is near 1, made near 0 (or -1 with hinge)."""

    score: jax.Array  # [batch, ..., 1], one number for each place it looked at
    features: list[jax.Array]  # [batch, ..., channels], of every layer but the last


class Conv(nnx.Module):
    """Weight-normalised convolution over the axes of `kernel`, zero-padded by half of it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, ...],
        *,
        strides: tuple[int, ...],
        dtype: Dtype = None,
        rngs: nnx.Rngs,
    ):
        init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's
        direction = init(rngs.params(), (*kernel, inputs, outputs), jnp.float32)
        # Few input channels, of the wave or of its spectrum, are not split.
        axes = (*(None for _ in kernel), "channels_in" if inputs > 2 else None, "channels_out")
        self.direction = nnx.Param(direction, axes=axes)
        self.gain = nnx.Param(_norm(direction))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.strides = strides
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, ..., inputs] -> [batch, ..., outputs], axis i of ceil(size / strides[i])."""
        direction = self.direction[...]
        dtype = self.dtype or x.dtype
        kernel = (direction * (self.gain[...] / _norm(direction))).astype(dtype)
        pads = [(size // 2, size // 2) for size in kernel.shape[:-2]]
        x, strides, spatial = x.astype(dtype), self.strides, "HW"[: x.ndim - 2]
        if strides[1:] and strides[-1] > 1:
            x, kernel = _fold(x, kernel, strides[-1])
            strides, pads[-1] = (*strides[:-1], 1), (0, 0)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            pads,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        )
        return y + self.bias[...].astype(dtype)


def _fold(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """`stride` bins of [batch, frames, bins, channels] as channels of one, padded, and the kernel
    that does on them at stride 1 what `kernel` does on bins. On a CPU, XLA's gradients of strided
    convolutions over two axes take up to ten times as long."""
    batch, frames, bins, channels = x.shape
    rows, taps = -(-bins // stride), -(-kernel.shape[1] // stride)
    left, total = kernel.shape[1] // 2, (rows + taps - 1) * stride
    x = jnp.pad(x, ((0, 0), (0, 0), (left, max(0, total - left - bins)), (0, 0)))[:, :, :total]
    kernel = jnp.pad(kernel, ((0, 0), (0, taps * stride - kernel.shape[1]), (0, 0), (0, 0)))
    return (
        x.reshape(batch, frames, rows + taps - 1, stride * channels),
        kernel.reshape(kernel.shape[0], taps, stride * channels, kernel.shape[-1]),
    )


def _norm(direction: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(direction**2, axis=tuple(range(direction.ndim - 1))))


class PeriodDiscriminator(nnx.Module):
    """Looks at every `period`-th sample, from each of the `period` first ones on."""

    def __init__(self, period: int, widths: tuple[int, ...], *, dtype: Dtype, rngs: nnx.Rngs):
        strides = [3] * (len(widths) - 1) + [1]
        self.convs = nnx.List(
            [
                Conv(inputs, outputs, (5,), strides=(stride,), dtype=dtype, rngs=rngs)
                for (inputs, outputs), stride in zip(pairwise((1, *widths)), strides, strict=True)
            ]
        )
        self.last = Conv(widths[-1], 1, (3,), strides=(1,), dtype=dtype, rngs=rngs)
        self.period = period

    def __call__(self, wave: jax.Array) -> Judgement:
        """Wave [batch, samples] -> score and features [batch, period, frames, channels]."""
        batch, samples = wave.shape
        # As DAC: a wave of whole periods gets one more.
        pad = self.period - samples % self.period
        x = jnp.pad(wave, ((0, 0), (0, pad)), mode="reflect")
        # The periods are items of a batch: what a two-dimensional kernel of width 1 computes.
        x = x.reshape(batch, -1, self.period).swapaxes(1, 2).reshape(batch * self.period, -1, 1)

        def apart(x: jax.Array) -> jax.Array:
            return x.reshape(batch, self.period, *x.shape[1:])

        features = []
        for conv in self.convs:
            x = jax.nn.leaky_relu(conv(x), _SLOPE)
            features.append(apart(x))
        return Judgement(apart(self.last(x)), features)


class SpectralDiscriminator(nnx.Module):
    """Looks at bands of the complex spectrum, each with layers of its own, then at all of them."""

    def __init__(
        self,
        window: int,
        bins: list[tuple[int, int]],
        width: int,
        *,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        def stack() -> nnx.List:
            convs = []
            for i, stride in enumerate(_SPECTRAL_STRIDES):
                final = i == len(_SPECTRAL_STRIDES) - 1
                convs.append(
                    Conv(
                        width if i else 2,
                        width,
                        (3, 3) if final else (3, 9),
                        strides=(1, stride),
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
            return nnx.List(convs)

        self.bands = nnx.List([stack() for _ in bins])
        self.last = Conv(width, 1, (3, 3), strides=(1, 1), dtype=dtype, rngs=rngs)
        self.window = window
        self.bins = tuple(bins)

    def __call__(self, wave: jax.Array) -> Judgement:
        """Wave [batch, samples] -> score and features [batch, frames, bins, channels], a frame each
        quarter of a window."""
        spectrum = self._spectrum(wave)
        features, outputs = [], []
        for (low, high), convs in zip(self.bins, self.bands, strict=True):
            x = spectrum[:, :, low:high]
            for conv in convs:
                x = jax.nn.leaky_relu(conv(x), _SLOPE)
                features.append(x)
            outputs.append(x)
        return Judgement(self.last(jnp.concatenate(outputs, axis=2)), features)

    def _spectrum(self, wave: jax.Array) -> jax.Array:
        """[batch, ceil(samples / hop), window / 2 + 1, 2], the wave continued by reflection."""
        hop = self.window // 4
        if wave.shape[1] < 3 * hop:
            raise UserError(
                f"wave: {wave.shape[1]} samples are too few for discriminators with a window of "
                f"{self.window}; use cuts of at least {3 * hop}, or shorter windows"
            )
        right = -wave.shape[1] % hop + 2 * hop
        padded = jnp.pad(wave, ((0, 0), (2 * hop, right)), mode="reflect")
        # The outer two frames on either side see the zeros that `stft` pads with.
        spectrum = stft(padded, self.window, hop)[:, 2:-2]
        return jnp.stack([spectrum.real, spectrum.imag], axis=-1)


class Adversary(nnx.Module):
    """All discriminators of one config.

    Parameters are float32; `dtype` is the compute dtype of the convolutions, spectra are float32.
    """

    def __init__(self, config: AdversaryConfig, *, dtype: Dtype = None, rngs: nnx.Rngs):
        periods = [
            PeriodDiscriminator(period, config.period_widths, dtype=dtype, rngs=rngs)
            for period in config.periods
        ]
        spectral = [
            SpectralDiscriminator(
                window, config.bins(window), config.band_width, dtype=dtype, rngs=rngs
            )
            for window in config.windows
        ]
        self.discriminators = nnx.List([*periods, *spectral])
        self.config = config

    def __call__(self, wave: jax.Array) -> list[Judgement]:
        """Judge waves [batch, samples], each by itself: its mean is taken off and its peak scaled
        to 0.8, so that level plays no part. Raises UserError where they are shorter than three
        quarters of the longest window."""
        wave = wave.astype(jnp.float32)
        wave = wave - jnp.mean(wave, axis=1, keepdims=True)
        wave = _PEAK * wave / (jnp.max(jnp.abs(wave), axis=1, keepdims=True) + 1e-9)
        return [discriminator(wave) for discriminator in self.discriminators]

    # Weights to and from PyTorch, by one table (`quark_jax.interop.adversary`).

    @classmethod
    def from_torch(cls, state, config: AdversaryConfig, *, dtype: Dtype = None) -> "Adversary":
        """Discriminators with the weights `state`: {name in DAC's Discriminator: array}, or the
        path of a .pt or .safetensors file. Both key styles of PyTorch's weight normalisation are
        read. Raises UserError that lists every tensor that does not fit."""
        from quark_jax.interop.adversary import load_adversary

        return load_adversary(state, config, dtype=dtype)

    def to_torch(self) -> dict[str, np.ndarray]:
        """{name in DAC's Discriminator: array}."""
        from quark_jax.interop.adversary import adversary_to_torch

        return adversary_to_torch(self)

    @classmethod
    def load(cls, folder: str | PathLike) -> "Adversary":
        """The discriminators that `save` wrote to `folder`. Raises UserError where something is
        missing, damaged or does not fit."""
        path = epath.Path(folder) / "adversary.json"
        fields = read_json(path, "give the folder of a codec that was trained against some")
        return cls.from_torch(
            path.with_suffix(".safetensors"), from_dict(AdversaryConfig, fields, str(path))
        )

    def save(self, folder: str | PathLike) -> None:
        """Write adversary.json and adversary.safetensors (DAC's names) into `folder`."""
        from quark_jax.interop.files import write_state

        path = epath.Path(folder) / "adversary.json"
        write_state(path.with_suffix(".safetensors"), self.to_torch())
        with replacing(path) as beside:
            beside.write_text(json.dumps(to_dict(self.config), indent=1))
