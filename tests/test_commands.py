"""How launch scripts end: what is wrong with flags or config is one line and code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quark_jax.commands import guarded
from quark_jax.errors import Stopped

ROOT = Path(__file__).parents[1]
TINY = "--config=configs/lm/tiny.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{TINY}:other"], "configs/lm/tiny.py:other: choose mix"),
        ([], "--config: not given; see launch/train_lm.py --help"),
        (["--config=absent.py"], "No such file or directory: 'absent.py'"),
        ([TINY, "--config.run.stpes=3"], "the config has no field 'stpes'"),
        ([TINY, "--config.run.steps=three"], "--config.run.steps=three"),
        ([TINY, "--stpes=3"], "Unknown command line flag 'stpes'"),
    ],
)
def test_bad_flags(arguments, message, tmp_path):
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "launch/train_lm.py", f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    *before, line = done.stderr.strip().splitlines()
    assert line.startswith("quark: ") and message in line
    assert not any("Traceback" in said for said in before)
    assert not workdir.exists()


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    """With Python, as somebody does who has set nothing."""
    unset = ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_flags_that_are_wanted_are_told_in_one_line():
    done = run_python("launch/train_lm.py")
    assert done.returncode == 2
    assert done.stderr == "quark: --config, --workdir: not given; see launch/train_lm.py --help\n"


@pytest.mark.parametrize("program", ["train_codec", "local"])
def test_help_is_no_failure(program):
    done = run_python(f"launch/{program}.py", "--help")
    assert done.returncode == 0 and done.stderr == "" and "flags:" in done.stdout


def test_nothing_is_said_of_a_tpu_that_is_not_there():
    """Where libtpu is installed, JAX looks for one."""
    pytest.importorskip("libtpu")
    script = "import jax; from quark_jax.commands import launch; launch(lambda _: jax.devices())"
    done = run_python("-c", script)
    assert done.returncode == 0 and "TPU" not in done.stderr.upper(), done.stderr


def test_to_have_stopped_when_asked_is_no_failure(capsys):
    def run() -> None:
        raise Stopped("x: stopped after step 3, which is saved")

    assert guarded(run) == 0
    said = capsys.readouterr().err
    assert (
        said
        == "quark: x: stopped after step 3, which is saved; run the same command again to go on\n"
    )


def test_a_scheduler_may_want_another_code(monkeypatch):
    def run() -> None:
        raise Stopped("x: stopped after step 3, which is saved")

    monkeypatch.setenv("QUARK_STOPPED_EXIT", "75")
    assert guarded(run) == 75
