"""Which part of a batch each process of a pod reads, on the meshes that pods really get."""

import numpy as np
import pytest
from jax.sharding import Mesh

from quark_jax.aot import topology_devices
from quark_jax.errors import UserError
from quark_jax.training.sharding import AXES, MeshConfig, batch_part, make_mesh


@pytest.mark.parametrize(
    ("mesh", "parts"),
    [
        ({"data": -1}, 4),
        ({"data": 1, "fsdp": -1}, 4),
        ({"data": 2, "fsdp": 4, "tensor": 2}, 4),
        ({"data": 1, "fsdp": -1, "tensor": 4}, 2),  # a line of chips goes through two machines
        ({"data": 1, "fsdp": -1, "tensor": 8}, 2),
        ({"data": 1, "tensor": 16}, 1),
    ],
)
def test_processes_that_share_rows_read_the_same(mesh, parts):
    devices = topology_devices("v5e:4x4")
    made = make_mesh(MeshConfig(**mesh), devices)
    rows = made.devices.reshape(made.shape["data"] * made.shape["fsdp"], -1)
    owners = [{device.process_index for device in row} for row in rows]
    together = set().union(*(own for own in owners if 0 in own))
    assert batch_part(made) == (0, parts)
    assert len(together) == 4 // parts  # processes that have rows of process 0


def test_rows_that_are_shared_in_part_are_refused():
    devices = sorted(topology_devices("v5e:4x4"), key=lambda device: device.process_index)
    shifted = np.roll(np.asarray(devices), 2).reshape(4, 1, 4, 1)
    with pytest.raises(UserError, match="the 4 parts of a batch do not divide over 4 processes"):
        batch_part(Mesh(shifted, AXES))
