"""Checkpoints of a run: state, data position and config together, by Orbax."""

import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from quark_jax.config import differences
from quark_jax.errors import UserError
from quark_jax.files import absolute, in_bucket

# What a run may be resumed with another value of.
_FREE = {
    *("run.steps", "run.log_every", "run.eval_every", "run.save_every", "run.keep", "run.mesh"),
    *("run.keep_best", "run.skip_limit", "run.profile", "eval_audio_every"),
    *("data.workers", "data.heard"),
}
_ITEMS = {"state": "_METADATA", "data": "metadata", "config": "metadata"}  # and a file of each


@dataclass(frozen=True)
class KeepBest:
    """Checkpoints that are kept because a held-out metric was best there, beside the newest ones.

    Only a checkpoint of a step that was evaluated can be: choose `run.eval_every` so that it meets
    `run.save_every`.
    """

    metric: str = ""  # such as heldout/stoi; empty: none
    count: int = 1
    best: str = "lowest"  # or "highest"

    def __post_init__(self):
        if self.best not in ("lowest", "highest"):
            raise UserError(f"run.keep_best.best {self.best!r}: choose lowest or highest")
        if self.count < 1:
            raise UserError(f"run.keep_best.count: {self.count}; set at least 1")

    def of(self, metrics: Mapping[str, Any]) -> dict[str, float] | None:
        """The metric out of all that were measured at a step; None where none is asked for, or it
        is not finite. Raises UserError where it is not among them."""
        if not self.metric or not metrics:
            return None
        if self.metric not in metrics:
            names = ", ".join(n for n, value in metrics.items() if isinstance(value, float))
            raise UserError(f"run.keep_best.metric {self.metric!r}: choose one of {names}")
        value = float(metrics[self.metric])
        return {self.metric: value} if math.isfinite(value) else None

    def options(self, newest: int) -> dict[str, Any]:
        """Of Orbax's manager: keep the `newest` checkpoints and these."""
        latest = policies.LatestN(newest)
        if not self.metric:
            return {"preservation_policy": latest}

        def measured(metrics: Mapping[str, float]) -> float:
            return metrics.get(self.metric, math.inf if self.best == "lowest" else -math.inf)

        best = policies.BestN(
            get_metric_fn=measured,
            reverse=self.best == "lowest",
            n=self.count,
            keep_checkpoints_without_metrics=False,
        )
        # Without `best_fn` Orbax does not write metrics down.
        return {
            "preservation_policy": policies.AnyPreservationPolicy([latest, best]),
            "best_fn": measured,
        }


class Checkpoints:
    """The checkpoints under `workdir`/checkpoints. The newest complete one wins; saving keeps the
    old ones until the new one is complete, then the last `keep` of them, and those of `best`.

    A newer one that is not whole, as a copy that was cut off leaves it, is renamed to
    STEP.incomplete, and the console told. What several processes do here, all have to do.

    Raises UserError where the folder cannot be made.
    """

    def __init__(self, workdir: str | PathLike, *, keep: int = 2, best: KeepBest | None = None):
        logging.getLogger("absl").addFilter(_telling)
        if sys.unraisablehook is sys.__unraisablehook__:
            sys.unraisablehook = _unless_late
        self._folder = absolute(workdir) / "checkpoints"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{workdir}: cannot be made ({error.strerror or error}); "
                "choose a folder that can be written to"
            ) from error
        if jax.process_index() == 0:
            _set_incomplete_aside(self._folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints are sound")
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True, **(best or KeepBest()).options(keep)
            ),
            item_names=tuple(_ITEMS),
        )
        self._saved = self._manager.latest_step()  # and whole
        self._saving: int | None = None

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted in the newest checkpoint; nothing where there is none."""
        step = self.latest
        return {} if step is None else dict(self._manager.metadata(step).custom_metadata or {})

    def save(
        self,
        step: int,
        state: Any,
        data: Any,
        config: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Save `state` (a pytree of arrays), the iterator `data`'s position and `config`; with them
        `metrics`, by which the best are told, and `notes`. A step that is there already is left as
        it is.

        It returns when the state is copied out of the devices; the copy is written while training
        goes on. Raises UserError where the checkpoint before, or this one, could not be written,
        as on a full disk.
        """
        self._wait()
        if step in self._manager.all_steps():
            return
        self._saving = step
        with self._told():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_not_empty(state)),
                    data=ocp.args.JsonSave(_position(data)),
                    config=ocp.args.JsonSave(dict(config)),
                ),
                metrics=metrics,
                custom_metadata=dict(notes or {}),
            )

    def restore(self, abstract: Any, data: Any, config: Mapping[str, Any]) -> Any:
        """The newest state, laid out as `abstract` says; sets `data`'s position.

        Raises UserError where the run was begun with another config, naming the fields.
        """
        step = self.latest
        before = self._manager.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
        ).config
        changed = [
            name
            for name in differences(before, config)
            if ".".join(name.split(".")[:2]) not in _FREE
        ]
        if changed:
            raise UserError(
                f"{self._folder.parent}: this run was begun with another {', '.join(changed)}; "
                "give the same config, or another --workdir"
            )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_not_empty(abstract)), data=ocp.args.JsonRestore()
            ),
        )
        position = restored.data["position"]
        data.set_state(position if isinstance(position, dict) else position.encode())
        return jax.tree.map(_or_empty, abstract, restored.state)

    def close(self) -> None:
        """Wait for the last save. Raises UserError where it could not be written."""
        try:
            self._wait()
        finally:
            self._manager.close()

    def _wait(self) -> None:
        with self._told():
            self._manager.wait_until_finished()
        self._saved = self._manager.latest_step()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the file system refuses, told in one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not _refused(error):
                raise
            saved = self._saved
            whole = "none is whole" if saved is None else f"that of step {saved} is whole"
            raise UserError(
                f"{self._folder}: the checkpoint of step {self._saving} cannot be written "
                f"({_reason(error)}); {whole}; make room and run the same command again to go on"
            ) from error


def _refused(error: BaseException) -> bool:
    """Whether it is the file system's. TensorStore raises ValueError, with the system's error in
    its text."""
    return isinstance(error, OSError) or (
        isinstance(error, ValueError) and "os_error_code" in str(error)
    )


def _telling(record: logging.LogRecord) -> bool:
    """A filter of what Orbax logs. It raises what the file system refuses, and logs it besides with
    a traceback from each of its threads; that a step was not evaluated is no fault."""
    told = record.exc_info and "orbax" in record.pathname and _refused(record.exc_info[1])
    return not (told or record.msg.startswith("Requested `tracked_metric`"))


def _unless_late(unraisable: Any) -> None:
    """Python's hook of the name, but for writes that end after Orbax has given up on their
    checkpoint: TensorStore's threads find its event loop closed, and nobody to raise that to."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _reason(error: Exception) -> str:
    """What the system said."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # TensorStore puts notes behind it, as " [os_error_code='28']": one, or several.
    return re.split(r" \[\w+=", str(error), maxsplit=1)[0].rpartition(": ")[2]


def _set_incomplete_aside(folder: epath.Path) -> None:
    """Rename what is newer than the newest whole checkpoint, and has the name of one. In a bucket,
    where nothing can be renamed, Orbax marks what it has finished, and passes the rest over."""
    if in_bucket(folder):
        return
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    while steps and not _whole(folder / str(steps[-1])):
        damaged = folder / str(steps.pop())
        aside = damaged.with_name(f"{damaged.name}.incomplete")
        aside.rmtree(missing_ok=True)
        damaged.rename(aside)
        print(f"{damaged}: is no whole checkpoint; renamed to {aside.name}", file=sys.stderr)


def _whole(checkpoint: epath.Path) -> bool:
    """Whether Orbax finished it, and everything is there that it lists."""
    try:
        about = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
    except (FileNotFoundError, ValueError):
        return False
    arrays = checkpoint / "state" / "manifest.ocdbt"
    files = [arrays, *(checkpoint / item / file for item, file in _ITEMS.items())]
    return bool(about.get("commit_timestamp_nsecs")) and all(file.exists() for file in files)


def _not_empty(state: Any) -> Any:
    """`state` with None for arrays without elements, which Orbax does not save."""
    return jax.tree.map(lambda array: array if array.size else None, state)


def _or_empty(wanted: jax.ShapeDtypeStruct, array: jax.Array | None) -> jax.Array:
    if array is None:
        return jnp.zeros(wanted.shape, wanted.dtype, device=wanted.sharding)
    return array


def _position(data: Any) -> dict[str, Any]:
    position = data.get_state()
    return {"position": position.decode() if isinstance(position, bytes) else position}


def abstract(state: Any, shardings: Any) -> Any:
    """`state` as shapes, dtypes and placements, for `restore`."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings
    )
