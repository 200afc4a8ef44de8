"""The report, on programs compiled for this machine's own devices."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental import serialize_executable
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from quark_jax.aot import Program, bounds, compile_program, replicated, to_json, to_text
from quark_jax.hardware import Chip
from quark_jax.training.sharding import AXES, MeshConfig, make_mesh

CHIP = Chip("cpu", bf16_flops=1e9, hbm_bytes=2**30, hbm_bandwidth=1e8, ici_bandwidth=1e7)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def program(mesh) -> Program:
    """Two layers in a scan, [64, 64] each, of a batch of 32."""

    def step(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    whole = NamedSharding(mesh, PartitionSpec())
    arguments = tuple(
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
        for shape in ((2, 64, 64), (32, 64))
    )
    return Program("two layers", jax.jit(step), arguments, arguments[0], model_flops=524288.0)


@pytest.fixture(scope="module")
def report(program, mesh, tmp_path_factory):
    file = tmp_path_factory.mktemp("aot") / "step.bin"
    return compile_program(program, mesh, CHIP, save=file), file


def test_memory_and_operations(report, program):
    report, _ = report
    assert report.fits and report.arguments == 4 * (2 * 64 * 64 + 32 * 64)
    assert report.flops == program.model_flops == 2 * (2 * 32 * 64 * 64)
    assert report.peak >= report.arguments
    assert report.collectives == {} and report.cycles is None


def test_traffic_is_near_what_xla_counts(program, report):
    """Of this program without its loop, which XLA's own analysis counts once."""

    def step(weights, x):
        return jnp.tanh(jnp.tanh(x @ weights[0]) @ weights[1])

    compiled = jax.jit(step).lower(*program.arguments).compile()
    assert report[0].traffic == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.5)


def test_bounds_follow_from_the_chip(report):
    report = replace(report[0], flops=2e9, traffic=1e8, collectives={"all-reduce": (2, 5e7)})
    found = bounds(report, CHIP)
    assert (found.compute, found.memory, found.links, found.least) == (2.0, 1.0, 5.0, 5.0)
    assert found.mfu == pytest.approx(524288 / 1e9 / 5.0)
    assert found.estimate is found.estimate_mfu is None  # the compiler for CPUs says nothing
    on_tpu = replace(CHIP, name="v5e", bf16_flops=131072.0)
    report = replace(report, cycles=3, kernel_flops=2 * 131072.0, collectives={})
    assert bounds(report, on_tpu).estimate == 3 + 2  # a cycle a second


def test_what_is_printed_and_written(report):
    text = to_text(report[0], CHIP)
    assert "fits" in text and "MFU at most" in text and "collectives     none" in text
    fields = json.loads(to_json(report[0], CHIP))
    assert fields["flops"] == 524288 and fields["bounds"]["least"] > 0


def test_a_program_that_has_no_room(program, mesh):
    report = compile_program(program, mesh, replace(CHIP, hbm_bytes=1000))
    assert not report.fits and "does not fit" in to_text(report, CHIP)


def test_the_compiler_says_that_there_is_no_room(program, mesh):
    """As for TPUs, where the compiler itself refuses."""

    class Refusing:
        def __init__(self, jitted):
            self.trace = jitted.trace

        def lower(self, *arguments):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\n\n"
                "Used 20.1G of 15.75G hbm. Exceeded hbm capacity by 4.4G."
            )

    refused = replace(program, jitted=Refusing(program.jitted))
    report = compile_program(refused, mesh, CHIP)
    assert not report.fits and report.peak == 0
    assert "Used 20.1G of 15.75G hbm" in to_text(report, CHIP)


def test_the_executable_runs_where_it_is_loaded(report, program):
    lowered = program.jitted.lower(*program.arguments)
    loaded = serialize_executable.deserialize_and_load(
        report[1].read_bytes(), lowered.in_tree, lowered.out_tree
    )
    weights, x = jnp.ones((2, 64, 64)) / 64, jnp.ones((32, 64))
    assert jnp.allclose(loaded(weights, x), program.jitted(weights, x))


def test_large_parameters_on_every_chip_are_told():
    mesh = AbstractMesh((1, 4, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def parameter(size: int, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return nnx.Param(jax.ShapeDtypeStruct((size, 1024), jnp.float32, sharding=sharding))

    state = nnx.State(
        {"split": parameter(2048, "fsdp"), "whole": parameter(2048), "few": parameter(8)}
    )
    assert replicated(state, mesh) == ["whole [2048, 1024]"]
    alone = AbstractMesh((4, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    assert replicated(state, alone) == []
