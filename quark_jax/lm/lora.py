"""Low-rank adaptation of the backbone (LoRA, Hu et al., arXiv 2106.09685).

An adapter of a kernel W [in, out] is a pair a [in, rank], b [rank, out]; W + alpha / rank * a b
takes the place of W. So the model that is trained, evaluated and saved is an ordinary one, and its
weights are those of LlamaModel. Adapters are kept beside each other in an `nnx.State` whose paths
are those of the kernels, with `lora_a` and `lora_b` in the place of `kernel`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

_KERNELS = ("query", "key", "value", "out", "gate", "up", "down")


@dataclass(frozen=True)
class LoraConfig:
    """What is trained in the place of all parameters."""

    rank: int = 0  # of the adapters; 0: none, all parameters are trained
    alpha: float = 32.0
    kernels: tuple[str, ...] = _KERNELS  # of each block of the backbone
    # Parts outside of the backbone that are trained as a whole.
    parts: tuple[str, ...] = ("tasks", "starts", "audio_adapter", "text_adapter")

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"LoraConfig: rank must be at least 0, not {self.rank}")
        for name in self.kernels:
            if name not in _KERNELS:
                raise ValueError(f"LoraConfig: kernel {name!r}, choose of {', '.join(_KERNELS)}")


def begin_lora(params: nnx.State, config: LoraConfig, key: jax.Array) -> nnx.State:
    """What is trained of a model of parameters `params`: adapters that change nothing as yet, and
    copies of `config.parts`."""
    trained = []
    for number, (path, kernel) in enumerate(nnx.to_flat_state(params)):
        if path[0] in config.parts:
            trained.append((path, jax.tree.map(jnp.copy, kernel)))
        elif _adapted(path, config):
            *stack, inputs, outputs = kernel.shape
            axes = kernel.get_metadata()["axes"]
            deviation = inputs**-0.5
            a = deviation * jax.random.normal(
                jax.random.fold_in(key, number), (*stack, inputs, config.rank)
            )
            b = jnp.zeros((*stack, config.rank, outputs))
            first, last = (
                nnx.Param(a, axes=(*axes[:-1], None)),
                nnx.Param(b, axes=(*axes[:-2], None, axes[-1])),
            )
            trained += [((*path[:-1], "lora_a"), first), ((*path[:-1], "lora_b"), last)]
    return nnx.from_flat_state(trained)


def merge_lora(params: nnx.State, trained: nnx.State, config: LoraConfig) -> nnx.State:
    """`params` with what `begin_lora` gave, as it has become by training."""
    changes = dict(nnx.to_flat_state(trained))
    merged = []
    for path, value in nnx.to_flat_state(params):
        if _adapted(path, config):
            a, b = (changes[*path[:-1], name] for name in ("lora_a", "lora_b"))
            low_rank = jnp.matmul(a.get_value(), b.get_value())
            value = value.replace(value.get_value() + config.alpha / config.rank * low_rank)
        merged.append((path, changes.get(path, value)))
    return nnx.from_flat_state(merged)


def _adapted(path: tuple, config: LoraConfig) -> bool:
    return path[0] == "backbone" and path[-1] == "kernel" and path[-2] in config.kernels
