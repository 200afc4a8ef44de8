"""Each command of launch/README.md: what can be run without a cloud is, to where the cloud begins;
trainings load their config with its flags, other programs read their options."""

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from quark_jax.cli import _parser, main
from quark_jax.cli.aot import _read
from quark_jax.commands import parse_flags
from quark_jax.config import from_dict
from quark_jax.training.codec import CodecTraining
from quark_jax.training.lm import LMTraining

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "launch" / "README.md").read_text()
SETTINGS = ("PROJECT", "REGION", "ZONE", "BUCKET", "NAME", "TYPE", "IMAGE")
PROGRAMS = ("python", "quark", "gcloud", "kubectl", "sbatch", "xpk", "tensorboard")
# Of others; nothing here can tell whether their options are right.
FOREIGN = {"gcloud", "kubectl", "tensorboard"}


class Command(NamedTuple):
    settings: dict[str, str]
    words: list[str]


def blocks() -> str:
    return "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))


def commands() -> list[Command]:
    """As bash sees them, one after another, with what is exported by then."""
    scripts = re.sub(r"(?m)^((?:\w+=\S+ )*)(launch/\w+\.sh)", r"\1record \2", blocks())
    values = " ".join(f'"${name}"' for name in SETTINGS)
    preamble = [f"record() {{ printf '%s\\0' {values} \"$@\" END; }}"]
    preamble += [f'{name}() {{ record {name} "$@"; }}' for name in PROGRAMS]
    said = subprocess.run(
        ["bash", "-e", "-c", "\n".join([*preamble, scripts])],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = []
    for line in said.split("\0END\0")[:-1]:
        words = line.split("\0")
        settings = dict(zip(SETTINGS, words, strict=False))
        found.append(Command(settings, words[len(SETTINGS) :]))
    return found


COMMANDS = commands()


def named(*beginning: str) -> list[Command]:
    return [one for one in COMMANDS if one.words[: len(beginning)] == list(beginning)]


@pytest.fixture
def check_training(monkeypatch) -> Callable[[Sequence[str], int], None]:
    """check_training(words, devices): the config that a training is given can be trained there."""

    def check(words: Sequence[str], devices: int) -> None:
        kinds = {"launch/train_lm.py": LMTraining, "launch/train_codec.py": CodecTraining}
        path, _, variant = words[words.index("--config") + 1].partition(":")
        config = f"{ROOT / path}:{variant}" if variant else str(ROOT / path)
        words = [config if word == f"{path}:{variant}".rstrip(":") else word for word in words]
        monkeypatch.setattr(sys, "argv", words)  # where config_flags looks for what is changed
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        assert parse_flags(words, values)[1:] == [] and values.workdir
        trained = from_dict(kinds[words[0]], holder.value.to_dict())
        mesh = trained.run.mesh
        sizes = {axis: getattr(mesh, axis) for axis in ("data", "fsdp", "tensor", "sequence")}
        known = math.prod(size for size in sizes.values() if size != -1)
        sizes = {axis: devices // known if n == -1 else n for axis, n in sizes.items()}
        assert math.prod(sizes.values()) == devices
        assert trained.data.batch_size % (sizes["data"] * sizes["fsdp"]) == 0

    return check


def test_every_command_is_known():
    assert len(COMMANDS) == len(re.findall(r"(?m)^(?!export|    )\S.*", blocks()))
    ours = {"python", "quark", "sbatch", "xpk"} | FOREIGN
    for command in COMMANDS:
        first = command.words[0]
        assert first in ours or (ROOT / first).is_file(), command


def test_the_scripts(check_training):
    found = [command for command in COMMANDS if command.words[0].endswith(".sh")]
    assert [c.words[1] for c in found if "tpu_vm" in c.words[0]] == [
        *("create", "install", "run", "logs", "stop", "run", "delete")
    ]
    for settings, (script, *given) in found:
        done = subprocess.run(
            [ROOT / script, "--dry-run", *given],
            env=os.environ | settings,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and done.stdout, done.stderr
        if given[0] == "run":
            assert " ".join(given[1:]) in done.stdout
            check_training(given[1:], 256)
    first, second = named("launch/tpu_vm.sh", "run")
    assert first == second  # to go on is the same command


def test_the_flags_of_tokenising():
    [(_, words)] = named("launch/tokenise_dataflow.sh")
    given = {word[2:] for word in words if word.startswith("--")}
    source = (ROOT / "launch" / "tokenise.py").read_text()
    assert given <= set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source))
    assert {"manifest", "codec", "out"} <= given


@pytest.mark.parametrize(("file", "chips"), [("base_v5e_256", 256), ("large_2x_v5p_512", 2 * 256)])
def test_the_job_sets(check_training, as_jobset, file, chips):
    """Are those that lie in launch/gke."""
    own = (ROOT / "launch" / "gke" / f"{file}.yaml").read_text()
    manifest = yaml.safe_load(own)
    name = manifest["metadata"]["name"]
    [words] = [c.words for c in named("python", "launch/gke.py") if c.words[3] == name]
    words = [word for word in words[1:] if word != "--apply"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == own
    as_jobset(manifest)
    check_training(words[words.index("--") + 1 :], chips)


def test_trainings_of_other_launchers(check_training):
    [(_, slurm)] = named("sbatch")
    script = slurm.index("launch/slurm_train.sh")
    done = subprocess.run(
        [ROOT / slurm[script], "--dry-run", *slurm[script + 1 :]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    check_training(shlex.split(done.stdout)[-len(slurm[script + 1 :]) :], 4 * 8)
    [(_, xpk)] = named("xpk")
    program = shlex.split(xpk[xpk.index("--command") + 1])
    assert program[0] == "python"
    check_training(program[1:], 256)
    [(_, several)] = named("python", "launch/local.py")
    printed = subprocess.run(
        [sys.executable, several[1], "--dry_run", *several[2:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(printed) == 2
    for number, line in enumerate(printed):
        words = shlex.split(line)
        assert f"JAX_PROCESS_ID={number}" in words
        check_training(words[words.index("python") + 1 :], 2 * 4)
    [(_, alone)] = named("python", "launch/train_lm.py")
    check_training(alone[1:], 1)


def test_the_rest(capsys, tmp_path, monkeypatch):
    """`quark` and the reports."""
    monkeypatch.chdir(tmp_path)  # where no model is
    for _, words in named("quark"):
        options, rest = _parser().parse_known_args(words[1:])
        if words[1] == "aot":
            monkeypatch.setattr(sys, "argv", words)
            assert _read(str(ROOT / options.config), rest).data.batch_size == 2048
        else:
            assert not rest
    reports = named("python", "launch/evaluate.py")
    assert {words[2] for _, words in reports} == {"codec", "tasks"}
    for _, words in reports:
        assert main(["eval", *words[2:]]) == 2
        said = capsys.readouterr().err
        assert said.startswith("quark: ") and "usage" not in said
    [(_, verify)] = named("python", "-m", "data_pipelines.verify")
    assert all(word.startswith("/bucket/tokens/") for word in verify[3:])
