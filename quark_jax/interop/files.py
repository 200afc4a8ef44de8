"""State dicts in files: .safetensors, and .pt read without running what is pickled in it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath

from quark_jax.errors import UserError
from quark_jax.files import replacing


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a .safetensors, .pt, .pth or .bin file.

    Raises UserError where the file is missing, damaged, of another kind, or (for PyTorch files)
    holds anything but tensors.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return _read_torch(path)
    raise UserError(f"{path}: not a checkpoint; give a .safetensors or .pt file")


def _read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, numpy

    try:
        return numpy.load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from error


def _read_torch(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading it takes PyTorch; install quark-jax[torch] or convert to .safetensors"
        ) from error
    from pickle import UnpicklingError

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not a file of tensors alone ({first}); save its state_dict with torch.save"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise UserError(f"{path}: not a state_dict; save one {{name: tensor}} with torch.save")
    return {name: value.numpy() for name, value in state.items()}


def write_state(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Write {name: array} as .safetensors or .pt, beside `path` first and then in its place."""
    path = epath.Path(path)
    with replacing(path) as beside:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file({k: np.array(v, order="C") for k, v in state.items()}, beside)
        elif path.suffix in (".pt", ".pth"):
            import torch

            torch.save({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, beside)
        else:
            raise UserError(f"{path}: not a checkpoint name; end it in .safetensors or .pt")
