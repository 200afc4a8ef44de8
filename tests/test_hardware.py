"""Figures of chips, and what JAX calls them."""

import jax
import pytest

from quark_jax.hardware import CHIPS, chip_of


@pytest.mark.parametrize(
    "kind, name",
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_a_kind_of_device_is_its_chip(kind, name):
    assert chip_of(kind) is CHIPS[name]


def test_a_cpu_is_no_chip():
    assert chip_of(jax.devices("cpu")[0].device_kind) is None


def test_no_unit_has_slipped():
    """Every chip does hundreds of operations for each byte, and reads its memory in 5 to 100 ms."""
    for chip in CHIPS.values():
        assert 100 < chip.bf16_flops / chip.hbm_bandwidth < 600, chip.name
        assert 5e-3 < chip.hbm_bytes / chip.hbm_bandwidth < 0.1, chip.name
