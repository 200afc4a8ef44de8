"""Hugging Face folders: config.json and the weights beside it, as plain arrays.

Weights are model.safetensors or pytorch_model.bin, whole or in shards with an index. Pickled code
is never executed.
"""

import importlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from quark_jax.errors import UserError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def optional_import(module: str, *, use: str) -> ModuleType:
    """Import an optional dependency; UserError that says what it is for where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{package} is needed to {use}: pip install {package}") from error


def read_config(folder: str | Path, name: str = "config.json") -> dict:
    """The JSON object in `folder`/`name`."""
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"{path}: missing; give a folder saved by transformers' save_pretrained")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; download it again")
    return value


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    safetensors = optional_import("safetensors", use=f"read {path}")
    load_file = importlib.import_module("safetensors.numpy").load_file
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}); download it again") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = optional_import("torch", use=f"read {path} (a safetensors file needs no torch)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: not a file of plain PyTorch weights ({reason}); "
            "save the weights alone, as safetensors or by torch.save(model.state_dict(), ...)"
        ) from error
    if not isinstance(state, dict) or not all(torch.is_tensor(t) for t in state.values()):
        raise UserError(f"{path}: not a dictionary of tensors; save model.state_dict() alone")
    wide = {torch.bfloat16: torch.float32}  # NumPy has no bfloat16
    return {name: t.to(wide.get(t.dtype, t.dtype)).numpy() for name, t in state.items()}


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def read_state(folder: str | Path) -> dict[str, np.ndarray]:
    """{tensor name: array} of the weights in `folder`, safetensors first.

    Raises UserError where no weights, or a shard that the index names, are there to be read.
    """
    folder = Path(folder)
    for name in _WEIGHTS:
        path, index = folder / name, folder / f"{name}.index.json"
        if path.is_file():
            return _read_weights(path)
        if index.is_file():
            shards = sorted(set(read_config(folder, index.name)["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise UserError(f"{index}: missing {', '.join(missing)}; download them beside it")
            return {k: v for shard in shards for k, v in _read_weights(folder / shard).items()}
    raise UserError(f"{folder}: holds no {' or '.join(_WEIGHTS)}, nor an index of shards")


def fuse_weight_norm(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`state` with each weight-normalised pair g, v replaced by its weight g * v / ||v||.

    Both of PyTorch's key styles are read (weight_g, weight_v; parametrizations.weight.original0,
    original1). The norm runs over the axes along which g has size one.
    """
    fused = dict(state)
    for name in state:
        if name.endswith("weight_g"):
            target, partner = name[:-2], name[:-1] + "v"
        elif name.endswith("parametrizations.weight.original0"):
            target = name.removesuffix("parametrizations.weight.original0") + "weight"
            partner = name[:-1] + "1"
        else:
            continue
        if partner not in state:
            raise UserError(f"{name}: has no {partner} beside it; use a complete state dict")
        g, v = (np.asarray(fused.pop(key), np.float32) for key in (name, partner))
        axes = tuple(axis for axis, size in enumerate(g.shape) if size == 1)
        norm = np.sqrt(np.sum(np.square(v, dtype=np.float64), axis=axes, keepdims=True))
        fused[target] = (g * (v / norm)).astype(np.float32)
    return fused
