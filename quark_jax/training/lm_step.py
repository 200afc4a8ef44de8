"""One step of training the language model, and what is measured of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from quark_jax.conditioning import Conditioner
from quark_jax.errors import UserError
from quark_jax.interop import as_shapes
from quark_jax.lm import (
    TASK_IDS,
    LanguageModel,
    LMConfig,
    LMLoss,
    Packing,
    drop_sections,
)
from quark_jax.lm.layout import SECTIONS
from quark_jax.lm.lora import LoraConfig, begin_lora, merge_lora
from quark_jax.training.lm_data import Batch, read_targets
from quark_jax.training.optimiser import OptimiserConfig, averaged, optimiser

Sums = Mapping[str, jax.Array]


@dataclass(frozen=True)
class SectionDropout:
    """How often a training sequence is without a section that it has, each by itself: what
    classifier-free guidance needs."""

    caption: float = 0.0
    reference: float = 0.0
    input: float = 0.0

    def __post_init__(self):
        for name in SECTIONS:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"dropout.{name}: {getattr(self, name)}; choose a probability below 1"
                )


@dataclass(frozen=True)
class LearningConfig:
    """How a language model learns."""

    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    dropout: SectionDropout = field(default_factory=SectionDropout)
    accumulate: int = 1  # parts of a batch that go through the model one after another
    average: float = 0.0  # decay of the averaged weights that are evaluated and kept; 0: none
    lora: LoraConfig = field(default_factory=LoraConfig)  # adapters instead of all parameters

    def __post_init__(self):
        if self.accumulate < 1:
            raise UserError(f"accumulate: {self.accumulate}; set at least 1")
        if not 0 <= self.average < 1:
            raise UserError(f"average: {self.average}; choose a decay of at least 0, below 1")


class Frozen(NamedTuple):
    """Networks that a step uses and does not change."""

    conditioner: Conditioner
    base: nnx.State | None = None  # parameters that adapters are added to


class UnigramScores(NamedTuple):
    """What a unigram model makes of each sequence [batch, 1], in the terms of `LMLoss`."""

    nats: jax.Array
    correct: jax.Array
    codes: jax.Array


class LMState(NamedTuple):
    """All that a step changes."""

    step: jax.Array
    key: jax.Array
    params: nnx.State  # that are trained
    moments: optax.OptState
    average: nnx.State | None  # of `params`


class LMLearning:
    """How the language model of one config learns: `init` makes a state, `step` the next one.

    `tasks` are those that are measured by themselves; `packing` is that of training batches.
    """

    def __init__(
        self,
        lm: LMConfig,
        config: LearningConfig,
        *,
        tasks: Iterable[str],
        packing: Packing | None,
        seed: int,
    ):
        self.lm, self.tasks = lm, tuple(tasks)
        self._config, self._packing, self._seed = config, packing, seed
        self._graph = nnx.graphdef(as_shapes(lambda rngs: LanguageModel(lm, rngs=rngs)))
        self._optimiser = optimiser(config.optimiser)

    def init(self, params: nnx.State | None = None) -> LMState:
        """The state before the first step, from `params` of the whole model or from new ones."""
        config, key = self._config, jax.random.PRNGKey(self._seed)
        if params is None:
            params = nnx.state(LanguageModel(self.lm, rngs=nnx.Rngs(self._seed)))
        if config.lora.rank:
            params = begin_lora(params, config.lora, jax.random.fold_in(key, 0))
        return LMState(
            step=jnp.zeros((), jnp.int32),
            key=key,
            params=params,
            moments=self._optimiser.init(params),
            # A copy: buffers that are given to a step to overwrite must not be one.
            average=jax.tree.map(jnp.copy, params) if config.average else None,
        )

    def model(self, state: LMState, frozen: Frozen) -> LanguageModel:
        """The model as it is evaluated and saved: with averaged weights where there are some, and
        with adapters added to its own."""
        return self._merge(state.params if state.average is None else state.average, frozen)

    def _merge(self, params: nnx.State, frozen: Frozen) -> LanguageModel:
        if self._config.lora.rank:
            params = merge_lora(frozen.base, params, self._config.lora)
        return nnx.merge(self._graph, params)

    def step(
        self, state: LMState, batch: Batch, frozen: Frozen
    ) -> tuple[LMState, dict[str, jax.Array]]:
        """Learn from a batch of the loader, the same however many parts it goes in."""
        key = jax.random.fold_in(state.key, state.step)
        batch = {**batch, "dropped": self._draw_dropped(key, batch["task"].shape[0])}
        loss, gradient, scored, sums = self._gradient(state.params, batch, frozen)
        updates, moments = self._optimiser.update(gradient, state.moments, state.params)
        params, average = optax.apply_updates(state.params, updates), state.average
        if average is not None:
            average = averaged(average, params, state.step, self._config.average)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), "tokens": scored}
        after = LMState(state.step + 1, state.key, params, moments, average)
        return after, metrics | measures(sums, self.tasks)

    def score(self, model: LanguageModel, batch: Batch, frozen: Frozen) -> Sums:
        """What `measures` takes, of a held-out batch, whose sequences do not share rows."""
        result = model.loss(frozen.conditioner(batch), read_targets(batch, self.lm))
        return sums_by_task(result, batch["task"], self.tasks)

    def score_unigram(self, shares: jax.Array, batch: Batch) -> Sums:
        """As `score`, of the unigram models `shares` [tasks, 2, codebooks, codes]; all layers
        together, as one head."""
        targets, task = read_targets(batch, self.lm), batch["task"]
        codes = jnp.stack([targets.acoustic, targets.semantic], axis=1)
        rows = jnp.array([TASK_IDS[name] for name in self.tasks])
        own = shares[(task[:, None] == rows).argmax(1)]
        there = jnp.arange(codes.shape[-1]) < targets.frames[:, None, None, None]

        def added(values: jax.Array) -> jax.Array:
            return jnp.where(there, values, 0).sum((1, 2, 3))[:, None]

        result = UnigramScores(
            nats=added(-jnp.log(jnp.take_along_axis(own, codes, axis=-1))),
            correct=added(codes == own.argmax(-1, keepdims=True)),
            codes=added(jnp.ones_like(codes)),
        )
        return sums_by_task(result, task, self.tasks)

    def _draw_dropped(self, key: jax.Array, size: int) -> jax.Array:
        """Which sections [batch, 3] are left out, one draw for the whole batch."""
        probability = jnp.array([getattr(self._config.dropout, name) for name in SECTIONS])
        return jax.random.uniform(key, (size, len(SECTIONS))) < probability

    def _gradient(
        self, params: nnx.State, batch: Batch, frozen: Frozen
    ) -> tuple[jax.Array, nnx.State, jax.Array, Sums]:
        """Loss and gradient, means over all scored targets of the batch, the number of these, and
        its sums."""

        def of_part(part: Batch):
            def total(params: nnx.State):
                result = self._loss(params, part, frozen)
                scored = jnp.sum(result.count)
                sums = sums_by_task(result, part["task"], self.tasks)
                return result.loss * scored, (scored, sums)

            return jax.value_and_grad(total, has_aux=True)(params)

        if self._config.accumulate == 1:
            added = of_part(batch)
        else:
            parts = self._split(batch)
            shapes = jax.eval_shape(of_part, jax.tree.map(lambda a: a[0], parts))
            nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            added, _ = jax.lax.scan(
                lambda so_far, part: (jax.tree.map(jnp.add, so_far, of_part(part)), None),
                nothing,
                parts,
            )
        (total, (scored, sums)), gradient = added
        among = jnp.maximum(scored, 1)
        return total / among, jax.tree.map(lambda g: g / among, gradient), scored, sums

    def _loss(self, params: nnx.State, batch: Batch, frozen: Frozen) -> LMLoss:
        conditions = frozen.conditioner(batch)
        for number, name in enumerate(SECTIONS):
            conditions = drop_sections(conditions, [name], batch["dropped"][:, number])
        targets = read_targets(batch, self.lm)
        return self._merge(params, frozen).loss(conditions, targets, self._packing)

    def _split(self, batch: Batch) -> Batch:
        """Parts [parts, batch / parts, ...]. Every part has rows of every device, and the sequences
        that share a row stay together."""
        parts, together = self._config.accumulate, self._packing.sequences if self._packing else 1

        def split(array: jax.Array) -> jax.Array:
            rows = array.reshape(-1, parts, together, *array.shape[1:])
            return jnp.moveaxis(rows, 1, 0).reshape(parts, -1, *array.shape[1:])

        return jax.tree.map(split, batch)


def sums_by_task(result: LMLoss | UnigramScores, task: jax.Array, tasks: Sequence[str]) -> Sums:
    """nats, correct codes and codes [tasks + 1, heads] of each of `tasks`, and of the whole batch
    in the last row."""
    ids = jnp.array([TASK_IDS[name] for name in tasks], int)
    own = (task == ids[:, None]).astype(jnp.float32)
    rows = jnp.concatenate([own, jnp.ones((1, task.shape[0]))])
    return {name: rows @ getattr(result, name) for name in ("nats", "correct", "codes")}


def measures(sums: Sums, tasks: Sequence[str]) -> dict[str, jax.Array]:
    """Nats per code and accuracy, of all heads together and of each, over everything and of each
    task after its name and a stroke; NaN of a task that does not occur. What END costs counts, but
    it is no code."""
    made = {}
    for row, prefix in enumerate([*(f"{name}/" for name in tasks), ""]):
        nats, correct, codes = (sums[name][row] for name in ("nats", "correct", "codes"))
        made[f"{prefix}nats_per_code"] = nats.sum() / codes.sum()
        made[f"{prefix}accuracy"] = correct.sum() / codes.sum()
        made |= {f"{prefix}accuracy/{head}": s for head, s in enumerate(correct / codes)}
    return made
