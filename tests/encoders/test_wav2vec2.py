"""Against transformers on the same random weights, small configurations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)
from transformers import (
    Wav2Vec2Config as TorchWav2Vec2Config,
)

from quark_jax.encoders import Wav2Vec2, Wav2Vec2Config, build_encoder, load_encoder
from quark_jax.encoders.transformer import relative_buckets
from quark_jax.encoders.wav2vec2 import wav2vec2_table
from quark_jax.errors import UserError

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [24, 32, 24, 24, 24, 24, 40],
    "num_conv_pos_embedding_groups": 2,
}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
EVEN, ODD = {"num_conv_pos_embeddings": 16}, {"num_conv_pos_embeddings": 15}
EPSILON = {"layer_norm_eps": 0.05}
GATE = {"num_buckets": 40, "max_bucket_distance": 60}
MODELS = {
    "hubert-base": (HubertModel, HubertConfig, EVEN),
    "hubert-odd": (HubertModel, HubertConfig, {"feat_proj_layer_norm": False, **ODD, **EPSILON}),
    "wav2vec2-large": (Wav2Vec2Model, TorchWav2Vec2Config, {**STABLE, **EVEN}),
    "wavlm-base": (WavLMModel, WavLMConfig, {**GATE, **EVEN}),
    "wavlm-large": (
        WavLMModel,
        WavLMConfig,
        {**GATE, **STABLE, **ODD, **EPSILON, "hidden_act": "relu"},
    ),
}


def _randomise(module):
    """Norms, gates and biases like those of a trained model, not ones and zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1 or 1 in parameter.shape[:1]:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def _torch_model(name):
    model, config, changes = MODELS[name]
    torch.manual_seed(0)
    return _randomise(model(config(**SMALL, **changes)))


def _state(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _ours(module, **kwargs):
    return build_encoder(module.config.to_dict(), _state(module), **kwargs)


def _wave(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def _relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@jax.jit
def _states(model, wave, lengths=None):
    return model.hidden_states(wave, lengths)


@jax.jit
def _last(model, wave):
    return model(wave)


@pytest.mark.parametrize("name", MODELS)
def test_every_hidden_state_equals_transformers(name):
    theirs = _torch_model(name)
    ours = _ours(theirs)
    wave = _wave(2, 6345)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(wave), output_hidden_states=True)
    states = _states(ours, wave)
    assert len(states) == len(expected.hidden_states) == SMALL["num_hidden_layers"] + 1
    assert states[0].shape[1] == ours.config.frames(wave.shape[1])
    for a, b in zip(states, expected.hidden_states, strict=True):
        assert _relative(a, b.numpy()) < 1e-5
    assert _relative(_last(ours, wave), expected.last_hidden_state.numpy()) < 1e-5


@pytest.mark.parametrize("name", ["hubert-base", "wav2vec2-large", "wavlm-base"])
def test_item_of_a_padded_batch_gets_what_it_gets_alone(name):
    ours = _ours(_torch_model(name))
    wave, lengths = _wave(2, 6000), np.array([6000, 3013])
    together = _states(ours, wave, lengths)
    alone = _states(ours, wave[1:, :3013])
    frames = ours.config.frames(3013)
    for a, b in zip(together, alone, strict=True):
        assert b.shape[1] == frames
        np.testing.assert_allclose(a[1, :frames], b[0], atol=1e-5)


def test_masks_agree_with_transformers_where_it_does_not_leak():
    theirs = _torch_model("wav2vec2-large")
    wave, lengths = _wave(2, 6000), np.array([6000, 3013])
    mask = torch.arange(6000) < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(wave) * mask, attention_mask=mask.long(), output_hidden_states=True
        ).hidden_states
    ours = _states(_ours(theirs), wave, lengths)
    for item, frames in enumerate(theirs._get_feat_extract_output_lengths(torch.tensor(lengths))):
        for a, b in zip(ours, expected, strict=True):
            assert _relative(a[item, :frames], b[item, :frames].numpy()) < 1e-5


@pytest.mark.parametrize(("buckets", "distance"), [(320, 800), (32, 128), (40, 60)])
def test_buckets_at_every_distance(buckets, distance):
    from transformers.models.t5.modeling_t5 import T5Attention
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    offsets = torch.arange(3000)[None] - torch.tensor([[0], [1500], [2999]])
    wavlm = WavLMAttention(8, 2, num_buckets=buckets, max_distance=distance)
    ours = relative_buckets(3000, buckets, distance)[[0, 1500, 2999]]
    np.testing.assert_array_equal(ours, wavlm._relative_positions_bucket(offsets).numpy())
    theirs = T5Attention._relative_position_bucket(offsets, True, buckets, distance).numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_both_weight_norm_key_styles():
    theirs = _torch_model("hubert-base")
    state = _state(theirs)
    old = "encoder.pos_conv_embed.conv.weight"
    style = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
    assert f"{style}0" in state
    renamed = {
        name.replace(f"{style}0", f"{old}_g").replace(f"{style}1", f"{old}_v"): value
        for name, value in state.items()
    }
    assert f"{old}_g" in renamed
    a = build_encoder(theirs.config.to_dict(), state)
    b = build_encoder(theirs.config.to_dict(), renamed)
    np.testing.assert_array_equal(a.position.conv.kernel[...], b.position.conv.kernel[...])
    weight = theirs.encoder.pos_conv_embed.conv.weight.detach().numpy()
    np.testing.assert_allclose(a.position.conv.kernel[...].transpose(2, 1, 0), weight, rtol=1e-5)


@pytest.mark.parametrize("kind", [EVEN, ODD])
def test_positions_on_a_tpu_are_those_on_a_cpu(monkeypatch, kind):
    position = _ours(HubertModel(HubertConfig(**SMALL, **kind))).position
    x = jnp.asarray(_wave(2, 30, 48))
    apart = position(x)
    monkeypatch.setattr("quark_jax.encoders.wav2vec2.platform", lambda: "tpu")
    assert "feature_group_count=2" in str(jax.make_jaxpr(position)(x))
    np.testing.assert_allclose(position(x), apart, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "config"),
    [(HubertForCTC, HubertConfig(**SMALL)), (Wav2Vec2ForPreTraining, TorchWav2Vec2Config(**SMALL))],
)
def test_encoder_inside_a_task_model_folder(tmp_path, task, config):
    torch.manual_seed(0)
    theirs = task(config).eval()
    theirs.save_pretrained(tmp_path)
    wave = _wave(1, 6000)
    with torch.no_grad():
        expected = theirs.base_model(torch.from_numpy(wave)).last_hidden_state.numpy()
    assert _relative(_last(load_encoder(tmp_path), wave), expected) < 1e-5


def test_all_faulty_tensors_are_named_at_once():
    theirs = _torch_model("hubert-base")
    state = _state(theirs)
    del state["encoder.layer_norm.bias"]
    state["feature_projection.projection.weight"] = np.zeros((48, 41), np.float32)
    state["stray"] = np.zeros(1, np.float32)
    with pytest.raises(UserError) as caught:
        build_encoder(theirs.config.to_dict(), state, source="here")
    message = str(caught.value)
    assert message.startswith("here: ")
    assert "missing encoder.layer_norm.bias" in message
    assert "unexpected stray" in message
    assert "feature_projection.projection.weight has shape [48, 41], not [48, 40]" in message


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim"),
        ({"hidden_act": "mish"}, "mish"),
        ({"model_type": "sew"}, "sew"),
    ],
)
def test_unsupported_variants_are_refused(change, word):
    config = HubertConfig(**SMALL).to_dict() | change
    with pytest.raises(UserError, match=word):
        build_encoder(config, {})


PUBLISHED = {
    "hubert-base": (HubertModel, HubertConfig()),
    "wav2vec2-large": (
        Wav2Vec2Model,
        TorchWav2Vec2Config(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            **STABLE,
        ),
    ),
    "wavlm-base-plus": (WavLMModel, WavLMConfig()),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_shapes(preset):
    model, config = PUBLISHED[preset]
    assert Wav2Vec2Config.from_hugging_face(config.to_dict()) == Wav2Vec2Config.preset(preset)
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in model(config).state_dict().items()}
    ours = Wav2Vec2Config.preset(preset)
    shape = nnx.eval_shape(lambda: Wav2Vec2(ours, rngs=nnx.Rngs(0)))
    count = sum(np.prod(v.shape) for v in jax.tree.leaves(nnx.state(shape)))
    gain = 128  # the norms of the positional convolution, fused
    assert count == sum(np.prod(s) for n, s in theirs.items() if n != "masked_spec_embed") - gain
    names = {entry.torch for entry in wav2vec2_table(ours)}
    fused = "encoder.pos_conv_embed.conv"
    assert names - set(theirs) == {f"{fused}.weight"}
    assert set(theirs) - names == {
        "masked_spec_embed",
        f"{fused}.parametrizations.weight.original0",
        f"{fused}.parametrizations.weight.original1",
    }


def test_bfloat16_is_close():
    theirs = _torch_model("wavlm-base")
    wave = _wave(2, 6345)
    ours = _ours(theirs, dtype=jnp.bfloat16)
    states = _states(ours, wave)
    assert all(state.dtype == jnp.bfloat16 for state in states)
    exact = _states(_ours(theirs), wave)[-1]
    assert _relative(states[-1].astype(jnp.float32), np.asarray(exact)) < 0.05
