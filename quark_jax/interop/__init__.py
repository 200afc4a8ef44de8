"""Weights to and from PyTorch and Hugging Face."""

from quark_jax.interop.huggingface import fuse_weight_norm, read_config, read_state
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
    "fuse_weight_norm",
    "load_torch",
    "read_config",
    "read_state",
    "to_torch",
]
