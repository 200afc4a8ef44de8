"""The `quark` command: what it makes, and what it says where it can make nothing."""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from quark_jax import __version__, audio
from quark_jax.cli import main
from quark_jax.lm import LanguageModel  # noqa: F401 (not to be counted as a command's time)
from quark_jax.pipeline import RESTORATION

COMMANDS = ("tokenize", "detokenize", "restore")


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def model(small_run) -> Path:
    return small_run / "lm" / "model"


@pytest.fixture(scope="session")
def codes(model, tmp_path_factory) -> Path:
    """A code file of that model: 0.7 s."""
    folder = tmp_path_factory.mktemp("codes")
    audio.write(folder / "a.wav", speech(0.7, 16000), 16000)
    arguments = ["tokenize", folder / "a.wav", folder / "a.hq", "--model", model]
    assert main(list(map(str, arguments))) == 0
    return folder / "a.hq"


@pytest.fixture
def quark(capsys) -> Callable[..., Said]:
    def run(*arguments) -> Said:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # of argparse
            code = exit.code
        return Said(code, *capsys.readouterr())

    return run


def speech(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A hum with syllables, float32 [samples]."""
    t = np.arange(max(1, round(seconds * rate))) / rate
    hum = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12))
    noise = np.random.default_rng(seed).normal(size=len(t))
    return (0.1 * hum * np.sin(2 * np.pi * 4 * t) ** 2 + 0.01 * noise).astype(np.float32)


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def refused(quark, tmp_path: Path, arguments: list, *names: str) -> None:
    """That a command says what is wrong, in one line with all of `names`, and writes nothing:
    neither where there is nothing nor over what is there."""
    target = Path(arguments[2])
    for existing in (False, True):
        if existing and (not target.parent.is_dir() or target.exists()):
            continue
        if existing:
            target.write_bytes(b"what was there before")
        before = contents(tmp_path)
        said = quark(*arguments)
        assert said.code == 2, said
        assert said.out == ""
        assert said.err.startswith("quark") and said.err.endswith("\n"), said.err
        assert said.err.count("\n") == 1, said.err
        for name in names:
            assert str(name) in said.err
        assert contents(tmp_path) == before


# Audio that cannot be used.


def _missing(path: Path) -> str:
    return "no such file"


def _folder(path: Path) -> str:
    path.mkdir()
    return "is a folder"


def _text(path: Path) -> str:
    path.write_text("These are words, and not a recording of them.\n" * 20)
    return "cannot be read as audio"


def _empty(path: Path) -> str:
    path.write_bytes(b"")
    return "empty"


def _nan(path: Path) -> str:
    wave = speech(0.5, 16000)
    wave[4000] = np.nan
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    return "sample 4000 (0.250 s) is NaN"


def _infinite(path: Path) -> str:
    wave = speech(0.5, 16000)
    wave[-1] = np.inf
    soundfile.write(path, wave, 16000, subtype="DOUBLE")
    return "NaN or infinite"


def _header(seconds: float, rate: int = 16000) -> bytes:
    """The header of a 16-bit mono wav file of that length."""
    size = round(2 * seconds * rate)
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    body = b"WAVE" + fmt + struct.pack("<4sI", b"data", size)
    return struct.pack("<4sI", b"RIFF", len(body) + size) + body


def _hour_of_nothing(path: Path) -> str:
    path.write_bytes(_header(3600.0))
    return str(path)


def _cut_off(path: Path) -> str:
    path.write_bytes(_header(3600.0) + b"\0" * 32000)
    return "cut off"


def _no_samples(path: Path) -> str:
    path.write_bytes(_header(0.0))
    return "no samples"


def _cut_flac(path: Path) -> str:
    whole = path.with_suffix(".flac")
    soundfile.write(whole, speech(2.0, 16000), 16000)
    path.write_bytes(whole.read_bytes()[:9000])
    whole.unlink()
    return str(path)


def _odd_rate(path: Path) -> str:
    path.write_bytes(_header(0.5, rate=3) + b"\0" * 3)
    return str(path)


BAD_AUDIO = [
    *(_missing, _folder, _text, _empty, _nan, _infinite, _hour_of_nothing, _cut_off),
    *(_no_samples, _cut_flac, _odd_rate),
]


@pytest.mark.parametrize("make", BAD_AUDIO, ids=lambda make: make.__name__.strip("_"))
@pytest.mark.parametrize("command", ["tokenize", "restore"])
def test_bad_audio(quark, model, tmp_path, command, make):
    source = tmp_path / "in.wav"
    reason = make(source)
    target = tmp_path / ("out.hq" if command == "tokenize" else "out.wav")
    refused(quark, tmp_path, [command, source, target, "--model", model], source, reason)


# Code files that cannot be used.


def _other_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    return lambda path, codes: path.write_bytes(change(codes.read_bytes()))


def _other_codec(path: Path, codes: Path) -> None:
    """The same codes, but the header names other weights."""
    from dataclasses import replace

    from quark_jax.hcodec import read_codes, write_codes

    write_codes(path, replace(read_codes(codes), weights="0123456789abcdef"))


BAD_CODES = {
    "missing": (lambda path, codes: None, "no such file"),
    "folder": (lambda path, codes: path.mkdir(), str),
    "empty": (lambda path, codes: path.write_bytes(b""), "not a code file"),
    "audio": (lambda path, codes: path.write_bytes(_header(0.5)), "not a code file"),
    "magic alone": (_other_bytes(lambda data: data[:7]), "cut short"),
    "half a header": (_other_bytes(lambda data: data[:40]), "cut short"),
    "no payload": (_other_bytes(lambda data: data[:-30]), "cut short"),
    "last byte cut": (_other_bytes(lambda data: data[:-1]), "cut short"),
    "one bit flipped": (
        _other_bytes(lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]),
        "damaged",
    ),
    "another version": (_other_bytes(lambda data: data[:7] + b"\x09" + data[8:]), "version 9"),
    "another codec": (_other_codec, "0123456789abcdef"),
}


@pytest.mark.parametrize("case", BAD_CODES)
def test_bad_code_files(quark, model, codes, tmp_path, case):
    make, reason = BAD_CODES[case]
    source = tmp_path / "in.hq"
    make(source, codes)
    arguments = ["detokenize", source, tmp_path / "out.wav", "--model", model]
    refused(quark, tmp_path, arguments, source, reason if isinstance(reason, str) else "")


# Models that cannot be used.


def _edited(
    name: str, change: Callable[[dict], None], says: str | None = None
) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        path = folder / name
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))
        return name if says is None else says

    return make


def _written(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return name

    return make


def _removed(name: str, says: str | None = None) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return name if says is None else says

    return make


def _other_weights(folder: Path) -> str:
    from safetensors.numpy import load_file, save_file

    path = folder / "codec" / "model.safetensors"
    state = load_file(path)
    name = min(state)
    state[name] = state[name] + 1
    save_file(state, path)
    return "trained on codec weights"


BAD_CODECS = {
    "nothing there": _removed("", "holds no model"),
    "no codec": _removed("codec", "holds no model"),
    "no config": _removed("codec/config.json"),
    "no weights": _removed("codec/model.safetensors"),
    "half a config": _written("codec/config.json", lambda data: data[: len(data) // 2]),
    "empty config": _written("codec/config.json", lambda data: b""),
    "binary config": _written("codec/config.json", lambda data: b"\xff\xfe\x00" * 9),
    "a list for a config": _written("codec/config.json", lambda data: b"[1, 2]"),
    "an unknown field": _edited("codec/config.json", lambda f: f.update(colour="red")),
    "a field missing": _edited("codec/config.json", lambda f: f.pop("sample_rate")),
    "a field of another type": _edited("codec/config.json", lambda f: f.update(sample_rate="a")),
    "fields that do not fit": _edited("codec/config.json", lambda f: f.update(frame_rate=24.0)),
    "half the weights": _written("codec/model.safetensors", lambda data: data[: len(data) // 2]),
    "empty weights": _written("codec/model.safetensors", lambda data: b""),
    "weights of another config": _edited(
        "codec/config.json",
        lambda f: f["quantiser"].update(codebook_size=8),
        "codec/model.safetensors: does not fit",
    ),
    "weights of another depth": _edited(
        "codec/config.json",
        lambda f: f["decoder"].update(blocks=2),
        "codec/model.safetensors: does not fit",
    ),
}
BAD_LMS = {
    "no lm": _removed("lm"),
    "no lm config": _removed("lm/config.json"),
    "no lm weights": _removed("lm/model.safetensors"),
    "half an lm config": _written("lm/config.json", lambda data: data[: len(data) // 2]),
    "a list for an lm config": _written("lm/config.json", lambda data: b"[]"),
    "an lm field missing": _edited("lm/config.json", lambda f: f.pop("seconds")),
    "an lm field of another type": _edited("lm/config.json", lambda f: f.update(seconds="long")),
    "no time at all": _edited("lm/config.json", lambda f: f.update(seconds=0)),
    "lm fields that do not fit": _edited("lm/config.json", lambda f: f["lm"].update(heads=3)),
    "an lm of another config": _edited(
        "lm/config.json",
        lambda f: f["lm"].update(width=64),
        "lm/model.safetensors: does not fit",
    ),
    "unknown features": _edited("lm/config.json", lambda f: f["features"].update(kind="bark")),
    "half the lm weights": _written("lm/model.safetensors", lambda data: data[: len(data) // 2]),
    "another codec": _other_weights,
}


@pytest.mark.parametrize(
    ("command", "case"),
    [
        *((command, case) for command in ("tokenize", "detokenize") for case in BAD_CODECS),
        *(("restore", case) for case in ("nothing there", "half a config", *BAD_LMS)),
    ],
)
def test_bad_models(quark, model, codes, tmp_path, command, case):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    name = (BAD_CODECS | BAD_LMS)[case](folder)
    source = tmp_path / "in.wav"
    audio.write(source, speech(0.3, 16000), 16000)
    if command == "detokenize":
        source = codes
    target = tmp_path / ("out.hq" if command == "tokenize" else "out.wav")
    refused(quark, tmp_path, [command, source, target, "--model", folder], folder, name)


# Places that cannot be written to.


def _arguments(command: str, model: Path, codes: Path, folder: Path, target: Path) -> list:
    source = codes
    if command != "detokenize":
        source = folder / "in.wav"
        audio.write(source, speech(0.3, 16000), 16000)
    return [command, source, target, "--model", model]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("out.xyz", "unknown suffix '.xyz'"),
        ("out", "unknown suffix ''"),
        ("nowhere/out", "folder {folder}/nowhere does not exist"),
        ("file/out", "{folder}/file"),
        ("place", "is a folder"),
    ],
)
def test_bad_targets(quark, model, codes, tmp_path, command, name, reason):
    suffix = ".hq" if command == "tokenize" else ".wav"
    target = tmp_path / name
    if "." not in name and name != "out":
        target = target.with_name(target.name + suffix)
    (tmp_path / f"place{suffix}").mkdir()
    (tmp_path / "file").write_text("")
    arguments = _arguments(command, model, codes, tmp_path, target)
    refused(quark, tmp_path, arguments, target, reason.format(folder=tmp_path))


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_may_not_be_written_to(quark, model, codes, command):
    with tempfile.TemporaryDirectory() as name:  # one that nobody may look into
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(model, folder / "model")
        for path in (folder / "model").rglob("*.*"):
            path.chmod(0o644)
        shutil.copyfile(codes, folder / "a.hq")
        (folder / "closed").mkdir()
        target = folder / "closed" / ("out.hq" if command == "tokenize" else "out.wav")
        arguments = _arguments(command, folder / "model", folder / "a.hq", folder, target)
        assert quark(*arguments).code == 0  # imports what nobody might not read
        target.unlink()
        (folder / "closed").chmod(0o555)
        with nobody():
            said = quark(*arguments)
        assert said.code == 2 and said.err.count("\n") == 1, said
        assert str(target) in said.err
        assert not any((folder / "closed").iterdir())


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may be longer than 100 bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(quark, model, codes, tmp_path, command, existing):
    target = tmp_path / ("out.hq" if command == "tokenize" else "out.flac")
    arguments = _arguments(command, model, codes, tmp_path, target)
    if existing:
        target.write_bytes(b"what was there before")
    before = contents(tmp_path)
    with full_disk():
        said = quark(*arguments)
    assert said.code == 2 and said.out == "" and "Traceback" not in said.err
    assert said.err.splitlines()[-1].startswith(f"quark: {target}: cannot")  # after a progress bar
    assert contents(tmp_path) == before


# Options that cannot be.


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
def test_bad_options(quark, model, codes, tmp_path, command, options, names):
    target = tmp_path / ("out.hq" if command == "tokenize" else "out.wav")
    arguments = _arguments(command, model, codes, tmp_path, target)
    refused(quark, tmp_path, [*arguments, *options], *names)


@pytest.mark.parametrize("arguments", [[], ["sing"], ["restore"], ["tokenize", "in.wav"]])
def test_wrong_usage_is_one_line(quark, arguments):
    said = quark(*arguments)
    assert said.code == 2 and said.err.count("\n") == 1 and "--help" in said.err


# What works.


@pytest.mark.parametrize(
    ("name", "rate", "channels", "seconds"),
    [
        ("telephone.wav", 8000, 1, 0.4),
        ("stereo.wav", 16000, 2, 0.4),
        ("blink.wav", 16000, 1, 0.01),
        ("blink.wav", 8000, 1, 0.01),
        ("sample.wav", 16000, 1, 0),
        ("sample.wav", 48000, 1, 0),
        ("studio.mp3", 48000, 1, 0.4),
        ("studio.ogg", 48000, 2, 0.4),
        ("studio.flac", 48000, 6, 0.4),
        ("disc.wav", 44100, 2, 0.333),
        ("windows.wav", 16000, 1, 1.3),
        ("silence.wav", 16000, 1, 0.4),
    ],
)
def test_every_recording_comes_back_in_its_length_and_rate(
    quark, model, tmp_path, name, rate, channels, seconds
):
    source, codes = tmp_path / name, tmp_path / "codes.hq"
    back, clean = tmp_path / "back.wav", tmp_path / "clean.flac"
    wave = np.stack([speech(seconds, rate, seed) for seed in range(channels)], 1)
    soundfile.write(source, wave * (name != "silence.wav"), rate)
    given = audio.info(source)
    assert quark("tokenize", source, codes, "--model", model).code == 0
    assert quark("detokenize", codes, back, "--model", model).code == 0
    said = quark("restore", source, clean, "--model", model)
    assert said.code == 0 and f"{clean}: " in said.out
    for path in (back, clean):
        made = audio.info(path)
        assert (made.rate, made.samples, made.channels) == (rate, given.samples, 1)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {name, "codes.hq", "back.wav", "clean.flac"}


def test_detokenising_to_other_rates_and_formats(quark, model, codes, tmp_path):
    for suffix, rate in ((".wav", 48000), (".flac", 8000), (".ogg", 16000), (".mp3", 44100)):
        target = tmp_path / f"out{suffix}"
        assert quark("detokenize", codes, target, "--model", model, "--rate", rate).code == 0
        made = audio.info(target)
        assert made.rate == rate
        assert made.seconds == pytest.approx(0.7, abs=0.1 if suffix == ".mp3" else 1e-3)


def test_same_codes_from_the_same_recording(quark, model, codes, tmp_path):
    source, target = tmp_path / "a.wav", tmp_path / "a.hq"
    audio.write(source, speech(0.7, 16000), 16000)
    said = quark("tokenize", source, target, "--model", model)
    assert target.read_bytes() == codes.read_bytes()
    assert "0.70 s" in said.out and "bit/s" in said.out


def test_mono_picks_the_channel(quark, model, tmp_path):
    left, right = speech(0.4, 16000), speech(0.4, 16000, seed=1)[::-1]
    soundfile.write(tmp_path / "both.wav", np.stack([left, right], 1), 16000)
    soundfile.write(tmp_path / "left.wav", left, 16000)
    made = []
    for name, options in (("both", ["--mono", "first"]), ("left", []), ("both", [])):
        target = tmp_path / "out.hq"
        source = tmp_path / f"{name}.wav"
        assert quark("tokenize", source, target, "--model", model, *options).code == 0
        made.append(target.read_bytes())
    assert made[0] == made[1] != made[2]


def test_restoring_depends_on_the_seed_alone(quark, model, tmp_path):
    source = tmp_path / "noisy.wav"
    audio.write(source, speech(1.3, 16000), 16000)  # three windows

    def restored(*options) -> bytes:
        target = tmp_path / "clean.wav"
        assert quark("restore", source, target, "--model", model, *options).code == 0
        return target.read_bytes()

    first = restored("--seed", 3)
    assert restored("--seed", 3) == first
    assert restored("--seed", 4) != first
    greedy = restored("--temperature", 0)
    assert restored("--temperature", 0, "--seed", 4) == greedy != first


# The command itself.


def test_help_is_quick_and_says_what_there_is(quark):
    script = "import sys; from quark_jax.cli import main\ntry: main(['--help'])\n"
    script += "except SystemExit: sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and time.perf_counter() - began < 2
    for command in ("demo", *COMMANDS):
        assert f"\n    {command} " in done.stdout.replace("\n    detokenize\n", "\n    detokenize ")
        said = quark(command, "--help")
        assert said.code == 0 and said.err == "" and "--help" in said.out
        assert "None" not in said.out
    said = quark("restore", "--help")
    assert f"default: {RESTORATION.temperature}" in " ".join(said.out.split())
    assert f"default: {RESTORATION.top_k}" in " ".join(said.out.split())


def test_version(quark):
    assert quark("--version") == Said(0, f"quark {__version__}\n", "")


def test_exit_codes_of_the_real_command(codes, tmp_path):
    command = Path(sys.executable).with_name("quark")
    wrong = [command, "tokenize", tmp_path / "in.wav", tmp_path / "out.hq", "--model", tmp_path]
    module = [sys.executable, "-m", "quark_jax.cli", *wrong[1:]]
    for arguments in (wrong, module):
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"quark: {tmp_path}: holds no model")
        assert done.stderr.count("\n") == 1
