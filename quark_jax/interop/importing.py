"""`quark import`: a checkpoint with PyTorch names becomes a model folder."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import yaml
from etils import epath

from quark_jax.config import from_dict
from quark_jax.errors import UserError
from quark_jax.files import creating, read_json
from quark_jax.hcodec import HCodec, HCodecConfig, Tokeniser
from quark_jax.interop.published import config_from_published, published_version


def read_codec_config(path: str | PathLike) -> HCodecConfig:
    """The configuration in a YAML or JSON file, of the published form or of ours (the codec.json
    that `quark export` writes). Raises UserError where it cannot be used."""
    path = epath.Path(path)
    fields = _fields(path)
    if "encoder_config" not in fields:
        return from_dict(HCodecConfig, fields, str(path))
    try:
        return config_from_published(published_version(fields), fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _fields(path: epath.Path) -> Mapping[str, Any]:
    remedy = "give the configuration that came with the checkpoint, or a --preset"
    if path.suffix not in (".yaml", ".yml"):
        return read_json(path, remedy)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    try:
        fields = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}); {remedy}") from error
    if not isinstance(fields, Mapping):
        raise UserError(f"{path}: holds no table of fields; {remedy}")
    return fields


def import_codec(
    state: str | PathLike,
    folder: str | PathLike,
    config: HCodecConfig,
    features: str | PathLike | None = None,
) -> Tokeniser:
    """Make the model folder `folder`, with the codec of `config` in `folder`/codec.

    Args:
      state: its weights, a .safetensors or .pt file or a Hugging Face folder.
      features: Hugging Face folder of the encoder of its features, which is copied inside the
        codec's folder. None leaves it out: such a codec decodes, and encodes from features that are
        given.

    Raises UserError, and leaves nothing behind, where a tensor is missing, unexpected or
    misshapen, the encoder does not fit the codec, or there is a codec in `folder` already.
    """
    config = config.with_encoder(None if features is None else str(features))
    with creating(epath.Path(folder) / "codec") as beside:
        tokeniser = Tokeniser(HCodec.from_torch(state, config))
        if features is not None:
            _ = tokeniser.features  # raises where the encoder does not fit
        tokeniser.save(beside)
    return tokeniser
