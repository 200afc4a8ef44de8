"""H-Codec, a dual-stream neural audio codec."""

from quark_jax.hcodec.codes import Codes
from quark_jax.hcodec.config import HCodecConfig
from quark_jax.hcodec.model import HCodec

__all__ = ["Codes", "HCodec", "HCodecConfig"]
