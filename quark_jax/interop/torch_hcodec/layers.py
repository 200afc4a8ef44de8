"""Layers that the parts are made of.

Most are sequences whose steps bear the checkpoints' names; steps that hold no tensors bear names of
our own.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Steps(nn.Sequential):
    """Modules one after the other, by name; shapes are those of the modules."""

    def __init__(self, **modules: nn.Module):
        super().__init__(OrderedDict(modules))


class Residual(Steps):
    """Modules one after the other, their output added to the input; any shape -> same."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Transpose(nn.Module):
    """[batch, channels, time] <-> [batch, time, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Scale(nn.Module):
    """A gain per channel, [batch, time, channels] -> same."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def conv(n_in: int, n_out: int, k: int, stride: int = 1, **options) -> Steps:
    """Zero-padded convolution, [batch, n_in, time] -> [batch, n_out, time / stride]."""
    return Steps(conv=nn.Conv1d(n_in, n_out, k, stride, (k - 1) // 2, **options))


class ReflectConv(nn.Module):
    """Weight-normalised convolution padded by reflection, as in EnCodec (arXiv 2210.13438).

    [batch, n_in, time] -> [batch, n_out, time / stride], rounded up.
    """

    def __init__(self, n_in: int, n_out: int, k: int, stride: int = 1):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.weight_g = nn.Parameter(torch.ones(n_out, 1, 1))
        self.weight_v = nn.Parameter(torch.ones(n_out, n_in, k))
        self.k, self.stride = k, stride

    def pad(self, x: Tensor) -> Tensor:
        """x [batch, n_in, time] with what the convolution reads past its ends."""
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
    """[batch, n_in, time] -> [batch, n_out, time / stride], under the names of the checkpoints."""
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
    """Full attention with rotary positions: q, k, v [batch, time, width] -> same."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(rotate(q, interleaved), rotate(k, interleaved), v)
    return out.transpose(1, 2).flatten(2)


class RecurrentAttention(nn.Module):
    """Full attention with rotary positions over an LSTM's output, [batch, time, width] -> same."""

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
    """Gated MLP without biases (SwiGLU, arXiv 2002.05202), [batch, time, width] -> same."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class RecurrentLayer(nn.Module):
    """Recurrent attention, then an MLP, RMSNorm before each, [batch, time, width] -> same."""

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
    """Full attention with rotary positions, q, k and v fused, [batch, time, width] -> same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight).chunk(3, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads, interleaved=True))


class TransformerLayer(nn.Module):
    """Attention and MLP, LayerNorm before and a gain after each, [batch, time, width] -> same."""

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
    """ConvNeXt block with a kernel of 7 frames (arXiv 2201.03545), [batch, time, width] -> same."""

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
    """[batch, time, width] -> same."""
    return nn.Sequential(*(ConvNeXtBlock(width, inner, blocks) for _ in range(blocks)))
