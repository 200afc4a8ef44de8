"""Manifests of JobSets."""

import os
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROGRAM = ["launch/train_lm.py", "--config", "a.py:x", "--workdir", "gs://b/runs/x"]


def gke(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    given = ["--name=x", "--image=i", "--bucket=b", *arguments, "--", *PROGRAM]
    return subprocess.run(
        [sys.executable, "launch/gke.py", *given],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )


def test_two_slices_on_spot_machines(as_jobset):
    done = gke("--topology=v5p:8x8x8", "--slices=2", "--spot", "--queue=q", "--env=A=b=c")
    manifest = yaml.safe_load(done.stdout)
    as_jobset(manifest)
    [job] = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert job["replicas"] == 2 and spec["parallelism"] == spec["completions"] == 8 * 8 * 8 // 4
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "8x8x8",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["command"] == ["python", *PROGRAM]
    assert {"name": "A", "value": "b=c"} in container["env"]
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    # Names that go together.
    [rule] = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert [m["name"] for m in container["volumeMounts"]] == [v["name"] for v in pod["volumes"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:4x4"], "--topology v9:4x4: give one of v4, v5e, v5p, v6e"),
        (["--topology=v5e:4xx"], "--topology v5e:4xx: give one of"),
        (["--topology=v5e:2x2"], "no slice of several machines of 4 chips"),
        (["--topology=v5e:4x4", "--name=Base"], "--name Base: give up to 40 small letters"),
        (["--topology=v5e:4x4", "--env=A"], "--env A: give NAME=VALUE"),
    ],
)
def test_what_is_wrong_is_said(arguments, message):
    done = gke(*arguments)
    assert done.returncode == 2 and message in done.stderr and not done.stdout


def test_a_manifest_is_given_to_kubectl(tmp_path):
    """A stand-in, that keeps what it is given."""
    apply = ("--topology=v5e:4x4", "--apply")
    done = gke(*apply, PATH=str(tmp_path))
    assert done.returncode == 2 and "kubectl is not installed; install it" in done.stderr
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$*" && cat > {tmp_path}/given\n')
    kubectl.chmod(0o755)
    done = gke(*apply, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0 and "apply -f -\n" in done.stdout
    assert (tmp_path / "given").read_text() == gke(apply[0]).stdout
    kubectl.write_text("#!/bin/sh\nexit 3\n")
    done = gke(*apply, PATH=str(tmp_path))
    assert done.returncode == 2 and "kubectl ended with 3" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_schema_refuses(as_jobset):
    manifest = yaml.safe_load((ROOT / "launch/gke/base_v5e_256.yaml").read_text())
    as_jobset(manifest)
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 2
    with pytest.raises(AssertionError, match=r"unknown fields: .*paralelism"):
        as_jobset(manifest)
    manifest["spec"]["replicatedJobs"][0]["replicas"] = "two"
    with pytest.raises(pydantic.ValidationError, match="replicas"):
        as_jobset(manifest)
