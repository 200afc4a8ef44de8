"""Frozen networks whose weights are split over the devices, compiled for TPUs."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from quark_jax.aot import Hlo, topology_devices
from quark_jax.encoders import BertConfig, BertEncoder, T5Config, T5Encoder
from quark_jax.interop import as_shapes
from quark_jax.training.checkpoint import abstract
from quark_jax.training.sharding import MeshConfig, batch_sharding, make_mesh, shardings

BATCH, TOKENS, WIDTH = 64, 16, 128
T5 = T5Config(vocabulary=128, width=WIDTH, heads=2, inner=256, layers=2)
BERT = BertConfig(vocabulary=128, width=WIDTH, heads=2, inner=256, layers=2)


@pytest.mark.parametrize("encoder", [partial(T5Encoder, T5), partial(BertEncoder, BERT)])
def test_weights_are_sent_and_activations_are_not(encoder):
    """Each chip has its own part of the batch, and fetches the weights of a layer: left to itself,
    XLA adds up activations of the whole batch over all chips."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), topology_devices("v5e:2x2"))
    network = as_shapes(lambda rngs: encoder(rngs=rngs))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(network))
    network = abstract(network, shardings(network, mesh))
    ids = jax.ShapeDtypeStruct((BATCH, TOKENS), jnp.int32, sharding=batch_sharding(mesh))

    def run(network, ids):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # as a step is traced
            return network(ids)

    found = Hlo(jax.jit(run).lower(network, ids).compile().as_text()).collectives()
    weights = [one for one in found if one.kind == "all-gather"]
    assert 0 < sum(one.sent * one.times for one in weights) <= size
    # The one segment of BERT is the same for all items.
    assert all(one.sent <= 2 * 4 * WIDTH for one in found if one not in weights)
