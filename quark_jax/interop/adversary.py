"""The discriminators' PyTorch names, those of DAC's `Discriminator` (2306.06546)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from quark_jax.hcodec.adversary import Adversary, AdversaryConfig, SpectralDiscriminator
from quark_jax.interop.files import named_state
from quark_jax.interop.table import Entry, Kind, as_shapes, load_torch, to_torch

_PERIOD = Kind(  # [out, in, k, 1] <-> [k, in, out]
    lambda a: a[..., 0].transpose(2, 1, 0), lambda a: a.transpose(2, 1, 0)[..., None]
)
_SPECTRAL = Kind(  # [out, in, k, k] <-> [k, k, in, out]
    lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)
)
_GAIN = Kind(lambda a: a[:, 0, 0, 0], lambda a: a[:, None, None, None])
_NAMES = {"original0": "g", "original1": "v"}  # of torch.nn.utils.parametrizations.weight_norm


def _conv(torch: str, path: str, kind: Kind) -> Iterator[Entry]:
    yield Entry(f"{torch}.bias", f"{path}.bias")
    yield Entry(f"{torch}.weight_g", f"{path}.gain", _GAIN)
    yield Entry(f"{torch}.weight_v", f"{path}.direction", kind)


def adversary_table(adversary: Adversary) -> list[Entry]:
    """Every tensor of the discriminators."""
    entries: list[Entry] = []
    for i, discriminator in enumerate(adversary.discriminators):
        name = f"discriminators.{i}"
        if isinstance(discriminator, SpectralDiscriminator):
            kind = _SPECTRAL
            for j, band in enumerate(discriminator.bands):
                for k in range(len(band)):
                    entries += _conv(f"{name}.band_convs.{j}.{k}.0", f"{name}.bands.{j}.{k}", kind)
        else:
            kind = _PERIOD
            for j in range(len(discriminator.convs)):
                entries += _conv(f"{name}.convs.{j}.0", f"{name}.convs.{j}", kind)
        entries += _conv(f"{name}.conv_post", f"{name}.last", kind)
    return entries


def load_adversary(
    state: Mapping[str, np.ndarray] | str | Path, config: AdversaryConfig, *, dtype=None
) -> Adversary:
    """See `Adversary.from_torch`."""
    state, source = named_state(state)
    adversary = as_shapes(lambda rngs: Adversary(config, dtype=dtype, rngs=rngs))
    for theirs, ours in _NAMES.items():
        style = f".parametrizations.weight.{theirs}"
        state = {name.replace(style, f".weight_{ours}"): array for name, array in state.items()}
    load_torch(adversary, adversary_table(adversary), state, source=source)
    return adversary


def adversary_to_torch(adversary: Adversary) -> dict[str, np.ndarray]:
    """See `Adversary.to_torch`."""
    return to_torch(adversary, adversary_table(adversary))
