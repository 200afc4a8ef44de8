"""The loop that both trainers run: restore, step, log, evaluate, save."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import jax
from tqdm import tqdm

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


def fit(
    init: Callable[[], Any],
    step: Callable[[Any, Any], tuple[Any, Metrics]],
    batches: Iterator[Any],
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
    after an interruption, it goes on from the newest checkpoint with the same data and numbers.
    """
    placed = shardings(jax.eval_shape(init), mesh, run.mesh.rules)
    checkpoints = Checkpoints(workdir, keep=run.keep)
    start = checkpoints.latest
    if start is None:
        start, state = 0, jax.jit(init, out_shardings=placed)()
    else:
        shapes = abstract(jax.eval_shape(init), placed)
        state, start = checkpoints.restore(shapes, batches, config)
    writer = MetricWriter(workdir, resumed=start)
    compiled = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, None),
    )
    bar = tqdm(desc=label, initial=start, total=run.steps, unit="step", dynamic_ncols=True)
    if start == 0:
        writer.write(0, evaluate(state, 0))

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
        if last or (run.eval_every and number % run.eval_every == 0):
            report()
            waiting = None
            writer.write(number, evaluate(state, number))
        if last or number % run.save_every == 0:
            checkpoints.save(number, state, batches, config)
    bar.close()
    checkpoints.close()
    writer.close()
    return state
