"""The loop that both trainers run: restore, step, log, evaluate, save."""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from quark_jax.errors import Stopped, UserError
from quark_jax.files import alone_in
from quark_jax.training.checkpoint import Checkpoints, KeepBest, abstract
from quark_jax.training.compilation import keep_programs
from quark_jax.training.flops import step_flops
from quark_jax.training.log import Pending, RunLog
from quark_jax.training.metrics import Value
from quark_jax.training.profiling import ProfileConfig, Profiler
from quark_jax.training.sharding import MeshConfig, place_batch, shardings
from quark_jax.training.termination import Termination

Metrics = Mapping[str, jax.Array]


@dataclass(frozen=True)
class RunConfig:
    """How long a run is, and what it does on the way."""

    steps: int = 1000
    seed: int = 0
    log_every: int = 10  # steps
    eval_every: int = 500  # steps; 0: at the end alone
    save_every: int = 500  # steps
    keep: int = 2  # checkpoints, the newest
    keep_best: KeepBest = field(default_factory=KeepBest)
    skip_limit: int = 20  # steps in a row that are not finite, and the run stops
    mesh: MeshConfig = field(default_factory=MeshConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self):
        least = {"log_every": 1, "eval_every": 0, "save_every": 1, "keep": 1, "skip_limit": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise UserError(f"run.{name}: {getattr(self, name)}; set at least {limit}")

    def due(self, number: int) -> tuple[bool, bool]:
        """Whether step `number` is followed by an evaluation, and by a checkpoint."""
        last = number == self.steps
        evaluates = bool(self.eval_every) and number % self.eval_every == 0
        return last or evaluates, last or number % self.save_every == 0


class Run(NamedTuple):
    """What a checkpoint holds: the trainer's state, and the steps that were left out."""

    state: Any
    skipped: jax.Array  # so far
    skipped_in_a_row: jax.Array  # up to this one


def fit(
    init: Callable[..., Any],
    step: Callable[..., tuple[Any, Metrics]],
    batches: grain.DatasetIterator,
    *,
    run: RunConfig,
    mesh: jax.sharding.Mesh,
    config: Mapping[str, Any],
    workdir: str | PathLike,
    evaluate: Callable[[Any, int], Mapping[str, Value]],
    label: str,
    frozen: Any = (),
    start: tuple = (),
    phase: Callable[[int], tuple] = lambda number: (),
    flops: Callable[[Any], float] | None = None,
) -> Any:
    """Train from where `workdir` stands to `run.steps`, and give the last state.

    `init(*start)` makes the state, a pytree of arrays; `step(state, batch, frozen)` gives the next
    one and scalars, "loss" among them; `batches` is a Grain iterator of this process's part of each
    global batch; `evaluate(state, step)` gives scalars of held-out data, also before the first
    step, and what else `MetricWriter.write` takes; `frozen` and `start`, pytrees of arrays, are
    placed on the mesh as the state is. What `phase(number)` gives for a step, counted from 0, are
    more arguments of `step`, static: a program is compiled for each of its values. `flops(batch)`
    are the operations of a step on such a global batch; None: those of `step` as it is traced.

    Run again after an interruption, it goes on from the newest checkpoint with the same data and
    numbers; a run that is finished is left as it is. All processes of a run call it alike; metrics,
    of which `telemetry` tells those of speed and time, are written by the first.
    A step whose loss or norms of gradients are not finite is left out: the state stays, the batch
    is passed over, "skipped_steps" counts. Other scalars may be NaN where there is nothing to
    measure, and are not written then. Raises UserError after `run.skip_limit` steps left out in a
    row; the newest checkpoint is from before them, or holds the state that they left as it was.
    Raises Stopped, with a checkpoint of the step that is under way, after SIGTERM.
    """
    with ExitStack() as stack:
        stack.enter_context(closing(batches))
        if jax.process_index() == 0:
            stack.enter_context(alone_in(workdir))
        keep_programs(workdir)
        checkpoints = stack.enter_context(
            closing(Checkpoints(workdir, keep=run.keep, best=run.keep_best))
        )
        now, placed = _begin(init, start, checkpoints, batches, config, mesh, run.mesh.rules)
        first = checkpoints.latest
        if first is not None and first >= run.steps:
            _tell_finished(workdir, first)
            return now.state
        del start  # the state has taken its place in memory
        frozen = jax.device_put(frozen, shardings(frozen, mesh, run.mesh.rules))
        compiled = compile_step(step, placed)
        count = step_flops(compiled, flops)
        log = RunLog(
            workdir, run.steps, run.log_every, run.skip_limit, first, checkpoints.notes, label
        )
        stack.enter_context(closing(log))

        def advance(now: Run, number: int) -> tuple[Run, Pending]:
            batch = place_batch(log.wait_for(batches), mesh)
            arguments = now, batch, frozen, phase(number - 1)
            operations = count(*arguments)
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                now, metrics = compiled(*arguments)
            return now, Pending(number, metrics, operations)

        def save(number: int, now: Run, measured: Mapping[str, Value]) -> None:
            metrics = run.keep_best.of(measured)
            checkpoints.save(number, now, batches, config, metrics=metrics, notes=log.notes)

        return _steps(now, first, run, workdir, advance, evaluate, save, log).state


def _tell_finished(workdir: str | PathLike, steps: int) -> None:
    if jax.process_index() == 0:
        told = f"{workdir}: done, all {steps} steps; the model is in {workdir}/model"
        print(told, file=sys.stderr)


def _steps(
    now: Run,
    first: int | None,
    run: RunConfig,
    workdir: str | PathLike,
    advance: Callable[[Run, int], tuple[Run, Pending]],
    evaluate: Callable[[Any, int], Mapping[str, Value]],
    save: Callable[[int, Run, Mapping[str, Value]], None],
    log: RunLog,
) -> Run:
    """All steps after `first`."""
    with Termination() as termination, Profiler(workdir, run.profile) as profiler:
        with log.aside():
            if first is None:
                log.write(0, evaluate(now.state, 0))
        for number in range((first or 0) + 1, run.steps + 1):
            profiler.begin(number)
            now, pending = advance(now, number)
            # The step before is read while this one runs: the device never waits for the host.
            log.report()
            log.pending = pending
            evaluates, saves = run.due(number)
            stops = termination.after(number) and number < run.steps
            if not (evaluates or saves or stops or profiler.ends(number)):
                continue
            log.report()  # the metrics up to a checkpoint are written before it
            with log.aside():
                if profiler.ends(number):
                    profiler.write()
                measured = evaluate(now.state, number) if evaluates else {}
                if evaluates:
                    log.write(number, measured)
                if saves or stops:
                    with log.saving():
                        save(number, now, measured)
            if stops:
                raise Stopped(f"{workdir}: stopped after step {number}, which is saved")
    return now


def _begin(
    init: Callable[..., Any],
    start: tuple,
    checkpoints: Checkpoints,
    batches: grain.DatasetIterator,
    config: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    rules: Mapping[str, Any],
) -> tuple[Run, Run]:
    """Where the run stands, which is the newest checkpoint or what `init(*start)` makes, and how
    it is laid out on the mesh."""

    def begin(*start: Any) -> Run:
        return Run(init(*start), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    shapes = jax.eval_shape(begin, *start)
    placed = shardings(shapes, mesh, rules)
    if checkpoints.latest is not None:
        return checkpoints.restore(abstract(shapes, placed), batches, config), placed
    start = jax.device_put(start, shardings(start, mesh, rules))
    return jax.jit(begin, out_shardings=placed)(*start), placed


def compile_step(
    step: Callable, placed: Run
) -> Callable[[Run, Any, Any, tuple], tuple[Run, Metrics]]:
    """`step` compiled as `fit` runs it, its state laid out as `placed`: what is not finite is left
    out, and the state before is overwritten."""

    mesh = jax.tree.leaves(placed)[0].mesh

    def guarded(before: Run, batch: Any, frozen: Any, phase: tuple) -> tuple[Run, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # models place activations on it
            state, metrics = step(before.state, batch, frozen, *phase)
        deciding = [v for name, v in metrics.items() if name.endswith(("loss", "gradient_norm"))]
        finite = jnp.all(jnp.isfinite(jnp.stack(deciding)))
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), state, before.state)
        skipped = before.skipped + ~finite
        in_a_row = jnp.where(finite, 0, before.skipped_in_a_row + 1)
        counts = {"skipped_steps": skipped, "skipped_in_a_row": in_a_row}
        return Run(state, skipped, in_a_row), {**metrics, **counts}

    # Each process reads the metrics, so that it has to have all of them.
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(guarded, donate_argnums=0, static_argnums=3, out_shardings=(placed, everywhere))
