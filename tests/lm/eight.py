"""Codes of eight items, on all devices that there are: python tests/lm/eight.py OUT.npz"""

import sys

import jax
import numpy as np
from flax import nnx

from quark_jax.lm import (
    TASK_IDS,
    Conditions,
    LanguageModel,
    LMConfig,
    Sampling,
    Section,
    Targets,
    generate,
)
from quark_jax.training.sharding import MeshConfig, make_mesh, place_batch, shardings

CONFIG = LMConfig.preset(
    "tiny",
    layers=1,
    width=32,
    heads=4,
    kv_heads=2,
    mlp=48,
    codebooks=2,
    acoustic_size=31,
    semantic_size=31,
    audio_channels=6,
)


def codes(mesh: MeshConfig) -> Targets:
    """Items of unlike tasks and lengths; parameters and batch are split over `mesh`."""
    devices = make_mesh(mesh)
    model = LanguageModel(CONFIG, rngs=nnx.Rngs(0))
    model.head.kernel.set_value(3 * model.head.kernel[...])
    graph, state = nnx.split(model)
    state = jax.device_put(state, shardings(state, devices))
    split = state.head.kernel.get_value().sharding
    assert split.is_fully_replicated == (jax.device_count() == 1)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, 9, 6)).astype(np.float32)
    batch = {
        "task": np.array([TASK_IDS[name] for name in ("sr", "edit", "tse", "sr") * 2], np.int32),
        "features": features,
        "lengths": np.array([9, 4, 7, 1, 8, 9, 2, 5], np.int32),
        "frames": np.array([5, 9, 2, 7, 9, 9, 4, 1], np.int32),
        "seeds": np.arange(8),
    }
    placed = place_batch(batch, devices)
    section = Section(placed["features"], placed["lengths"])
    return generate(
        nnx.merge(graph, state),
        Conditions(placed["task"], input=section),
        placed["frames"],
        jax.vmap(jax.random.key)(placed["seeds"]),
        Sampling(0.8, top_k=20, top_p=0.95),
        max_frames=9,
    )


if __name__ == "__main__":
    found = codes(MeshConfig(data=2, fsdp=2, tensor=2))
    names = ("acoustic", "semantic", "frames")
    np.savez(sys.argv[1], **{name: np.asarray(getattr(found, name)) for name in names})
