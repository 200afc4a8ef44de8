"""Every reader of files under abuse: a thousand mutations of each kind of real file are read, or
refused in one clear line; no crash, no hang, no memory without bound."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines import read_manifest, samples_manifest
from quark_jax import audio
from quark_jax.hcodec.codefile import CodeFile, write_codes
from quark_jax.hcodec.codes import Codes
from quark_jax.interop.files import write_state

HARNESS = Path(__file__).with_name("mutations.py")
COUNT = 1000


def _speech(path: Path) -> None:
    wave, _ = audio.read(read_manifest(samples_manifest())[0].path, rate=16000)
    audio.write(path, wave[:12000], 16000)


def _codes(path: Path) -> None:
    rng = np.random.default_rng(0)
    dynamic = path.stem == "dynamic"
    codes = Codes(
        rng.integers(0, 256, (1, 4, 20)),
        rng.integers(0, 256, (1, 4, 20)),
        rng.integers(1, 5, (1, 20)) if dynamic else None,
    )
    write_codes(path, CodeFile(codes, "c", "ab", 256, 8 if dynamic else 1, 25, 16000, 44100, 35000))


def _manifest(path: Path) -> None:
    if path.suffix == ".jsonl":
        path.write_bytes(Path(samples_manifest()).read_bytes())
    else:
        path.write_text("".join(f"utt{n} 16000 0 16000 {n}.wav\n" for n in range(20)))


def _state(path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Conv1d(3, 5, 3)).state_dict()
    if path.suffix == ".safetensors":
        write_state(path, {name: tensor.numpy() for name, tensor in state.items()})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.stem == "zipped")


FILES: list[tuple[str, str, Callable[[Path], None]]] = [
    *(("audio", f"speech.{suffix}", _speech) for suffix in ("wav", "flac", "ogg", "mp3")),
    *(("codes", name, _codes) for name in ("fixed.hq", "dynamic.hq")),
    *(("manifest", f"corpus.{suffix}", _manifest) for suffix in ("jsonl", "scp")),
    *(("state", name, _state) for name in ("zipped.pt", "plain.pt", "weights.safetensors")),
]


@pytest.mark.parametrize(("reader", "name", "write"), FILES, ids=[name for _, name, _ in FILES])
def test_a_thousand_mutations_are_read_or_refused(reader, name, write, tmp_path):
    write(path := tmp_path / name)
    result = subprocess.run(
        [sys.executable, str(HARNESS), reader, str(path), "0", str(COUNT)],
        env=os.environ | {"PYTHONPATH": str(HARNESS.parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = result.stderr.splitlines()[-1:]
    assert result.returncode == 0, f"mutation {last} ended the process with {result.returncode}"
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["refused"] + found["read"] == COUNT
    assert found["refused"] > 100  # the mutations do damage
    assert found["peak"] < 2 << 30
