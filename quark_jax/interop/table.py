"""Weights between PyTorch names and ours: one table a model, used in both directions.

A table is a list of `Entry`, enumerated from the model's config. `load_torch` and `to_torch` walk
it; names that are missing, unknown or misshapen are collected and reported at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from quark_jax.errors import UserError, first_of


@dataclass(frozen=True)
class Kind:
    """How one tensor is laid out on either side; both functions are exact inverses."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    dtype: type = np.float32


SAME = Kind(lambda a: a, lambda a: a)
FLAG = Kind(lambda a: a, lambda a: a, np.bool_)
LINEAR = Kind(np.transpose, np.transpose)  # [out, in] <-> [in, out]
CONV = Kind(  # [out, in / groups, k] <-> [k, in / groups, out]
    lambda a: a.transpose(2, 1, 0), lambda a: a.transpose(2, 1, 0)
)
CONV_TRANSPOSED = Kind(  # [in, out, k] <-> [k, in, out]
    lambda a: a.transpose(2, 0, 1), lambda a: a.transpose(1, 2, 0)
)
POINTWISE = Kind(  # [out, in, 1] <-> [in, out]
    lambda a: a[..., 0].T, lambda a: a.T[..., None]
)
DEPTHWISE = Kind(  # [width, 1, k] <-> [k, width]
    lambda a: a[:, 0].T, lambda a: a.T[:, None]
)
CHANNELS = Kind(  # [channels, 1, 1] <-> [channels], gains of weight-normalised convolutions
    lambda a: a[:, 0, 0], lambda a: a[:, None, None]
)
QUERY = Kind(lambda a: a[0, :, 0], lambda a: a[None, :, None])  # [1, width, 1] <-> [width]
LEADING = Kind(lambda a: a[0], lambda a: a[None])  # a leading axis of one


@dataclass(frozen=True)
class Entry:
    """One tensor: its PyTorch name, the dotted path of our variable, and its layout.

    `index` picks a row of a variable that stacks several tensors along its first axis.
    """

    torch: str
    path: str
    kind: Kind = SAME
    index: int | None = None


def _variable(model: nnx.Module, path: str) -> nnx.Variable:
    def step(node, name):
        return getitem(node, int(name)) if name.isdigit() else getattr(node, name)

    return reduce(step, path.split("."), model)


def _torch_shape(variable: nnx.Variable, entry: Entry) -> tuple[int, ...]:
    value = variable.get_value()
    shape = value.shape if entry.index is None else value.shape[1:]
    return entry.kind.to_torch(np.broadcast_to(np.empty((), bool), shape)).shape


class _OneKey:
    """Stands for `nnx.Rngs` where the numbers do not matter: keeping count of keys while tracing
    costs time with the square of the layers."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


M = TypeVar("M", bound=nnx.Module)


def as_shapes(build: Callable[[Any], M]) -> M:
    """The module that `build` makes of `nnx.Rngs`, with shapes in the place of arrays."""
    return nnx.eval_shape(lambda: build(_OneKey()))


def load_torch(
    model: nnx.Module,
    table: Sequence[Entry],
    state: Mapping[str, np.ndarray],
    *,
    source: str = "state",
    ignore: Callable[[str], bool] = lambda name: False,
) -> None:
    """Fill `model` (real or made by `as_shapes`) with `state`: {PyTorch name: array}.

    `ignore(name)` says which extra names may be there. Raises UserError that names the first
    missing, unexpected and misshapen tensors and counts the others; the model is untouched then.
    """
    names = {entry.torch for entry in table}
    missing = [f"missing {entry.torch}" for entry in table if entry.torch not in state]
    unexpected = [f"unexpected {name}" for name in state if name not in names and not ignore(name)]
    misshapen = []
    for entry in table:
        if entry.torch in state:
            want = _torch_shape(_variable(model, entry.path), entry)
            have = tuple(state[entry.torch].shape)
            if want != have:
                misshapen.append(f"{entry.torch} has shape {list(have)}, not {list(want)}")
    if missing or unexpected or misshapen:
        raise UserError(
            f"{source}: does not fit the configuration, use the one it was trained with: "
            + "; ".join(
                first_of(missing, "missing")
                + first_of(unexpected, "unexpected")
                + first_of(misshapen, "of another shape")
            )
        )
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for entry in table:
        array = entry.kind.to_ours(np.asarray(state[entry.torch], entry.kind.dtype))
        if entry.index is None:
            _variable(model, entry.path).set_value(jnp.asarray(array))
        else:
            stacks.setdefault(entry.path, {})[entry.index] = array
    for path, rows in stacks.items():
        stacked = np.stack([rows[i] for i in range(len(rows))])
        _variable(model, path).set_value(jnp.asarray(stacked))
    for _, part in nnx.iter_graph(model):
        if isinstance(part, nnx.Variable) and 0 in (value := part.get_value()).shape:
            part.set_value(jnp.zeros(value.shape, value.dtype))  # a stack of no layers


def to_torch(model: nnx.Module, table: Sequence[Entry]) -> dict[str, np.ndarray]:
    """{PyTorch name: array} of `model`, in the order of `table`."""

    def tensor(entry: Entry) -> np.ndarray:
        value = _variable(model, entry.path).get_value()
        row = np.asarray(jax.device_get(value if entry.index is None else value[entry.index]))
        return np.array(entry.kind.to_torch(row), entry.kind.dtype, order="C")

    return {entry.torch: tensor(entry) for entry in table}
