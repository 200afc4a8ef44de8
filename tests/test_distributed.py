"""Which processes a job is of."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from quark_jax import distributed
from quark_jax.errors import UserError

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PROGRAM = """
import jax
from quark_jax.distributed import start
start()
jax.config.update("jax_platforms", "cpu")  # there are no TPUs to go on with
print(f"process {jax.process_index()} of {jax.process_count()}")
"""


SLURM = {
    **{"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "node"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
}


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    others = ("QUARK_HEARTBEAT_SECONDS", "SLURM_JOB_ID", "SLURM_NTASKS", "TPU_SKIP_MDS_QUERY")
    for name in (*NAMES, *others, "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_PROCESS_ID": "1"}, "JAX_COORDINATOR_ADDRESS: not set; set JAX_COORDINATOR_ADDRESS,"),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES: 'two'; give a"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID: 2; the 2 processes"),
        ({"JAX_NUM_PROCESSES": "0", "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES: '0'; give a"),
        ({"QUARK_HEARTBEAT_SECONDS": "0.5"}, "QUARK_HEARTBEAT_SECONDS: '0.5'; give a whole"),
    ],
)
def test_what_is_wrong_is_said(monkeypatch, variables, message):
    address = {} if len(variables) == 1 else {"JAX_COORDINATOR_ADDRESS": "localhost:1"}
    for name, value in (variables | address).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refusal:
        distributed.start()
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("platforms", "variables", "joined"),
    [
        ("cpu", {}, None),
        ("cpu", dict(zip(NAMES, ("localhost:1", "1", "0"), strict=True)), None),
        (
            "cpu",
            dict(zip(NAMES, ("localhost:1", "2", "1"), strict=True)),
            (("localhost:1", 2, 1), {"cluster_detection_method": "deactivate"}),
        ),
        ("cpu", {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, None),  # in a job, but no step of it
        ("cuda", SLURM | {"SLURM_NTASKS": "1"}, None),
        ("cuda", SLURM | {"SLURM_NTASKS": "2"}, ((), {})),
        ("tpu,cpu", {}, ((), {})),
        ("tpu,cpu", {"QUARK_HEARTBEAT_SECONDS": "7"}, ((), {"heartbeat_timeout_seconds": 7})),
        ("tpu,cpu", {"TPU_SKIP_MDS_QUERY": "1"}, None),  # nobody there to ask
        ("tpu,cpu", {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, ((), {})),
        ("cpu", {"TPU_WORKER_HOSTNAMES": "a,b"}, None),
    ],
)
def test_a_process_joins_its_job_and_alone_nothing(monkeypatch, platforms, variables, joined):
    calls = []
    jax = SimpleNamespace(
        config=SimpleNamespace(jax_platforms=platforms),
        distributed=SimpleNamespace(
            initialize=lambda *given, **named: calls.append((given, named))
        ),
    )
    monkeypatch.setattr(distributed, "jax", jax)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    distributed.start()
    assert calls == ([] if joined is None else [joined])


def test_pods_of_two_slices_in_gke_find_each_other(free_port):
    """By the variables that GKE sets, which JAX reads where it thinks itself on a TPU."""
    variables = {
        "JAX_FORCE_TPU_INIT": "1",
        "JAX_COORDINATOR_PORT": str(free_port()),
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "QUARK_HEARTBEAT_SECONDS": "30",
    }
    unwanted = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY")
    inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
    pods = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=inherited | variables | {"MEGASCALE_SLICE_ID": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = sorted(pod.communicate(timeout=120)[0].splitlines()[-1] for pod in pods)
    assert said == ["process 0 of 2", "process 1 of 2"]
