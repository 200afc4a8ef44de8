"""Speed of H-Codec on this CPU beside the PyTorch implementation, in one run:

    python tests/benchmarks/hcodec_speed.py            # 1.0 encode and decode, 2.0 decode
    python tests/benchmarks/hcodec_speed.py --parts 1.0:encode

Weights are random (speed does not depend on them), audio is 5 s at batch 1. The two take turns, and
the figures are medians. Run it on an idle machine: PyTorch's threads suffer from company.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from quark_jax.config import to_dict
from quark_jax.hcodec import Codes, HCodec, HCodecConfig
from quark_jax.interop import torch_hcodec

SECONDS = 5.0
ROUNDS = 7


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(*calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call, after one to warm up, taking turns."""
    for call in calls:
        call()
    rounds = [[timed(call) for call in calls] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def matmul_peak() -> float:
    """Floating-point operations a second of a large float32 product."""
    a = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.matmul)
    return 2 * 2048**3 / alternate(lambda: product(a, a).block_until_ready())[0]


def inputs(config: HCodecConfig) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    frames = round(SECONDS * config.frame_rate)
    wave = rng.standard_normal((1, frames * config.hop), np.float32) * 0.1
    shape = (1, config.semantic.channels, frames * config.feature_stride)
    return wave, rng.standard_normal(shape, np.float32)


def measure(name: str, part: str, peak: float) -> str:
    config = HCodecConfig.preset(name)
    codec = HCodec(config, rngs=nnx.Rngs(0))
    wave, features = inputs(config)
    frames = wave.shape[1] // config.hop
    shape = (1, config.quantiser.codebooks, frames)
    codes = Codes(
        *np.random.default_rng(1).integers(0, config.quantiser.codebook_size, (2, *shape))
    )

    peer = torch_hcodec.HCodec(to_dict(config))
    peer.load_state_dict({k: torch.from_numpy(v) for k, v in codec.to_torch().items()})
    peer.eval()
    their_codes = [torch.from_numpy(c) for c in (codes.acoustic, codes.semantic)]

    def ours() -> object:
        if part == "encode":
            return jax.block_until_ready(codec.encode(wave, features))
        return codec.decode(codes).block_until_ready()

    def theirs() -> object:
        with torch.no_grad():
            if part == "encode":
                return peer.encode(torch.from_numpy(wave), torch.from_numpy(features))
            return peer.decode(*their_codes)

    first = timed(ours)
    own, other = alternate(ours, theirs)
    flops = operations(codec, wave, features, codes, part)
    return (
        f"| {name} {part} | {SECONDS / own:.1f} | {SECONDS / other:.1f} | {other / own:.2f} "
        f"| {100 * flops / own / peak:.0f} % | {first - own:.1f} s |"
    )


def operations(codec: HCodec, wave, features, codes: Codes, part: str) -> float:
    """Floating-point operations as the compiler counts them, the steps of loops included once."""
    if part == "encode":
        lowered = jax.jit(lambda c, w, f: c.encode(w, f)).lower(codec, wave, features)
    else:
        frames = codes.acoustic.shape[-1]
        lowered = jax.jit(lambda c, k: c.decode(k, frames)).lower(codec, codes)
    return lowered.compile().cost_analysis()["flops"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["1.0:encode", "1.0:decode", "2.0:decode"])
    parser.add_argument("--cache", help="folder of JAX's persistent compilation cache")
    options = parser.parse_args()
    if options.cache:
        jax.config.update("jax_compilation_cache_dir", options.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    torch.set_num_threads(2)
    peak = matmul_peak()
    print(f"float32 matmul: {peak / 1e9:.0f} GFLOP/s")
    print(f"torch {torch.__version__}, jax {jax.__version__}")
    print("| part | ours, s of audio per s | torch | ratio | of matmul peak | compile |")
    print("|---|---|---|---|---|---|")
    for part in options.parts:
        print(measure(*part.split(":"), peak), flush=True)


if __name__ == "__main__":
    if "--cached-twice" in sys.argv:  # the second run finds what the first compiled
        arguments = [a for a in sys.argv if a != "--cached-twice"]
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                subprocess.run([sys.executable, *arguments, "--cache", folder], check=True)
    else:
        main()
