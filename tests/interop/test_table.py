"""Tables of weights: layouts are exact inverses, and a model is filled wholly or not at all."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from quark_jax import interop
from quark_jax.errors import UserError
from quark_jax.interop import Entry, load_torch, to_torch
from quark_jax.nn import DepthwiseConv, conv, linear

SHAPES = {  # of PyTorch, and ours
    "SAME": ((3, 4), (3, 4)),
    "FLAG": ((), ()),
    "LINEAR": ((3, 4), (4, 3)),
    "CONV": ((3, 4, 5), (5, 4, 3)),
    "CONV_TRANSPOSED": ((3, 4, 5), (5, 3, 4)),
    "POINTWISE": ((3, 4, 1), (4, 3)),
    "DEPTHWISE": ((3, 1, 5), (5, 3)),
    "CHANNELS": ((3, 1, 1), (3,)),
    "QUERY": ((1, 3, 1), (3,)),
    "LEADING": ((1, 3, 4), (3, 4)),
}


@pytest.mark.parametrize(("name", "shapes"), SHAPES.items())
def test_layouts_are_exact_inverses(name, shapes):
    kind, (theirs, ours) = getattr(interop, name), shapes
    array = np.arange(np.prod(theirs)).reshape(theirs).astype(kind.dtype)
    there = kind.to_ours(array)
    assert there.shape == ours
    np.testing.assert_array_equal(kind.to_torch(there), array)
    assert kind.to_torch(there).shape == theirs


class Model(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([conv(4, 6, 3, padding=1, rngs=rngs) for _ in range(2)])
        self.wide = DepthwiseConv(6, 5, rngs=rngs)
        self.out = linear(6, 2, axes=("embed", "mlp"), rngs=rngs)
        self.stacked = nnx.Variable(jnp.zeros((2, 3)))


TABLE = [
    *(
        Entry(f"{i}.{theirs}", f"convs.{i}.{ours}", kind)
        for i in range(2)
        for theirs, ours, kind in (
            ("weight", "kernel", interop.CONV),
            ("bias", "bias", interop.SAME),
        )
    ),
    Entry("dw.weight", "wide.kernel", interop.DEPTHWISE),
    Entry("dw.bias", "wide.bias"),
    Entry("out.weight", "out.kernel", interop.LINEAR),
    Entry("out.bias", "out.bias"),
    Entry("row.0", "stacked", interop.LEADING, 0),
    Entry("row.1", "stacked", interop.LEADING, 1),
]


def state():
    torch.manual_seed(0)
    modules = torch.nn.ModuleDict(
        {
            "0": torch.nn.Conv1d(4, 6, 3, padding=1),
            "1": torch.nn.Conv1d(4, 6, 3, padding=1),
            "dw": torch.nn.Conv1d(6, 6, 5, padding=2, groups=6),
            "out": torch.nn.Linear(6, 2),
        }
    )
    rows = {"row.0": torch.ones(1, 3), "row.1": torch.full((1, 3), 2.0)}
    return modules, {k: v.numpy() for k, v in (modules.state_dict() | rows).items()}


def test_a_filled_model_computes_what_pytorchs_does_and_gives_its_weights_back():
    (modules, weights), model = state(), nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    load_torch(model, TABLE, weights)
    x = np.random.default_rng(0).standard_normal((2, 9, 4)).astype(np.float32)
    y = model.out(model.wide(model.convs[0](jnp.asarray(x))))
    with torch.no_grad():
        expected = modules["dw"](modules["0"](torch.from_numpy(x).transpose(1, 2)))
        expected = modules["out"](expected.transpose(1, 2)).numpy()
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_array_equal(model.stacked[...], [[1, 1, 1], [2, 2, 2]])
    back = to_torch(model, TABLE)
    assert list(back) == [entry.torch for entry in TABLE]
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name])
        assert array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable


def test_all_misfits_are_reported_and_the_model_is_untouched():
    (_, weights), model = state(), Model(nnx.Rngs(0))
    before = to_torch(model, TABLE)
    del weights["0.weight"], weights["row.1"]
    weights["1.weight"] = weights["1.weight"][..., :2]
    weights["dw.weight"] = weights["dw.weight"][:, 0]  # an axis of one less
    weights |= {"ema.decay": np.zeros(1), "steps": np.zeros(1)}
    with pytest.raises(UserError) as error:
        load_torch(model, TABLE, weights, source="a.pt", ignore=lambda name: name == "steps")
    assert str(error.value) == (
        "a.pt: does not fit the configuration, use the one it was trained with: "
        "missing 0.weight; missing row.1; unexpected ema.decay; "
        "1.weight has shape [6, 4, 2], not [6, 4, 3]; dw.weight has shape [6, 5], not [6, 1, 5]"
    )
    for name, array in to_torch(model, TABLE).items():
        np.testing.assert_array_equal(array, before[name])


def test_of_many_misfits_the_first_are_named_and_the_others_counted():
    (_, weights), model = state(), nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    others = {f"other.{name}": array for name, array in weights.items()}
    with pytest.raises(UserError) as error:
        load_torch(model, TABLE, others)
    assert str(error.value).endswith(
        "with: missing 0.weight; missing 0.bias; missing 1.weight; 7 more missing; unexpected "
        "other.0.weight; unexpected other.0.bias; unexpected other.1.weight; 7 more unexpected"
    )
