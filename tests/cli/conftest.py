"""What the tests of the `quark` command share: the command, a model and a code file of it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from quark_jax import audio
from quark_jax.cli import main
from quark_jax.lm import LanguageModel  # noqa: F401 (not to be counted as a command's time)


class Said(NamedTuple):
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


def _speech(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A hum with syllables, float32 [samples]."""
    t = np.arange(max(1, round(seconds * rate))) / rate
    hum = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12))
    noise = np.random.default_rng(seed).normal(size=len(t))
    return (0.1 * hum * np.sin(2 * np.pi * 4 * t) ** 2 + 0.01 * noise).astype(np.float32)


def _contents(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(scope="session")
def speech() -> Callable[..., np.ndarray]:
    """speech(seconds, rate, seed=0): a hum with syllables, float32 [samples]."""
    return _speech


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[Path, bytes | None]]:
    """contents(folder): every path in it, with its bytes where it is a file."""
    return _contents


@pytest.fixture(scope="session")
def model(small_run) -> Path:
    return small_run / "lm" / "model"


@pytest.fixture(scope="session")
def codes(model, tmp_path_factory) -> Path:
    """A code file of that model: 0.7 s."""
    folder = tmp_path_factory.mktemp("codes")
    audio.write(folder / "a.wav", _speech(0.7, 16000), 16000)
    arguments = ["tokenize", folder / "a.wav", folder / "a.hq", "--model", model]
    assert main(list(map(str, arguments))) == 0
    return folder / "a.hq"


@pytest.fixture
def quark(capsys) -> Callable[..., Said]:
    """quark(*arguments): runs the command."""

    def run(*arguments) -> Said:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # of argparse
            code = exit.code
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def arguments(model, codes, tmp_path) -> Callable[..., list]:
    """arguments(command, target): of a command that has all it needs. Its recording is put into
    `folder`."""

    def make(
        command: str,
        target: Path,
        folder: Path = tmp_path,
        model: Path = model,
        codes: Path = codes,
    ) -> list:
        source = codes
        if command != "detokenize":
            source = folder / "in.wav"
            audio.write(source, _speech(0.3, 16000), 16000)
        return [command, source, target, "--model", model]

    return make


@pytest.fixture
def refused(quark, tmp_path) -> Callable[..., None]:
    """refused(arguments, *names): asserts that a command says what is wrong, in one line with all
    of `names`, and writes nothing: neither where there is nothing nor over what is there."""

    def check(arguments: list, *names: str) -> None:
        target = Path(arguments[2])
        for existing in (False, True):
            if existing and (not target.parent.is_dir() or target.exists()):
                continue
            if existing:
                target.write_bytes(b"what was there before")
            before = _contents(tmp_path)
            said = quark(*arguments)
            assert said.code == 2, said
            assert said.out == ""
            assert said.err.startswith("quark") and said.err.endswith("\n"), said.err
            assert said.err.count("\n") == 1, said.err
            for name in names:
                assert str(name) in said.err
            assert _contents(tmp_path) == before

    return check
