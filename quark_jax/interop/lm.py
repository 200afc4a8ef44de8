"""The language model's weights in one file: LLaMA's names, and our own for what LLaMA has not."""

from collections.abc import Mapping

import numpy as np

from quark_jax.interop.llama import llama_table
from quark_jax.interop.table import CONV, LINEAR, Entry, as_shapes, load_torch, to_torch
from quark_jax.lm import LanguageModel, LMConfig


def lm_table(model: LanguageModel) -> list[Entry]:
    """Every tensor of a language model, those of `transformers.LlamaForCausalLM` by its names."""
    adapters = {"audio_adapter": LINEAR, "text_adapter": LINEAR, "beside_adapter": CONV}
    adapters = {name: kind for name, kind in adapters.items() if getattr(model, name) is not None}
    return [
        *llama_table(model, causal=True),
        Entry("tasks", "tasks"),
        Entry("starts", "starts"),
        *(Entry(f"{name}.weight", f"{name}.kernel", kind) for name, kind in adapters.items()),
        *(Entry(f"{name}.bias", f"{name}.bias") for name in adapters),
    ]


def load_lm(
    state: Mapping[str, np.ndarray], config: LMConfig, *, source: str = "state"
) -> LanguageModel:
    """A language model with the weights `state`: {name: array}. Raises UserError that lists every
    tensor that does not fit."""
    model = as_shapes(lambda rngs: LanguageModel(config, rngs=rngs))
    load_torch(model, lm_table(model), state, source=source)
    return model


def lm_to_torch(model: LanguageModel) -> dict[str, np.ndarray]:
    """{name: array}, as `load_lm` takes them."""
    return to_torch(model, lm_table(model))
