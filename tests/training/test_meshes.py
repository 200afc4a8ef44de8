"""A step on many devices is the step on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MESHES = [{"data": 2, "fsdp": 4}, {"data": 4, "fsdp": 2}, {"data": 8}]


def apart(program: str, meshes: list[dict[str, int]]) -> dict[str, np.ndarray]:
    """{model and mesh: how far loss, update and single arrays [draws, 3] are from those of one
    device}.

    By programs as users have them, not without optimisation, as other tests compile (conftest.py).
    """
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(program), json.dumps(meshes)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 * len(meshes)
    for name, draws in found.items():
        for loss, update, array in draws:
            print(f"{name}: loss apart {loss:.1e}, update {update:.1e}, single arrays {array:.1e}")
    return {name: np.array(draws) for name, draws in found.items()}


@pytest.mark.slow
def test_a_step_is_the_same_on_every_mesh():
    """The loss to 1e-6; the update, as the optimisers' moments have it, and the codebooks, which
    are taken from all items together, to 1e-5 of the language model, and to 2e-5 through codec and
    discriminators, where float32 rounds to 1.4e-5 though kinks are rounded off. Single arrays to
    1e-4 (see meshes.py). Updates are medians of the draws."""
    for name, draws in apart("meshes.py", MESHES).items():
        allowed = 1e-5 if name.startswith("lm") else 2e-5
        update, array = np.median(draws[:, 1:], axis=0)
        assert draws[:, 0].max() <= 1e-6 and update <= allowed and array <= 1e-4, name


@pytest.mark.slow
def test_nothing_but_rounding_is_apart():
    """In double precision, kinks and all, on meshes that split parameters along either side."""
    meshes = [MESHES[0], MESHES[2], {"data": 2, "fsdp": 2, "tensor": 2}]
    for name, draws in apart("meshes_double.py", meshes).items():
        assert draws.max() <= 1e-11, name
