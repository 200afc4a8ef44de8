"""Weights to and from PyTorch and Hugging Face."""

from quark_jax.interop.table import (
    CHANNELS,
    CONV,
    CONV_TRANSPOSED,
    DEPTHWISE,
    FLAG,
    LEADING,
    LINEAR,
    POINTWISE,
    QUERY,
    SAME,
    Entry,
    Kind,
    load_torch,
    to_torch,
)

__all__ = [
    "CHANNELS",
    "CONV",
    "CONV_TRANSPOSED",
    "DEPTHWISE",
    "FLAG",
    "LEADING",
    "LINEAR",
    "POINTWISE",
    "QUERY",
    "SAME",
    "Entry",
    "Kind",
    "load_torch",
    "to_torch",
]
