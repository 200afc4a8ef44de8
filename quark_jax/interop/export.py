"""`quark export`: a model folder for PyTorch and Hugging Face, or as programs in StableHLO."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any

import jax
import numpy as np
from etils import epath

from quark_jax.config import to_dict
from quark_jax.errors import UserError
from quark_jax.files import creating
from quark_jax.hcodec import Adversary, Codes, HCodec, HCodecConfig, Tokeniser
from quark_jax.interop.files import write_state
from quark_jax.interop.llama import llama_config, llama_table
from quark_jax.interop.lm import lm_table
from quark_jax.interop.table import to_torch
from quark_jax.pipeline import QuarkAudio

_PLATFORMS = ("cpu", "cuda", "tpu")


def export_weights(model: str | PathLike, folder: str | PathLike, suffix: str) -> None:
    """Write the model folder `model` to `folder` for PyTorch.

    The codec becomes codec.pt or codec.safetensors, as `suffix` says, with its configuration in
    codec.json: `torch_hcodec.HCodec` opens both. A language model becomes lm/, which
    `transformers.LlamaModel.from_pretrained` opens; what LLaMA has not (output heads, adapters,
    start and task vectors) is in lm/quark.safetensors, and its configuration in lm/quark.json.
    Discriminators, where the codec was trained against some, become adversary.pt or
    adversary.safetensors, with DAC's names, and adversary.json.

    Raises UserError where `model` is not whole or `folder` exists.
    """
    model = epath.Path(model)
    with creating(folder) as beside:
        quark = QuarkAudio.load(model) if (model / "lm").is_dir() else None
        tokeniser = quark.tokeniser if quark else Tokeniser.load(model / "codec")
        beside.mkdir(parents=True)
        write_state(beside / f"codec{suffix}", tokeniser.codec.to_torch())
        _write_config(beside, tokeniser.config)
        if (model / "codec" / "adversary.json").exists():
            adversary = Adversary.load(model / "codec")
            write_state(beside / f"adversary{suffix}", adversary.to_torch())
            _write_json(beside / "adversary.json", to_dict(adversary.config))
        if quark:
            _export_lm(quark, beside / "lm")


def _write_config(folder: epath.Path, config: HCodecConfig) -> None:
    _write_json(folder / "codec.json", to_dict(config.with_encoder(None)))


def _export_lm(quark: QuarkAudio, folder: epath.Path) -> None:
    lm = quark.lm
    folder.mkdir()
    llama = {"architectures": ["LlamaModel"], "model_type": "llama", "dtype": "float32"}
    _write_json(folder / "config.json", llama | llama_config(lm))
    write_state(folder / "model.safetensors", to_torch(lm, llama_table(lm)))
    rest = [entry for entry in lm_table(lm) if not entry.torch.startswith("model.")]
    write_state(folder / "quark.safetensors", to_torch(lm, rest))
    encoders = quark.conditioner.config
    encoders = replace(
        encoders,
        audio=replace(encoders.audio, folder=None),
        text=replace(encoders.text, folder=None),
    )
    ours = {"lm": to_dict(lm.config), "encoders": to_dict(encoders)}
    _write_json(folder / "quark.json", ours | {"seconds": quark.seconds, "tasks": quark.tasks})


def _write_json(path: epath.Path, fields: dict) -> None:
    path.write_text(json.dumps(fields, indent=1))


def export_stablehlo(
    model: str | PathLike, folder: str | PathLike, *, seconds: float = 5.0, batch: int = 1
) -> None:
    """Write the codec of the model folder `model` to `folder` as programs of `jax.export`.

    encode.stablehlo and decode.stablehlo take `batch` waves of `seconds`, filled up to whole codec
    frames, on a CPU, GPU or TPU, and need nothing but JAX. Their first argument is what
    weights.safetensors holds; README.txt names the others. Raises UserError where `model` is not
    whole, `folder` exists, or `seconds` or `batch` is not positive.
    """
    if not 0 < seconds < math.inf or batch < 1:
        raise UserError(f"{seconds} s in batches of {batch}: both must be positive numbers")
    with creating(folder) as beside:
        codec = Tokeniser.load(epath.Path(model) / "codec").codec
        leaves, tree = jax.tree_util.tree_flatten_with_path(codec)
        weights = {_name(path): np.asarray(leaf) for path, leaf in leaves}
        programs, shapes = _programs(codec.config, tree, weights, seconds, batch)
        beside.mkdir(parents=True)
        for name, program in programs.items():
            (beside / f"{name}.stablehlo").write_bytes(program.serialize())
        write_state(beside / "weights.safetensors", weights)
        _write_config(beside, codec.config)
        (beside / "README.txt").write_text(_readme(codec.config, shapes))


def _programs(
    config: HCodecConfig,
    tree: jax.tree_util.PyTreeDef,
    weights: dict[str, np.ndarray],
    seconds: float,
    batch: int,
) -> tuple[dict[str, jax.export.Exported], dict[str, jax.ShapeDtypeStruct]]:
    """encode and decode of the codec with the structure `tree`, and the shapes of what they take
    besides `weights`."""
    names = list(weights)

    def filled(weights: dict[str, jax.Array]) -> HCodec:
        return jax.tree.unflatten(tree, [weights[name] for name in names])

    def encode(weights: dict, wave: jax.Array, features: jax.Array) -> dict[str, jax.Array]:
        codes = filled(weights).encode(wave, features)
        streams = {"acoustic": codes.acoustic, "semantic": codes.semantic}
        return streams if codes.lengths is None else streams | {"lengths": codes.lengths}

    def decode(weights: dict, codes: dict[str, jax.Array]) -> jax.Array:
        return filled(weights).decode(Codes(**codes), frames)

    def export(function: Callable, *arguments: Any) -> jax.export.Exported:
        return jax.export.export(jax.jit(function), platforms=_PLATFORMS)(*arguments)

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *sizes), np.float32)

    frames = math.ceil(seconds * config.frame_rate)
    wave = shape(frames * config.hop)
    features = shape(config.semantic.channels, frames * config.feature_stride)
    codes = jax.eval_shape(encode, weights, wave, features)
    programs = {
        "encode": export(encode, weights, wave, features),
        "decode": export(decode, weights, codes),
    }
    shapes = {"wave": wave, "features": features}
    return programs, shapes | {f'codes["{name}"]': codes[name] for name in codes}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _readme(config: HCodecConfig, shapes: dict[str, jax.ShapeDtypeStruct]) -> str:
    text = _README.format(
        name=config.name,
        platforms=", ".join(_PLATFORMS),
        jax=jax.__version__,
        shapes="\n".join(f"{k:18} {v.dtype} {list(v.shape)}" for k, v in shapes.items()),
        rate=config.sample_rate,
    )
    if config.dynamic:
        text += (
            "\nA group is of as many frames as its length says; where that is 0 there is none.\n"
        )
    return text


_README = """\
H-Codec {name} as StableHLO for {platforms}, written by jax.export of JAX {jax}.

    import jax
    from safetensors.numpy import load_file

    weights = load_file("weights.safetensors")
    encode, decode = (
        jax.jit(jax.export.deserialize(open(name + ".stablehlo", "rb").read()).call)
        for name in ("encode", "decode")
    )
    codes = encode(weights, wave, features)
    wave = decode(weights, codes)

{shapes}

The wave is at {rate} Hz, zero-padded on its right. The features, [batch, channels, 50 Hz frames],
are those that codec.json describes.
"""
