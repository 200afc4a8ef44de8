"""Run a program as several processes on the CPUs of this machine, which compute as one:

    python launch/local.py --processes 2 -- launch/train_lm.py --config configs/lm/tiny.py ...

Each has `--devices` devices of its own; the results are those of one process with as many in all.
SIGTERM goes to all of them. It ends with 0 when all have, else with the code of the first that
fails (128 + N of one that signal N ended); the others are given `--grace` seconds then.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from absl import flags

from quark_jax.commands import launch
from quark_jax.errors import UserError

_PROCESSES = flags.DEFINE_integer("processes", 2, "Processes.", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices of each process.", lower_bound=1)
_GRACE = flags.DEFINE_integer("grace", 120, "Seconds to end in once one has failed.", lower_bound=1)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, and run nothing.")


def _run(program: Sequence[str]) -> None:
    if not program:
        raise UserError("launch/local.py: no program; give it, and its flags, after --")
    port = _free_port()
    jobs = [_variables(index, port) for index in range(_PROCESSES.value)]
    if _DRY_RUN.value:
        for changes in jobs:
            settings = (f"{name}={shlex.quote(value)}" for name, value in changes.items())
            print(*settings, "python", shlex.join(program))
        return
    children: list[subprocess.Popen] = []
    signal.signal(signal.SIGTERM, lambda number, frame: _tell(children, number))
    try:
        for changes in jobs:
            children.append(subprocess.Popen([sys.executable, *program], env=os.environ | changes))
        code = _first_failure(children)
    finally:
        _tell(children, signal.SIGKILL)
        for child in children:  # none is left when this ends
            child.wait()
    if code:
        raise SystemExit(128 - code if code < 0 else code)


def _variables(index: int, port: int) -> Mapping[str, str]:
    """What process `index` finds in its environment besides what is there."""
    devices = f"--xla_force_host_platform_device_count={_DEVICES.value}"
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(_PROCESSES.value),
        "JAX_PROCESS_ID": str(index),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip(),
    }


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("localhost", 0))
        return asked.getsockname()[1]


def _first_failure(children: Sequence[subprocess.Popen]) -> int:
    """The code of the first process that fails, once all have ended or their time is up; or 0."""
    code, until = 0, float("inf")
    while None in (codes := [child.poll() for child in children]) and time.monotonic() < until:
        if not code and any(codes):
            code, until = _cause(codes), time.monotonic() + _GRACE.value
        time.sleep(0.1)
    return code or _cause(codes)


def _cause(codes: Sequence[int | None]) -> int:
    """Of processes that were seen to fail together: those that JAX ended only followed another."""
    return min(
        (code for code in codes if code), key=lambda code: code == -signal.SIGABRT, default=0
    )


def _tell(children: Sequence[subprocess.Popen], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


if __name__ == "__main__":
    launch(_run)
