"""Several processes as one program: jax.distributed, where there is a job to join."""

import os
from collections.abc import Callable
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from quark_jax.errors import UserError

T = TypeVar("T")

_ADDRESS, _COUNT, _INDEX = _NAMED = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
_HEARTBEAT = "QUARK_HEARTBEAT_SECONDS"
# What srun sets in each task; what GKE sets in each pod of a slice.
_SLURM = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"),
    *("SLURM_PROCID", "SLURM_LOCALID"),
)
_GKE = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")


def start() -> None:
    """Join the other processes of this job. To be called before anything else of JAX.

    They are, whichever is there first,

    - what JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID
      say, as launch/local.py sets them; on CPUs they talk through gloo;
    - on TPUs the workers of all slices, as the machine's metadata or GKE's variables tell;
    - the tasks of a Slurm step, each with the GPU of its number on the node.

    Where a job has one process and no TPU, nothing is started. Of a process that dies the others
    hear by its connection or, after QUARK_HEARTBEAT_SECONDS (100), by its silence, and JAX ends
    them (SIGABRT): whoever started the job starts it again.

    Raises UserError where a variable is missing or is not the number that it should be.
    """
    options = {}
    if _HEARTBEAT in os.environ:
        options["heartbeat_timeout_seconds"] = _number(_HEARTBEAT, least=1)
    if any(name in os.environ for name in (_COUNT, _INDEX)):
        for name in _NAMED:
            if name not in os.environ:
                raise UserError(f"{name}: not set; set {', '.join(_NAMED)}, or none of them")
        count, index = _number(_COUNT, least=1), _number(_INDEX)
        if index >= count:
            raise UserError(f"{_INDEX}: {index}; the {count} processes are numbered from 0")
        if count > 1:
            jax.distributed.initialize(
                os.environ[_ADDRESS], count, index, cluster_detection_method="deactivate", **options
            )
    elif _on_tpu() or _slurm_tasks() > 1:
        jax.distributed.initialize(**options)


def whole(tree: T) -> T:
    """`tree` (a pytree of arrays) with all of each array in this process: those that are spread
    over several become NumPy arrays. All processes have to ask for it together."""

    def fetched(array: jax.Array) -> jax.Array:
        if getattr(array, "is_fully_addressable", True):
            return array
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(fetched, tree)


def by_first(write: Callable[[], None]) -> None:
    """Have process 0 alone `write`; the others wait until it has."""
    if jax.process_index() == 0:
        write()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("written")


def _on_tpu() -> bool:
    """Whether JAX has found TPU chips, and the means to ask for their neighbours. It chooses the
    platform "tpu,cpu" where there are chips and nobody has chosen another."""
    found = "tpu" in (jax.config.jax_platforms or "").split(",")
    in_gke = any(name in os.environ for name in _GKE)
    return found and (in_gke or "TPU_SKIP_MDS_QUERY" not in os.environ)


def _slurm_tasks() -> int:
    """Tasks of the Slurm step that this process is one of; 1 outside of any."""
    return _number("SLURM_NTASKS") if all(name in os.environ for name in _SLURM) else 1


def _number(name: str, *, least: int = 0) -> int:
    value = os.environ[name]
    if not value.isdecimal() or int(value) < least:
        raise UserError(f"{name}: {value!r}; give a whole number, {least} or more")
    return int(value)
