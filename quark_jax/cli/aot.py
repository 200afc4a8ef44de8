"""`quark aot`: whether a program fits a TPU pod, and how fast it can be at most."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quark_jax.cli.options import check_parent, config_fields, count, number
from quark_jax.errors import UserError

if TYPE_CHECKING:  # --help is to be quick
    from jax.sharding import Mesh

    from quark_jax.aot import Program
    from quark_jax.training.codec import CodecTraining
    from quark_jax.training.lm import LMTraining

_PROGRAMS = ("train", "tokenise", "sample")


def add_aot_command(commands) -> None:
    """Add `quark aot` to the subparsers `commands`."""
    aot = commands.add_parser(
        "aot",
        help="compile a program for a TPU pod, on this machine, and tell whether it fits",
        description="Compile a program for TPUs that need not be there, and print memory, traffic, "
        "collectives and bounds on time and MFU of one chip. Nothing is run. Code 1 if the program "
        "does not fit into a chip's memory.",
    )
    aot.add_argument(
        "--topology", required=True, help="chip and its sides, as v5e:4x4, v5p:8x8x8 or v6e:16x16"
    )
    aot.add_argument(
        "--slices", type=count, default=1, help="of that topology; default: %(default)s"
    )
    aot.add_argument(
        "--config",
        required=True,
        help="of a training, as configs/lm/published.py:base; --config.FIELD=VALUE changes it",
    )
    aot.add_argument(
        "--program",
        choices=_PROGRAMS,
        default="train",
        help="the training step, or what a trained codec (tokenise) or language model (sample) "
        "does; default: %(default)s",
    )
    aot.add_argument("--mesh", type=_mesh, default={}, help="as data=-1,fsdp=16; run.mesh in short")
    aot.add_argument(
        "--batch", type=count, help="recordings, to tokenise or sample; default: 8 a chip"
    )
    aot.add_argument(
        "--seconds",
        type=number,
        default=5.0,
        help="of a recording of language models, and to tokenise; default: %(default)s",
    )
    aot.add_argument("--out", type=Path, help="file for the executable")
    aot.add_argument("--json", type=Path, help="file for all figures")
    aot.set_defaults(run=_aot, changes=[])


def _mesh(text: str) -> dict[str, int]:
    match = re.fullmatch(r"(?:(?:data|fsdp|tensor|sequence)=-?\d+(?:,|$))+", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not as data=-1,fsdp=16; axes are data, fsdp, tensor and sequence"
        )
    return {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}


def _aot(options: argparse.Namespace) -> None:
    for path in (options.out, options.json):
        if path is not None:
            check_parent(path)
    import jax

    jax.config.update("jax_platforms", "cpu")  # chips of this machine, if any, are left alone
    from quark_jax import aot
    from quark_jax.files import replacing
    from quark_jax.training.sharding import make_mesh

    config = _read(options.config, options.changes)
    mesh_config = replace(config.run.mesh, **options.mesh)
    config = replace(config, run=replace(config.run, mesh=mesh_config))
    devices = aot.topology_devices(options.topology, slices=options.slices)
    chip, mesh = aot.chip_in(devices), make_mesh(config.run.mesh, devices)
    program = _program(options, config, mesh)
    report = aot.compile_program(program, mesh, chip, save=options.out)
    print(aot.to_text(report, chip))
    if options.json is not None:
        with replacing(options.json) as beside:
            beside.write_text(aot.to_json(report, chip))
    if not report.fits:
        raise SystemExit(1)


def _read(config: str, changes: Sequence[str]) -> "LMTraining | CodecTraining":
    """The config of a file, changed as the launchers change it."""
    from quark_jax.config import from_dict
    from quark_jax.training.codec import CodecTraining
    from quark_jax.training.lm import LMTraining

    fields = config_fields("quark aot", config, changes)
    return from_dict(LMTraining if "lm" in fields else CodecTraining, fields)


def _program(
    options: argparse.Namespace, config: "LMTraining | CodecTraining", mesh: "Mesh"
) -> "Program":
    from quark_jax import aot
    from quark_jax.training.lm import LMTraining

    of_lm = isinstance(config, LMTraining)
    batch, seconds = options.batch or 8 * mesh.size, options.seconds
    match options.program:
        case "train" if of_lm:
            return aot.lm_training(config, mesh, seconds=seconds)
        case "train":
            return aot.codec_training(config, mesh)
        case "sample" if of_lm:
            return aot.sampling(config, mesh, batch=batch, seconds=seconds)
        case "tokenise" if not of_lm:
            return aot.tokenising(config, mesh, batch=batch, seconds=seconds)
    wanted = "a language model" if options.program == "sample" else "a codec"
    raise UserError(f"--program {options.program}: needs the config of {wanted}; give one")
