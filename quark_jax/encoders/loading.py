"""Frozen encoders from Hugging Face folders, or from a configuration and a state dict."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from flax import nnx

from quark_jax.encoders.text import (
    BertConfig,
    BertEncoder,
    T5Config,
    T5Encoder,
    bert_table,
    t5_table,
)
from quark_jax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config, wav2vec2_table
from quark_jax.encoders.whisper import WhisperConfig, WhisperEncoder, whisper_table
from quark_jax.errors import UserError
from quark_jax.files import read_json, replacing
from quark_jax.interop import fuse_weight_norm, read_state, write_state
from quark_jax.interop.table import Entry, as_shapes, load_torch


@dataclass(frozen=True)
class _Family:
    """What one `model_type` is here.

    Checkpoints of a task model hold the encoder under one of `prefixes`; the rest of them (heads,
    decoders) is left out. `ignored` are the beginnings of other names that no encoder needs.
    """

    config: type[Any]
    model: type[nnx.Module]
    table: Callable[[Any], list[Entry]]
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]
    rename: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = dict


def _wav2vec2(prefix: str) -> _Family:
    return _Family(
        config=Wav2Vec2Config,
        model=Wav2Vec2,
        table=wav2vec2_table,
        prefixes=(prefix,),
        ignored=("masked_spec_embed", "adapter."),  # for masked training; after the last layer
        rename=fuse_weight_norm,
    )


def _rename_t5(state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The one embedding table has either of two names, or both."""
    own = "encoder.embed_tokens.weight"
    shared = {} if "shared.weight" in state or own not in state else {"shared.weight": state[own]}
    return {name: value for name, value in state.items() if name != own} | shared


def _rename_bert(state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Norms in the oldest checkpoints are called as TensorFlow called them."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

    def name(theirs: str) -> str:
        return next(
            (theirs.removesuffix(o) + n for o, n in old.items() if theirs.endswith(o)), theirs
        )

    return {name(theirs): value for theirs, value in state.items()}


_FAMILIES = {
    "hubert": _wav2vec2("hubert."),
    "wav2vec2": _wav2vec2("wav2vec2."),
    "wavlm": _wav2vec2("wavlm."),
    "whisper": _Family(
        config=WhisperConfig,
        model=WhisperEncoder,
        table=whisper_table,
        prefixes=("model.encoder.", "encoder."),
        ignored=(),
    ),
    "t5": _Family(
        config=T5Config,
        model=T5Encoder,
        table=t5_table,
        prefixes=(),
        ignored=("decoder.", "lm_head."),
        rename=_rename_t5,
    ),
    "bert": _Family(
        config=BertConfig,
        model=BertEncoder,
        table=bert_table,
        prefixes=("bert.",),
        ignored=("pooler.", "cls.", "embeddings.position_ids"),
        rename=_rename_bert,
    ),
}


def build_encoder(
    config: Mapping, state: Mapping[str, np.ndarray], *, dtype=None, source: str = "state"
) -> nnx.Module:
    """The encoder that `config` (a config.json) describes, with the weights of `state`.

    Args:
      config: its `model_type` is one of hubert, wav2vec2, wavlm, whisper, t5, bert.
      state: {tensor name: array} with transformers' names, of the bare encoder or of a model that
        contains it.
      dtype: of the computation; None is float32.
      source: what error messages call the origin of `state`.

    Raises:
      UserError: unknown model type or variant; or tensors that are missing, unexpected or
        misshapen, all of them at once.
    """
    family, ours = _described(config, source)
    model = as_shapes(lambda rngs: family.model(ours, dtype=dtype, rngs=rngs))
    load_torch(
        model,
        family.table(ours),
        family.rename(_strip_prefix(state, family.prefixes)),
        source=source,
        ignore=lambda name: name.startswith(family.ignored),
    )
    return model


def _described(config: Mapping, source: str) -> tuple[_Family, Any]:
    family = _FAMILIES.get(config.get("model_type"))
    if family is None:
        raise UserError(
            f"{source}: model_type {config.get('model_type')!r} in config.json is not supported; "
            f"use one of {', '.join(_FAMILIES)}"
        )
    return family, family.config.from_hugging_face(config)


def encoder_shapes(folder: str | Path, *, dtype=None) -> nnx.Module:
    """The encoder in a Hugging Face `folder` with shapes in the place of its weights, which need
    not be there: config.json is enough. Raises UserError as `load_encoder` does."""
    family, ours = _described(_read_config(folder), str(folder))
    return as_shapes(lambda rngs: family.model(ours, dtype=dtype, rngs=rngs))


def load_encoder(folder: str | Path, *, dtype=None) -> nnx.Module:
    """The encoder in a Hugging Face `folder` (config.json and safetensors or pytorch_model.bin).

    Raises UserError as `build_encoder` does, and where files are missing or unreadable.
    """
    return build_encoder(_read_config(folder), read_state(folder), dtype=dtype, source=str(folder))


def _read_config(folder: str | Path) -> Mapping:
    return read_json(
        epath.Path(folder) / "config.json", "give a folder saved by transformers' save_pretrained"
    )


def copy_encoder(source: str | PathLike, target: str | PathLike) -> None:
    """Copy the encoder in the Hugging Face folder `source` to the folder `target`, its weights as
    one safetensors file. Raises UserError where files are missing or unreadable."""
    source, target = epath.Path(source), epath.Path(target)
    if target.resolve() == source.resolve():
        return
    target.mkdir(parents=True, exist_ok=True)
    write_state(target / "model.safetensors", read_state(source))
    with replacing(target / "config.json") as beside:
        beside.write_text((source / "config.json").read_text())


def encoder_hash(folder: str | PathLike) -> str:
    """Sixteen hexadecimal digits that tell apart encoders of other weights or configurations,
    wherever the Hugging Face folder lies and in whichever files its weights are."""
    folder = epath.Path(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for name, array in sorted(read_state(folder).items()):
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _strip_prefix(
    state: Mapping[str, np.ndarray], prefixes: tuple[str, ...]
) -> Mapping[str, np.ndarray]:
    for prefix in prefixes:
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if inside:
            return inside
    return state
