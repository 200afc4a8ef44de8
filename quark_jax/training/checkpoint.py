"""Checkpoints of a run: state, data position and config together, by Orbax."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from quark_jax.config import differences
from quark_jax.errors import UserError

# What a run may be resumed with another value of.
_FREE = {
    *("run.steps", "run.log_every", "run.eval_every", "run.save_every", "run.keep", "run.mesh"),
    *("run.skip_limit", "eval_audio_every"),
    *("data.workers", "data.heard"),
}


class Checkpoints:
    """The checkpoints under `workdir`/checkpoints. The newest complete one wins; saving keeps the
    old ones until the new one is complete, and the last `keep` of them.

    Raises UserError where the folder cannot be made.
    """

    def __init__(self, workdir: str | PathLike, *, keep: int = 2):
        self._folder = epath.Path(workdir).resolve() / "checkpoints"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{workdir}: cannot be made ({error.strerror or error}); "
                "choose a folder that can be written to"
            ) from error
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
            item_names=("state", "data", "config"),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: Any, config: Mapping[str, Any]) -> None:
        """Save `state` (a pytree of arrays), the iterator `data`'s position and `config`. A step
        that is there already is left as it is."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_not_empty(state)),
                data=ocp.args.JsonSave(_position(data)),
                config=ocp.args.JsonSave(dict(config)),
            ),
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
        """Wait for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


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
