"""One training step of both small models on several meshes of the same eight devices, from each of
five batches; prints, for each, how far its loss and its update are from those of one device, where
kinks are rounded off:

python tests/training/meshes.py '[{"data": 2, "fsdp": 4}]'
"""

import json
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from small import ADVERSARY, CODEC, LM, OPTIMISER

from quark_jax.conditioning import Conditioner, ConditionerConfig
from quark_jax.encoders import FeatureConfig, SSLFeatures
from quark_jax.lm import TASK_IDS
from quark_jax.training import codec_step, lm_step
from quark_jax.training.loop import Run, compile_step
from quark_jax.training.sharding import MeshConfig, make_mesh, place_batch, shardings

ITEMS, FRAMES, DRAWS = 8, 8, 5
BEND = 0.1  # how far from a kink it is rounded off


def round_kinks_off() -> None:
    """Where a ReLU or |x| is at its kink, rounding in the last place decides which slope it has,
    and the gradient is another: by 3e-3 on one CPU."""
    exact = jnp.abs

    def absolute(x):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return exact(x)
        return jnp.sqrt(jnp.real(x * jnp.conj(x)) + BEND**2)

    def relu(x):
        return BEND * jax.nn.softplus(x / BEND)

    jnp.abs, jax.nn.relu = absolute, relu
    jax.nn.leaky_relu = lambda x, slope: slope * x + (1 - slope) * relu(x)


def language_model(seed: int):
    """`init` and `step`, frozen networks, a batch drawn by `seed`, and what of the state is
    compared."""
    lm = replace(LM, codebooks=2, acoustic_size=32, semantic_size=32)
    learning = lm_step.LMLearning(
        lm, lm_step.LearningConfig(optimiser=OPTIMISER), tasks=["sr"], packing=None, seed=0
    )
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 32, (2, ITEMS, 2, FRAMES)).astype(np.int32)
    batch = {
        "task": np.full(ITEMS, TASK_IDS["sr"], np.int32),
        "acoustic": codes[0],
        "semantic": codes[1],
        "frames": rng.integers(1, FRAMES + 1, ITEMS).astype(np.int32),
        "input": rng.normal(size=(ITEMS, FRAMES * 640)).astype(np.float32),
        "input_samples": np.full(ITEMS, FRAMES * 640, np.int32),
    }
    frozen = lm_step.Frozen(Conditioner(ConditionerConfig()))
    return learning, frozen, batch, (), lambda state: state.moments


def codec(seed: int):
    """The same, with all losses and both optimisers."""
    learning = codec_step.CodecLearning(
        CODEC, codec_step.LearningConfig(optimiser=OPTIMISER, adversary=ADVERSARY), 0
    )
    wave = np.random.default_rng(seed).normal(size=(ITEMS, FRAMES * CODEC.hop))
    frozen = codec_step.Frozen(SSLFeatures(FeatureConfig()))
    begun = learning.begun(ADVERSARY.begin)

    def compared(state):
        return state.codec.moments, state.adversary.moments, state.rest

    return learning, frozen, (0.1 * wave).astype(np.float32), (begun,), compared


def begin(learning) -> Run:
    return Run(learning.init(), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def stepped(model, begun: Run, config: MeshConfig, count: int) -> list[tuple[float, object]]:
    """Loss after one step from `begun`, and the arrays that are compared, of each draw on `count`
    devices."""
    learning, frozen, _, phase, compared = model(0)
    mesh = make_mesh(config, jax.devices()[:count])
    placed = shardings(begun, mesh, config.rules)
    frozen = jax.device_put(frozen, shardings(frozen, mesh, config.rules))
    step = compile_step(learning.step, placed)
    found = []
    for seed in range(DRAWS):
        batch = place_batch(model(seed)[2], mesh)
        after, metrics = step(jax.device_put(begun, placed), batch, frozen, phase)
        found.append((float(metrics["loss"]), jax.tree.map(np.asarray, compared(after.state))))
    return found


def apart(theirs, ours) -> tuple[float, float]:
    """How far two updates are from each other: of the first moments of an optimiser, and of the
    codebooks, the norm of the difference by the norm; and of each array the largest difference by
    its largest value. The biases before a norm have no gradient but rounding: less than a ten-
    thousandth of the largest of all counts as that much."""
    parts = defaultdict(list)
    for (path, b), a in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        if ".nu" not in jax.tree_util.keystr(path):  # squares of the first moments, no more
            parts[path[:4]].append((np.asarray(a, np.float64), np.asarray(b, np.float64)))
    norms, arrays = [], []
    for part in parts.values():
        difference = sum(np.sum(np.square(a - b)) for a, b in part)
        norms.append(np.sqrt(difference / max(sum(np.sum(np.square(b)) for _, b in part), 1e-30)))
        floor = max(1e-4 * max(np.max(np.abs(b)) for _, b in part), 1e-30)
        arrays += [np.max(np.abs(a - b)) / max(np.max(np.abs(b)), floor) for a, b in part]
    return float(max(norms)), float(max(arrays))


def main() -> None:
    meshes, found = json.loads(sys.argv[1]), {}
    for name, model in {"lm": language_model, "codec": codec}.items():
        begun = jax.tree.map(np.asarray, jax.jit(partial(begin, model(0)[0]))())
        one = stepped(model, begun, MeshConfig(), 1)
        for mesh in meshes:
            found[f"{name} {mesh}"] = [
                (abs(other - loss) / loss, *apart(theirs, update))
                for (loss, update), (other, theirs) in zip(
                    one, stepped(model, begun, MeshConfig(**mesh), 8), strict=True
                )
            ]
    print(json.dumps(found))


if __name__ == "__main__":
    round_kinks_off()
    main()
