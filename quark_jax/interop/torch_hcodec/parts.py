"""The parts of H-Codec: encoders, segments of frames, quantiser, decoders."""

import math
from itertools import pairwise
from types import SimpleNamespace as Config

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    Residual,
    Steps,
    Transpose,
    conv,
    convnext,
    recurrent_transformer,
    reflect_conv,
    transformer,
)

# Acoustic encoders: wave [batch, samples] -> embedding [batch, dim, frames]


class SeanetBlock(nn.Module):
    """Two convolutions and a shortcut, as in EnCodec, [batch, width, time] -> same."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        first, second = reflect_conv(width, half, 3), reflect_conv(half, width, 1)
        self.block = nn.Sequential(nn.ELU(), first, nn.ELU(), second)
        self.shortcut = reflect_conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


def seanet(config: Config, dim: int) -> Steps:
    """Encoder of 1.0 and 1.5: convolutions on the wave."""
    width = config.filters
    layers = [reflect_conv(1, width, 7)]
    for stride in config.strides:
        down = reflect_conv(width, 2 * width, 2 * stride, stride)
        layers += [SeanetBlock(width), nn.ELU(), down]
        width *= 2
    recurrent = recurrent_transformer(width, config.heads, 4 * width, config.layers)
    last = reflect_conv(width, dim, 2 * config.last_stride, config.last_stride)
    layers += [Transpose(), recurrent, Transpose(), nn.ELU(), last]
    return Steps(channel=nn.Unflatten(1, (1, -1)), model=nn.Sequential(*layers))


class STFT(nn.Module):
    """Wave [batch, samples] -> log-magnitudes, then phases / pi: [batch, n_fft + 2, frames]."""

    def __init__(self, n_fft: int, hop: int):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, wave: Tensor) -> Tensor:
        side = (self.n_fft - self.hop) // 2
        frames = F.pad(wave, (side, side)).unfold(-1, self.n_fft, self.hop)
        spectrum = torch.fft.rfft(frames * self.window)
        # The sign of a zero chooses among angles 0, pi and -pi. FFT libraries differ there; here
        # real bins have imaginary part +0, and silence has angle 0.
        spectrum.imag[..., [0, -1]] = 0.0
        magnitude = spectrum.abs()
        phase = torch.where(magnitude == 0, 0.0, spectrum.angle() / math.pi)
        return torch.cat((magnitude.clamp(min=1e-5).log(), phase), dim=-1).transpose(1, 2)


def spectral(config: Config, dim: int, stride: int) -> Steps:
    """Encoder of 2.0: a network on the STFT, with one frame out of `stride` in."""
    width, inner = config.width, min(4 * config.width, 4096)
    recurrent = recurrent_transformer(width, config.heads, inner, config.layers)
    return Steps(
        stft=STFT(config.n_fft, config.hop),
        embed=conv(config.n_fft + 2, width, 3),
        before=Transpose(),
        norm=nn.LayerNorm(width, eps=1e-6),
        prior_net=convnext(width, config.inner, config.blocks),
        post_net=Steps(**{"1": recurrent}),
        final_layer_norm=nn.LayerNorm(width, eps=1e-6),
        after=Transpose(),
        out=conv(width, dim, 2 * stride + 1, stride),
    )


# Semantic encoder and decoder


def semantic_units(width: int) -> nn.Sequential:
    """Two residual units, [batch, width, time] -> same."""

    def unit() -> Residual:
        wide = conv(width, width, 3, bias=False)
        point = nn.Conv1d(width, width, 1, bias=False)
        return Residual(elu1=nn.ELU(), conv1=wide, elu2=nn.ELU(), conv2=point)

    return nn.Sequential(unit(), unit())


def semantic_encoder(config: Config, dim: int) -> Steps:
    """Compressed SSL features [batch, channels, 50 Hz frames] -> [batch, dim, frames]."""
    width = config.width

    def block(stride: int) -> Steps:
        down = conv(width, width, 3 if stride == 1 else 2 * stride, stride)
        return Steps(res_units=semantic_units(width), conv=down)

    return Steps(
        conv=conv(config.channels, width, 3, bias=False),
        conv_blocks=nn.Sequential(*map(block, config.strides)),
        conv2=conv(width, dim, 3, bias=False),
    )


def semantic_decoder(config: Config, dim: int) -> Steps:
    """Quantised stream [batch, dim, frames] -> compressed features [batch, channels, 50 Hz]."""
    width = config.width

    def block(s: int) -> Steps:
        up = conv(width, width, 3)
        if s > 1:
            up = nn.ConvTranspose1d(width, width, 2 * s, s, (s + 1) // 2, output_padding=s % 2)
            up = Steps(deconv=up)
        return Steps(conv=up, res_units=semantic_units(width))

    return Steps(
        conv1=conv(dim, width, 3, bias=False),
        conv_blocks=nn.Sequential(*map(block, config.strides)),
        conv2=conv(width, config.channels, 3, bias=False),
    )


def compress(features: Tensor) -> Tensor:
    """Magnitude compression of raw SSL features; zero counts as negative, so 0 maps to -0."""
    power = features.abs() ** 0.3
    return torch.where(features > 0, power, -power)


# Dynamic frame rate


def segment_lengths(x: Tensor, threshold: float, longest: int) -> list[int]:
    """Frames per segment of one semantic embedding [dim, frames].

    A segment starts where a frame's similarity to the one before is at or below the threshold,
    and every `longest` frames after that.
    """
    similarity = F.cosine_similarity(x[:, :-1], x[:, 1:], dim=0, eps=1e-8)
    starts = 1 + torch.nonzero(similarity <= threshold)[:, 0]
    lengths = []
    for start, end in pairwise([0, *starts.tolist(), x.shape[1]]):
        whole, rest = divmod(end - start, longest)
        lengths += [longest] * whole + [rest] * (rest > 0)
    return lengths


class Aggregator(nn.Module):
    """One frame per segment: what a query placed right after the segment gathers.

    [batch, dim, frames] -> [batch, dim, segments].
    """

    def __init__(self, dim: int, heads: int, inner: int, depth: int):
        super().__init__()
        self.query_embedding = nn.Parameter(torch.zeros(1, dim, 1))
        self.transformer = transformer(dim, heads, inner, depth)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        """[batch, dim, sum(lengths)] -> [batch, dim, len(lengths)]."""
        pieces = []
        for segment in x.split(lengths, dim=-1):
            pieces += [segment, segment.mean(-1, keepdim=True) + self.query_embedding]
        queries = torch.tensor(lengths, device=x.device).add(1).cumsum(0) - 1
        return self.transformer(torch.cat(pieces, dim=-1))[..., queries]


# Residual vector quantiser


class Codebook(nn.Module):
    """One codebook, `embed` [1, size, dim]; the other buffers are of training, not read here."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("initted", torch.ones((), dtype=torch.bool))
        self.register_buffer("cluster_size", torch.ones(1, size))
        self.register_buffer("embed_avg", torch.zeros(1, size, dim))
        self.register_buffer("embed", torch.zeros(1, size, dim))

    def nearest(self, x: Tensor) -> Tensor:
        """The first of the nearest rows: [batch, time, dim] -> [batch, time]."""
        rows = self.embed[0]
        return (rows.square().sum(-1) - 2 * x @ rows.T).argmin(-1)

    def rows(self, codes: Tensor) -> Tensor:
        """[batch, time] -> [batch, time, dim]; a code of -1 has a row of zeros."""
        return self.embed[0][codes.clamp(min=0)] * (codes >= 0)[..., None]


class Quantiser(nn.Module):
    """Residual vector quantiser, [batch, dim, time] <-> codes [batch, codebooks, time]."""

    def __init__(self, config: Config, codebooks: int):
        super().__init__()
        books = (Codebook(config.codebook_size, config.width) for _ in range(codebooks))
        self.layers = nn.ModuleList(Steps(_codebook=book) for book in books)
        self.width = config.width

    def encode(self, x: Tensor) -> Tensor:
        """[batch, dim, time] -> codes [batch, codebooks, time]."""
        residual = x.transpose(1, 2)
        codes = x.new_zeros(len(x), len(self.layers), x.shape[2], dtype=torch.long)
        for i, (book,) in enumerate(self.layers):
            codes[:, i] = book.nearest(residual)
            residual = residual - book.rows(codes[:, i])
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [batch, codebooks, time] -> [batch, dim, time]."""
        rows = [book.rows(c) for (book,), c in zip(self.layers, codes.unbind(1), strict=True)]
        none = torch.zeros(len(codes), codes.shape[2], self.width, device=codes.device)
        return sum(rows, none).transpose(1, 2)


# Decoder


class Interleave(nn.Module):
    """[batch, times * width, time] -> [batch, width, times * time]: the parts take turns."""

    def __init__(self, times: int):
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(x.chunk(self.times, dim=1), dim=-1).flatten(2)


def residual_block(width: int) -> Residual:
    """Two normalised convolutions and a residual, [batch, width, time] -> same."""
    norm1, norm2 = (nn.GroupNorm(32, width, eps=1e-6) for _ in range(2))
    conv1, conv2 = conv(width, width, 3), conv(width, width, 3)
    return Residual(
        norm1=norm1, swish1=nn.SiLU(), conv1=conv1, norm2=norm2, swish2=nn.SiLU(), conv2=conv2
    )


class ISTFT(nn.Module):
    """Log-magnitudes, then phases in radians [batch, frames, n_fft + 2] -> [batch, samples]."""

    def __init__(self, n_fft: int, hop: int):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, x: Tensor) -> Tensor:
        magnitude, phase = x.chunk(2, dim=-1)
        spectrum = torch.polar(magnitude.exp().clamp(max=100), phase)
        spectrum.imag[..., [0, -1]] = 0.0  # not every FFT library ignores these
        frames = torch.fft.irfft(spectrum, self.n_fft) * self.window
        power = self.window.square().expand(1, x.shape[1], -1)
        return self.overlap_add(frames) / self.overlap_add(power)

    def overlap_add(self, frames: Tensor) -> Tensor:
        """[batch, frames, n_fft] -> [batch, frames * hop]."""
        side = (self.n_fft - self.hop) // 2
        size = frames.shape[1] * self.hop + 2 * side
        whole = F.fold(frames.transpose(1, 2), (1, size), (1, self.n_fft), stride=(1, self.hop))
        return whole[:, 0, 0, side : size - side]


def decoder(config: Config, dim: int) -> Steps:
    """Both quantised streams, concatenated, [batch, dim, frames] -> wave [batch, samples]."""
    width, times = config.width, config.upsample
    if config.repeat:
        smooth = nn.Conv1d(dim, width, times + 1, padding=times // 2)
        embed = Steps(repeat=nn.Upsample(scale_factor=times), conv=smooth)
    else:
        depthwise = nn.Conv1d(width, width, 5, padding=2, groups=width)
        up = nn.Conv1d(dim, times * width, 1)
        embed = Steps(up=up, interleave=Interleave(times), dw=depthwise)
    recurrent = recurrent_transformer(width, config.heads, config.mlp, config.layers)
    prior = [residual_block(width) for _ in range(4)]
    prior[2:2] = [Transpose(), recurrent, Transpose()]
    out = nn.Linear(width, config.n_fft + 2)
    return Steps(
        embed=embed,
        prior_net=nn.Sequential(*prior, nn.GroupNorm(32, width, eps=1e-6)),
        transpose=Transpose(),
        norm=nn.LayerNorm(width, eps=1e-6),
        post_net=convnext(width, config.inner, config.blocks),
        final_layer_norm=nn.LayerNorm(width, eps=1e-6),
        head=Steps(out=out, istft=ISTFT(config.n_fft, config.hop)),
    )
