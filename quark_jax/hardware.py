"""What accelerators can do at most: the vendors' published figures of one chip.

Sources: the pages of each TPU at cloud.google.com/tpu/docs (v4, v5e, v5p, v6e; links between chips
are 2400, 1600, 4800 and 3200 Gbit/s) and NVIDIA's data sheets of A100, H100, H200 and B200 (dense
bfloat16, without sparsity; NVLink's published figure counts both ways, half of it stands here).
"""

from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One accelerator, as JAX counts devices.

    Attributes:
      name: as a topology names it.
      bf16_flops: peak of dense bfloat16 products with float32 sums, operations a second.
      hbm_bytes: capacity of its memory, bytes.
      hbm_bandwidth: of that memory, bytes a second.
      ici_bandwidth: of all its links to other chips (ICI, NVLink) together, bytes a second that it
        can send; 0 where it has none.
    """

    name: str
    bf16_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * _GIB, 1228e9, 300e9),
        Chip("v5e", 197e12, 16 * _GIB, 819e9, 200e9),
        Chip("v5p", 459e12, 95 * _GIB, 2765e9, 600e9),
        Chip("v6e", 918e12, 32 * _GIB, 1638e9, 400e9),
        Chip("a100-40gb", 312e12, 40 * _GIB, 1555e9, 300e9),
        Chip("a100-80gb", 312e12, 80 * _GIB, 2039e9, 300e9),
        Chip("h100", 989e12, 80 * _GIB, 3350e9, 450e9),
        Chip("h100-pcie", 756e12, 80 * _GIB, 2000e9, 0),
        Chip("h200", 989e12, 141 * 10**9, 4800e9, 450e9),
        Chip("b200", 2250e12, 180 * 10**9, 8000e9, 900e9),
    )
}

# What `jax.Device.device_kind` says, in lower case.
_KINDS = {
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5": "v5p",
    "tpu v5p": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
    "nvidia a100-sxm4-40gb": "a100-40gb",
    "nvidia a100-sxm4-80gb": "a100-80gb",
    "nvidia h100 80gb hbm3": "h100",
    "nvidia h100 pcie": "h100-pcie",
    "nvidia h200": "h200",
    "nvidia b200": "b200",
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that `jax.Device.device_kind` names; None for a CPU or a chip that is not listed."""
    name = _KINDS.get(device_kind.strip().lower())
    return CHIPS[name] if name else None
