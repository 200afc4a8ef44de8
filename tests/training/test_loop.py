"""The loop on a model of one number: it can be cut off anywhere."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from orbax.checkpoint._src.checkpointers import async_checkpointer

from quark_jax.errors import Stopped, UserError
from quark_jax.training import loop, metrics
from quark_jax.training.checkpoint import Checkpoints, KeepBest
from quark_jax.training.compilation import keep_programs
from quark_jax.training.loop import RunConfig, fit
from quark_jax.training.profiling import ProfileConfig
from quark_jax.training.sharding import make_mesh
from quark_jax.training.watchdog import Watchdog

TIMES = {"steps_per_second", "data_wait", "checkpoint_seconds", "goodput", "tokens_per_second"}
RUN = RunConfig(steps=5, log_every=1, eval_every=3, save_every=2)


def read_metrics(workdir) -> list[dict[str, float]]:
    """All but what is another number in every run."""
    return [
        {n: v for n, v in row.items() if n not in TIMES} for row in metrics.read_metrics(workdir)
    ]


class State(NamedTuple):
    step: jax.Array
    key: jax.Array
    total: jax.Array


def step(state: State, batch: jax.Array, frozen: tuple) -> tuple[State, dict[str, jax.Array]]:
    """Depends on all there is to save: state, key and the place in the data."""
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step))
    total = 0.5 * state.total + jnp.mean(batch) + noise
    rare = jnp.where(state.step % 2, 1.0, jnp.nan)  # there is nothing to measure in half the steps
    return State(state.step + 1, state.key, total), {"loss": total, "rare": rare}


def batches() -> grain.DatasetIterator:
    data = grain.MapDataset.range(30).seed(3).shuffle().repeat().batch(4)
    return iter(data.map(lambda batch: batch.astype(np.float32)).to_iter_dataset())


def train(
    workdir,
    *,
    run=RUN,
    evaluate=lambda state, number: {"held": float(state.total)},
    data=None,
):
    return fit(
        lambda: State(jnp.zeros((), jnp.int32), jax.random.PRNGKey(0), jnp.zeros(())),
        step,
        batches() if data is None else data,
        run=run,
        mesh=make_mesh(run.mesh),
        config={"run": {"steps": run.steps}},
        workdir=workdir,
        evaluate=evaluate,
        label="toy",
    )


class Cut(Exception):
    """Stands for a kill where that is hard to time."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    state = train(workdir)
    return float(state.total), read_metrics(workdir)


def test_rows_of_a_whole_run(whole):
    _, rows = whole
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if "held" in row] == [0, 3, 5]
    assert ["rare" in row for row in rows if "loss" in row] == [False, True] * 2 + [False]
    assert rows[-2]["loss"] == rows[-1]["held"]


@pytest.mark.parametrize("number", [0, 3])
def test_sigterm_saves_the_step_under_way(tmp_path, whole, number):
    before = signal.getsignal(signal.SIGTERM)

    def evaluate(state, at):
        if at == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"held": float(state.total)}

    with pytest.raises(Stopped, match=f"stopped after step {number + 1}, which is saved"):
        train(tmp_path, evaluate=evaluate)
    assert signal.getsignal(signal.SIGTERM) == before
    assert max(int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*")) == number + 1
    assert (float(train(tmp_path).total), read_metrics(tmp_path)) == whole


def test_sigterm_in_the_last_step_changes_nothing(tmp_path, whole):
    def evaluate(state, at):
        if at == RUN.steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"held": float(state.total)}

    assert float(train(tmp_path, evaluate=evaluate).total) == whole[0]


def test_a_second_run_in_the_workdir_is_refused(tmp_path, whole):
    refused = []

    def evaluate(state, at):
        if at == 3:
            with pytest.raises(UserError, match="another run is at work in it"):
                train(tmp_path)
            refused.append(at)
        return {"held": float(state.total)}

    assert float(train(tmp_path, evaluate=evaluate).total) == whole[0]
    assert refused and read_metrics(tmp_path) == whole[1]


@pytest.mark.parametrize("number", [0, 3, 5])
def test_cut_off_in_an_evaluation(tmp_path, whole, number):
    def evaluate(state, at):
        if at == number:
            raise Cut
        return {"held": float(state.total)}

    with pytest.raises(Cut):
        train(tmp_path, evaluate=evaluate)
    assert (float(train(tmp_path).total), read_metrics(tmp_path)) == whole


@pytest.mark.parametrize("number", [4, 5])
def test_cut_off_right_after_a_checkpoint(tmp_path, whole, number, monkeypatch):
    class Checkpoints(loop.Checkpoints):
        def save(self, at, *args, **options):
            super().save(at, *args, **options)
            if at == number:
                raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(loop, "Checkpoints", Checkpoints)
        with pytest.raises(Cut):
            train(tmp_path)
    assert (float(train(tmp_path).total), read_metrics(tmp_path)) == whole


@pytest.mark.parametrize("number", [1, 4])
def test_cut_off_while_reading(tmp_path, whole, number):
    class Cutting:
        def __init__(self):
            self.data, self.taken = batches(), 0

        def __next__(self):
            self.taken += 1
            if self.taken == number:
                raise Cut
            return next(self.data)

        def __getattr__(self, name):
            return getattr(self.data, name)

    with pytest.raises(Cut):
        train(tmp_path, data=Cutting())
    assert (float(train(tmp_path).total), read_metrics(tmp_path)) == whole


def test_a_run_made_longer_is_one_that_always_was(tmp_path, whole):
    train(tmp_path, run=replace(RUN, steps=3))
    assert (float(train(tmp_path).total), read_metrics(tmp_path)) == whole


def test_a_run_made_shorter_is_finished_and_says_so(tmp_path, whole, capsys):
    train(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert float(train(tmp_path, run=replace(RUN, steps=3)).total) == whole[0]
    done = f"{tmp_path}: done, all 5 steps; the model is in {tmp_path}/model\n"
    assert capsys.readouterr().err == done
    assert read_metrics(tmp_path) == whole[1]
    assert sorted(tmp_path.rglob("*")) == before


class Damaged:
    """The batches, those of some steps full of NaN."""

    def __init__(self, steps):
        self.data, self.steps = batches(), steps

    def __next__(self):
        batch = next(self.data)
        return batch * np.nan if self.get_state()["next_index"] in self.steps else batch

    def __getattr__(self, name):
        return getattr(self.data, name)


def test_steps_that_are_not_finite_are_left_out(tmp_path, whole):
    state = train(tmp_path / "a", data=Damaged({2, 4}))
    rows = [row for row in read_metrics(tmp_path / "a") if "skipped_steps" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 2, 2]
    assert ["loss" in row for row in rows] == [True, False, True, False, True]
    assert int(state.step) == 3

    class Without(Damaged):  # the steps that are left, as if there had been no others
        def __next__(self):
            batch = next(self.data)
            return next(self) if self.get_state()["next_index"] in self.steps else batch

    other = train(tmp_path / "b", run=replace(RUN, steps=3), data=Without({2, 4}))
    assert float(state.total) == float(other.total)
    # The count is kept where the run goes on.
    train(tmp_path / "c", run=replace(RUN, steps=2), data=Damaged({2, 4}))
    train(tmp_path / "c", data=Damaged({2, 4}))
    assert read_metrics(tmp_path / "c")[-2:] == read_metrics(tmp_path / "a")[-2:]


def test_a_run_gone_astray_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    run = replace(RUN, steps=9, skip_limit=3)
    with pytest.raises(UserError, match=r"in 3 steps in a row, up to step 6; .* kept"):
        train(tmp_path, run=run, data=Damaged({2, 4, 5, 6}))
    # Step 4 was saved with the state of step 3, from which all goes on with sound batches.
    state = train(tmp_path, run=run)
    assert int(state.step) == 9 - 2
    assert np.isfinite(float(state.total))


@pytest.mark.parametrize("name", ["log_every", "save_every", "keep", "skip_limit"])
def test_intervals_that_cannot_be_are_refused(name):
    with pytest.raises(UserError, match=f"run.{name}: 0; set at least 1"):
        RunConfig(**{name: 0})


def test_evaluation_at_the_ends_alone(tmp_path):
    train(tmp_path, run=replace(RUN, eval_every=0))
    assert [row["step"] for row in read_metrics(tmp_path) if "held" in row] == [0, 5]


class Watching:
    """The batches; `look(number)` is called before the batch of each step is taken."""

    def __init__(self, look):
        self.data, self.look, self.taken = batches(), look, 0

    def __next__(self):
        self.taken += 1
        self.look(self.taken)
        return next(self.data)

    def __getattr__(self, name):
        return getattr(self.data, name)


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path, whole, monkeypatch):
    written, still_open = threading.Event(), []
    wait = async_checkpointer._background_wait_for_commit_futures

    def held_up(*args, **options):
        assert written.wait(60)
        wait(*args, **options)

    def look(number):
        if number == 4:  # that of step 2 is under way
            still_open.append(not (tmp_path / "checkpoints" / "2").exists())
            written.set()

    monkeypatch.setattr(async_checkpointer, "_background_wait_for_commit_futures", held_up)
    assert float(train(tmp_path, data=Watching(look)).total) == whole[0]
    assert still_open == [True] and read_metrics(tmp_path) == whole[1]


def test_going_on_is_said_and_goodput_counts_from_the_first_start(tmp_path, capsys):
    def cut(number):
        if number == 4:
            raise Cut

    with pytest.raises(Cut):
        train(tmp_path, data=Watching(cut))
    assert "goes on" not in capsys.readouterr().err
    first = json.loads((tmp_path / "begun.json").read_text())["begun"]
    saved = Checkpoints(tmp_path).notes
    assert saved["begun"] == first and 0 < saved["productive_seconds"] < time.time() - first
    train(tmp_path)
    said = capsys.readouterr().err
    assert f"{tmp_path}: goes on after step 2, the newest complete checkpoint\n" in said
    notes = Checkpoints(tmp_path).notes
    assert notes["begun"] == first and notes["productive_seconds"] > saved["productive_seconds"]
    rows = [row for row in metrics.read_metrics(tmp_path) if "loss" in row]
    assert all(TIMES - {"tokens_per_second"} < set(row) for row in rows)
    assert 0 < rows[-1]["goodput"] < 1 and rows[-1]["steps_per_second"] > 0
    assert [row["checkpoint_seconds"] > 0 for row in rows] == [False] * 4 + [True]


def test_the_watchdog_sleeps_while_no_step_is_under_way(tmp_path, monkeypatch):
    done = []

    def evaluate(state, number):
        done.append("evaluate")
        return {"held": 0.0}

    class Checkpoints(loop.Checkpoints):
        def save(self, *args, **options):
            done.append("save")
            super().save(*args, **options)

    monkeypatch.setattr(loop, "Checkpoints", Checkpoints)
    for name in ("begin", "pause"):
        monkeypatch.setattr(Watchdog, name, lambda self, name=name: done.append(name))
    monkeypatch.setattr(Watchdog, "step", lambda self, number: done.append(number))
    train(tmp_path, evaluate=evaluate)
    assert " ".join(map(str, done)) == (
        "pause evaluate begin 1 2 pause save begin 3 pause evaluate begin 4 pause save begin "
        "5 pause evaluate save begin pause"
    )


def test_the_best_checkpoint_stays(tmp_path):
    run = replace(RUN, save_every=1, eval_every=1, keep=1, keep_best=KeepBest("held"))
    train(tmp_path, run=run, evaluate=lambda state, number: {"held": abs(number - 2.0)})
    kept = {path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")}
    assert kept == {"2", "5"}


def profiled(workdir) -> list[list[int]]:
    """The steps of each profile, as TensorBoard finds them."""
    profiles = []
    for path in sorted((workdir / "profile" / "plugins" / "profile").glob("*/*.xplane.pb")):
        steps = [
            dict(event.stats)["step_num"]
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        ]
        profiles.append(sorted(steps))
    return sorted(profiles)


def profile(workdir, config: ProfileConfig, number: int, *, cut: int | None = None) -> float:
    """The total of a run that gets SIGUSR1 in step `number`, noticed before the next one, and that
    is cut off in step `cut`."""

    def look(at):
        if at == number:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1.1)  # TensorBoard tells profiles apart by the second
        if at == cut:
            raise Cut

    return float(train(workdir, run=replace(RUN, profile=config), data=Watching(look)).total)


def test_profiles_by_step_and_by_signal(tmp_path, whole):
    before = signal.getsignal(signal.SIGUSR1)
    assert profile(tmp_path, ProfileConfig(first=1, steps=1), 2) == whole[0]
    assert profiled(tmp_path) == [[1], [3]]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_profile_of_a_run_that_ends_in_its_midst_is_written(tmp_path):
    with pytest.raises(Cut):
        profile(tmp_path, ProfileConfig(first=1, steps=2), 3, cut=5)
    assert profiled(tmp_path) == [[1, 2], [4]]


def test_programs_are_kept_in_the_workdir_of_an_accelerator(tmp_path, monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update(names[0], None)
        keep_programs(tmp_path)
        assert jax.config.jax_compilation_cache_dir is None  # on a CPU
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        jax.config.update(names[0], "shared")
        keep_programs(tmp_path)
        assert jax.config.jax_compilation_cache_dir == "shared"
        jax.config.update(names[0], None)
        jax.config.update(names[1], 0)
        train(tmp_path)
        assert any((tmp_path / "compiled").iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
