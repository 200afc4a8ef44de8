"""The `quark` command line itself: options, help, version and exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quark_jax import __version__
from quark_jax.pipeline import SAMPLING


@pytest.mark.parametrize(
    ("command", "options", "names"),
    [
        ("detokenize", ["--rate", "0"], ["--rate 0"]),
        ("detokenize", ["--rate", "-16000"], ["--rate -16000"]),
        ("detokenize", ["--rate", "5"], ["--rate 5"]),
        ("detokenize", ["--rate", "1000000000"], ["--rate 1000000000"]),
        ("detokenize", ["--rate", "fast"], ["--rate", "fast"]),
        ("detokenize", ["--rate", "16000.5"], ["--rate", "16000.5"]),
        ("restore", ["--temperature", "-1"], ["temperature", "-1"]),
        ("restore", ["--temperature", "nan"], ["--temperature", "nan"]),
        ("restore", ["--temperature", "inf"], ["--temperature", "inf"]),
        ("restore", ["--temperature", "hot"], ["--temperature", "hot"]),
        ("restore", ["--top-k", "0"], ["top_k", "0"]),
        ("restore", ["--top-k", "-3"], ["top_k", "-3"]),
        ("restore", ["--seed", "-1"], ["--seed", "-1"]),
        ("restore", ["--seed", "4294967296"], ["--seed", "4294967296"]),
        ("restore", ["--seed", "x"], ["--seed", "x"]),
        ("restore", ["--mono", "left"], ["--mono", "left"]),
        ("restore", ["--volume", "11"], ["--volume"]),
        ("tokenize", ["--threshold", "nan"], ["--threshold", "nan"]),
        ("tokenize", ["--threshold", "0.5"], ["--threshold", "fixed frame rate"]),
    ],
)
def test_bad_options(refused, arguments, tmp_path, command, options, names):
    target = tmp_path / ("out.hq" if command == "tokenize" else "out.wav")
    refused([*arguments(command, target), *options], *names)


@pytest.mark.parametrize("arguments", [[], ["sing"], ["restore"], ["tokenize", "in.wav"]])
def test_wrong_usage_is_one_line(quark, arguments):
    said = quark(*arguments)
    assert said.code == 2 and said.err.count("\n") == 1 and "--help" in said.err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("restore", "a.wav", "b.wav", "--volume"), "quark restore"),
        (("eval", "codec", "--manifest=a", "--out=b", "--volume"), "quark eval codec"),
    ],
)
def test_an_unknown_option_leads_to_the_help_of_its_command(quark, arguments, command):
    said = quark(*arguments)
    assert said.code == 2
    assert said.err == f"{command}: unrecognized arguments: --volume; see {command} --help\n"


def test_help_loads_nothing_large_and_says_what_there_is(quark):
    script = "import sys; from quark_jax.cli import main\ntry: main(['--help'])\n"
    script += "except SystemExit: sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("demo", "tokenize", "detokenize", "restore"):
        assert f"\n    {command} " in done.stdout.replace("\n    detokenize\n", "\n    detokenize ")
        said = quark(command, "--help")
        assert said.code == 0 and said.err == "" and "--help" in said.out
        assert "None" not in said.out
    said = quark("restore", "--help")
    assert f"default: {SAMPLING.temperature}" in " ".join(said.out.split())
    assert f"default: {SAMPLING.top_k}" in " ".join(said.out.split())


def test_the_demo_is_without_alarms_of_xla(quark, monkeypatch, tmp_path):
    levels = []
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    monkeypatch.setattr(
        "quark_jax.demo.demo", lambda workdir: levels.append(os.environ["TF_CPP_MIN_LOG_LEVEL"])
    )
    assert quark("demo", "--workdir", tmp_path).code == 0 and levels == ["3"]


def test_version(quark):
    assert quark("--version") == (0, f"quark {__version__}\n", "")


def test_exit_codes_of_the_real_command(codes, tmp_path):
    command = Path(sys.executable).with_name("quark")
    wrong = [command, "tokenize", tmp_path / "in.wav", tmp_path / "out.hq", "--model", tmp_path]
    module = [sys.executable, "-m", "quark_jax.cli", *wrong[1:]]
    for arguments in (wrong, module):
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"quark: {tmp_path}: holds no model")
        assert done.stderr.count("\n") == 1
