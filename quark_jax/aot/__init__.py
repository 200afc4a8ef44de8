"""Compiling ahead of time for TPU pods that are not there, and what the compiler says."""

from quark_jax.aot.hlo import Collective, Hlo, by_kind
from quark_jax.aot.programs import (
    Program,
    codec_training,
    lm_training,
    sampling,
    tokenising,
)
from quark_jax.aot.report import (
    Bounds,
    Report,
    bounds,
    compile_program,
    replicated,
    to_json,
    to_text,
)
from quark_jax.aot.topology import chip_in, topology_devices

__all__ = [
    "Bounds",
    "Collective",
    "Hlo",
    "Program",
    "Report",
    "bounds",
    "by_kind",
    "chip_in",
    "codec_training",
    "compile_program",
    "lm_training",
    "replicated",
    "sampling",
    "to_json",
    "to_text",
    "tokenising",
    "topology_devices",
]
