"""The loop that both trainers run: restore, step, log, evaluate, save."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from quark_jax.errors import Stopped, UserError
from quark_jax.files import alone_in
from quark_jax.training.checkpoint import Checkpoints, abstract
from quark_jax.training.metrics import MetricWriter, Value
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
    keep: int = 2  # checkpoints
    skip_limit: int = 20  # steps in a row that are not finite, and the run stops
    mesh: MeshConfig = field(default_factory=MeshConfig)

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
    step: Callable[[Any, Any, Any], tuple[Any, Metrics]],
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
) -> Any:
    """Train from where `workdir` stands to `run.steps`, and give the last state.

    `init(*start)` makes the state, a pytree of arrays; `step(state, batch, frozen)` gives the next
    one and scalars, "loss" among them; `batches` is a Grain iterator of this process's part of each
    global batch; `evaluate(state, step)` gives scalars of held-out data, also before the first
    step, and what else `MetricWriter.write` takes; `frozen` and `start`, pytrees of arrays, are
    placed on the mesh as the state is. What `phase(number)` gives for a step, counted from 0, are
    more arguments of `step`, static: a program is compiled for each of its values. Run again after
    an interruption, it goes on from the newest checkpoint with the same data and numbers; a run
    that is finished is left as it is.

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
        checkpoints = stack.enter_context(closing(Checkpoints(workdir, keep=run.keep)))
        first = checkpoints.latest
        now, placed = _begin(init, start, checkpoints, batches, config, mesh, run.mesh.rules)
        if first is not None and first >= run.steps:
            return now.state
        del start  # the state has taken its place in memory
        frozen = jax.device_put(frozen, shardings(frozen, mesh, run.mesh.rules))
        compiled = compile_step(step, placed)
        termination = stack.enter_context(Termination())
        log = stack.enter_context(closing(_Log(workdir, run, first, label)))
        if first is None:
            log.writer.write(0, evaluate(now.state, 0))
        for number in range((first or 0) + 1, run.steps + 1):
            batch = place_batch(log.wait_for(batches), mesh)
            now, metrics = compiled(now, batch, frozen, phase(number - 1))
            # The step before is read while this one runs: the device never waits for the host.
            log.report()
            log.pending = number, metrics
            evaluates, saves = run.due(number)
            stops = termination.after(number) and number < run.steps
            if not (evaluates or saves or stops):
                continue
            log.report()  # the metrics up to a checkpoint are written before it
            if evaluates:
                log.writer.write(number, evaluate(now.state, number))
            if saves or stops:
                checkpoints.save(number, now, batches, config)
            if stops:
                raise Stopped(f"{workdir}: stopped after step {number}, which is saved")
            log.restart()
    return now.state


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

    def guarded(before: Run, batch: Any, frozen: Any, phase: tuple) -> tuple[Run, Metrics]:
        state, metrics = step(before.state, batch, frozen, *phase)
        deciding = [v for name, v in metrics.items() if name.endswith(("loss", "gradient_norm"))]
        finite = jnp.all(jnp.isfinite(jnp.stack(deciding)))
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), state, before.state)
        skipped = before.skipped + ~finite
        in_a_row = jnp.where(finite, 0, before.skipped_in_a_row + 1)
        counts = {"skipped_steps": skipped, "skipped_in_a_row": in_a_row}
        return Run(state, skipped, in_a_row), {**metrics, **counts}

    # Each process reads the metrics, so that it has to have all of them.
    everywhere = NamedSharding(jax.tree.leaves(placed)[0].mesh, PartitionSpec())
    return jax.jit(guarded, donate_argnums=0, static_argnums=3, out_shardings=(placed, everywhere))


class _Log:
    """The progress bar, the metrics, and when to stop."""

    def __init__(self, workdir: str | PathLike, run: RunConfig, start: int | None, label: str):
        self.writer = MetricWriter(workdir, resumed=start)
        self.pending: tuple[int, Metrics] | None = None  # a step, and what it will have given
        self._workdir, self._run = workdir, run
        self._bar = tqdm(
            desc=label, initial=start or 0, total=run.steps, unit="step", dynamic_ncols=True
        )
        self.restart()

    def restart(self) -> None:
        """Measure the wait for data from here on."""
        self._waited, self._since = 0.0, time.monotonic()

    def wait_for(self, batches: grain.DatasetIterator) -> Any:
        """The next batch; "data_wait" is the share of the time that passes here, and
        "skipped_recordings" how many this process and its workers could not use."""
        begun = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - begun
        self._unusable = len(getattr(batches, "skipped", ()))
        return batch

    def report(self) -> None:
        """Wait for the pending step and write what it gave."""
        if self.pending is None:
            return
        number, arrays = self.pending
        self.pending = None
        metrics = {name: float(value) for name, value in arrays.items()}
        in_a_row = int(metrics.pop("skipped_in_a_row"))
        self._bar.set_postfix(
            loss=f"{metrics['loss']:.3f}",
            **({"skipped": int(metrics["skipped_steps"])} if metrics["skipped_steps"] else {}),
            refresh=False,
        )
        self._bar.update()
        if number % self._run.log_every == 0:
            passed = time.monotonic() - self._since
            metrics["data_wait"] = self._waited / passed
            metrics["skipped_recordings"] = self._unusable
            self.restart()
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self.writer.write(number, finite)
        if in_a_row >= self._run.skip_limit:
            raise UserError(
                f"{self._workdir}: loss or gradient was not finite in {in_a_row} steps in a row, "
                f"up to step {number}; the newest checkpoint is kept; lower the learning rate or "
                "look for damaged recordings, and begin again in another --workdir"
            )

    def close(self) -> None:
        self._bar.close()
        self.writer.close()
