"""Where arrays live: one mesh, and one table from logical axis names to its axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from quark_jax.errors import UserError, first_of

AXES = ("data", "fsdp", "tensor", "sequence")

# Logical axis -> mesh axis. A kernel is split over fsdp on the side of the model's width, over
# tensor on the other; that of a convolution on one side alone: where both are split, XLA (jaxlib
# 0.10.2) gives rows of convolutions gradients that are wrong as a whole.
RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
    "channels_in": "fsdp",
    "channels_out": None,
    "codebook": None,
    "layers": None,
}


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis, those of all slices together; -1 on one axis takes what the
    others leave.

    Where TPU slices are joined by the data centre's network, the axis that `slices` names goes
    across them and the others stay inside of one: "data" sends gradients over that network once a
    step, "fsdp" parameters too, for models whose state does not fit into one slice.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    slices: str = "data"
    rules: dict[str, str | None] = field(default_factory=lambda: dict(RULES))

    def __post_init__(self):
        if self.slices not in ("data", "fsdp"):
            raise UserError(f"mesh.slices {self.slices!r}: choose data or fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, all that there are by default. Raises UserError where their number, or
    that of the TPU slices they are in, does not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    count, free = len(devices), sizes.count(-1)
    known = int(np.prod([size for size in sizes if size != -1]))
    possible = free <= 1 and all(size > 0 or size == -1 for size in sizes)
    if not possible or count % known or (not free and known != count):
        given = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise UserError(
            f"mesh {given}: does not fit {count} devices; set one axis to -1, the others to a "
            "divisor of their number"
        )
    sizes = tuple(count // known if size == -1 else size for size in sizes)
    return Mesh(_arrange(devices, sizes, config), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(
    devices: Sequence[jax.Device], sizes: tuple[int, ...], config: MeshConfig
) -> np.ndarray:
    """Devices [sizes], neighbours on the last axes nearest to each other."""
    if devices[0].platform != "tpu":  # in the order of their processes
        return np.asarray(devices).reshape(sizes)
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices == 1:
        return create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    across = [slices if axis == config.slices else 1 for axis in AXES]
    if any(size % outer for size, outer in zip(sizes, across, strict=True)):
        raise UserError(
            f"mesh.{config.slices}: {sizes[AXES.index(config.slices)]} does not divide over "
            f"{slices} slices; change it, or the axis that mesh.slices names"
        )
    inside = [size // outer for size, outer in zip(sizes, across, strict=True)]
    return create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


def shardings(tree: Any, mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> Any:
    """A NamedSharding for each array of `tree` (abstract or real), by the `axes` metadata of the
    NNX variable that holds it; what has none is replicated.

    Raises UserError that lists every rule with an unknown mesh axis, or every parameter whose axis
    has no rule or does not divide, or whose axes cannot be split together.
    """
    problems = [
        f"rule {axis!r}: unknown mesh axis {target!r}, choose one of {', '.join(AXES)}"
        for axis, target in rules.items()
        if target is not None and target not in AXES
    ]
    if problems:
        raise UserError("mesh: " + "; ".join(problems))

    def spec(path, value) -> NamedSharding:
        axes = value.get_metadata().get("axes") if isinstance(value, nnx.Variable) else None
        name = jax.tree_util.keystr(path)
        entries = []
        for axis, size in zip(axes or (), value.shape, strict=False):
            if axis is not None and axis not in rules:
                problems.append(f"{name}: no rule for axis {axis!r}")
            target = rules.get(axis) if axis is not None else None
            if target is not None and size % mesh.shape[target]:
                problems.append(
                    f"{name}: axis {axis!r} of {size} does not divide over {mesh.shape[target]} "
                    f"devices of {target!r}"
                )
            entries.append(target)
        if axes is not None and len(axes) != len(value.shape):
            problems.append(f"{name}: {len(axes)} axis names for shape {value.shape}")
        targets = [target for target in entries if target is not None]
        if len(set(targets)) < len(targets):
            problems.append(f"{name}: two of its axes {axes} are on one mesh axis")
            return NamedSharding(mesh, PartitionSpec())
        split = {
            axis for axis, to in zip(axes or (), entries, strict=False) if to and mesh.shape[to] > 1
        }
        if {"channels_in", "channels_out"} <= split:
            problems.append(f"{name}: split on both sides, its gradients would be wrong")
        return NamedSharding(mesh, PartitionSpec(*entries))

    def place(path, value):
        sharding = spec(path, value)
        return value.replace(sharding) if isinstance(value, nnx.Variable) else sharding

    placed = jax.tree_util.tree_map_with_path(
        place, tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    if problems:
        told = "; ".join(first_of(problems, "like these"))
        raise UserError(f"mesh: {told}; change the mesh or its rules")
    return placed


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over data and fsdp along their first axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@cache
def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of each global batch this process reads, and how many parts there are. Processes
    that are the same rows' tensor or sequence devices read the same part.

    Raises UserError where two of them have some rows in common, and others not.
    """
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    rows: dict[int, set[int]] = {}
    for device, (place,) in batch_sharding(mesh).devices_indices_map((split,)).items():
        rows.setdefault(device.process_index, set()).add(place.start or 0)
    parts = sorted({tuple(sorted(own)) for own in rows.values()})
    if sum(map(len, parts)) != split or len(set(map(len, parts))) != 1:
        raise UserError(
            f"mesh: the {split} parts of a batch do not divide over {len(rows)} processes; choose "
            "tensor and sequence so that each process has whole parts, or each part whole processes"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's part of a global batch (a pytree of arrays [batch, ...]) as global arrays.
    Raises UserError where the batch does not divide over the devices."""
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    _, parts = batch_part(mesh)
    size = len(jax.tree.leaves(batch)[0]) * parts
    if size % split:
        raise UserError(f"batch of {size}: does not divide over {split} devices; change either")
    place = partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
    return jax.tree.map(lambda a: place(a, (size, *a.shape[1:])), batch)
