"""Training H-Codec: `train(config, workdir)`, top to bottom."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from statistics import mean
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx

from data_pipelines import Entry, codec_batches, read_manifest
from quark_jax.audio import resample_sinc
from quark_jax.config import to_dict
from quark_jax.encoders import SSLFeatures
from quark_jax.errors import UserError
from quark_jax.evaluation import mel_distance, si_sdr, stoi
from quark_jax.hcodec import Codes, HCodec, HCodecConfig, Tokeniser
from quark_jax.hcodec.losses import LossConfig, codec_loss
from quark_jax.hcodec.quantiser import DROPPED
from quark_jax.interop import as_shapes
from quark_jax.training.loop import RunConfig, fit
from quark_jax.training.optimiser import OptimiserConfig, optimiser
from quark_jax.training.sharding import make_mesh


@dataclass(frozen=True)
class CodecData:
    """What a codec is trained on."""

    manifest: str = ""  # recordings; those of split "heldout" are kept for evaluation
    seconds: float = 2.0  # of a cut
    batch_size: int = 8  # cuts, over all devices
    workers: int = 0  # processes that read; 0 reads in threads
    heldout: int = 16  # clips evaluated on, at most
    heldout_seconds: float = 4.0


@dataclass(frozen=True)
class CodecTraining:
    """One run of codec training."""

    codec: HCodecConfig
    data: CodecData = field(default_factory=CodecData)
    losses: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)


class CodecState(NamedTuple):
    """All that a step changes."""

    step: jax.Array
    key: jax.Array
    params: nnx.State
    rest: nnx.State  # codebooks and their statistics
    moments: optax.OptState


def train(config: CodecTraining, workdir: str | PathLike) -> Tokeniser:
    """Train, or go on training, in `workdir`; the codec is left in `workdir`/model/codec.

    Raises UserError where the data or the config cannot be used.
    """
    codec_config, data = config.codec, config.data
    features = SSLFeatures(codec_config.features)
    if features.channels != codec_config.semantic.channels:
        raise UserError(
            f"codec.semantic.channels: {codec_config.semantic.channels}, but the features have "
            f"{features.channels}; make them equal"
        )
    training, heldout = _split(data.manifest)
    batches = codec_batches(
        training,
        rate=codec_config.sample_rate,
        seconds=whole_frames(data.seconds, codec_config) / codec_config.sample_rate,
        batch_size=data.batch_size,
        seed=config.run.seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_workers=data.workers,
    )
    graph = nnx.graphdef(as_shapes(lambda rngs: HCodec(codec_config, rngs=rngs)))
    transform = optimiser(config.optimiser)
    state = fit(
        lambda: _init(config, transform),
        _step(config, graph, transform, features),
        batches,
        run=config.run,
        mesh=make_mesh(config.run.mesh),
        config=to_dict(config),
        workdir=workdir,
        evaluate=_evaluation(config, graph, features, heldout),
        label="codec",
    )
    tokeniser = Tokeniser(nnx.merge(graph, state.params, state.rest), features)
    tokeniser.save(epath.Path(workdir) / "model" / "codec")
    return tokeniser


def _split(manifest: str) -> tuple[list[Entry], list[Entry]]:
    entries = read_manifest(manifest)
    heldout = [entry for entry in entries if entry.split == "heldout"]
    training = [entry for entry in entries if entry.split != "heldout"]
    if not training or not heldout:
        raise UserError(
            f"{manifest}: {len(training)} recordings to train on and {len(heldout)} of split "
            '"heldout"; both are needed, set the split of some lines'
        )
    return training, heldout


def whole_frames(seconds: float, codec: HCodecConfig) -> int:
    """Samples of the whole codec frames nearest to `seconds`, at least one."""
    return max(1, round(seconds * codec.frame_rate)) * codec.hop


def _init(config: CodecTraining, transform: optax.GradientTransformation) -> CodecState:
    codec = HCodec(config.codec, rngs=nnx.Rngs(config.run.seed))
    _, params, rest = nnx.split(codec, nnx.Param, ...)
    return CodecState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.PRNGKey(config.run.seed),
        params=params,
        rest=rest,
        moments=transform.init(params),
    )


def _step(
    config: CodecTraining,
    graph: nnx.GraphDef,
    transform: optax.GradientTransformation,
    features: SSLFeatures,
) -> Callable[[CodecState, jax.Array], tuple[CodecState, dict[str, jax.Array]]]:
    rate, size = config.codec.sample_rate, config.codec.quantiser.codebook_size

    def step(state: CodecState, wave: jax.Array):
        target = features(resample_sinc(wave, rate, 16000))
        key = jax.random.fold_in(state.key, state.step)

        def loss_of(params: nnx.State):
            output = nnx.merge(graph, params, state.rest).reconstruct(wave, target, key)
            loss, terms = codec_loss(output, wave, target, rate, config.losses)
            return loss, (output, terms)

        (loss, (output, terms)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, moments = transform.update(gradient, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        codec = nnx.merge(graph, params, state.rest)
        codec.quantiser.set_state(output.state[0])
        codec.semantic_quantiser.set_state(output.state[1])
        _, params, rest = nnx.split(codec, nnx.Param, ...)
        metrics = {"loss": loss, **terms, "gradient_norm": optax.global_norm(gradient)}
        for stream in ("acoustic", "semantic"):
            use = codebook_use(getattr(output, stream), size)
            metrics |= {f"{stream}_use/{layer}": share for layer, share in enumerate(use)}
        return CodecState(state.step + 1, state.key, params, rest, moments), metrics

    return step


def codebook_use(codes: jax.Array, size: int) -> jax.Array:
    """Share of each layer's codebook that codes [batch, codebooks, time] use: [codebooks]."""

    def share(layer: jax.Array) -> jax.Array:
        rows = jnp.where(layer == DROPPED, size, layer).reshape(-1)
        return jnp.mean(jnp.zeros(size).at[rows].set(1.0, mode="drop"))

    return jax.vmap(share, 1)(codes)


def _evaluation(
    config: CodecTraining, graph: nnx.GraphDef, features: SSLFeatures, heldout: list[Entry]
) -> Callable[[CodecState, int], dict[str, float]]:
    """What `fit` calls: metrics of the held-out clips after encoding and decoding."""
    rate, data = config.codec.sample_rate, config.data
    samples = whole_frames(data.heldout_seconds, config.codec)
    waves = np.stack(
        list(
            codec_batches(
                heldout[: data.heldout],
                rate=rate,
                seconds=samples / rate,
                batch_size=1,
                train=False,
            )
        )
    )[:, 0]

    @jax.jit
    def round_trip(codec: HCodec, wave: jax.Array) -> jax.Array:
        embedding = codec.embed(wave, features(resample_sinc(wave, rate, 16000)))
        acoustic = codec.quantiser.encode(embedding.acoustic)
        semantic = codec.semantic_quantiser.encode(embedding.semantic)
        return codec.decode(
            Codes(acoustic, semantic, embedding.lengths), wave.shape[1] // config.codec.hop
        )

    def evaluate(state: CodecState, number: int) -> dict[str, float]:
        codec = nnx.merge(graph, state.params, state.rest)
        estimates = np.asarray(round_trip(codec, waves))
        pairs = list(zip(waves, estimates, strict=True))
        return {
            "heldout/mel_distance": mean(mel_distance(a, b, rate) for a, b in pairs),
            "heldout/si_sdr": mean(si_sdr(a, b) for a, b in pairs),
            "heldout/stoi": mean(stoi(a, b, rate) for a, b in pairs),
        }

    return evaluate
