"""Layers shared by more than one model."""

from quark_jax.nn.convnext import ConvNeXt, ConvNeXtBlock
from quark_jax.nn.layers import (
    Buffer,
    DepthwiseConv,
    conv,
    elu,
    embed,
    group_norm,
    hann_buffer,
    layer_norm,
    linear,
    rms_norm,
)
from quark_jax.nn.masking import Mask, frame_mask, key_mask, masked
from quark_jax.nn.recurrent import LSTM, GatedMLP, RecurrentTransformer
from quark_jax.nn.rotary import rotate_half, rotate_pairs
from quark_jax.nn.stack import Stack

__all__ = [
    "LSTM",
    "Buffer",
    "ConvNeXt",
    "ConvNeXtBlock",
    "DepthwiseConv",
    "GatedMLP",
    "Mask",
    "RecurrentTransformer",
    "Stack",
    "conv",
    "elu",
    "embed",
    "frame_mask",
    "group_norm",
    "hann_buffer",
    "key_mask",
    "layer_norm",
    "linear",
    "masked",
    "rms_norm",
    "rotate_half",
    "rotate_pairs",
]
