"""Weights to and from PyTorch and Hugging Face."""

from quark_jax.interop.files import fuse_weight_norm, read_state, write_state
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
    as_shapes,
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
    "as_shapes",
    "fuse_weight_norm",
    "load_torch",
    "read_state",
    "to_torch",
    "write_state",
]
