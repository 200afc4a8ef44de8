"""A step on many devices is the step on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MESHES = [{"data": 2, "fsdp": 4}, {"data": 4, "fsdp": 2}, {"data": 8}]


@pytest.mark.slow
def test_a_step_is_the_same_on_every_mesh():
    """The loss to 1e-6; the update, as the optimisers' moments have it, and the codebooks, which
    are taken from all items together, to 2e-5: the rounding of gradients through codec and
    discriminators is 1.4e-5. Single arrays to 1e-4 (see meshes.py)."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    program = Path(__file__).with_name("meshes.py")
    done = subprocess.run(
        [sys.executable, program, json.dumps(MESHES)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 * len(MESHES)
    for name, (loss, update, array) in found.items():
        print(f"{name}: loss apart {loss:.1e}, update {update:.1e}, single arrays {array:.1e}")
        assert loss <= 1e-6 and update <= 2e-5 and array <= 1e-4, name
