"""Train on Cloud TPUs in Google Kubernetes Engine, on one slice or on several as one job:

    python launch/gke.py --name base --topology v5e:16x16 --image IMAGE --bucket BUCKET --apply \\
        -- launch/train_lm.py --config configs/lm/published.py:base --workdir gs://BUCKET/runs/base

prints the JobSet, and with --apply gives it to kubectl. It is laid out as XPK lays out its own (one
replicated job a slice, one pod a machine, each slice on a node pool of its own); GKE tells the pods
of their neighbours. base_v5e_256.yaml and large_2x_v5p_512.yaml in launch/gke are what it prints.

A pod that fails ends its slice, and the JobSet starts all again, from the newest checkpoint; only
bad input (code 2) ends it for good. A pod that is told to go, for maintenance or because it is on a
spot machine, has --grace seconds to save. The bucket's files are at /bucket, for datasets, which
ArrayRecord reads from folders alone.

Needed: a cluster with TPU node pools of the topology, JobSet (0.8 or newer) and the Cloud Storage
FUSE driver (for several slices GKE 1.33.3 or newer); a Kubernetes service account that may write to
the bucket (--service_account); an image as of launch/gke/Dockerfile. Not tried: this project has no
cluster. The tests hold the manifests against the models of JobSet's API.
"""

import math
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml
from absl import flags

from quark_jax.commands import launch
from quark_jax.errors import UserError

# The name that GKE has for each kind of slice with several machines. All have four chips a machine.
_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
_CHIPS = 4  # of a machine
_PORTS = (8471, 8080, 8482)  # of the TPU runtime, between slices, of jax.distributed

_NAME = flags.DEFINE_string("name", None, "Of the job.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Of a slice: v5e:16x16, v5p:8x8x8, ...")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices that train as one job.", lower_bound=1)
_IMAGE = flags.DEFINE_string("image", None, "Container image with this project.")
_BUCKET = flags.DEFINE_string("bucket", None, "Bucket to see at /bucket, without gs://.")
_ACCOUNT = flags.DEFINE_string("service_account", "default", "Kubernetes service account.")
_QUEUE = flags.DEFINE_string("queue", None, "Kueue's local queue, where there is one.")
_SPOT = flags.DEFINE_bool("spot", False, "On machines that may be taken away.")
_RESTARTS = flags.DEFINE_integer("restarts", 100, "Restarts before giving up.", lower_bound=0)
_GRACE = flags.DEFINE_integer("grace", 300, "Seconds a pod has to save in.", lower_bound=0)
_ENV = flags.DEFINE_multi_string("env", [], "NAME=VALUE of the environment; may be repeated.")
_APPLY = flags.DEFINE_bool("apply", False, "Give the manifest to kubectl.")
flags.mark_flags_as_required(["name", "topology", "image", "bucket"])


def _run(program: Sequence[str]) -> None:
    if not program:
        raise UserError("launch/gke.py: no program; give it, and its flags, after --")
    text = yaml.safe_dump(_jobset(program), sort_keys=False, width=100)
    print(text, end="")
    if _APPLY.value:
        _apply(text)


def _apply(manifest: str) -> None:
    try:
        done = subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True)
    except FileNotFoundError as error:
        raise UserError(
            "--apply: kubectl is not installed; install it, or leave --apply"
        ) from error
    if done.returncode:
        raise UserError(
            f"--apply: kubectl ended with {done.returncode}, and says why above; "
            "put that right and run the same command again"
        )


def _jobset(program: Sequence[str]) -> dict[str, Any]:
    accelerator, topology, machines = _slice(_TOPOLOGY.value)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": _checked_name(),
            **({"labels": {"kueue.x-k8s.io/queue-name": _QUEUE.value}} if _QUEUE.value else {}),
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": _RESTARTS.value,
                "rules": [
                    {
                        "name": "badInput",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": _SLICES.value,
                    "template": {
                        "spec": {
                            "parallelism": machines,
                            "completions": machines,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": [_BAD_INPUT]},
                            "template": _pod(program, accelerator, topology),
                        }
                    },
                }
            ],
        },
    }


_BAD_INPUT = {
    "action": "FailJob",
    "onExitCodes": {"containerName": "quark", "operator": "In", "values": [2]},
}


# Faster between slices; the bucket's driver then has to be told to use the pod's account.
_HOST_NETWORK = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}


def _pod(program: Sequence[str], accelerator: str, topology: str) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    if _SPOT.value:
        selector["cloud.google.com/gke-spot"] = "true"
    return {
        "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": _ACCOUNT.value,
            "terminationGracePeriodSeconds": _GRACE.value,
            **(_HOST_NETWORK if _SLICES.value > 1 else {}),
            "nodeSelector": selector,
            "tolerations": [{"key": "google.com/tpu", "operator": "Exists"}],
            "containers": [
                {
                    "name": "quark",
                    "image": _IMAGE.value,
                    "command": ["python", *program],
                    "env": _environment(),
                    "ports": [{"containerPort": port} for port in _PORTS],
                    "resources": {"limits": {"google.com/tpu": _CHIPS}},
                    "volumeMounts": [{"name": "bucket", "mountPath": "/bucket", "readOnly": True}],
                }
            ],
            "volumes": [
                {
                    "name": "bucket",
                    "csi": {
                        "driver": "gcsfuse.csi.storage.gke.io",
                        "readOnly": True,
                        "volumeAttributes": {
                            "bucketName": _BUCKET.value,
                            "mountOptions": "implicit-dirs",
                            **({"hostNetworkPodKSA": "true"} if _SLICES.value > 1 else {}),
                        },
                    },
                }
            ],
        },
    }


def _slice(kind: str) -> tuple[str, str, int]:
    """GKE's name of the accelerator, the topology, and how many machines have its chips."""
    name, _, topology = kind.partition(":")
    sides = [int(side) for side in topology.split("x") if side.isdecimal()]
    if name not in _ACCELERATORS or len(sides) != topology.count("x") + 1:
        raise UserError(
            f"--topology {kind}: give one of {', '.join(_ACCELERATORS)} and the sides of a slice, "
            "as v5e:16x16"
        )
    machines, rest = divmod(math.prod(sides), _CHIPS)
    if rest or machines < 2:
        raise UserError(f"--topology {kind}: no slice of several machines of {_CHIPS} chips")
    return _ACCELERATORS[name], topology, machines


def _checked_name() -> str:
    # Pods are called NAME-slice-0-0-abcde, in at most 63 characters.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", _NAME.value):
        raise UserError(
            f"--name {_NAME.value}: give up to 40 small letters, digits and hyphens, a letter first"
        )
    return _NAME.value


def _environment() -> list[dict[str, str]]:
    # To the JobSet, 0 would mean that the training is finished.
    variables = {"QUARK_STOPPED_EXIT": "75"}
    for item in _ENV.value:
        name, found, value = item.partition("=")
        if not found:
            raise UserError(f"--env {item}: give NAME=VALUE")
        variables[name] = value
    return [{"name": name, "value": value} for name, value in variables.items()]


if __name__ == "__main__":
    launch(_run)
