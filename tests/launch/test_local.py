"""Several processes of one machine: how they end. What they compute together is told in
tests/training/test_processes.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LOCAL = Path(__file__).parents[2] / "launch" / "local.py"
BEGIN = """
import os, signal, sys, time
from pathlib import Path
number = int(os.environ["JAX_PROCESS_ID"])
def listens(*_):
    Path(f"told{number}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, listens)
Path(f"begun{number}").write_text(str(os.getpid()))
while not all(Path(f"begun{n}").exists() for n in range(2)):
    time.sleep(0.01)
"""


@pytest.fixture
def begin(tmp_path) -> Callable[..., subprocess.Popen]:
    """begin(program, *options): two processes of it, in the folder `tmp_path`."""

    def begun(program: str, *options: str) -> subprocess.Popen:
        (tmp_path / "program.py").write_text(BEGIN + program)
        return subprocess.Popen(
            [sys.executable, LOCAL, "--processes=2", *options, "--", "program.py"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(LOCAL.parents[1])},
        )

    return begun


@pytest.mark.parametrize(
    ("ends", "code"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)],
)
def test_the_code_is_that_of_the_first_to_fail_and_none_is_left(begin, tmp_path, ends, code):
    process = begin(f"if number: {ends}\ntime.sleep(600)", "--grace=1")
    assert process.wait(120) == code
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "begun0").read_text()), 0)
    assert not (tmp_path / "told0").exists()  # it had its time


def test_a_process_that_ends_well_does_not_end_the_others(begin, tmp_path):
    process = begin("time.sleep(0 if number else 2)\nPath(f'ended{number}').touch()", "--grace=1")
    assert process.wait(120) == 0
    assert (tmp_path / "ended0").exists() and (tmp_path / "ended1").exists()


def test_sigterm_reaches_all(begin, wait_until, tmp_path):
    process = begin("time.sleep(600)")
    wait_until(lambda: all((tmp_path / f"begun{n}").exists() for n in range(2)), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert (tmp_path / "told0").exists() and (tmp_path / "told1").exists()


def test_without_a_program_nothing_is_run(tmp_path):
    done = subprocess.run([sys.executable, LOCAL], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "quark: launch/local.py: no program; give it, and its flags, after --\n"
