"""What the compiler says about a program, for one chip."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any

import jax
from etils import epath
from flax import nnx
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from quark_jax.aot.hlo import Hlo, by_kind
from quark_jax.aot.programs import Program
from quark_jax.files import replacing
from quark_jax.hardware import Chip
from quark_jax.training.flops import traced_flops

_DEAREST = 12  # operations that are named
_LARGE = 2**20  # elements of a parameter that should not be on every chip
# Dense bfloat16 operations of a chip in one cycle: 8, 4, 8 and 4 units of 128 x 128 (v6e: 256 x
# 256) multiply-adds. With the published peak they give the clock.
_PER_CYCLE = {"v4": 262144, "v5e": 131072, "v5p": 262144, "v6e": 524288}


@dataclass(frozen=True)
class Report:
    """Everything of one chip, but for what says that it is of all.

    Attributes:
      program, chip, mesh: what was compiled, and for how many of what.
      compile_seconds: on this machine.
      fits: whether the program has room in the chip's memory.
      problem: what the compiler says where it does not.
      arguments, outputs, temporaries, peak: bytes in its memory; outputs that take the place of
        arguments do not count. `capacity` is what it has.
      model_flops: operations that the model needs, of all chips.
      flops: operations that the program does, of its products and convolutions.
      kernel_flops: those among them that are in kernels, which the compiler's estimate leaves out.
      traffic: bytes read from and written to the chip's memory.
      collectives: {kind: (how many, bytes that it sends)}.
      cycles: what the compiler estimates its operations to take, collectives and kernels not among
        them; None where it says nothing.
      replicated: large parameters that are on every chip although the mesh splits parameters.
      remat: what the config has computed twice; `recomputed`: what the program has,
        {operation: how many}.
      dearest: (cycles, what JAX calls them) of the operations that take most, by the compiler.
    """

    program: str
    chip: str
    mesh: Mapping[str, int]
    compile_seconds: float
    fits: bool
    problem: str
    capacity: int
    model_flops: float
    flops: float
    kernel_flops: float
    replicated: list[str]
    remat: str
    arguments: int = 0
    outputs: int = 0
    temporaries: int = 0
    peak: int = 0
    traffic: float = 0.0
    collectives: Mapping[str, tuple[int, float]] | None = None
    cycles: int | None = None
    recomputed: Mapping[str, int] | None = None
    dearest: list[tuple[int, str]] = field(default_factory=list)

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.mesh.values())


@dataclass(frozen=True)
class Bounds:
    """Times in seconds that a step cannot be faster than, and the share of the chips' peak that the
    model's operations can then be at most (MFU).

    `compute`, `memory` and `links` are operations, bytes and bytes sent over what the chip can do
    at most; `least` is the longest of them, as if all three went on at once. `estimate` is the time
    that the compiler's cycles take, with kernels at the chip's peak, or the links' where those take
    longer: no bound of what can be programmed, but of this program, in so far as the compiler's
    estimate holds.
    """

    compute: float
    memory: float
    links: float
    least: float
    estimate: float | None
    mfu: float
    estimate_mfu: float | None


def bounds(report: Report, chip: Chip) -> Bounds:
    """From the figures of a report and of its chip."""
    compute = report.flops / chip.bf16_flops
    memory = report.traffic / chip.hbm_bandwidth
    sent = sum(sent for _, sent in (report.collectives or {}).values())
    links = sent / chip.ici_bandwidth if sent else 0.0
    least, estimate = max(compute, memory, links), None
    if report.cycles and chip.name in _PER_CYCLE:
        kernels = report.kernel_flops / chip.bf16_flops
        estimate = max(report.cycles / _clock(chip) + kernels, links)
    ideal = report.model_flops / report.chips / chip.bf16_flops
    return Bounds(
        compute,
        memory,
        links,
        least,
        estimate,
        mfu=ideal / least if least else 0.0,
        estimate_mfu=ideal / estimate if estimate else None,
    )


def _clock(chip: Chip) -> float:
    """Cycles a second."""
    return chip.bf16_flops / _PER_CYCLE[chip.name]


def compile_program(
    program: Program, mesh: Mesh, chip: Chip, *, save: str | PathLike | None = None
) -> Report:
    """Compile for the devices of `mesh`, each of them a `chip`, and report. `save` is a file for
    the executable, as `jax.experimental.serialize_executable.serialize` gives it."""
    chips = mesh.size
    traced = traced_flops(program.jitted.trace(*program.arguments).jaxpr, trips=program.trips)
    known: dict[str, Any] = {
        "program": program.name,
        "chip": chip.name,
        "mesh": dict(mesh.shape),
        "capacity": chip.hbm_bytes,
        "model_flops": program.model_flops,
        "flops": (traced + program.kernel_flops) / chips,
        "kernel_flops": program.kernel_flops / chips,
        "replicated": replicated(program.parameters, mesh),
        "remat": program.remat,
    }
    begun = time.monotonic()
    try:
        compiled = program.jitted.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.monotonic() - begun
        return Report(compile_seconds=seconds, fits=False, problem=_problem(error), **known)
    seconds = time.monotonic() - begun
    if save is not None:
        with replacing(epath.Path(save)) as beside:
            beside.write_bytes(serialize_executable.serialize(compiled)[0])
    memory, hlo = compiled.memory_analysis(), Hlo(compiled.as_text(), program.trips)
    return Report(
        compile_seconds=seconds,
        fits=memory.peak_memory_in_bytes <= chip.hbm_bytes,
        problem="",
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        traffic=hlo.traffic(),
        collectives=by_kind(hlo.collectives()),
        cycles=hlo.cycles() or None,
        recomputed=dict(hlo.recomputed()),
        dearest=hlo.dearest()[:_DEAREST],
        **known,
    )


def replicated(parameters: Any, mesh: Mesh) -> list[str]:
    """Names and shapes of the large parameters that every chip holds as a whole, where the mesh
    splits parameters at all."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return []
    leaves = jax.tree_util.tree_leaves_with_path(
        parameters, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    arrays = ((path, v.get_value() if isinstance(v, nnx.Variable) else v) for path, v in leaves)
    return [
        f"{jax.tree_util.keystr(path, simple=True, separator='.')} {list(array.shape)}"
        for path, array in arrays
        if array.sharding.is_fully_replicated and array.size >= _LARGE
    ]


def _problem(error: Exception) -> str:
    """What the compiler says about memory, in a line."""
    lines = [line.strip() for line in str(error).splitlines()]
    about = [line for line in lines if line.startswith(("Used ", "Exceeded ", "Total hbm"))]
    return " ".join(about) or lines[0]


def to_json(report: Report, chip: Chip) -> str:
    """All figures, and the bounds that follow."""
    return json.dumps(asdict(report) | {"bounds": asdict(bounds(report, chip))}, indent=1)


def to_text(report: Report, chip: Chip) -> str:
    """The report as people read it."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1)
    lines = [
        f"{report.program}",
        f"{report.chips} chips {chip.name}, mesh {mesh or 'of one'}; compiled in "
        f"{report.compile_seconds:.0f} s",
        "",
        "of one chip",
        *(_room(report) if report.peak else [f"  does not fit: {report.problem}"]),
        f"  operations      {report.flops:.3e}, {report.kernel_flops:.2e} of them in kernels",
    ]
    if report.peak:
        lines += _work(report, chip)
    for name in report.replicated:
        lines.append(f"  on every chip   {name}")
    return "\n".join(lines)


def _room(report: Report) -> list[str]:
    def gib(size: float) -> str:
        return f"{size / 2**30:.2f} GiB"

    verdict = "fits" if report.fits else "does not fit"
    return [
        f"  memory          {gib(report.peak)} of {gib(report.capacity)} at the peak: {verdict}",
        f"                  arguments {gib(report.arguments)}, outputs beside them "
        f"{gib(report.outputs)}, temporaries {gib(report.temporaries)}",
    ]


def _work(report: Report, chip: Chip) -> list[str]:
    at_most = bounds(report, chip)
    kinds = report.collectives or {}
    lines = [f"  memory traffic  {report.traffic / 1e9:.2f} GB"]
    lines += [
        f"  {kind:<15} {count} of {sent / 1e6:.1f} MB sent" for kind, (count, sent) in kinds.items()
    ] or ["  collectives     none"]
    twice = ", ".join(f"{count} {kind}" for kind, count in (report.recomputed or {}).items())
    lines += [
        f"  computed twice  {report.remat}",
        f"                  in the program: {twice or 'nothing'}",
        "",
        f"  time at least   {at_most.least * 1e3:.2f} ms: operations {at_most.compute * 1e3:.2f}, "
        f"memory {at_most.memory * 1e3:.2f}, links {at_most.links * 1e3:.2f}, all at once",
        f"  MFU at most     {100 * at_most.mfu:.1f} % (bound; {report.model_flops:.3e} operations "
        "of the model on all chips)",
    ]
    if at_most.estimate:
        lines += [
            f"  by the compiler's cycles, kernels at peak: {at_most.estimate * 1e3:.2f} ms, MFU at "
            f"most {100 * at_most.estimate_mfu:.1f} % (bound of this program)",
            "  dearest, by those cycles",
        ]
        for cycles, name in report.dearest:
            lines.append(f"    {1e3 * cycles / _clock(chip):8.2f} ms  {name[-80:]}")
    return lines
