"""The programs that chips run, with shapes in the place of all arrays: nothing is allocated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from quark_jax.aot.networks import abstract_conditioner, abstract_features
from quark_jax.errors import UserError
from quark_jax.hcodec import HCodec
from quark_jax.hcodec.tokeniser import encode_window
from quark_jax.interop import as_shapes
from quark_jax.lm import TASK_IDS, Conditions, LanguageModel, Section, feature_length, task
from quark_jax.lm.attention import splash_flops, takes_splash
from quark_jax.lm.sampling import generate_loop
from quark_jax.pipeline import SAMPLING
from quark_jax.training import codec_step, lm_step
from quark_jax.training.checkpoint import abstract
from quark_jax.training.codec import CodecTraining, whole_frames
from quark_jax.training.flops import lm_flops, traced_flops
from quark_jax.training.lm import LMTraining
from quark_jax.training.lm_data import read_targets
from quark_jax.training.loop import Run, compile_step
from quark_jax.training.sharding import batch_sharding, shardings

_CODEC_RATE = 25.0  # frames a second of the published codec that language models are trained on
_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Program:
    """One program, ready to be lowered.

    Attributes:
      name: what it does, in a line.
      jitted: the function, as `jax.jit` gives it, with its layout.
      arguments: what it takes, `jax.ShapeDtypeStruct` with shardings for arrays.
      parameters: those of `arguments` that should be split over the devices, where the mesh splits.
      model_flops: operations that the model needs for this batch, on all chips together; what is
        computed a second time does not count.
      kernel_flops: operations in kernels (Pallas), on all chips together.
      trips: how often a loop runs whose length is not known beforehand.
      remat: what is computed a second time, by the config, in words.
    """

    name: str
    jitted: Any
    arguments: tuple
    parameters: Any
    model_flops: float
    kernel_flops: float = 0.0
    trips: int = 1
    remat: str = "nothing, by the config"


def lm_training(config: LMTraining, mesh: Mesh, *, seconds: float) -> Program:
    """The step of `training.lm.train` on sequences of `seconds`.

    Audio comes as features where the encoder is a network, as `launch/tokenise.py --features`
    stores them, else as waves; there are references where a task of `data.weights` has them, and
    captions where the model takes some.
    """
    lm, rules = config.lm, config.run.mesh.rules
    dtype = _DTYPES[lm.dtype]
    conditioner = abstract_conditioner(
        config.conditioner, lm.audio_channels, lm.text_channels, dtype=dtype
    )
    weights = config.data.weights or {"sr": 1.0}
    tasks = sorted((name for name, weight in weights.items() if weight), key=TASK_IDS.get)
    learning = lm_step.LMLearning(
        lm, config, tasks=tasks, packing=config.data.packing, seed=config.run.seed
    )
    base = None
    if config.lora.rank:
        base = nnx.state(as_shapes(lambda rngs: LanguageModel(lm, rngs=rngs)))
    start = () if base is None else (base,)
    state = _abstract_run(learning.init, start, mesh, rules)
    frozen = _placed(lm_step.Frozen(conditioner, base), mesh, rules)
    batch = _lm_batch(config, tasks, seconds, mesh)
    jitted = compile_step(learning.step, jax.tree.map(lambda a: a.sharding, state))

    return Program(
        name=f"language model, training step, {_rows(config)} sequences of {seconds:g} s",
        jitted=jitted,
        arguments=(state, batch, frozen, ()),
        parameters=state.state.params,
        model_flops=lm_flops(
            lm,
            jax.eval_shape(lambda f, b: f.conditioner(b), frozen, batch),
            jax.eval_shape(lambda b: read_targets(b, lm), batch),
            config.data.packing,
        ),
        kernel_flops=_attention_flops(config, mesh),
        remat=_REMAT[lm.remat],
    )


def _attention_flops(config: LMTraining, mesh: Mesh) -> float:
    """Of the kernel that attends, where it does: in all layers."""
    lm, packing = config.lm, config.data.packing
    if packing is None:  # rows of any length: XLA attends
        return 0.0
    rows = config.data.batch_size // config.accumulate
    query, key = (
        (rows, heads, packing.positions, lm.head_dim) for heads in (lm.heads, lm.kv_heads)
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        if not takes_splash(query, key, lm.attention):
            return 0.0
    forward = 2 if lm.remat == "full" else 1
    return lm.layers * config.accumulate * splash_flops(*query, forward=forward)


_REMAT = {
    None: "nothing, by the config (lm.remat)",
    "full": "each layer, from its input (lm.remat full)",
    "dots": "of each layer all but its projections and the attention kernel (lm.remat dots)",
}


def codec_training(config: CodecTraining, mesh: Mesh) -> Program:
    """The step of `training.codec.train` with all of its losses."""
    codec, rules = config.codec, config.run.mesh.rules
    channels = codec.semantic.channels
    features = abstract_features(codec.features, channels)
    frozen = codec_step.Frozen(features)
    if config.perceptual and config.perceptual.features.folder != codec.features.folder:
        frozen = codec_step.Frozen(
            features, abstract_features(config.perceptual.features, channels)
        )
    learning = codec_step.CodecLearning(codec, config, config.run.seed)
    state = _abstract_run(learning.init, (), mesh, rules)
    samples = whole_frames(config.data.seconds, codec)
    size = config.data.batch_size
    arguments = (
        state,
        _array((size, samples), jnp.float32, mesh),
        _placed(frozen, mesh, rules),
        (learning.begun(config.run.steps),),
    )
    jitted = compile_step(learning.step, jax.tree.map(lambda a: a.sharding, state))
    owned = [state.state.codec.params]
    if state.state.adversary is not None:
        owned.append(state.state.adversary.params)
    return Program(
        name=f"codec {codec.name}, training step, {size} cuts of {config.data.seconds:g} s",
        jitted=jitted,
        arguments=arguments,
        parameters=owned,
        model_flops=traced_flops(jitted.trace(*arguments).jaxpr),
    )


def tokenising(config: CodecTraining, mesh: Mesh, *, batch: int, seconds: float) -> Program:
    """What `launch/tokenise.py` runs: `batch` recordings of `seconds` to codes."""
    codec, rules = config.codec, config.run.mesh.rules
    model = as_shapes(lambda rngs: HCodec(codec, rngs=rngs))
    arguments = (
        _placed(model, mesh, rules),
        _placed(abstract_features(codec.features, codec.semantic.channels), mesh, rules),
        _array((batch, whole_frames(seconds, codec)), jnp.float32, mesh),
        _array((batch,), jnp.int32, mesh),
        None,
    )

    encode = _jitted_for(mesh, encode_window)
    return Program(
        name=f"codec {codec.name}, tokenising, {batch} recordings of {seconds:g} s",
        jitted=encode,
        arguments=arguments,
        parameters=nnx.state(arguments[0], nnx.Param),
        model_flops=traced_flops(encode.trace(*arguments).jaxpr),
    )


def sampling(config: LMTraining, mesh: Mesh, *, batch: int, seconds: float) -> Program:
    """Speech restoration of `batch` recordings of `seconds`: the prefix, then a loop of steps."""
    lm, rules = config.lm, config.run.mesh.rules
    model = as_shapes(lambda rngs: LanguageModel(lm, rngs=rngs))
    frames = round(seconds * _CODEC_RATE)
    length = feature_length(round(seconds * 16000))
    given = Section(
        _array((batch, length, lm.audio_channels), jnp.float32, mesh),
        _array((batch,), jnp.int32, mesh),
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    arguments = (
        _placed(model, mesh, rules),
        Conditions(_array((batch,), jnp.int32, mesh), input=given),
        _array((batch,), jnp.int32, mesh),
        _array(keys.shape, keys.dtype, mesh),
    )

    def generate(*arguments):
        return generate_loop(*arguments, SAMPLING, frames)

    steps = int(model.pattern.steps(frames))
    return Program(
        name=f"language model, sampling, {batch} recordings of {seconds:g} s, prefix and {steps} "
        "steps",
        jitted=_jitted_for(mesh, generate),
        arguments=arguments,
        parameters=nnx.state(arguments[0], nnx.Param),
        # As the CPU of this machine has it: chips multiply by the zeros of other heads too.
        model_flops=traced_flops(jax.jit(generate).trace(*arguments).jaxpr, trips=steps),
        trips=steps,
    )


def _jitted_for(mesh: Mesh, function: Callable) -> Any:
    """`function` jitted, its networks written as suits the chips of `mesh`, not this machine."""

    @jax.jit
    def jitted(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return jitted


def _abstract_run(init: Callable, start: tuple, mesh: Mesh, rules: Any) -> Run:
    """The state that `training.loop.fit` begins with, laid out as it lays it out."""

    def begin(*start: Any) -> Run:
        return Run(init(*start), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    return _placed(jax.eval_shape(begin, *start), mesh, rules)


def _placed(shapes: Any, mesh: Mesh, rules: Any) -> Any:
    return abstract(shapes, shardings(shapes, mesh, rules))


def _array(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Part of a batch."""
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    if shape[0] % split:
        raise UserError(
            f"batch of {shape[0]}: does not divide over {split} devices; change data.batch_size, "
            "--batch or the mesh"
        )
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))


def _rows(config: LMTraining) -> int:
    packing = config.data.packing
    return config.data.batch_size * (packing.sequences if packing else 1)


def _lm_batch(
    config: LMTraining, tasks: list[str], seconds: float, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the loader (`data_pipelines.sequences`)."""
    lm, items = config.lm, _rows(config)
    frames, samples = round(seconds * _CODEC_RATE), round(seconds * 16000)
    shapes = {"task": ((), jnp.int32), "frames": ((), jnp.int32)}
    for stream in ("acoustic", "semantic"):
        shapes[stream] = (lm.codebooks, frames), jnp.int32
    if lm.max_segment > 1:
        shapes["segments"] = (frames,), jnp.int32
    stored = config.conditioner.audio.kind == "hugging_face"
    for part in ("input", "reference"):
        if not any(getattr(task(name), part) for name in tasks):
            continue
        if stored:
            length = feature_length(samples)
            shapes[f"{part}_features"] = (length, lm.audio_channels), jnp.bfloat16
            shapes[f"{part}_frames"] = (), jnp.int32
        else:
            shapes[part] = (samples,), jnp.float32
            shapes[f"{part}_samples"] = (), jnp.int32
    if lm.text_channels and any(task(name).caption for name in tasks):
        shapes["caption"] = (config.conditioner.text.max_tokens,), jnp.int32
        shapes["caption_tokens"] = (), jnp.int32
    return {name: _array((items, *shape), dtype, mesh) for name, (shape, dtype) in shapes.items()}
