"""TPUs that are not there: descriptions of topologies, for the compiler alone."""

import math
import os
import re
from collections.abc import Sequence

import jax

from quark_jax.commands import NO_TPU
from quark_jax.errors import UserError, optional_import
from quark_jax.hardware import Chip, chip_of

# The compiler looks for a TPU virtual machine around it, and warns where there is none.
_QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is held: several may compile at once
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    **NO_TPU,  # of no consequence for a topology that is named
}


def topology_devices(name: str, *, slices: int = 1) -> Sequence[jax.Device]:
    """Devices that programs can be compiled for and not run on: those of the topology `name`, such
    as "v5e:16x16" or "v5p:8x8x8", chips along each side of one slice, `slices` times. Cloud TPU
    names v4 and v5p by cores, two to a chip: v5p-512 is "v5p:4x8x8".

    Raises UserError where there is no such topology, and MissingPackage without the compiler
    (the package libtpu).
    """
    match = re.fullmatch(r"(v\w+):(\d+(?:x\d+){0,2})", name)
    if not match:
        raise UserError(
            f"--topology {name!r}: is no topology; write chip and sides, as in v5e:4x4 or v5p:8x8x8"
        )
    os.environ.update({key: os.environ.get(key, value) for key, value in _QUIET.items()})
    optional_import("libtpu", use="compile for TPUs", extra="aot")
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    chips = math.prod(map(int, match[2].split("x")))
    if match[1] == "v4":  # both cores of a chip are one device, as on Cloud TPU
        options["chip_config_name"] = "megacore"
    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology {name!r}: the compiler knows none of that name ({reason}); use sides that "
            "exist, as in v5e:4x4, v5p:8x8x8 or v6e:16x16"
        ) from error
    if len(devices) != chips * slices:
        raise UserError(
            f"--topology {name!r}: {len(devices)} devices in {chips * slices} chips; use a chip "
            "that JAX counts as one device: v4, v5e, v5p or v6e"
        )
    return devices


def chip_in(devices: Sequence[jax.Device]) -> Chip:
    """The chip that all `devices` are. Raises UserError where its figures are not known."""
    kind = devices[0].device_kind
    chip = chip_of(kind)
    if chip is None:
        raise UserError(f"{kind}: its figures are not known; use one of quark_jax.hardware.CHIPS")
    return chip
