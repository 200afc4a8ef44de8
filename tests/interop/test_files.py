"""State dicts in files, either format, and what is no state dict."""

import pickle

import numpy as np
import pytest
import torch

from quark_jax.errors import UserError
from quark_jax.interop.files import read_state, write_state

FORMATS = [".safetensors", ".pt", ".pth"]


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 4, 5)).astype(np.float32)
    return {
        "weight": weight,
        "transposed": weight.T,  # not contiguous
        "strided": weight[:, ::2],
        "flag": np.array(True),
        "count": np.array(7, np.int64),
        "half": np.array([1.5, np.nan, -0.0], np.float16),
        "empty": np.zeros((0, 2), np.float32),
    }


@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip(suffix, state, tmp_path):
    path = tmp_path / f"state{suffix}"
    write_state(path, state)
    back = read_state(str(path))
    assert set(back) == set(state)
    for name, array in state.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
    assert list(tmp_path.iterdir()) == [path]


def test_pytorch_loads_what_is_written(state, tmp_path):
    write_state(tmp_path / "state.pt", state)
    back = torch.load(tmp_path / "state.pt", weights_only=True)
    np.testing.assert_array_equal(back["transposed"].numpy(), state["transposed"])


def test_the_state_dict_of_a_lightning_checkpoint_is_found(tmp_path):
    weight = torch.arange(3.0)
    torch.save({"epoch": 3, "state_dict": {"weight": weight}}, tmp_path / "last.pt")
    assert list(read_state(tmp_path / "last.pt")) == ["weight"]


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(zipped, tmp_path):
    path, trace = tmp_path / "state.pt", tmp_path / "trace"
    content = {"weight": torch.ones(2), "more": Harmful(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=f"^{path}: not a PyTorch checkpoint") as error:
        read_state(path)
    assert not trace.exists() and "\n" not in str(error.value)
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=f"^{path}: not a PyTorch checkpoint"):
        read_state(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_damage_is_refused(suffix, state, tmp_path):
    path = tmp_path / f"state{suffix}"
    write_state(path, state)
    data = path.read_bytes()
    for content in (b"", b"hello", data[:7], data[:20], data[: len(data) // 2], data[:-1]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{path}: ") as error:
            read_state(path)
        assert "\n" not in str(error.value)
        assert suffix == ".safetensors" or "not a PyTorch checkpoint" in str(error.value)


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], {"weight": 3}, torch.ones(2), {"a": {"b": 1}}]
)
def test_other_things_in_a_file_of_pytorch_are_refused(content, tmp_path):
    path = tmp_path / "state.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=f"^{path}: not a"):
        read_state(path)


def test_names_that_are_no_checkpoint_are_refused(state, tmp_path):
    path = tmp_path / "state.npz"
    with pytest.raises(UserError, match=f"^{path}: no such file"):
        read_state(path)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=f"^{path}: not a checkpoint"):
        read_state(path)
    with pytest.raises(UserError, match=f"^{path}: not a checkpoint name"):
        write_state(path, state)
    assert path.read_bytes() == b"x"
    with pytest.raises(UserError, match=f"^{tmp_path}: holds no model.safetensors"):
        read_state(tmp_path)
    with pytest.raises(UserError, match="does not exist; create it first"):
        write_state(tmp_path / "no" / "state.pt", state)
