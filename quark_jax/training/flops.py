"""Operations of a training step: what MFU is a share of.

Counted is what the model has to compute, once: what is computed again in the backward pass to save
memory does not count, and neither does what is no matrix product or convolution. The turn in rotary
embedding (`nn.rotate_half`), a product for the chip's sake alone, is in counts by trace only.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax
import numpy as np
from jax.extend import core

from quark_jax.hardware import chip_of
from quark_jax.lm import Conditions, LMConfig, Packing, Targets
from quark_jax.lm.patterns import make_pattern


def peak_flops() -> float | None:
    """Operations a second, in bfloat16, of all devices of the run; None where the chip is not
    known, as a CPU is not."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.bf16_flops * jax.device_count() if chip else None


def step_flops(
    step: jax.stages.Wrapped, flops: Callable[[Any], float] | None
) -> Callable[..., float]:
    """What gives the operations of the compiled `step` for its arguments (state, batch, frozen,
    phase), over all devices: `flops(batch)`, or what its trace has. They are found once for each
    shape of batch and phase; 0 where the chip is not known, because nobody asks for them."""
    known: dict[Any, float] = {}

    def count(state: Any, batch: Any, frozen: Any, phase: tuple) -> float:
        key = phase, tuple(array.shape for array in jax.tree.leaves(batch))
        if key not in known and flops:
            known[key] = flops(batch)
        elif key not in known:
            known[key] = traced_flops(step.trace(state, batch, frozen, phase).jaxpr)
        return known[key]

    return count if peak_flops() else lambda *arguments: 0.0


def lm_flops(
    config: LMConfig,
    conditions: Conditions,
    targets: Targets,
    packing: Packing | None = None,
    *,
    causal: bool = True,
) -> float:
    """Operations of a training step of the language model on a batch of such shapes (arrays, or
    shapes alone), padding included.

    The forward pass three times, because each product is differentiated on both sides (PaLM,
    arXiv 2204.02311, appendix B). Attention is counted in full if it is not `causal`, else the half
    of it that is not masked. What the frozen encoders of audio and captions compute in the step is
    left out.
    """
    width, pattern = config.width, make_pattern(config)
    batch, _, frames = targets.acoustic.shape
    steps = pattern.steps(frames) + 1  # with END
    length, adapters = 2 + steps - 1, 0  # [T] and [S], steps that are read
    for name in ("caption", "reference", "input"):
        section = getattr(conditions, name)
        if section is None:
            continue
        channels, positions = section.features.shape[-1], section.features.shape[1]
        if name != "caption" and config.stack_features:
            channels, positions = 2 * channels, -(-positions // 2)
        adapters += positions * channels * width
        if name == "input" and config.beside and positions:  # a convolution over three
            adapters += (3 * positions - 2) * channels * width
        length += 1 + positions
    rows = batch
    if packing:
        rows, length = batch // packing.sequences, packing.positions
    kv_width = config.kv_heads * config.head_dim
    layer = width * (2 * width + 2 * kv_width + 3 * config.mlp)
    attention = 2 * length * width / (2 if causal else 1)
    head = steps * width * pattern.heads * pattern.vocabulary.size
    products = rows * length * config.layers * (layer + attention) + batch * (adapters + head)
    return 3.0 * 2 * products


def traced_flops(program: core.ClosedJaxpr | core.Jaxpr, *, trips: int = 1) -> float:
    """Operations of the matrix products and convolutions of a program as JAX traced it: those in a
    scan as often as it runs, of branches the one with fewest; where a convolution meets padding or
    the gaps of a dilation it does nothing. The body of a while loop counts `trips` times; kernels
    (Pallas), whose products are not in the trace, do not count."""
    total = 0.0
    for equation in program.eqns:
        match equation.primitive.name:
            case "dot_general":
                total += _product(equation)
            case "conv_general_dilated":
                total += _convolution(equation)
            case "cond":
                branches = equation.params["branches"]
                total += min(traced_flops(branch, trips=trips) for branch in branches)
            case "pallas_call":
                pass
            case name:
                times = {"scan": equation.params.get("length"), "while": trips}.get(name, 1)
                inside = _programs(equation.params)
                total += times * sum(traced_flops(part, trips=trips) for part in inside)
    return total


def _programs(parameters: dict[str, Any]) -> Iterator[core.ClosedJaxpr | core.Jaxpr]:
    for value in jax.tree.leaves(
        list(parameters.values()),
        is_leaf=lambda leaf: isinstance(leaf, core.ClosedJaxpr | core.Jaxpr),
    ):
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value


def _product(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * prod(out) * prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> float:
    left, kernel = (variable.aval.shape for variable in equation.invars)
    out, given = equation.outvars[0].aval.shape, equation.params
    numbers = given["dimension_numbers"]
    batch, outputs = (out[axis] for axis in numbers.out_spec[:2])
    pairs = prod(
        _meetings(left[i], kernel[k], out[o], stride, low, dilation, kernel_dilation)
        for i, k, o, stride, (low, _), dilation, kernel_dilation in zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            numbers.out_spec[2:],
            given["window_strides"],
            given["padding"],
            given["lhs_dilation"],
            given["rhs_dilation"],
            strict=True,
        )
    )
    return 2.0 * batch * outputs * kernel[numbers.rhs_spec[1]] * pairs


def _meetings(
    inputs: int, taps: int, outputs: int, stride: int, low: int, dilation: int, spread: int
) -> int:
    """How often a tap of the kernel meets an input along one axis, over all outputs."""
    place = stride * np.arange(outputs)[:, None] - low + spread * np.arange(taps)
    return int(np.sum((place >= 0) & (place <= (inputs - 1) * dilation) & (place % dilation == 0)))
