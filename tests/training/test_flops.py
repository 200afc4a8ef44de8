"""Operations of a step beside those that XLA counts. XLA also counts what is done element by
element, a few per cent in models of such widths, and the body of a scan only once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from quark_jax.encoders import FeatureConfig, SSLFeatures
from quark_jax.hcodec import HCodecConfig
from quark_jax.interop import as_shapes
from quark_jax.lm import Conditions, LanguageModel, LMConfig, Packing, Targets
from quark_jax.lm.layout import Section
from quark_jax.training import flops
from quark_jax.training.codec_step import CodecLearning, Frozen, LearningConfig
from quark_jax.training.flops import lm_flops, step_flops, traced_flops

FLOAT, INT = jnp.float32, jnp.int32
CONFIG = LMConfig.preset(
    "tiny",
    layers=2,
    width=128,
    heads=4,
    kv_heads=2,
    mlp=256,
    codebooks=2,
    acoustic_size=32,
    semantic_size=32,
    stack_features=True,
    text_channels=12,
)
LENGTH = 2 + (1 + 7) + (1 + 21) + (2 * 40 + CONFIG.codebooks - 1)  # of a sequence, as in `batch`


def shape(*sizes, dtype=FLOAT) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def batch(items: int) -> tuple[Conditions, Targets]:
    """An odd number of frames of input, and captions."""
    lengths = shape(items, dtype=INT)
    conditions = Conditions(
        lengths,
        caption=Section(shape(items, 7, 12), lengths),
        input=Section(shape(items, 41, 80), lengths),
    )
    codes = shape(items, 2, 40, dtype=INT)
    return conditions, Targets(codes, codes, lengths)


def turning(positions: int) -> float:
    """Operations of the products by which rotary embedding turns queries and keys, forward: they
    are in a trace, but not what the model has to compute."""
    heads = CONFIG.layers * (CONFIG.heads + CONFIG.kv_heads)
    return 2.0 * positions * heads * CONFIG.head_dim**2


def trace(config: LMConfig, packing: Packing | None = None, *, learn: bool) -> jax.stages.Traced:
    """The loss of a model of `config` on four items, or its gradient too."""
    graph, params = nnx.split(as_shapes(lambda rngs: LanguageModel(config, rngs=rngs)))

    def loss(params, *batch):
        return nnx.merge(graph, params).loss(*batch, packing).loss

    return jax.jit(jax.value_and_grad(loss) if learn else loss).trace(params, *batch(4))


@pytest.mark.parametrize("packing", [None, Packing(2, 300)])
@pytest.mark.parametrize(
    "changes", [{}, {"scan": True, "remat": "full"}, {"beside": True, "step_stride": 0.5}]
)
def test_a_language_model_by_hand_is_three_times_its_forward_pass(packing, changes):
    config = replace(CONFIG, **changes)
    by_hand = lm_flops(config, *batch(4), packing, causal=False)
    positions = 4 // packing.sequences * packing.positions if packing else 4 * LENGTH
    traced = traced_flops(trace(config, packing, learn=False).jaxpr)
    assert by_hand == 3 * (traced - turning(positions))


def test_a_language_model_by_hand_is_what_xla_counts():
    traced = trace(CONFIG, learn=True)
    counted = traced.lower().cost_analysis()["flops"]
    by_hand = lm_flops(CONFIG, *batch(4), causal=False)
    assert 0.97 < by_hand / (counted - 2 * turning(4 * LENGTH)) < 1  # forward and one gradient
    assert 0.97 < traced_flops(traced.jaxpr) / counted < 1


def test_what_is_masked_in_attention_is_no_work():
    attention = 2 * (lm_flops(CONFIG, *batch(4), causal=False) - lm_flops(CONFIG, *batch(4)))
    # Queries by keys, and shares by values, in both layers; forward and two gradients.
    assert attention == 3 * 2 * 2 * (2 * 4 * LENGTH**2 * CONFIG.width)


def test_recomputing_is_no_work_of_the_model():
    """The trace has what is computed again; the count by hand does not."""
    again = traced_flops(trace(replace(CONFIG, remat="full"), learn=True).jaxpr)
    assert again > 1.2 * lm_flops(CONFIG, *batch(4), causal=False)


def wide_codec() -> HCodecConfig:
    tiny = HCodecConfig.preset("tiny")
    return replace(
        tiny,
        encoder=replace(tiny.encoder, width=256, inner=768, blocks=2),
        semantic=replace(tiny.semantic, width=256),
        decoder=replace(tiny.decoder, width=256, inner=768, mlp=768, blocks=2),
        quantiser=replace(tiny.quantiser, codebooks=1, codebook_size=32),
    )


def test_a_codec_is_what_xla_counts(monkeypatch):
    config = wide_codec()
    learning = CodecLearning(config, LearningConfig(), seed=0)
    frozen = Frozen(SSLFeatures(FeatureConfig()))
    arguments = jax.eval_shape(learning.init), shape(2, 12 * config.hop), frozen, ("mel",)
    step = jax.jit(learning.step, static_argnums=3)
    counted = step.trace(*arguments).lower().cost_analysis()["flops"]
    assert step_flops(step, None)(*arguments) == 0  # nobody asks on a CPU
    monkeypatch.setattr(flops, "peak_flops", lambda: 1e12)
    assert 0.9 < step_flops(step, None)(*arguments) / counted < 1
    assert step_flops(step, lambda wave: wave.size)(*arguments) == 2 * 12 * config.hop


@pytest.mark.parametrize(
    "options",
    [
        {"padding": [(0, 0)]},
        {"padding": [(3, 2)], "window_strides": (2,)},
        {"padding": [(4, 4)], "lhs_dilation": (3,), "rhs_dilation": (2,)},
        {"padding": [(1, 0)], "feature_group_count": 4},
        {"padding": [(1, 0)], "batch_group_count": 2, "window_strides": (3,)},
    ],
)
def test_convolutions_are_what_xla_counts(options):
    options = {"window_strides": (1,), "dimension_numbers": ("NWC", "WIO", "NWC")} | options
    kernel = shape(5, 8 // options.get("feature_group_count", 1), 12)
    traced = jax.jit(
        lambda x, k: jax.lax.conv_general_dilated(x, k, options.pop("window_strides"), **options)
    ).trace(shape(4, 50, 8), kernel)
    assert traced_flops(traced.jaxpr) == traced.lower().cost_analysis()["flops"]


def test_loops_count_as_often_as_they_run_and_branches_as_the_cheapest():
    def often(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]

    def seldom(x):
        return jax.lax.cond(x[0, 0] > 0, often, lambda x: x @ x, x)

    once = 2 * 16**3
    assert traced_flops(jax.make_jaxpr(often)(jnp.ones((16, 16)))) == 7 * once
    assert traced_flops(jax.make_jaxpr(seldom)(jnp.ones((16, 16)))) == once
