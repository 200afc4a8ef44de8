"""Features of a frozen encoder, to be kept in a tokenised dataset in the place of audio."""

from functools import cached_property

import jax
import numpy as np
from etils import epath

from quark_jax.encoders import FeatureConfig, SSLFeatures, features_hash


class FeatureEncoder:
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
        """`features_hash` of the config."""
        return features_hash(self.config)


@jax.jit
def _compute(features: SSLFeatures, waves: jax.Array, samples: jax.Array) -> jax.Array:
    return features(waves, samples)
