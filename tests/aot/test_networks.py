"""Networks whose weights are split over the devices, compiled for TPUs."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from quark_jax.aot import Collective, Hlo, topology_devices
from quark_jax.encoders import BertConfig, BertEncoder, T5Config, T5Encoder
from quark_jax.interop import as_shapes
from quark_jax.lm import Conditions, LanguageModel, LMConfig, Packing, Section, Targets
from quark_jax.training.checkpoint import abstract
from quark_jax.training.sharding import MeshConfig, batch_sharding, make_mesh, shardings

BATCH, TOKENS, WIDTH = 64, 16, 128
T5 = T5Config(vocabulary=128, width=WIDTH, heads=2, inner=256, layers=2)
BERT = BertConfig(vocabulary=128, width=WIDTH, heads=2, inner=256, layers=2)


def sent(run, network, batch) -> list[Collective]:
    """What chips of a v5e:2x2 send for `run(network, batch)`, both split over all of them."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), topology_devices("v5e:2x2"))
    network = abstract(network, shardings(network, mesh))
    batch = jax.tree.map(lambda leaf: leaf.update(sharding=batch_sharding(mesh)), batch)

    def traced(network, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # as a step is traced
            return run(network, batch)

    return Hlo(jax.jit(traced).lower(network, batch).compile().as_text()).collectives()


@pytest.mark.parametrize("encoder", [partial(T5Encoder, T5), partial(BertEncoder, BERT)])
def test_weights_are_sent_and_activations_are_not(encoder):
    """Each chip has its own part of the batch, and fetches the weights of a layer: left to itself,
    XLA adds up activations of the whole batch over all chips."""
    network = as_shapes(lambda rngs: encoder(rngs=rngs))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(network))
    ids = jax.ShapeDtypeStruct((BATCH, TOKENS), jnp.int32)
    found = sent(lambda network, ids: network(ids), network, ids)
    weights = [one for one in found if one.kind == "all-gather"]
    assert 0 < sum(one.sent * one.times for one in weights) <= size
    # The one segment of BERT is the same for all items.
    assert all(one.sent <= 2 * 4 * WIDTH for one in found if one not in weights)


def test_a_language_model_sends_weights_and_gradients_alone():
    """Tables, adapters and what is laid out in rows included, forward and backward."""
    small = {"layers": 1, "width": WIDTH, "mlp": WIDTH, "acoustic_size": 32, "semantic_size": 32}
    config = LMConfig.preset("tiny", **small, codebooks=1, attention="xla")
    graph, params = nnx.split(as_shapes(lambda rngs: LanguageModel(config, rngs=rngs)))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    lengths = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    features = jax.ShapeDtypeStruct((BATCH, 200, config.audio_channels), jnp.float32)
    codes = jax.ShapeDtypeStruct((BATCH, 1, 100), jnp.int32)
    batch = Conditions(lengths, input=Section(features, lengths)), Targets(codes, codes, lengths)

    def gradient(params, batch):
        return jax.grad(lambda p: nnx.merge(graph, p).loss(*batch, Packing(2, 896)).loss)(params)

    total = sum(one.sent * one.times for one in sent(gradient, params, batch))
    assert 0 < total <= 4 * size  # what is laid out is 25 times the weights
