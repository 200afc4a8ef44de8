"""Features of a frozen encoder, to be kept in a tokenised dataset in the place of audio."""

import hashlib
import json
from dataclasses import asdict
from functools import cached_property

import jax
import numpy as np
from etils import epath

from quark_jax.encoders import FeatureConfig, SSLFeatures


class Conditioner:
    """Features of 16 kHz audio, computed in batches on the accelerator: `Networks.features`.

    Raises UserError as `SSLFeatures` does.
    """

    def __init__(self, config: FeatureConfig):
        self.config = config
        self._features = SSLFeatures(config)

    def __call__(self, waves: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """float32 [batch, samples at 16 kHz], int [batch] -> [batch, samples // 320, channels]"""
        return np.asarray(_compute(self._features, waves, samples))

    @property
    def name(self) -> str:
        """What computes them, for people to read."""
        return epath.Path(self.config.folder).name if self.config.folder else self.config.kind

    @cached_property
    def hash(self) -> str:
        return features_hash(self.config)


def features_hash(config: FeatureConfig) -> str:
    """Sixteen hexadecimal digits that tell apart features of other weights or settings, wherever
    the encoder's folder lies."""
    fields = {name: value for name, value in asdict(config).items() if name != "folder"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    if config.folder is not None:
        for path in sorted(epath.Path(config.folder).glob("*")):
            if path.suffix in (".json", ".safetensors", ".bin"):
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    while block := file.read(1 << 24):
                        digest.update(block)
    return digest.hexdigest()[:16]


@jax.jit
def _compute(features: SSLFeatures, waves: jax.Array, samples: jax.Array) -> jax.Array:
    return features(waves, samples)
