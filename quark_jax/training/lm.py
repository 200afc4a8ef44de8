"""Training the language model: `train(config, workdir)`, top to bottom."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from quark_jax.conditioning import Conditioner, ConditionerConfig, TextConfig
from quark_jax.config import differences, to_dict
from quark_jax.distributed import by_first, whole
from quark_jax.encoders import encoder_hash, features_hash
from quark_jax.errors import UserError
from quark_jax.hcodec import Tokeniser
from quark_jax.interop.lm import lm_to_torch, load_lm
from quark_jax.lm import TASK_IDS, LanguageModel, LMConfig
from quark_jax.pipeline import QuarkAudio
from quark_jax.training.flops import lm_flops
from quark_jax.training.lm_data import (
    Batch,
    Datasets,
    LMData,
    check_conditioning,
    heldout_batches,
    open_datasets,
    read_targets,
    sample_batches,
    training_batches,
    unigrams,
)
from quark_jax.training.lm_evaluation import audio_evaluation, heldout_evaluation
from quark_jax.training.lm_step import Frozen, LearningConfig, LMLearning, LMState
from quark_jax.training.loop import RunConfig, fit
from quark_jax.training.metrics import Value
from quark_jax.training.sharding import make_mesh, place_batch, shardings

_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
# What of a model may be another than in the model that a training starts from.
_MAY_CHANGE = {"task_rows", "text_channels", "label_smoothing", "dtype", "attention"}
_MAY_CHANGE |= {"scan", "remat"}


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
    tokeniser = _codec(config.data.codec)
    datasets = open_datasets(config.data, tokeniser.weights_hash)
    conditioner = Conditioner(config.conditioner, dtype=_DTYPES[config.lm.dtype])
    check_conditioning(datasets, conditioner)
    config = replace(config, lm=_fitted(config.lm, tokeniser, conditioner))
    before = QuarkAudio.load(config.start) if config.start else None
    start = _start(before, config, tokeniser, conditioner) if before else None
    if before:
        conditioner.measure_as(before.conditioner)
    elif config.conditioner.standardise:
        conditioner.measure(sample_batches(datasets, config.data, conditioner, config.run.seed))
    unigram = unigrams(datasets, "train", config.lm)
    learning = LMLearning(
        config.lm, config, tasks=unigram, packing=config.data.packing, seed=config.run.seed
    )
    mesh = make_mesh(config.run.mesh)
    frozen = Frozen(conditioner, start if config.lora.rank else None)
    frozen = jax.device_put(frozen, shardings(frozen, mesh, config.run.mesh.rules))
    state = fit(
        learning.init,
        learning.step,
        training_batches(
            datasets, config.data, config.lm, conditioner, seed=config.run.seed, mesh=mesh
        ),
        run=config.run,
        mesh=mesh,
        config=to_dict(config),
        workdir=workdir,
        evaluate=_evaluation(config, learning, frozen, datasets, unigram, tokeniser, mesh),
        label="language model",
        frozen=frozen,
        start=(start,),
        flops=lambda batch: _flops(batch, config, conditioner),
    )
    quark = QuarkAudio(
        whole(learning.model(state, frozen)),
        conditioner,
        tokeniser,
        seconds=max(dataset.metadata["seconds"] for dataset in datasets.values()),
        tasks=tuple(sorted({*unigram, *(before.tasks if before else ())}, key=TASK_IDS.get)),
    )
    by_first(lambda: quark.save(epath.Path(workdir) / "model"))
    return quark


def _flops(batch: Batch, config: LMTraining, conditioner: Conditioner) -> float:
    conditions = jax.eval_shape(lambda encoder, batch: encoder(batch), conditioner, batch)
    targets = jax.eval_shape(lambda batch: read_targets(batch, config.lm), batch)
    return lm_flops(config.lm, conditions, targets, config.data.packing)


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
    before: QuarkAudio, config: LMTraining, tokeniser: Tokeniser, conditioner: Conditioner
) -> nnx.State:
    """Parameters of a trained model, in the layout of `config.lm`; further task vectors, and the
    adapter of captions where it had none, are new."""
    folder, lm = config.start, config.lm
    if before.tokeniser.weights_hash != tokeniser.weights_hash:
        raise UserError(f"{folder}: was trained on another codec; give data of its own codec")
    theirs, own = before.conditioner.config, conditioner.config
    for part, hash_of in (("audio", features_hash), ("text", _text_hash)):
        was = hash_of(getattr(theirs, part))
        if was and was != hash_of(getattr(own, part)):
            raise UserError(
                f"{folder}: was trained with another conditioner.{part}; set it as it was then, "
                f"its folder, if any, to {folder}/encoders/{part}"
            )
    if theirs.standardise != own.standardise:
        raise UserError(
            f"{folder}: was trained with conditioner.standardise {theirs.standardise}; set it so"
        )
    were, are = to_dict(before.lm.config), to_dict(lm)
    changed = [name for name in differences(were, are) if name not in _MAY_CHANGE]
    changed += ["task_rows"] if were["task_rows"] > are["task_rows"] else []
    if changed:
        raise UserError(f"lm: {', '.join(changed)} differ from the model in {folder}; set as there")
    state = lm_to_torch(before.lm)
    fresh = lm_to_torch(LanguageModel(lm, rngs=nnx.Rngs(config.run.seed)))
    state["tasks"] = np.concatenate([state["tasks"], fresh["tasks"][len(state["tasks"]) :]])
    return nnx.state(load_lm(fresh | state, lm, source=folder))


def _text_hash(config: TextConfig) -> str:
    return encoder_hash(config.folder) if config.folder else ""


def _evaluation(
    config: LMTraining,
    learning: LMLearning,
    frozen: Frozen,
    datasets: Datasets,
    unigram: Mapping[str, np.ndarray],
    tokeniser: Tokeniser,
    mesh: jax.sharding.Mesh,
) -> Callable[[LMState, int], dict[str, Value]]:
    """What `fit` calls: loss and accuracy of held-out sequences, and audio where it is due."""
    data, every = config.data, config.eval_audio_every
    batches = partial(heldout_batches, datasets, frozen.conditioner)
    heldout = batches(batch_size=data.batch_size, count=data.heldout, mesh=mesh)
    score = heldout_evaluation(
        learning, frozen, [place_batch(batch, mesh) for batch in heldout], unigram
    )
    if every:
        heard = list(batches(batch_size=data.heard, count=data.heard))
        listen = audio_evaluation(learning, frozen, heard, tokeniser, config.run.seed)

    def evaluate(state: LMState, number: int) -> dict[str, Value]:
        due = every and (number % every == 0 or number == config.run.steps)
        return score(state) | (listen(state) if due else {})

    return evaluate
