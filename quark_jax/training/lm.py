"""Training the language model: `train(config, workdir)`, top to bottom."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from os import PathLike
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx

from data_pipelines import TokenisedDataset, open_tokenised, token_batches
from quark_jax.config import to_dict
from quark_jax.encoders import FeatureConfig, SSLFeatures
from quark_jax.errors import UserError
from quark_jax.hcodec import Tokeniser
from quark_jax.interop import as_shapes
from quark_jax.lm import Conditions, LanguageModel, LMConfig, LMLoss, Section, Targets
from quark_jax.pipeline import QuarkAudio
from quark_jax.training.loop import RunConfig, fit
from quark_jax.training.optimiser import OptimiserConfig, optimiser
from quark_jax.training.sharding import make_mesh, place_batch


@dataclass(frozen=True)
class LMData:
    """What a language model is trained on."""

    dataset: str = ""  # folder of a tokenised dataset
    codec: str = ""  # folder of the codec that made its codes
    batch_size: int = 16  # sequences, over all devices
    workers: int = 0  # processes that read; 0 reads in threads
    heldout: int = 64  # sequences evaluated on, at most


@dataclass(frozen=True)
class LMTraining:
    """One run of language model training. The codebooks of `lm` are set from the codec."""

    lm: LMConfig
    features: FeatureConfig
    data: LMData = field(default_factory=LMData)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)


class LMState(NamedTuple):
    """All that a step changes."""

    step: jax.Array
    key: jax.Array
    params: nnx.State
    moments: optax.OptState


Batch = Mapping[str, jax.Array]
Step = Callable[[LMState, Batch, SSLFeatures], tuple[LMState, dict[str, jax.Array]]]


def train(config: LMTraining, workdir: str | PathLike) -> QuarkAudio:
    """Train, or go on training, in `workdir`; the model, with its codec, is left in
    `workdir`/model.

    Raises UserError where the data or the config cannot be used.
    """
    data = config.data
    tokeniser = Tokeniser.load(data.codec)
    quantiser = tokeniser.config.quantiser
    if tokeniser.config.semantic_quantiser != quantiser:
        raise UserError(
            f"{data.codec}: {quantiser.codebooks} acoustic and "
            f"{tokeniser.config.semantic_quantiser.codebooks} semantic codebooks; the language "
            "model needs as many of both, train a codec without semantic_codebooks"
        )
    dataset = open_tokenised(data.dataset, codec_hash=tokeniser.weights_hash)
    config = replace(
        config,
        lm=replace(
            config.lm,
            codebooks=quantiser.codebooks,
            acoustic_size=quantiser.codebook_size,
            semantic_size=quantiser.codebook_size,
        ),
    )
    features = SSLFeatures(config.features)
    if features.channels != config.lm.audio_channels:
        raise UserError(
            f"lm.audio_channels: {config.lm.audio_channels}, but the features have "
            f"{features.channels}; make them equal"
        )
    batches = token_batches(
        dataset,
        split="train",
        batch_size=data.batch_size,
        seed=config.run.seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_workers=data.workers,
    )
    graph = nnx.graphdef(as_shapes(lambda rngs: LanguageModel(config.lm, rngs=rngs)))
    transform = optimiser(config.optimiser)
    mesh = make_mesh(config.run.mesh)
    state = fit(
        lambda: _init(config, transform),
        _step(graph, transform),
        batches,
        run=config.run,
        mesh=mesh,
        config=to_dict(config),
        workdir=workdir,
        evaluate=_evaluation(config, graph, features, dataset, mesh),
        label="language model",
        frozen=features,
    )
    model = nnx.merge(graph, state.params)
    quark = QuarkAudio(model, features, tokeniser, seconds=dataset.metadata["seconds"])
    quark.save(epath.Path(workdir) / "model")
    return quark


def _init(config: LMTraining, transform: optax.GradientTransformation) -> LMState:
    params = nnx.state(LanguageModel(config.lm, rngs=nnx.Rngs(config.run.seed)))
    return LMState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.PRNGKey(config.run.seed),
        params=params,
        moments=transform.init(params),
    )


def read_batch(batch: Batch, features: SSLFeatures) -> tuple[Conditions, Targets]:
    """A batch of the loader as the model takes it; the frozen encoder runs here."""
    encoded = features(batch["input"], batch["input_samples"])
    section = Section(encoded, batch["input_samples"] // 320)
    return (
        Conditions(task=batch["task"], input=section),
        Targets(batch["acoustic"], batch["semantic"], batch["frames"]),
    )


def _step(graph: nnx.GraphDef, transform: optax.GradientTransformation) -> Step:
    def step(state: LMState, batch: Batch, features: SSLFeatures):
        conditions, targets = read_batch(batch, features)

        def loss_of(params: nnx.State) -> tuple[jax.Array, LMLoss]:
            result = nnx.merge(graph, params).loss(conditions, targets)
            return result.loss, result

        (loss, result), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, moments = transform.update(gradient, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "nats_per_code": jnp.sum(result.nats) / jnp.sum(result.count),
            "gradient_norm": optax.tree.norm(gradient),
        }
        metrics |= {f"accuracy/{head}": share for head, share in enumerate(result.accuracy)}
        return LMState(state.step + 1, state.key, params, moments), metrics

    return step


def unigram_entropy(dataset: TokenisedDataset, split: str, size: int) -> float:
    """Entropy in nats of the unigram distribution of a split's codes, each layer of each stream
    by itself, averaged over layers and streams: what a model reaches that knows only how often
    each code occurs."""
    counts = np.zeros((2, dataset.metadata["codebooks"], size))
    for record in dataset.records(split):
        for stream, name in enumerate(("acoustic", "semantic")):
            for layer, codes in enumerate(record[name]):
                counts[stream, layer] += np.bincount(codes, minlength=size)
    share = counts / counts.sum(-1, keepdims=True)
    return float(-np.mean(np.sum(share * np.log(np.where(share > 0, share, 1)), axis=-1)))


def _evaluation(
    config: LMTraining,
    graph: nnx.GraphDef,
    features: SSLFeatures,
    dataset: TokenisedDataset,
    mesh: jax.sharding.Mesh,
) -> Callable[[LMState, int], dict[str, float]]:
    """What `fit` calls: the loss of held-out sequences without label smoothing, beside the entropy
    of the unigram distribution of the training codes."""
    batches = token_batches(
        dataset,
        split="heldout",
        batch_size=config.data.batch_size,
        train=False,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
    count = max(1, config.data.heldout // config.data.batch_size)
    with closing(batches):
        heldout = [place_batch(batch, mesh) for batch in islice(batches, count)]
    entropy = unigram_entropy(dataset, "train", config.lm.acoustic_size)

    @jax.jit
    def score(params: nnx.State, batch: Batch, features: SSLFeatures) -> jax.Array:
        conditions, targets = read_batch(batch, features)
        result = nnx.merge(graph, params).loss(conditions, targets)
        codes = 2 * config.lm.codebooks * jnp.sum(targets.frames)
        # END is no code: its cost counts, but it does not thin out the average.
        return jnp.stack(
            [jnp.sum(result.nats), jnp.sum(result.correct), jnp.sum(result.count), codes]
        )

    def evaluate(state: LMState, number: int) -> dict[str, float]:
        nats, correct, count, codes = sum(
            np.asarray(score(state.params, batch, features), np.float64) for batch in heldout
        )
        return {
            "heldout/nats_per_code": nats / codes,
            "heldout/accuracy": correct / count,
            "heldout/unigram_entropy": entropy,
        }

    return evaluate
