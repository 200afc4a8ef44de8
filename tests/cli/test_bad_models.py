"""Model folders that `quark` cannot use, and what it says of each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file


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
    "unknown tasks": _edited("lm/config.json", lambda f: f.update(tasks=["sing"])),
    "no encoders": _removed("encoders"),
    "unknown features": _edited("encoders/config.json", lambda f: f["audio"].update(kind="bark")),
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
def test_bad_models(refused, arguments, model, tmp_path, command, case):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    name = (BAD_CODECS | BAD_LMS)[case](folder)
    target = tmp_path / ("out.hq" if command == "tokenize" else "out.wav")
    refused(arguments(command, target, model=folder), folder, name)
