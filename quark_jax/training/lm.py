"""Training the language model: `train(config, workdir)`, top to bottom."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from quark_jax.conditioning import Conditioner, ConditionerConfig
from quark_jax.config import differences, to_dict
from quark_jax.encoders import features_hash
from quark_jax.errors import UserError
from quark_jax.hcodec import Tokeniser
from quark_jax.interop.lm import lm_to_torch, load_lm
from quark_jax.lm import LanguageModel, LMConfig
from quark_jax.pipeline import QuarkAudio
from quark_jax.training.lm_data import (
    LMData,
    check_conditioning,
    heldout_batches,
    open_datasets,
    training_batches,
    unigrams,
)
from quark_jax.training.lm_evaluation import audio_evaluation, heldout_evaluation
from quark_jax.training.lm_step import Frozen, LearningConfig, LMLearning, LMState
from quark_jax.training.loop import RunConfig, fit
from quark_jax.training.metrics import Value
from quark_jax.training.sharding import make_mesh, place_batch, shardings

# What of a model may be another than in the model that a training starts from.
_MAY_CHANGE = {"task_rows", "text_channels", "label_smoothing", "dtype", "scan", "remat"}


@dataclass(frozen=True, kw_only=True)
class LMTraining(LearningConfig):
    """One run of language model training.

    Codebooks, segments and channels of `lm` are set from the codec and the conditioner. `start`:
    the folder of a trained model to start from, as `QuarkAudio.save` writes it; None trains from
    nothing.
    """

    lm: LMConfig
    conditioner: ConditionerConfig = field(default_factory=ConditionerConfig)
    data: LMData = field(default_factory=LMData)
    run: RunConfig = field(default_factory=RunConfig)
    start: str | None = None
    eval_audio_every: int = 0  # steps, a multiple of run.eval_every; 0: never

    def __post_init__(self):
        super().__post_init__()
        if self.data.batch_size % self.accumulate:
            raise UserError(
                f"data.batch_size: {self.data.batch_size} does not divide into {self.accumulate} "
                "parts; change it, or accumulate"
            )
        if self.lora.rank and not self.start:
            raise UserError("lora.rank: adapts a trained model; give its folder as start")
        every = self.run.eval_every
        if self.eval_audio_every and (not every or self.eval_audio_every % every):
            raise UserError(
                f"eval_audio_every: {self.eval_audio_every} is no multiple of run.eval_every "
                f"({every}); make it one, or 0"
            )


def train(config: LMTraining, workdir: str | PathLike) -> QuarkAudio:
    """Train, or go on training, in `workdir`; the model is left in `workdir`/model.

    Raises UserError where data, codec and config do not fit each other, or where the run has gone
    astray (`fit`).
    """
    data, seed = config.data, config.run.seed
    tokeniser = _codec(data.codec)
    datasets = open_datasets(data, tokeniser.weights_hash)
    conditioner = Conditioner(
        config.conditioner, dtype=jnp.bfloat16 if config.lm.dtype == "bfloat16" else None
    )
    check_conditioning(datasets, conditioner)
    lm = _fitted(config.lm, tokeniser, conditioner)
    start = _start(config.start, lm, tokeniser, conditioner, seed) if config.start else None
    batches = training_batches(datasets, data, lm, conditioner, seed)
    unigram = unigrams(datasets, "train", lm)
    learning = LMLearning(lm, config, tasks=tuple(unigram), packing=data.packing, seed=seed)
    mesh = make_mesh(config.run.mesh)
    frozen = Frozen(conditioner, start if config.lora.rank else None)
    frozen = jax.device_put(frozen, shardings(frozen, mesh, config.run.mesh.rules))
    heldout = heldout_batches(
        datasets,
        conditioner,
        batch_size=data.batch_size,
        count=data.heldout,
        multiple=mesh.shape["data"] * mesh.shape["fsdp"],
    )
    scores = heldout_evaluation(
        learning, frozen, (place_batch(batch, mesh) for batch in heldout), unigram
    )
    listen = _listening(config, learning, frozen, datasets, tokeniser)

    def evaluate(state: LMState, number: int) -> Mapping[str, Value]:
        return scores(state) | listen(state, number)

    state = fit(
        learning.init,
        learning.step,
        batches,
        run=config.run,
        mesh=mesh,
        config=to_dict(replace(config, lm=lm)),
        workdir=workdir,
        evaluate=evaluate,
        label="language model",
        frozen=frozen,
        start=(start,),
    )
    seconds = max(dataset.metadata["seconds"] for dataset in datasets.values())
    quark = QuarkAudio(
        learning.model(state, frozen), conditioner, tokeniser, seconds=seconds, tasks=learning.tasks
    )
    quark.save(epath.Path(workdir) / "model")
    return quark


def _codec(folder: str) -> Tokeniser:
    tokeniser = Tokeniser.load(folder)
    acoustic, semantic = tokeniser.config.quantiser, tokeniser.config.semantic_quantiser
    if semantic != acoustic:
        raise UserError(
            f"{folder}: {acoustic.codebooks} acoustic and {semantic.codebooks} semantic codebooks; "
            "the language model needs as many of both, train a codec without semantic_codebooks"
        )
    return tokeniser


def _fitted(lm: LMConfig, tokeniser: Tokeniser, conditioner: Conditioner) -> LMConfig:
    """`lm` for these codes and conditions."""
    quantiser, dynamic = tokeniser.config.quantiser, tokeniser.config.dynamic
    return replace(
        lm,
        codebooks=quantiser.codebooks,
        acoustic_size=quantiser.codebook_size,
        semantic_size=quantiser.codebook_size,
        max_segment=dynamic.longest if dynamic else 1,
        audio_channels=conditioner.audio_channels,
        text_channels=conditioner.text_channels,
    )


def _start(
    folder: str, lm: LMConfig, tokeniser: Tokeniser, conditioner: Conditioner, seed: int
) -> nnx.State:
    """Parameters of the model in `folder`, in the layout of `lm`; further task vectors, and the
    adapter of captions where it had none, are new."""
    quark = QuarkAudio.load(folder)
    if quark.tokeniser.weights_hash != tokeniser.weights_hash:
        raise UserError(f"{folder}: was trained on another codec; give the data of its own")
    theirs, own = (c.config.audio for c in (quark.conditioner, conditioner))
    if features_hash(theirs) != features_hash(own):
        raise UserError(
            f"{folder}: was trained on other features; set conditioner.audio as it was, to "
            f"{folder}/encoders/audio where that is there"
        )
    before, wanted = to_dict(quark.lm.config), to_dict(lm)
    changed = [name for name in differences(before, wanted) if name not in _MAY_CHANGE]
    if changed:
        raise UserError(f"lm: {', '.join(changed)} differ from the model in {folder}; set as there")
    if quark.lm.config.text_channels not in (0, lm.text_channels) or (
        quark.lm.config.task_rows > lm.task_rows
    ):
        raise UserError(f"lm: has less room for tasks or captions than the model in {folder}")
    fresh = lm_to_torch(LanguageModel(lm, rngs=nnx.Rngs(seed)))
    state = lm_to_torch(quark.lm)
    state["tasks"] = np.concatenate([state["tasks"], fresh["tasks"][len(state["tasks"]) :]])
    return nnx.state(load_lm(fresh | state, lm, source=folder))


def _listening(
    config: LMTraining,
    learning: LMLearning,
    frozen: Frozen,
    datasets: Mapping,
    tokeniser: Tokeniser,
) -> Callable[[LMState, int], Mapping[str, Value]]:
    """Evaluation of audio where it is due, and nothing elsewhere."""
    every, count = config.eval_audio_every, config.data.heard
    if not every:
        return lambda state, number: {}
    if jax.process_count() > 1:
        raise UserError("eval_audio_every: audio is evaluated by one process alone; set 0")
    batches = heldout_batches(datasets, frozen.conditioner, batch_size=count, count=count)
    evaluate = audio_evaluation(learning, frozen, batches, tokeniser, config.run.seed)

    def listen(state: LMState, number: int) -> Mapping[str, Value]:
        return {} if number % every and number != config.run.steps else evaluate(state)

    return listen
