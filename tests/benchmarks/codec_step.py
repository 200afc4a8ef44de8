"""Where the time of a step of codec training goes, at full size:

    python tests/benchmarks/codec_step.py                          # 1.0, 8 cuts of 1 s
    python tests/benchmarks/codec_step.py --version 2.0 --batch 2 --dtype bfloat16

Steps with ever more in them are timed, and a part is the difference: the codec alone, then with
discriminators, then with the perceptual loss. The features of the frozen encoder and the wait for a
batch of recordings are timed by themselves. Weights are random; speed does not depend on them.
"""

import argparse
import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from tqdm import tqdm

from data_pipelines import codec_batches, read_manifest, samples_manifest
from quark_jax.audio import resample_sinc
from quark_jax.encoders import FeatureConfig, SSLFeatures, Wav2Vec2, Wav2Vec2Config
from quark_jax.hcodec import AdversaryConfig, HCodecConfig
from quark_jax.hcodec.losses import LossConfig
from quark_jax.training.codec_step import (
    AdversarialConfig,
    CodecLearning,
    Frozen,
    LearningConfig,
    PerceptualConfig,
)
from quark_jax.training.optimiser import OptimiserConfig

ENCODERS = {768: "hubert-base", 1024: "wav2vec2-large"}  # by the channels of their features


def seconds_of_step(
    codec: HCodecConfig, config: LearningConfig, wave: jax.Array, frozen: Frozen, rounds: int
) -> float:
    """Median of `rounds` steps that follow one to warm up, in which codebooks begin."""
    learning = CodecLearning(codec, config, seed=0)
    state = jax.jit(learning.init)()
    step = jax.jit(learning.step, donate_argnums=0, static_argnums=3)
    begun = learning.begun(0)
    times = []
    for _ in tqdm(range(rounds + 1), unit="step", mininterval=0):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, wave, frozen, begun))
        times.append(time.perf_counter() - start)
    assert jnp.isfinite(metrics["loss"])
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", default="1.0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--manifest", default=str(samples_manifest()))
    given = parser.parse_args()

    codec = HCodecConfig.preset(given.version)
    rate = codec.sample_rate
    batches = codec_batches(
        read_manifest(given.manifest), rate=rate, seconds=given.seconds, batch_size=given.batch
    )
    next(batches)
    start = time.perf_counter()
    for _ in range(20):
        wave = next(batches)
    data = (time.perf_counter() - start) / 20
    batches.close()
    wave = jnp.asarray(wave)

    shape = Wav2Vec2Config.preset(ENCODERS[codec.semantic.channels])
    encoder = Wav2Vec2(shape, rngs=nnx.Rngs(0))
    frozen = Frozen(SSLFeatures(codec.features, encoder))

    @jax.jit
    def features(frozen: Frozen, wave: jax.Array) -> jax.Array:
        return frozen.features(resample_sinc(wave, rate, 16_000))

    times = []
    for _ in range(given.rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(features(frozen, wave))
        times.append(time.perf_counter() - start)
    ssl = statistics.median(times[1:])

    optimiser = OptimiserConfig(peak=2e-4, clip=5.0)
    alone = LearningConfig(optimiser=optimiser, dtype=given.dtype)
    networks = AdversaryConfig.preset(f"{rate // 1000}khz")
    judged = replace(alone, adversary=AdversarialConfig(networks, optimiser))
    perceptual = PerceptualConfig(FeatureConfig(**{**vars(codec.features), "compress": False}), 0)
    everything = replace(judged, losses=LossConfig(perceptual=1.0), perceptual=perceptual)
    codec_only, with_judges, whole = (
        seconds_of_step(codec, config, wave, frozen, given.rounds)
        for config in (alone, judged, everything)
    )

    print(
        f"{given.version}, {given.batch} x {given.seconds:g} s, {given.dtype}, "
        f"{jax.devices()[0].device_kind}: {whole:.2f} s a step"
    )
    parts = {
        "codec (forward, backward, update)": codec_only - ssl,
        "discriminators": with_judges - codec_only,
        "features of the frozen encoder": ssl,
        "perceptual loss": whole - with_judges,
    }
    for name, seconds in parts.items():
        print(f"| {name} | {seconds:.2f} s | {seconds / whole:.0%} |")
    print(f"| making a batch, beside the step | {data:.3f} s | {data / whole:.1%} |")


if __name__ == "__main__":
    main()
