"""Deterministic weights and inputs for the golden vectors: full sizes need no storage.

Every tensor is a pure function of (seed, name, shape): the same call gives the same numbers in
NumPy on any machine, whatever framework they are then loaded into. Names and shapes are those of
the published PyTorch checkpoints, listed in state_dict/.

    state = weights(json.load(open("state_dict/hcodec_1.0.json")), seed=0)
"""

import zlib

import numpy as np


def normal(seed: int, name: str, shape) -> np.ndarray:
    """Standard normal float32 of `shape`, keyed by (seed, crc32(name))."""
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    return rng.standard_normal(tuple(shape), dtype=np.float32)


def tensor(name: str, shape, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """One checkpoint tensor, scaled so that activations keep a healthy size through the network."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "initted":
        return np.ones(shape, bool)
    if leaf == "cluster_size":
        return np.ones(shape, np.float32)
    if leaf == "window":  # periodic Hann
        n = shape[0]
        return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)).astype(np.float32)
    if leaf == "embed_avg":  # equals `embed` where cluster_size is one
        return normal(seed, name[: -len("_avg")], shape)
    z = normal(seed, name, shape)
    if leaf == "embed":  # small rows, so that direction and not length picks the code
        return np.float32(0.2) * z
    if leaf in ("gamma", "scale"):  # layer scale
        return np.float32(0.1) + np.float32(0.05) * z
    if name.endswith("head.out.bias"):  # some magnitudes reach the cap
        return np.float32(1.5) * z
    if leaf == "weight_g" or (leaf == "weight" and len(shape) == 1):  # gains
        return np.float32(1) + np.float32(0.1) * z
    if len(shape) == 1:  # biases
        return np.float32(0.02) * z
    z = z / np.sqrt(np.float32(np.prod(shape[1:])))
    if leaf == "in_proj_weight":  # sharp attention: position must matter
        z[: 2 * shape[0] // 3] *= 4
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        z *= 4
    elif "dwconv" in name:  # small variance: the epsilon of the norm that follows must matter
        z *= np.float32(0.05)
    return z


def weights(manifest: dict, seed: int = 0) -> dict:
    """{name: array} for a manifest {name: [shape, dtype]}."""
    return {k: tensor(k, shape, dtype, seed) for k, (shape, dtype) in manifest.items()}


def signal(seed: int, batch: int, samples: int, rate: int) -> np.ndarray:
    """Speech-like test waves [batch, samples], float32 in (-1, 1): a gliding harmonic tone with a
    syllabic envelope, and noise; the last eighth is digital silence."""
    t = np.arange(samples) / rate
    out = []
    for b in range(batch):
        rng = np.random.Generator(np.random.Philox(key=[seed, 1000 + b]))
        f0 = 110 * (1 + b) + 20 * np.sin(2 * np.pi * 1.7 * t + b)
        phase = 2 * np.pi * np.cumsum(f0) / rate
        voiced = sum(np.sin(h * phase) / h for h in range(1, 12))
        envelope = np.clip(np.sin(2 * np.pi * 3.1 * t + b), 0, 1)
        wave = 0.15 * envelope * voiced + 0.01 * rng.standard_normal(samples)
        wave[samples - samples // 8 :] = 0
        out.append(wave)
    return np.asarray(out, np.float32)


def features(seed: int, batch: int, channels: int, frames: int, segment: int = 4) -> np.ndarray:
    """Stand-in SSL features [batch, channels, frames]: piecewise-constant with small jitter, so
    that neighbouring frames are similar inside a segment and unlike across its border."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 77]))
    coarse = rng.standard_normal((batch, channels, -(-frames // segment)), dtype=np.float32)
    jitter = rng.standard_normal((batch, channels, frames), dtype=np.float32)
    return np.repeat(coarse, segment, axis=2)[..., :frames] + np.float32(0.1) * jitter
