"""Against transformers on the same random weights, small configurations."""

import jax
import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from quark_jax.encoders import build_encoder, load_encoder, mean_pool
from quark_jax.errors import UserError

BERT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
T5 = {"d_model": 48, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 50}
MODELS = {
    "bert": (BertModel, BertConfig(**BERT)),
    "bert-wide-epsilon": (BertModel, BertConfig(**BERT, layer_norm_eps=0.1, hidden_act="gelu_new")),
    "t5": (
        T5EncoderModel,
        T5Config(**T5, relative_attention_max_distance=20, layer_norm_epsilon=0.1),
    ),
    "t5-gated": (T5EncoderModel, T5Config(**T5, feed_forward_proj="gated-gelu")),
    "t5-silu": (
        T5EncoderModel,
        T5Config(**T5, feed_forward_proj="gated-silu", relative_attention_num_buckets=8),
    ),
}
IDS = np.random.default_rng(0).integers(0, 50, (3, 37))
LENGTHS = np.array([37, 12, 1])
MASK = np.arange(37) < LENGTHS[:, None]


def _torch_model(name):
    model, config = MODELS[name]
    torch.manual_seed(0)
    theirs = model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return theirs


def _ours(theirs):
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return build_encoder(theirs.config.to_dict(), state)


@jax.jit
def _states(model, ids, mask=None):
    return model.hidden_states(ids, mask)


@pytest.mark.parametrize("name", MODELS)
def test_every_hidden_state_equals_transformers(name):
    theirs = _torch_model(name)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(IDS),
            attention_mask=torch.from_numpy(MASK).long(),
            output_hidden_states=True,
        )
    ours = _ours(theirs)
    states = _states(ours, IDS, MASK)
    assert len(states) == len(expected.hidden_states) == 3
    assert states[0].shape[-1] == ours.channels
    for a, b in zip(states, expected.hidden_states, strict=True):
        b = b.numpy()
        assert np.abs((a - b)[MASK]).max() < 1e-5 * np.abs(b[MASK]).max()
    last = expected.last_hidden_state.numpy()
    assert np.abs((states[-1] - last)[MASK]).max() < 1e-5 * np.abs(last).max()


@pytest.mark.parametrize("name", ["bert", "t5-gated"])
def test_item_of_a_padded_batch_gets_what_it_gets_alone(name):
    ours = _ours(_torch_model(name))
    together = _states(ours, IDS, MASK)[-1]
    alone = _states(ours, IDS[1:2, :12])[-1]
    np.testing.assert_allclose(together[1, :12], alone[0], atol=1e-5)
    pooled = mean_pool(together, MASK)
    np.testing.assert_allclose(pooled[1], alone[0].mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("task", "config"),
    [
        (BertForMaskedLM, BertConfig(**BERT)),
        (T5ForConditionalGeneration, T5Config(**T5)),
        (T5EncoderModel, T5Config(**T5)),
    ],
)
def test_encoder_inside_a_task_model_folder(tmp_path, task, config):
    torch.manual_seed(0)
    theirs = task(config).eval()
    theirs.save_pretrained(tmp_path)
    inner = theirs.bert if task is BertForMaskedLM else theirs.get_encoder()
    with torch.no_grad():
        expected = inner(torch.from_numpy(IDS)).last_hidden_state.numpy()
    ours = load_encoder(tmp_path)(IDS)
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


def test_old_names_of_norms_and_embeddings():
    theirs = _torch_model("bert")
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor.numpy()
        for name, tensor in theirs.state_dict().items()
    }
    state["embeddings.position_ids"] = np.arange(40)[None]
    assert "embeddings.LayerNorm.gamma" in state
    ours = build_encoder(theirs.config.to_dict(), state)
    np.testing.assert_array_equal(ours.norm.scale[...], state["embeddings.LayerNorm.gamma"])
    theirs = _torch_model("t5")
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
    ours = build_encoder(theirs.config.to_dict(), state)
    np.testing.assert_array_equal(ours.tokens.embedding[...], state["encoder.embed_tokens.weight"])


def test_too_many_tokens_and_other_variants_are_refused():
    theirs = _torch_model("bert")
    with pytest.raises(UserError, match="41 tokens are more than the 40"):
        _ours(theirs)(np.zeros((1, 41), int))
    config = theirs.config.to_dict()
    for field, value in (("position_embedding_type", "relative_key"), ("is_decoder", True)):
        with pytest.raises(UserError, match=field):
            build_encoder(config | {field: value}, {})
    with pytest.raises(UserError, match="geglu"):
        build_encoder(T5Config(**T5).to_dict() | {"feed_forward_proj": "gated-geglu"}, {})
