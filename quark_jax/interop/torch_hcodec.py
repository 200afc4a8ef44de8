"""H-Codec inference in PyTorch: one file that needs nothing but torch.

    codec = HCodec("1.0")
    codec.load_state_dict(state, strict=True)
    acoustic, semantic, lengths = codec.encode(wave, features)
    wave = codec.decode(acoustic, semantic, lengths)

It runs the published checkpoints and those exported from here, under the published names. As an
independent check of the JAX model it shares nothing with it. Tensors are [batch, channels, time]
unless said otherwise. Dropout is left out.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Config:
    """Sizes of one H-Codec; the defaults are those of 1.0.

    The acoustic encoder is a SEANet where it has strides, else spectral. The frame rate is dynamic
    where there is a threshold.
    """

    rate: int = 16_000  # samples per second
    frame: int = 640  # samples per codec frame
    dim: int = 512  # channels of either embedding
    codebooks: int = 4  # per stream
    codebook_size: int = 1024

    seanet_filters: int = 32
    seanet_strides: tuple[int, ...] = (2, 4, 5, 8)  # in the order they are applied
    spectral: tuple[int, int, int] = (1536, 4608, 24)  # ConvNeXt: width, inner width, blocks

    ssl_channels: int = 768
    semantic_width: int = 768
    semantic_strides: tuple[int, ...] = (2, 1)

    decoder: tuple[int, int, int] = (768, 2304, 12)  # ConvNeXt: width, inner width, blocks
    recurrent_layers: int = 2  # of every recurrent transformer
    n_fft: int = 1280
    hop: int = 320

    threshold: float | None = None  # cosine similarity; a segment starts where it is not above
    longest_segment: int = 8  # frames
    aggregator: tuple[int, int, int] = (8, 2048, 32)  # transformer: heads, inner width, layers
    bottleneck: tuple[int, int, int] = (8, 2048, 32)  # the same


V1_5 = Config(
    seanet_strides=(8, 5, 4, 2),
    ssl_channels=1024,
    semantic_width=1024,
    decoder=(1024, 2304, 12),
    threshold=0.6,
)
V2_0 = Config(
    rate=48_000,
    frame=3840,
    codebooks=16,
    seanet_strides=(),
    semantic_width=1536,
    semantic_strides=(2, 1, 2),
    decoder=(1536, 4608, 32),
    n_fft=1920,
    hop=960,
)
V2_0_6HZ = replace(V2_0, frame=7680, semantic_strides=(2, 2, 2))
PRESETS = {"1.0": Config(), "1.5": V1_5, "2.0": V2_0, "2.0-6.25hz": V2_0_6HZ}


def published(options: Mapping) -> Config:
    """The sizes in a configuration of the published form."""
    if "'causal': True" in str(options):
        raise ValueError("causal: only false is supported, as in every published model")

    def pick(part: Mapping, *names: str) -> tuple:
        return tuple(part[name] for name in names)

    convnext = ("dim", "intermediate_dim", "convnext_layers")
    attention = ("num_heads", "dim_feedforward", "num_layers")
    encoder, decoder = options["encoder_config"], options["decoder_config"]
    quantiser = options["quantizer_config"]
    if "sampling_rate" in options:  # 2.0
        semantic = options["semantic_encoder_config"]
        config = Config(
            rate=options["sampling_rate"],
            frame=round(options["sampling_rate"] / encoder["target_frame_rate"]),
            seanet_strides=(),
            spectral=pick(encoder, *convnext),
            recurrent_layers=decoder["transformer_layers"],
            n_fft=decoder["n_fft"],
            hop=decoder["hop_length"],
        )
    else:
        semantic, seanet = encoder["semantic_encoder"], encoder["encoder"]
        decoder, quantiser = decoder["decoder"], quantiser["quantizer"]
        strides = tuple(reversed(seanet["ratios"]))
        config = Config(seanet_filters=seanet["n_filters"], seanet_strides=strides)
    if "adaptive_config" in options:  # 1.5
        adaptive = options["adaptive_config"]
        config = replace(
            config,
            threshold=adaptive["manual_threshold"],
            longest_segment=adaptive["max_tokens_per_group"],
            aggregator=pick(adaptive["aggregators"]["acoustic_aggregator"], *attention),
            bottleneck=pick(adaptive["transformer_kwargs"], *attention),
        )
    return replace(
        config,
        dim=quantiser["dim"],
        codebooks=quantiser["num_quantizers"],
        codebook_size=quantiser["codebook_size"],
        ssl_channels=semantic["input_channels"],
        semantic_width=semantic["encode_channels"],
        semantic_strides=tuple(semantic["strides"]),
        decoder=pick(decoder, *convnext),
    )


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


def recurrent_transformer(config: Config, width: int) -> Steps:
    """[batch, time, width] -> same. In 2.0 heads are 64 wide and the inner width is bounded."""
    heads, inner = (8, 4 * width) if config.seanet_strides else (width // 64, min(4 * width, 4096))
    layers = (RecurrentLayer(width, heads, inner) for _ in range(config.recurrent_layers))
    return Steps(layers=nn.Sequential(*layers))


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


def seanet(config: Config) -> Steps:
    width = config.seanet_filters
    layers = [reflect_conv(1, width, 7)]
    for stride in config.seanet_strides:
        down = reflect_conv(width, 2 * width, 2 * stride, stride)
        layers += [SeanetBlock(width), nn.ELU(), down]
        width *= 2
    layers += [Transpose(), recurrent_transformer(config, width), Transpose()]
    layers += [nn.ELU(), reflect_conv(width, config.dim, 4, 2)]
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


def spectral_encoder(config: Config) -> Steps:
    (width, *_), stride = config.spectral, config.frame // config.hop
    return Steps(
        stft=STFT(config.n_fft, config.hop),
        embed=conv(config.n_fft + 2, width, 3),
        before=Transpose(),
        norm=nn.LayerNorm(width, eps=1e-6),
        prior_net=convnext(*config.spectral),
        post_net=Steps(**{"1": recurrent_transformer(config, width)}),
        final_layer_norm=nn.LayerNorm(width, eps=1e-6),
        after=Transpose(),
        out=conv(width, config.dim, 2 * stride + 1, stride),
    )


# Semantic encoder and decoder


def semantic_units(width: int) -> nn.Sequential:
    def unit() -> Residual:
        wide = conv(width, width, 3, bias=False)
        point = nn.Conv1d(width, width, 1, bias=False)
        return Residual(elu1=nn.ELU(), conv1=wide, elu2=nn.ELU(), conv2=point)

    return nn.Sequential(unit(), unit())


def semantic_encoder(config: Config) -> Steps:
    """Compressed SSL features [batch, channels, 50 Hz frames] -> [batch, dim, frames]."""
    width = config.semantic_width

    def block(stride: int) -> Steps:
        down = conv(width, width, 3 if stride == 1 else 2 * stride, stride)
        return Steps(res_units=semantic_units(width), conv=down)

    return Steps(
        conv=conv(config.ssl_channels, width, 3, bias=False),
        conv_blocks=nn.Sequential(*map(block, config.semantic_strides)),
        conv2=conv(width, config.dim, 3, bias=False),
    )


def semantic_decoder(config: Config) -> Steps:
    """Quantised stream [batch, dim, frames] -> compressed features [batch, channels, 50 Hz]."""
    width = config.semantic_width

    def block(s: int) -> Steps:
        up = conv(width, width, 3)
        if s > 1:
            up = nn.ConvTranspose1d(width, width, 2 * s, s, (s + 1) // 2, output_padding=s % 2)
            up = Steps(deconv=up)
        return Steps(conv=up, res_units=semantic_units(width))

    return Steps(
        conv1=conv(config.dim, width, 3, bias=False),
        conv_blocks=nn.Sequential(*map(block, config.semantic_strides)),
        conv2=conv(width, config.ssl_channels, 3, bias=False),
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

    def __init__(self, config: Config):
        super().__init__()
        self.query_embedding = nn.Parameter(torch.zeros(1, config.dim, 1))
        self.transformer = transformer(config.dim, *config.aggregator)

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
        books = (Codebook(config.codebook_size, config.dim) for _ in range(config.codebooks))
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
    """[batch, 2 * width, time] -> [batch, width, 2 * time]: the halves take turns."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(x.chunk(2, dim=1), dim=-1).flatten(2)


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


def decoder(config: Config) -> Steps:
    """Both quantised streams [batch, 2 * dim, frames] -> wave [batch, samples]."""
    (width, *_), repeats = config.decoder, config.frame // config.hop
    if config.seanet_strides:
        up = nn.Conv1d(2 * config.dim, 2 * width, 1)
        depthwise = nn.Conv1d(width, width, 5, padding=2, groups=width)
        embed = Steps(up=up, interleave=Interleave(), dw=depthwise)
    else:
        smooth = nn.Conv1d(2 * config.dim, width, repeats + 1, padding=repeats // 2)
        embed = Steps(repeat=nn.Upsample(scale_factor=repeats), conv=smooth)
    recurrent = (Transpose(), recurrent_transformer(config, width), Transpose())
    before, after = ((residual_block(width), residual_block(width)) for _ in range(2))
    out = nn.Linear(width, config.n_fft + 2)
    return Steps(
        embed=embed,
        prior_net=nn.Sequential(*before, *recurrent, *after, nn.GroupNorm(32, width, eps=1e-6)),
        transpose=Transpose(),
        norm=nn.LayerNorm(width, eps=1e-6),
        post_net=convnext(*config.decoder),
        final_layer_norm=nn.LayerNorm(width, eps=1e-6),
        head=Steps(out=out, istft=ISTFT(config.n_fft, config.hop)),
    )


# Model


class HCodec(nn.Module):
    """H-Codec of a `version` in `PRESETS`, or of a configuration of the published form.

    `sizes` replace fields of its `Config`.
    """

    def __init__(self, version: str | Mapping = "1.0", **sizes):
        super().__init__()
        if isinstance(version, str) and version not in PRESETS:
            raise ValueError(f"version: {version!r} is not one of {', '.join(PRESETS)}")
        config = PRESETS[version] if isinstance(version, str) else published(version)
        self.config = config = replace(config, **sizes)
        self.encoder = seanet(config) if config.seanet_strides else spectral_encoder(config)
        self.decoder = decoder(config)
        self.quantizer = Quantiser(config)
        self.semantic_quantizer = Quantiser(config)
        self.semantic_encoder = semantic_encoder(config)
        self.semantic_decoder = semantic_decoder(config)
        if config.threshold is not None:
            self.bottleneck_transformer = transformer(2 * config.dim, *config.bottleneck)
            self.semantic_aggregator = Aggregator(config)
            self.acoustic_aggregator = Aggregator(config)

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
        if self.config.threshold is None:
            return self.quantizer.encode(acoustic), self.semantic_quantizer.encode(semantic), None
        threshold = self.config.threshold if threshold is None else threshold
        items = []  # one at a time, so that no item sees the padding of another
        for a, s in zip(acoustic.split(1), semantic.split(1), strict=True):
            lengths = segment_lengths(s[0], threshold, self.config.longest_segment)
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
        if (lengths is None) != (self.config.threshold is None):
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
        wave = F.pad(wave, (0, -wave.shape[-1] % self.config.frame))
        need, have = wave.shape[-1] * 50 // self.config.rate, features.shape[-1]
        if have != need:
            raise ValueError(
                f"features: {have} frames, but the wave needs {need}; compute them from the wave "
                f"zero-padded to a multiple of {self.config.frame} samples"
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
