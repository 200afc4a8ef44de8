"""Small checkpoints of every version, as users hold them, and models imported from them."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines import read_manifest, samples_manifest
from quark_jax.cli import main
from quark_jax.config import to_dict
from quark_jax.hcodec import HCodec, HCodecConfig
from quark_jax.interop.files import write_state
from quark_jax.interop.importing import read_codec_config
from quark_jax.interop.table import as_shapes

CHANNELS = 48  # of the features of every small checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A state dict, and files of it and of its configuration."""

    weights: Mapping[str, np.ndarray]
    state: Path
    config: Path


def _weights(recipe, config: HCodecConfig) -> dict[str, np.ndarray]:
    """Weights of the golden recipe for any configuration."""
    shapes = as_shapes(lambda rngs: HCodec(config, rngs=rngs))
    state = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), shapes).to_torch()
    manifest = {name: (list(a.shape), str(a.dtype)) for name, a in state.items()}
    return recipe.weights(manifest, seed=3)


@pytest.fixture(scope="session")
def published(golden) -> Callable[[str], Mapping]:
    """published(version): the small configuration of that version, in the published form."""
    names = {"1.5": "1.5_small", "2.0": "2.0_small", "2.0-6.25hz": "2.0_small_6.25hz"}

    def build(version: str) -> Mapping:
        if version in names:
            return copy.deepcopy(golden(names[version]).facts["config"])
        fields = build("1.5")
        del fields["adaptive_config"]
        fields["encoder_config"]["encoder"]["ratios"] = [8, 5, 4, 2]
        return fields

    return build


@pytest.fixture(scope="session")
def checkpoint(recipe, published, tmp_path_factory) -> Callable[[str], Checkpoint]:
    """checkpoint(version): a small one with weights of the golden recipe; "tiny" is our preset."""

    @cache
    def build(version: str) -> Checkpoint:
        folder = tmp_path_factory.mktemp(f"checkpoint_{version}")
        state, config = folder / "state.safetensors", folder / "config.json"
        tiny = version == "tiny"
        fields = to_dict(HCodecConfig.preset(version)) if tiny else published(version)
        config.write_text(json.dumps(fields))
        weights = _weights(recipe, read_codec_config(config))
        write_state(state, weights)
        return Checkpoint(weights, state, config)

    return build


@pytest.fixture(scope="session")
def speech_encoder(tmp_path_factory) -> Callable[..., Path]:
    """speech_encoder(version): folder of a random encoder with as many hidden states as the
    version needs; `channels` are of its hidden states."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    @cache
    def build(version: str, channels: int = CHANNELS) -> Path:
        folder = tmp_path_factory.mktemp(f"encoder_{version}")
        sizes = {
            "hidden_size": channels,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "conv_dim": (16,) * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        }
        torch.manual_seed(0)
        if version == "1.5":
            large = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
            config = transformers.Wav2Vec2Config(num_hidden_layers=17, **large, **sizes)
            model = transformers.Wav2Vec2Model(config)
        else:
            config = transformers.HubertConfig(num_hidden_layers=2, **sizes)
            model = transformers.HubertModel(config)
        model.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def imported(checkpoint, speech_encoder, tmp_path_factory) -> Callable[[str], Path]:
    """imported(version): the model folder that `quark import` makes of its small checkpoint."""

    @cache
    def build(version: str) -> Path:
        folder = tmp_path_factory.mktemp(f"imported_{version}") / "model"
        given = checkpoint(version)
        arguments = [given.state, folder, "--config", given.config]
        if version != "tiny":
            arguments += ["--features", speech_encoder(version)]
        assert main(["import", *map(str, arguments)]) == 0
        return folder

    return build


@pytest.fixture(scope="session")
def recording() -> Path:
    """A real recording: 2.2 s at 16 kHz."""
    return min(read_manifest(samples_manifest()), key=lambda entry: entry.seconds).path
