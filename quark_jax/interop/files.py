"""State dicts in files: .safetensors, and .pt read without running what is pickled in it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath

from quark_jax.errors import UserError, optional_import
from quark_jax.files import in_bucket, read_json, replacing

_PYTORCH = (".pt", ".pth", ".bin")
_FOLDER = ("model.safetensors", "pytorch_model.bin")  # what Hugging Face calls them


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a .safetensors, .pt, .pth or .bin file, or of a Hugging Face folder:
    safetensors first, whole or in shards with an index.

    Raises UserError where a file is missing, damaged, of another kind, or (for PyTorch files)
    holds anything but tensors.
    """
    path = epath.Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PYTORCH:
        return _read_torch(path)
    raise UserError(f"{path}: not a checkpoint; give a .safetensors or .pt file")


def _read_folder(folder: epath.Path) -> dict[str, np.ndarray]:
    for name in _FOLDER:
        path, index = folder / name, folder / f"{name}.index.json"
        if path.is_file():
            return read_state(path)
        if index.is_file():
            shards = sorted(set(read_json(index, "download it again")["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise UserError(f"{index}: missing {', '.join(missing)}; download them beside it")
            return {k: v for shard in shards for k, v in read_state(folder / shard).items()}
    raise UserError(f"{folder}: holds no {' or '.join(_FOLDER)}, nor an index of shards")


def _read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, numpy

    try:
        return numpy.load(path.read_bytes()) if in_bucket(path) else numpy.load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from error


def _read_torch(path: epath.Path) -> dict[str, np.ndarray]:
    torch = optional_import("torch", use=f"read {path} (.safetensors needs none)", extra="torch")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage makes the unpickler stumble in many ways
        raise UserError(
            f"{path}: not a PyTorch checkpoint of tensors alone, or damaged; copy it again, or "
            "save the weights alone, as safetensors or by torch.save(model.state_dict(), ...)"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(torch.is_tensor(t) for t in state.values()):
        raise UserError(f"{path}: not a dictionary of tensors; save model.state_dict() alone")
    wide = {torch.bfloat16: torch.float32}  # NumPy has no bfloat16
    return {name: t.to(wide.get(t.dtype, t.dtype)).numpy() for name, t in state.items()}


def write_state(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Write {name: array} as .safetensors or .pt, beside `path` first and then in its place."""
    path = epath.Path(path)
    with replacing(path) as beside:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save

            beside.write_bytes(save({k: np.array(v, order="C") for k, v in state.items()}))
        elif path.suffix in (".pt", ".pth"):
            torch = optional_import(
                "torch", use=f"write {path} (a safetensors file needs no torch)", extra="torch"
            )
            torch.save({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, beside)
        else:
            raise UserError(f"{path}: not a checkpoint name; end it in .safetensors or .pt")


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


def named_state(
    state: Mapping[str, np.ndarray] | str | Path,
) -> tuple[Mapping[str, np.ndarray], str]:
    """{name: array} that is given, or read from a path; and what to call it in errors."""
    return (state, "state") if isinstance(state, Mapping) else (read_state(state), str(state))
