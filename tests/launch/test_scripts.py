"""The scripts for clusters: read by shellcheck, and the commands that they come to."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TPU = {
    "PROJECT": "p",
    "ZONE": "us-west4-a",
    "NAME": "base",
    "TYPE": "v5litepod-256",
    "BUCKET": "gs://b",
}
PLACE = ["--project=p", "--zone=us-west4-a"]


def dry(script: str, *arguments: str, **variables: str) -> list[list[str]]:
    """The commands that a script prints under --dry-run, as words."""
    command = [LAUNCH / script, "--dry-run", *arguments]
    said = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=True
    ).stdout
    # bash writes what has newlines in it as $'...', which shlex does not know.
    words = subprocess.run(
        ["bash", "-c", f"words() {{ printf '%s\\0' \"$@\" END; }}\n{_each(said)}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")[:-1]
    commands: list[list[str]] = [[]]
    for word in words:
        if word == "END":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands[:-1]


def _each(said: str) -> str:
    return "\n".join(f"words {line}" for line in said.splitlines())


def shellcheck(*arguments: str | Path, program: str | None = None) -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), *arguments],
        input=program,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


def test_shellcheck_finds_nothing():
    assert len(SCRIPTS) >= 5 and all(os.access(script, os.X_OK) for script in SCRIPTS)
    shellcheck(*SCRIPTS)


@pytest.mark.parametrize("command", ["install", "run"])
def test_programs_for_the_workers_of_tpus(command):
    program = ["launch/train_lm.py", "--config", "a.py:x", "--workdir", "gs://b/an 'odd' name"]
    given = program if command == "run" else []
    *before, ssh = dry("tpu_vm.sh", command, *given, **TPU, VARIABLES="A=1 B=two")
    assert ssh[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert ssh[5:-1] == ["base", *PLACE, "--worker=all"]
    text = ssh[-1].removeprefix("--command=")
    shellcheck("--shell=bash", "-", program=text)
    if command == "run":
        words = shlex.split(text)
        assert words[words.index("systemd-run") - 1] == "sudo" and words[-5:] == program
        assert {"--setenv=A=1", "--setenv=B=two", "--property=Restart=on-failure"} <= set(words)
        assert not before
    else:
        [upload] = before
        assert upload[:2] == ["bash", "-c"] and "gs://b/code/" in upload[2]


def test_tpu_slices_are_asked_for_and_given_back():
    create, describe = dry("tpu_vm.sh", "create", **TPU)
    assert create == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "base", *PLACE),
        *("--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite"),
        *("--scopes=cloud-platform", "--node-id=base"),
    ]
    assert describe[4:6] == ["describe", "base"]
    two = TPU | {"SLICES": "2", "SPOT": "1", "TYPE": "v6e-256"}
    create, _ = dry("tpu_vm.sh", "create", **two)
    assert create[-3:] == ["--node-prefix=base", "--node-count=2", "--spot"]
    assert "--runtime-version=v2-alpha-tpuv6e" in create
    stops = dry("tpu_vm.sh", "stop", **two)
    assert [stop[5] for stop in stops] == ["base-0", "base-1"]
    assert all(stop[-1] == "--command=sudo systemctl stop quark" for stop in stops)
    [delete] = dry("tpu_vm.sh", "delete", **two)
    assert delete[4:] == ["delete", "base", *PLACE, "--force", "--quiet"]


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["start"], {}, "start; say create, install, run, stop, logs or delete"),
        (["run"], {}, "run: no program"),
        (["create"], {"TYPE": "v9-8"}, "RUNTIME: set it, to the image of the machines of v9-8"),
        (["create"], {"BUCKET": ""}, "BUCKET: set it, as gs://NAME"),
    ],
)
def test_what_is_missing_is_said(arguments, changes, message):
    done = subprocess.run(
        [LAUNCH / "tpu_vm.sh", "--dry-run", *arguments],
        env=os.environ | TPU | changes,
        capture_output=True,
        text=True,
    )
    assert done.returncode and message in done.stderr and not done.stdout


@pytest.mark.parametrize("cluster", ["dataflow", "flink", "spark"])
def test_tokenising_on_clusters(cluster):
    variables = {"PROJECT": "p", "REGION": "r", "BUCKET": "gs://b", "IMAGE": "i"}
    variables |= {"FLINK": "http://f", "SPARK": "spark://s", "SPARK_REST": "http://s"}
    given = ["--manifest", "m.jsonl", "--codec", "c", "--out", "o", "--task", "sr,tse"]
    [command] = dry(f"tokenise_{cluster}.sh", *given, **variables)
    end = command.index("--")
    assert command[:end] == ["python", "launch/tokenise.py", *given]
    assert f"--runner={cluster.title()}Runner" in command[end:]


SRUN = """#!/usr/bin/env python3
import os, subprocess, sys
program = [word for word in sys.argv[1:] if not word.startswith("--")]
tasks = [
    subprocess.Popen(program, env=os.environ | {"SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2", "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
    for i in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""
TASK = """
import os, sys
import jax
from quark_jax.distributed import start
start()
os.write(1, f"task {jax.process_index()} of {jax.process_count()}\\n".encode())  # whole lines
sys.exit(int(os.environ["QUARK_STOPPED_EXIT"]))
"""


def test_slurm_tasks_find_each_other_and_come_back(tmp_path):
    """After they have been stopped. srun is a stand-in that starts two tasks, scontrol one that
    says what it is told."""
    for name, text in {
        "srun": SRUN,
        "scontrol": '#!/bin/sh\necho "scontrol $*"\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "task.py").write_text(TASK)
    done = subprocess.run(
        [LAUNCH / "slurm_train.sh", tmp_path / "task.py"],
        env=os.environ
        | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(LAUNCH.parent),
            "JAX_PLATFORMS": "cpu",
            "SLURM_JOB_ID": str(os.getpid()),  # JAX makes a port of it
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = sorted(
        line for line in done.stdout.splitlines() if line.startswith(("task", "scontrol"))
    )
    assert said == [f"scontrol requeue {os.getpid()}", "task 0 of 2", "task 1 of 2"], done.stderr
    assert done.returncode == 0


def test_the_command_of_a_slurm_task():
    [command] = dry(
        "slurm_train.sh",
        str(LAUNCH / "train_lm.py"),
        "--workdir",
        "x y",
        PYTHON="python",
        CONTAINER="i",
    )
    assert command[:3] == ["srun", "--kill-on-bad-exit=1", "--export=ALL"]
    assert command[3] == "--container-image=i"
    assert command[-4:] == ["python", str(LAUNCH / "train_lm.py"), "--workdir", "x y"]
