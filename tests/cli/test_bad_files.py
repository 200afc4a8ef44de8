"""Recordings and code files that `quark` cannot use, and what it says of each."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from quark_jax.hcodec import read_codes, write_codes

NOISE = 0.1 * np.random.default_rng(0).normal(size=32000).astype(np.float32)  # 2 s at 16 kHz


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
    wave = NOISE[:8000].copy()
    wave[4000] = np.nan
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    return "sample 4000 (0.250 s) is NaN"


def _infinite(path: Path) -> str:
    wave = NOISE[:8000].copy()
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
    soundfile.write(whole, NOISE, 16000)
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
def test_bad_audio(refused, model, tmp_path, command, make):
    source = tmp_path / "in.wav"
    reason = make(source)
    target = tmp_path / ("out.hq" if command == "tokenize" else "out.wav")
    refused([command, source, target, "--model", model], source, reason)


# Code files that cannot be used.


def _other_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    return lambda path, codes: path.write_bytes(change(codes.read_bytes()))


def _other_codec(path: Path, codes: Path) -> None:
    """The same codes, but the header names other weights."""
    write_codes(path, replace(read_codes(codes), weights="0123456789abcdef"))


BAD_CODES = {
    "missing": (lambda path, codes: None, "no such file"),
    "folder": (lambda path, codes: path.mkdir(), "give a .hq file"),
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
def test_bad_code_files(refused, model, codes, tmp_path, case):
    make, reason = BAD_CODES[case]
    source = tmp_path / "in.hq"
    make(source, codes)
    arguments = ["detokenize", source, tmp_path / "out.wav", "--model", model]
    refused(arguments, source, reason)
