"""Where parameters go, and what is refused before it goes wrong."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from quark_jax.errors import UserError
from quark_jax.hcodec import HCodec, HCodecConfig
from quark_jax.hcodec.config import SpectralConfig
from quark_jax.lm import LanguageModel, LMConfig
from quark_jax.nn.layers import DepthwiseConv
from quark_jax.training import sharding
from quark_jax.training.metrics import read_metrics
from quark_jax.training.sharding import (
    AXES,
    RULES,
    MeshConfig,
    make_mesh,
    place_batch,
    shardings,
)

CODECS = ("tiny", "1.0", "1.5", "2.0")
LMS = ("tiny", "small", "base", "large")


def abstract_mesh(**sizes: int) -> AbstractMesh:
    """A mesh of devices that need not be there."""
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def codec(name: str) -> HCodec:
    """The published widths, with fewer of what is repeated."""
    config = HCodecConfig.preset(name)
    config = replace(config, decoder=replace(config.decoder, blocks=2))
    if isinstance(config.encoder, SpectralConfig):
        config = replace(config, encoder=replace(config.encoder, blocks=2))
    if config.dynamic:
        dynamic = replace(config.dynamic, aggregator_layers=2, bottleneck_layers=2)
        config = replace(config, dynamic=dynamic)
    return nnx.eval_shape(lambda: HCodec(config, rngs=nnx.Rngs(0)))


def language_model(name: str, **changes) -> LanguageModel:
    config = LMConfig.preset(name, text_channels=64, **changes)
    return nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))


def parameter(*shape: int, axes: tuple[str | None, ...] | None) -> nnx.State:
    metadata = {} if axes is None else {"axes": axes}
    return nnx.State({"kernel": nnx.Param(jnp.zeros(shape), **metadata)})


def specs(state: nnx.State, mesh: AbstractMesh, **options) -> dict[str, PartitionSpec]:
    placed = nnx.to_flat_state(shardings(state, mesh, **options))
    return {".".join(map(str, path)): variable.get_value().spec for path, variable in placed}


@pytest.mark.parametrize(
    "model",
    [
        *(pytest.param(lambda name=name: codec(name), id=f"codec {name}") for name in CODECS),
        *(pytest.param(lambda name=name: language_model(name), id=f"lm {name}") for name in LMS),
        pytest.param(lambda: language_model("small", scan=True), id="lm scanned"),
    ],
)
def test_every_kernel_has_named_axes_that_divide(model):
    model = model()
    depthwise = {  # a few taps a channel: not worth splitting
        id(module.kernel)
        for _, module in nnx.iter_modules(model)
        if isinstance(module, DepthwiseConv)
    }
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param) and id(variable) not in depthwise:
            axes, shape = variable.get_metadata().get("axes"), variable.get_value().shape
            if len(shape) > 1 and path[-1] not in ("scale", "bias"):
                assert axes is not None and len(axes) == len(shape), path
    split = specs(nnx.state(model), abstract_mesh(data=2, fsdp=2, tensor=2))
    largest = max(nnx.to_flat_state(nnx.state(model)), key=lambda item: item[1].get_value().size)
    assert {"fsdp", "tensor"} & set(split[".".join(map(str, largest[0]))])


def test_rules_make_the_layout_of_parameters_and_of_their_moments():
    state = parameter(8, 6, axes=("embed", "mlp")) | nnx.State(
        {
            "bias": nnx.Param(jnp.zeros(6)),
            "codes": nnx.Param(jnp.zeros((3, 4)), axes=(None, "vocab")),
        }
    )
    mesh = abstract_mesh(fsdp=4, tensor=2)
    wanted = {
        "kernel": PartitionSpec("fsdp", "tensor"),
        "bias": PartitionSpec(),
        "codes": PartitionSpec(None, "tensor"),
    }
    assert specs(state, mesh) == wanted
    moments = jax.eval_shape(optax.adam(1e-3).init, state)[0]
    assert specs(moments.mu, mesh) == specs(moments.nu, mesh) == wanted
    assert specs(state, mesh, rules=RULES | {"embed": None})["kernel"] == PartitionSpec(
        None, "tensor"
    )


@pytest.mark.parametrize(
    ("shape", "axes", "rules", "message"),
    [
        ((8, 6), ("embed", "colour"), {}, r"kernel.*no rule for axis 'colour'"),
        (
            (7, 6),
            ("embed", "mlp"),
            {},
            r"kernel.*axis 'embed' of 7 does not divide over 4 .*'fsdp'",
        ),
        ((8, 6, 2), ("embed", "mlp"), {}, r"kernel.*2 axis names for shape \(8, 6, 2\)"),
        ((8, 6), ("mlp", "heads"), {}, r"kernel.*two of its axes .* on one mesh axis"),
        ((8, 6), ("embed", "mlp"), {"mlp": "rows"}, r"rule 'mlp': unknown mesh axis 'rows'"),
        (
            (3, 8, 6),
            (None, "channels_in", "channels_out"),
            {"channels_out": "tensor"},
            r"kernel.*split on both sides, its gradients would be wrong",
        ),
    ],
)
def test_layouts_that_cannot_be_are_refused(shape, axes, rules, message):
    with pytest.raises(UserError, match=message):
        shardings(parameter(*shape, axes=axes), abstract_mesh(fsdp=4, tensor=2), RULES | rules)


def test_the_first_problems_are_told_at_once_and_the_others_counted():
    names = ["first", "fourth", "second", "sixth", "third"]
    state = nnx.State({n: nnx.Param(jnp.zeros((7, 6)), axes=("embed", "mlp")) for n in names})
    with pytest.raises(UserError) as refusal:
        shardings(state, abstract_mesh(fsdp=4, tensor=2))
    told = str(refusal.value)
    assert all(name in told for name in names[:3]) and "2 more like these" in told
    assert not any(name in told for name in names[3:])


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(data=2),
        MeshConfig(fsdp=2),
        MeshConfig(data=1, tensor=3),
        MeshConfig(data=-1, fsdp=-1),
        MeshConfig(data=0),
        MeshConfig(data=-1, fsdp=0),
        MeshConfig(data=-2, fsdp=-2),
    ],
)
def test_meshes_of_other_device_counts_are_refused(config):
    with pytest.raises(UserError, match=f"does not fit {jax.device_count()} devices"):
        make_mesh(config)


def test_the_free_axis_takes_what_is_left():
    assert dict(make_mesh(MeshConfig()).shape) == {
        "data": jax.device_count(),
        "fsdp": 1,
        "tensor": 1,
        "sequence": 1,
    }


def test_batches_that_do_not_divide_are_refused(monkeypatch):
    monkeypatch.setattr(sharding, "batch_part", lambda mesh: (0, 1))  # there is one device
    with pytest.raises(UserError, match="batch of 6: does not divide over 8 devices"):
        place_batch({"wave": np.zeros((6, 10))}, abstract_mesh(data=2, fsdp=4, tensor=3))


def test_batches_are_placed_whole():
    batch = {"wave": np.arange(12.0).reshape(4, 3), "frames": np.arange(4)}
    placed = place_batch(batch, make_mesh(MeshConfig()))
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


@pytest.mark.slow
def test_batches_over_all_devices_teach_the_same(trainers, plan, small_run, tmp_path):
    """The language model; `test_resume` has the codec of the demo, and meshes that split
    parameters too."""
    trainers.run([plan("lm", tmp_path, run={"steps": 3})], devices=8)
    one, other = (
        [row for row in read_metrics(folder) if row["step"] in (1, 2, 3) and "loss" in row]
        for folder in (small_run / "lm", tmp_path)
    )
    for name, tolerance in {"loss": 1e-4, "gradient_norm": 1e-3}.items():
        wanted = [row[name] for row in one]
        assert [row[name] for row in other] == pytest.approx(wanted, rel=tolerance)
