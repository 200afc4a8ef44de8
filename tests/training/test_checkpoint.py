"""What a checkpoint holds is what was there when it was saved."""

import math
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from quark_jax.commands import guarded
from quark_jax.errors import UserError
from quark_jax.training.checkpoint import Checkpoints, KeepBest, _reason, _unless_late, abstract
from quark_jax.training.sharding import MeshConfig, make_mesh

CONFIG = {
    "run": {"steps": 5, "seed": 0, "mesh": {"data": -1}},
    "data": {"workers": 0},
    "model": {"width": 4},
}


def make_state() -> dict:
    return {
        "step": jnp.asarray(3, jnp.int32),
        "key": jax.random.PRNGKey(7),
        "half": jnp.asarray([1.5, -2.25], jnp.bfloat16),
        "flags": jnp.asarray([True, False]),
        "params": nnx.State(
            {"kernel": nnx.Param(jnp.arange(6.0).reshape(2, 3), axes=(None, "mlp"))}
        ),
    }


def make_data() -> grain.DatasetIterator:
    return iter(grain.MapDataset.range(100).seed(1).shuffle().batch(4).to_iter_dataset())


def everywhere(state: dict) -> dict:
    sharding = NamedSharding(make_mesh(MeshConfig()), PartitionSpec())
    return abstract(state, jax.tree.map(lambda _: sharding, state))


@pytest.fixture
def saved(tmp_path):
    """A workdir with a checkpoint of step 3, and the batch that comes next."""
    checkpoints, data = Checkpoints(tmp_path), make_data()
    for _ in range(3):
        next(data)
    checkpoints.save(3, make_state(), data, CONFIG)
    checkpoints.close()
    return tmp_path, next(data)


def test_everything_comes_back(saved):
    workdir, following = saved
    checkpoints, data = Checkpoints(workdir), make_data()
    assert checkpoints.latest == 3
    state = checkpoints.restore(everywhere(make_state()), data, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, state, make_state())
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert dtypes == [leaf.dtype for leaf in jax.tree.leaves(make_state())]
    assert state["params"]["kernel"].get_metadata()["axes"] == (None, "mlp")
    np.testing.assert_array_equal(next(data), following)
    checkpoints.close()


def test_a_step_that_follows_does_not_write_into_what_is_saved(tmp_path):
    """Saving goes on in the background while the next step overwrites the donated state."""
    checkpoints, data = Checkpoints(tmp_path), make_data()
    state = {"big": jnp.ones((1 << 22,))}
    advance = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    checkpoints.save(1, state, data, CONFIG)
    for _ in range(3):
        state = advance(state)
    jax.block_until_ready(state)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(everywhere(state), data, CONFIG)
    assert float(jnp.min(restored["big"])) == float(jnp.max(restored["big"])) == 1.0
    checkpoints.close()


def test_the_last_ones_are_kept(tmp_path):
    checkpoints, data = Checkpoints(tmp_path, keep=2), make_data()
    for step in (1, 2, 3, 4):
        checkpoints.save(step, make_state(), data, CONFIG)
    checkpoints.close()
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"3", "4"}


def test_one_that_was_cut_off_is_passed_over_and_removed(saved):
    workdir, following = saved
    left = workdir / "checkpoints" / "4.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    checkpoints, data = Checkpoints(workdir), make_data()
    assert checkpoints.latest == 3
    checkpoints.restore(everywhere(make_state()), data, CONFIG)
    np.testing.assert_array_equal(next(data), following)
    checkpoints.close()
    assert not left.exists()


def test_saving_a_step_again_changes_nothing(saved):
    workdir, _ = saved
    checkpoints, data = Checkpoints(workdir), make_data()
    checkpoints.save(3, jax.tree.map(jnp.zeros_like, make_state()), data, CONFIG)
    restored = checkpoints.restore(everywhere(make_state()), data, CONFIG)
    assert int(restored["step"]) == 3
    checkpoints.close()


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (CONFIG | {"model": {"width": 8}}, "model.width"),
        (CONFIG | {"model": {"width": 8, "depth": 1}}, "model.depth, model.width"),
        (CONFIG | {"run": CONFIG["run"] | {"seed": 1}}, "run.seed"),
        ({"run": CONFIG["run"], "data": CONFIG["data"]}, "model"),
        (CONFIG | {"run": {"seed": 0, "steps_of": 1}}, "run.steps_of"),
    ],
)
def test_another_config_is_refused_naming_its_fields(saved, config, names):
    checkpoints = Checkpoints(saved[0])
    with pytest.raises(UserError) as refusal:
        checkpoints.restore(everywhere(make_state()), make_data(), config)
    assert f"{saved[0]}: this run was begun with another {names};" in str(refusal.value)
    checkpoints.close()


def test_what_changes_no_number_is_free(saved):
    run = {"steps": 9, "seed": 0, "mesh": {"data": 1}, "save_every": 3}
    config = CONFIG | {"run": run, "data": {"workers": 2}}
    checkpoints = Checkpoints(saved[0])
    assert int(checkpoints.restore(everywhere(make_state()), make_data(), config)["step"]) == 3
    checkpoints.close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be made"):
        Checkpoints(tmp_path / "file" / "run")


def test_a_full_disk_is_told_in_a_line_and_the_old_checkpoint_stays_whole(saved):
    """In a process of its own, which ends: threads of Orbax go on after what it raises."""
    workdir, following = saved
    command = [sys.executable, __file__, workdir]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"quark: {workdir}/checkpoints: the checkpoint of step 4 cannot be written (File too "
        "large); that of step 3 is whole; make room and run the same command again to go on"
    )
    assert "Error" not in done.stderr  # of the threads of Orbax and TensorStore
    checkpoints, data = Checkpoints(workdir), make_data()
    assert checkpoints.latest == 3
    checkpoints.restore(everywhere(make_state()), data, CONFIG)
    np.testing.assert_array_equal(next(data), following)
    checkpoints.save(4, make_state(), data, CONFIG)
    checkpoints.close()
    assert Checkpoints(workdir).latest == 4


def test_writes_that_end_late_are_passed_over_and_nothing_else(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    late, other = (
        SimpleNamespace(exc_value=RuntimeError(s)) for s in ("Event loop is closed", "other")
    )
    _unless_late(late)
    _unless_late(other)
    assert told == [other]


@pytest.mark.parametrize("notes", ["[os_error_code='27']", "[os_error_code='27'] [file='a:1']"])
def test_the_system_is_quoted_without_what_tensorstore_notes(notes):
    error = ValueError(f"Error writing 'a [b]/c': Failed to write: File too large {notes}")
    assert _reason(error) == "File too large"


@pytest.mark.parametrize(
    "missing", ["commit_success.txt _CHECKPOINT_METADATA", "data/metadata", "state/manifest.ocdbt"]
)
def test_one_that_is_half_there_is_passed_over_and_said_to_be(saved, missing, capsys):
    workdir, following = saved
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "3", folder / "4")
    for name in missing.split():
        (folder / "4" / name).unlink()
    checkpoints, data = Checkpoints(workdir), make_data()
    assert f"{folder / '4'}: is no whole checkpoint; renamed to 4.incomplete" in (
        capsys.readouterr().err
    )
    assert checkpoints.latest == 3
    checkpoints.restore(everywhere(make_state()), data, CONFIG)
    np.testing.assert_array_equal(next(data), following)
    checkpoints.save(4, make_state(), data, CONFIG)  # its place is free
    checkpoints.close()
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["3", "4", "4.incomplete"]


@pytest.mark.parametrize(("best", "kept"), [("lowest", "2 5 6"), ("highest", "1 5 6")])
def test_the_best_are_kept_too_also_over_restarts(tmp_path, best, kept, caplog):
    """Of step 4 it is not known, and NaN is no merit."""
    values, data = {1: 3.0, 2: 1.0, 3: math.nan, 4: None, 5: 2.0, 6: 2.0}, make_data()
    keep = KeepBest("held", best=best)
    for step, value in values.items():
        checkpoints = Checkpoints(tmp_path, keep=2, best=keep)
        measured = keep.of({} if value is None else {"held": value, "other": 0.0})
        checkpoints.save(step, make_state(), data, CONFIG, metrics=measured)
        checkpoints.close()
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == kept.split()
    assert "tracked_metric" not in caplog.text  # a step that was not evaluated is no fault


def test_what_was_noted_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.notes == {}
    checkpoints.save(1, make_state(), make_data(), CONFIG, notes={"begun": 17.25})
    checkpoints.close()
    assert Checkpoints(tmp_path).notes == {"begun": 17.25}


def test_a_metric_that_is_not_measured_is_refused():
    with pytest.raises(UserError, match=r"run\.keep_best\.metric 'a': choose one of b, c"):
        KeepBest("a").of({"b": 1.0, "c": 2.0})
    with pytest.raises(UserError, match=r"run\.keep_best\.best 'least': choose lowest or highest"):
        KeepBest("a", best="least")
    with pytest.raises(UserError, match=r"run\.keep_best\.count: 0; set at least 1"):
        KeepBest("a", count=0)


def fill_the_disk(workdir: str) -> None:
    """What the test of a full disk runs. A limit on the size of files stands in for it: the system
    refuses to write."""
    checkpoints = Checkpoints(workdir)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, 1 << 15))
    big = make_state() | {"big": jax.random.normal(jax.random.key(0), (1 << 16,))}
    checkpoints.save(4, big, make_data(), CONFIG)
    checkpoints.close()


if __name__ == "__main__":
    sys.exit(guarded(lambda: fill_the_disk(sys.argv[1])))
