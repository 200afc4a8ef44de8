"""H-Codec, a dual-stream neural audio codec."""

from quark_jax.hcodec.adversary import Adversary, AdversaryConfig, Judgement
from quark_jax.hcodec.codefile import CodeFile, read_codes, write_codes
from quark_jax.hcodec.codes import Codes
from quark_jax.hcodec.config import HCodecConfig
from quark_jax.hcodec.model import HCodec
from quark_jax.hcodec.tokeniser import Tokeniser

__all__ = [
    "Adversary",
    "AdversaryConfig",
    "CodeFile",
    "Codes",
    "HCodec",
    "HCodecConfig",
    "Judgement",
    "Tokeniser",
    "read_codes",
    "write_codes",
]
