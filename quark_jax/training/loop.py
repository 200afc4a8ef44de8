"""The loop that both trainers run: restore, step, log, evaluate, save."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import grain
import jax
from tqdm import tqdm

from quark_jax.errors import UserError
from quark_jax.training.checkpoint import Checkpoints, abstract
from quark_jax.training.metrics import MetricWriter
from quark_jax.training.sharding import MeshConfig, batch_sharding, place_batch, shardings

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
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        for name, least in {"log_every": 1, "eval_every": 0, "save_every": 1, "keep": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"run.{name}: {getattr(self, name)}; set at least {least}")


def fit(
    init: Callable[[], Any],
    step: Callable[[Any, Any], tuple[Any, Metrics]],
    batches: grain.DatasetIterator,
    *,
    run: RunConfig,
    mesh: jax.sharding.Mesh,
    config: Mapping[str, Any],
    workdir: str | PathLike,
    evaluate: Callable[[Any, int], Mapping[str, float]],
    label: str,
) -> Any:
    """Train from where `workdir` stands to `run.steps`, and give the last state.

    `init()` makes the state, a pytree of arrays; `step(state, batch)` gives the next one and
    scalars; `batches` is a Grain iterator of this process's part of each global batch;
    `evaluate(state, step)` gives scalars of held-out data, also before the first step. Run again
    after an interruption, it goes on from the newest checkpoint with the same data and numbers; a
    run that is finished is left as it is.
    """
    with ExitStack() as stack:
        stack.enter_context(closing(batches))
        checkpoints = stack.enter_context(closing(Checkpoints(workdir, keep=run.keep)))
        shapes = jax.eval_shape(init)
        placed = shardings(shapes, mesh, run.mesh.rules)
        start = checkpoints.latest
        if start is None:
            state = jax.jit(init, out_shardings=placed)()
        else:
            state = checkpoints.restore(abstract(shapes, placed), batches, config)
            if start >= run.steps:
                return state
        writer = stack.enter_context(closing(MetricWriter(workdir, resumed=start)))
        compiled = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(placed, batch_sharding(mesh)),
            out_shardings=(placed, None),
        )
        if start is None:
            start = 0
            writer.write(0, evaluate(state, 0))
        bar = stack.enter_context(
            tqdm(desc=label, initial=start, total=run.steps, unit="step", dynamic_ncols=True)
        )
        waiting: tuple[int, Metrics] | None = None

        def report() -> None:
            if waiting is not None:
                number, metrics = waiting
                loss = float(metrics["loss"])
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
                if number % run.log_every == 0:
                    writer.write(number, {name: float(value) for name, value in metrics.items()})

        for number in range(start + 1, run.steps + 1):
            state, metrics = compiled(state, place_batch(next(batches), mesh))
            # The step before is read while this one runs: the device never waits for the host.
            report()
            waiting = number, metrics
            last = number == run.steps
            evaluates = last or (run.eval_every and number % run.eval_every == 0)
            saves = last or number % run.save_every == 0
            if evaluates or saves:  # the metrics up to a checkpoint are written before it
                report()
                waiting = None
            if evaluates:
                writer.write(number, evaluate(state, number))
            if saves:
                checkpoints.save(number, state, batches, config)
    return state
