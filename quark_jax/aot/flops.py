"""Operations that a model needs, counted by hand and from its trace; a product of [m, k] and [k, n]
is 2 m k n of them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn

from quark_jax.lm import LMConfig, Packing, make_pattern


def lm_flops(
    lm: LMConfig, batch: Mapping[str, jax.ShapeDtypeStruct], packing: Packing | None
) -> float:
    """Of a training step, forward and twice that for the gradients: projections, MLP and attention
    of every position that is computed, padding too, and the heads at every step of the target.
    Attention counts each position with those before it in its own sequence, sequences that share
    a row as equally long. Frozen encoders, adapters, embeddings and norms are left out."""
    items, codebooks, frames = batch["acoustic"].shape
    assert codebooks == lm.codebooks
    pattern = make_pattern(lm)
    steps = int(pattern.steps(frames)) + 1
    length = _length(lm, batch, steps) if packing is None else packing.positions / packing.items
    head, shared = lm.heads * lm.head_dim, lm.kv_heads * lm.head_dim
    weights = lm.width * (2 * head + 2 * shared) + 3 * lm.width * lm.mlp
    layer = length * weights + length * (length + 1) / 2 * 2 * head
    out = steps * lm.width * pattern.heads * pattern.vocabulary.size
    return 3 * 2 * items * (lm.layers * layer + out)


def _length(lm: LMConfig, batch: Mapping[str, jax.ShapeDtypeStruct], steps: int) -> int:
    """Positions of a sequence that has a row of its own: T, S, the sections, the steps."""
    length = 1 + steps
    for part in ("input", "reference"):
        if f"{part}_features" in batch:
            frames = batch[f"{part}_features"].shape[1]
        elif part in batch:
            frames = batch[part].shape[1] // 320
        else:
            continue
        length += 1 + (-(-frames // 2) if lm.stack_features else frames)
    return length + (1 + batch["caption"].shape[1] if "caption" in batch else 0)


def traced_flops(function: Callable, *arguments: Any, loop: int = 1) -> float:
    """Of the products and convolutions in a jitted function as it is traced: a scan's body as often
    as it runs, that of a `while` as often as `loop` says, the dearest branch of a condition."""
    return _count(function.trace(*arguments).jaxpr.jaxpr, loop)


def _count(jaxpr: Jaxpr, loop: int) -> float:
    return sum(_of_equation(equation, loop) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn, loop: int) -> float:
    kind, parameters = equation.primitive.name, equation.params
    if kind == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * inner * equation.outvars[0].aval.size
    if kind == "conv_general_dilated":
        kernel, layout = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec
        # The kernel at each output: its taps times its inputs, less those that meet only the
        # zeros that a transposed convolution puts between samples.
        taps = math.prod(kernel) / kernel[layout[0]]
        return 2 * taps * equation.outvars[0].aval.size / math.prod(parameters["lhs_dilation"])
    inner = [_count(jaxpr, loop) for jaxpr in _bodies(parameters)]
    times = {"scan": parameters.get("length", 1), "while": loop}.get(kind, 1)
    return times * (max(inner, default=0.0) if kind == "cond" else sum(inner))


def _bodies(parameters: Mapping[str, Any]) -> list[Jaxpr]:
    """The functions that an equation calls."""
    values = jax.tree.leaves(
        list(parameters.values()), is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns")
    )
    jaxprs = (getattr(value, "jaxpr", value) for value in values)
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]
