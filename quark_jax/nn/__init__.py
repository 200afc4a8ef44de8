"""Layers shared by more than one model."""

from quark_jax.nn.layers import (
    DepthwiseConv,
    conv,
    embed,
    group_norm,
    layer_norm,
    linear,
    rms_norm,
)

__all__ = ["DepthwiseConv", "conv", "embed", "group_norm", "layer_norm", "linear", "rms_norm"]
