"""Where activations lie while a step is traced for a mesh of devices."""

import jax
from jax.sharding import AbstractMesh, PartitionSpec

BATCH_AXES = ("data", "fsdp")  # of the mesh, which the batch is split over


def current_mesh() -> AbstractMesh | None:
    """The mesh that a step is traced for (`training.loop.compile_step`), if any."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if set(BATCH_AXES) <= set(mesh.axis_names) else None


def platform() -> str:
    """Of the devices that is traced for: "cpu", "gpu" or "tpu"."""
    mesh = current_mesh()
    device = None if mesh is None else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_shards(mesh: AbstractMesh) -> int:
    """How many parts a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_split(x: jax.Array) -> jax.Array:
    """`x` [batch, ...] split along its batch and nowhere else, where a step is traced for a mesh
    that divides it. Left to itself, XLA splits activations as the parameters that they meet, and
    sends them to and fro."""
    mesh = current_mesh()
    if mesh is None or x.shape[0] % batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def whole(x: jax.Array) -> jax.Array:
    """`x` whole on each device, where a step is traced for a mesh."""
    return x if current_mesh() is None else jax.lax.with_sharding_constraint(x, PartitionSpec())
