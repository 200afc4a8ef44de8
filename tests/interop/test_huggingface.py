import json
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from quark_jax.encoders import load_encoder
from quark_jax.errors import UserError
from quark_jax.interop import fuse_weight_norm, read_state

STATE = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.array([1.5, -2.0], np.float16),
    "steps": np.array(7, np.int64),
}


def _save_torch(state, path, **kwargs):
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path, **kwargs)


def _assert_state(read, state=STATE):
    assert set(read) == set(state)
    for name, array in state.items():
        assert isinstance(read[name], np.ndarray)
        np.testing.assert_array_equal(np.asarray(read[name], array.dtype), array)


def test_safetensors(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    _assert_state(read_state(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_bin(tmp_path, zipped):
    _save_torch(STATE, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    _assert_state(read_state(tmp_path))


def test_bfloat16_in_either_format(tmp_path):
    array = np.array([1.0, -0.5, 3.140625], ml_dtypes.bfloat16)
    save_file({"w": array}, tmp_path / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    torch.save({"w": torch.tensor([1.0, -0.5, 3.140625]).bfloat16()}, other / "pytorch_model.bin")
    for folder in (tmp_path, other):
        weight = np.asarray(read_state(folder)["w"], np.float32)
        np.testing.assert_array_equal(weight, [1.0, -0.5, 3.140625])


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(tmp_path, suffix):
    save = save_file if suffix == "safetensors" else _save_torch
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = list(STATE)
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    save({names[0]: STATE[names[0]]}, tmp_path / files[0])
    save({name: STATE[name] for name in names[1:]}, tmp_path / files[1])
    index = {"weight_map": {names[0]: files[0], names[1]: files[1], names[2]: files[1]}}
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    _assert_state(read_state(tmp_path))
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=f"missing {files[1]}"):
        read_state(tmp_path)


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_code_is_not_executed(tmp_path):
    torch.save({"w": _Malicious(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        read_state(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(UserError, match=name):
        read_state(tmp_path)


def test_other_things_in_a_torch_file(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="dictionary of tensors"):
        read_state(tmp_path)


def test_missing_weights_and_configs(tmp_path):
    with pytest.raises(UserError, match=r"no model\.safetensors or pytorch_model\.bin"):
        read_state(tmp_path)
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        load_encoder(tmp_path)


def test_torch_is_named_where_it_is_missing(tmp_path, monkeypatch):
    _save_torch(STATE, tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[torch\]'"):
        read_state(tmp_path)


@pytest.mark.parametrize("dim", [0, 2])
@pytest.mark.parametrize("parametrized", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_fuses_weight_norm_of_either_style(dim, parametrized):
    make = torch.nn.utils
    make = make.parametrizations.weight_norm if parametrized else make.weight_norm
    torch.manual_seed(0)
    conv = make(torch.nn.Conv1d(4, 6, 5), dim=dim)
    with torch.no_grad():
        for name, parameter in conv.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter *= torch.rand(parameter.shape) + 0.5
    conv(torch.zeros(1, 4, 5))
    fused = fuse_weight_norm({name: t.numpy() for name, t in conv.state_dict().items()})
    assert set(fused) == {"weight", "bias"}
    np.testing.assert_allclose(fused["weight"], conv.weight.detach().numpy(), rtol=1e-6)


def test_half_of_a_pair_is_reported():
    with pytest.raises(UserError, match=r"conv\.weight_v"):
        fuse_weight_norm({"conv.weight_g": np.ones((1, 1, 3), np.float32)})
