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
    are taken from all items together, to 1e-5 of the language model, single arrays to 1e-4 (see
    meshes.py). Through codec and discriminators float32 rounds to 1e-5 and 3e-5, by the CPU: 1e-4,
    and single arrays to 3e-4. Updates are medians of the draws: where a leaky ReLU or |x| is at its
    kink, rounding decides, and the gradient is another (3e-3 from the first draw)."""
    for name, draws in apart("meshes.py", MESHES).items():
        limits = (1e-5, 1e-4) if name.startswith("lm") else (1e-4, 3e-4)
        assert draws[:, 0].max() <= 1e-6 and (np.median(draws[:, 1:], axis=0) <= limits).all(), name


@pytest.mark.slow
def test_nothing_but_rounding_is_apart():
    """In double precision, on meshes that split parameters along either side."""
    meshes = [MESHES[0], MESHES[2], {"data": 2, "fsdp": 2, "tensor": 2}]
    for name, draws in apart("meshes_double.py", meshes).items():
        assert draws.max() <= 1e-11, name
