"""H-Codec inference in PyTorch: one file that needs nothing but torch.

    codec = HCodec(json.load(open("codec.json")))
    codec.load_state_dict(torch.load("codec.pt"))  # or safetensors.torch.load_file(...)
    acoustic, semantic, lengths = codec.encode(wave, features)
    wave = codec.decode(acoustic, semantic, lengths)

It runs what `quark export` writes. Tensors bear the names of the published checkpoints; as an
independent check of the JAX model it shares nothing with that but the configuration. Tensors are
[batch, channels, time] unless said otherwise. Dropout is left out.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from types import SimpleNamespace as Config

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

# Blocks. Most are sequences whose steps bear the checkpoints' names; steps that hold no tensors
# bear names of our own.


class Steps(nn.Sequential):
    """Modules one after the other, by name."""

    def __init__(self, **modules: nn.Module):
        super().__init__(OrderedDict(modules))


class Residual(Steps):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Transpose(nn.Module):
    """[batch, channels, time] <-> [batch, time, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Scale(nn.Module):
    """A gain per channel, [batch, time, channels]."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def conv(n_in: int, n_out: int, k: int, stride: int = 1, **options) -> Steps:
    """Zero-padded convolution; time is divided by the stride."""
    return Steps(conv=nn.Conv1d(n_in, n_out, k, stride, (k - 1) // 2, **options))


class ReflectConv(nn.Module):
    """Weight-normalised convolution padded by reflection, as in EnCodec (arXiv 2210.13438)."""

    def __init__(self, n_in: int, n_out: int, k: int, stride: int = 1):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.weight_g = nn.Parameter(torch.ones(n_out, 1, 1))
        self.weight_v = nn.Parameter(torch.ones(n_out, n_in, k))
        self.k, self.stride = k, stride

    def pad(self, x: Tensor) -> Tensor:
        time, total = x.shape[-1], self.k - self.stride
        left, right = total - total // 2, total // 2 + -time % self.stride
        # A reflection is shorter than what it mirrors: a short input is lent zeros on its right.
        lent = max(0, max(left, right) + 1 - time)
        x = F.pad(F.pad(x, (0, lent)), (left, right), mode="reflect") if left or right else x
        return x[..., : x.shape[-1] - lent]

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True)
        return F.conv1d(self.pad(x), self.weight_v * (self.weight_g / norm), self.bias, self.stride)


def reflect_conv(n_in: int, n_out: int, k: int, stride: int = 1) -> Steps:
    return Steps(conv=Steps(conv=ReflectConv(n_in, n_out, k, stride)))


def rotate(x: Tensor, interleaved: bool) -> Tensor:
    """Rotary positions for x [..., time, head], theta 10000 (RoFormer, arXiv 2104.09864).

    The two channels of a pair are neighbours where interleaved, else half a head apart.
    """
    time, head = x.shape[-2:]
    even = torch.arange(0, head, 2, device=x.device)
    angle = torch.arange(time, device=x.device)[:, None] * torch.exp(-math.log(1e4) * even / head)
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    shape, axis = ((-1, 2), -1) if interleaved else ((2, -1), -2)
    a, b = x.unflatten(-1, shape).unbind(axis)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), axis).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, interleaved: bool) -> Tensor:
    """Full attention with rotary positions, [batch, time, width]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(rotate(q, interleaved), rotate(k, interleaved), v)
    return out.transpose(1, 2).flatten(2)


class RecurrentAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.rnn = nn.LSTM(width, width, batch_first=True)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.rnn(x)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(attend(q, k, v, self.heads, interleaved=False))


class GatedMLP(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class RecurrentLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.self_attn = RecurrentAttention(width, heads)
        self.mlp = GatedMLP(width, inner)
        self.input_layernorm = nn.RMSNorm(width, eps=1e-6)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


def recurrent_transformer(width: int, heads: int, inner: int, depth: int) -> Steps:
    """[batch, time, width] -> same."""
    layers = nn.Sequential(*(RecurrentLayer(width, heads, inner) for _ in range(depth)))
    return Steps(layers=layers)


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight).chunk(3, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads, interleaved=True))


class TransformerLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.self_attn = FusedAttention(width, heads)
        self.linear1 = nn.Linear(width, inner, bias=False)
        self.linear2 = nn.Linear(inner, width, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.layer_scale_1, self.layer_scale_2 = Scale(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1(self.self_attn(self.norm1(x)))
        return x + self.layer_scale_2(self.linear2(F.gelu(self.linear1(self.norm2(x)))))


def transformer(width: int, heads: int, inner: int, depth: int) -> Steps:
    """[batch, width, time] -> same."""
    layers = nn.Sequential(*(TransformerLayer(width, heads, inner) for _ in range(depth)))
    return Steps(before=Transpose(), transformer=Steps(layers=layers), after=Transpose())


class ConvNeXtBlock(nn.Module):
    """[batch, time, width] -> same."""

    def __init__(self, width: int, inner: int, blocks: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1 / blocks))
        depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.dwconv = Steps(before=Transpose(), conv=depthwise, after=Transpose())
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = Steps(linear=nn.Linear(width, inner))
        self.pwconv2 = Steps(linear=nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.pwconv1(self.norm(self.dwconv(x))))
        return x + self.gamma * self.pwconv2(y)


def convnext(width: int, inner: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ConvNeXtBlock(width, inner, blocks) for _ in range(blocks)))


# Acoustic encoders: wave [batch, samples] -> embedding [batch, dim, frames]


class SeanetBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        first, second = reflect_conv(width, half, 3), reflect_conv(half, width, 1)
        self.block = nn.Sequential(nn.ELU(), first, nn.ELU(), second)
        self.shortcut = reflect_conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


def seanet(config: Config, dim: int) -> Steps:
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
    """Wave -> log-magnitudes, then phases in half turns: [batch, n_fft + 2, samples / hop]."""

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
    """One frame per segment: what a query placed right after the segment gathers."""

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
    def __init__(self, config: Config):
        super().__init__()
        books = (Codebook(config.codebook_size, config.width) for _ in range(config.codebooks))
        self.layers = nn.ModuleList(Steps(_codebook=book) for book in books)

    def encode(self, x: Tensor) -> Tensor:
        """[batch, dim, time] -> codes [batch, codebooks, time]."""
        residual, codes = x.transpose(1, 2), []
        for (book,) in self.layers:
            codes.append(book.nearest(residual))
            residual = residual - book.rows(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [batch, codebooks, time] -> [batch, dim, time]."""
        rows = [book.rows(c) for (book,), c in zip(self.layers, codes.unbind(1), strict=True)]
        return sum(rows).transpose(1, 2)


# Decoder


class Interleave(nn.Module):
    """[batch, times * width, time] -> [batch, width, times * time]: the parts take turns."""

    def __init__(self, times: int):
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(x.chunk(self.times, dim=1), dim=-1).flatten(2)


def residual_block(width: int) -> Residual:
    norm1, norm2 = (nn.GroupNorm(32, width, eps=1e-6) for _ in range(2))
    conv1, conv2 = conv(width, width, 3), conv(width, width, 3)
    return Residual(
        norm1=norm1, swish1=nn.SiLU(), conv1=conv1, norm2=norm2, swish2=nn.SiLU(), conv2=conv2
    )


class ISTFT(nn.Module):
    """[batch, frames, n_fft + 2], log-magnitudes then phases -> wave [batch, frames * hop]."""

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
    """Both quantised streams [batch, dim, frames] -> wave [batch, samples]."""
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


# Model


class HCodec(nn.Module):
    """The H-Codec of a configuration, which is what codec.json holds.

    Its parts are read as attributes: `codec.config.decoder.width`.
    """

    def __init__(self, config: Mapping):
        super().__init__()
        config = json.loads(json.dumps(config), object_hook=lambda part: Config(**part))
        dim, dynamic = config.quantiser.width, config.dynamic
        self.config = config
        self.hop = round(config.sample_rate / config.frame_rate)  # samples per codec frame
        if hasattr(config.encoder, "filters"):
            self.encoder = seanet(config.encoder, dim)
        else:
            self.encoder = spectral(config.encoder, dim, self.hop // config.encoder.hop)
        self.decoder = decoder(config.decoder, 2 * dim)
        self.quantizer = Quantiser(config.quantiser)
        self.semantic_quantizer = Quantiser(config.quantiser)
        self.semantic_encoder = semantic_encoder(config.semantic, dim)
        self.semantic_decoder = semantic_decoder(config.semantic, dim)
        if dynamic:
            size = dynamic.heads, dynamic.bottleneck_inner, dynamic.bottleneck_layers
            self.bottleneck_transformer = transformer(2 * dim, *size)
            size = dynamic.heads, dynamic.aggregator_inner, dynamic.aggregator_layers
            self.semantic_aggregator = Aggregator(dim, *size)
            self.acoustic_aggregator = Aggregator(dim, *size)

    @torch.no_grad()
    def encode(
        self, wave: Tensor, features: Tensor, threshold: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes of a wave [batch, samples] with compressed features [batch, channels, 50 Hz].

        Returns acoustic and semantic codes [batch, codebooks, groups], and the frames per group
        [batch, groups]: 0 at padding, None where the frame rate is fixed. Published 1.5 codes hold
        (frames - 1) * codebook_size + code in one number.
        """
        acoustic, semantic = self.embed(wave, features)
        dynamic = self.config.dynamic
        if not dynamic:
            return self.quantizer.encode(acoustic), self.semantic_quantizer.encode(semantic), None
        threshold = dynamic.threshold if threshold is None else threshold
        items = []  # one at a time, so that no item sees the padding of another
        for a, s in zip(acoustic.split(1), semantic.split(1), strict=True):
            lengths = segment_lengths(s[0], threshold, dynamic.longest)
            a, s = self.acoustic_aggregator(a, lengths), self.semantic_aggregator(s, lengths)
            codes = self.quantizer.encode(a)[0].T, self.semantic_quantizer.encode(s)[0].T
            items.append((*codes, torch.tensor(lengths, device=wave.device)))
        acoustic, semantic, lengths = (
            pad_sequence(list(parts), batch_first=True) for parts in zip(*items, strict=True)
        )
        return acoustic.transpose(1, 2), semantic.transpose(1, 2), lengths

    @torch.no_grad()
    def decode(self, acoustic: Tensor, semantic: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What `encode` gave -> wave [batch, samples], with zeros after the shorter items."""
        if (lengths is None) != (self.config.dynamic is None):
            raise ValueError("lengths: give them where the frame rate is dynamic, and only there")
        if lengths is None:
            return self.decoder(torch.cat(self.dequantise(acoustic, semantic), dim=1))
        waves = []
        for a, s, n in zip(acoustic.split(1), semantic.split(1), lengths, strict=True):
            streams = torch.cat(self.dequantise(a, s, n), dim=1)
            waves.append(self.decoder(self.bottleneck_transformer(streams))[0])
        return pad_sequence(waves, batch_first=True)

    @torch.no_grad()
    def embed(self, wave: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Acoustic and semantic embeddings [batch, dim, frames]."""
        wave = F.pad(wave, (0, -wave.shape[-1] % self.hop))
        need, have = wave.shape[-1] * 50 // self.config.sample_rate, features.shape[-1]
        if have != need:
            raise ValueError(
                f"features: {have} frames, but the wave needs {need}; compute them from the wave "
                f"zero-padded to a multiple of {self.hop} samples"
            )
        return self.encoder(wave), self.semantic_encoder(features)

    @torch.no_grad()
    def dequantise(
        self, acoustic: Tensor, semantic: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Quantised streams [batch, dim, frames]; `lengths` [groups] hold for the whole batch."""
        streams = self.quantizer.decode(acoustic), self.semantic_quantizer.decode(semantic)
        if lengths is None:
            return streams
        return tuple(stream.repeat_interleave(lengths, dim=-1) for stream in streams)
