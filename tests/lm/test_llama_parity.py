"""The backbone against transformers.LlamaModel, which has to be installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax.errors import UserError
from quark_jax.interop import load_torch, to_torch
from quark_jax.interop.llama import llama_config, llama_table
from quark_jax.lm.config import LMConfig
from quark_jax.lm.model import LanguageModel

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def pair(kv_heads, scan=False, theta=10000.0):
    config = LMConfig.preset(
        "tiny", layers=3, width=128, heads=8, kv_heads=kv_heads, mlp=352, scan=scan,
        rope_theta=theta, acoustic_size=60, semantic_size=60,
    )  # fmt: skip
    ours = LanguageModel(config, rngs=nnx.Rngs(0))
    torch.manual_seed(0)
    theirs = transformers.LlamaModel(transformers.LlamaConfig(**llama_config(ours))).eval()
    for parameter in theirs.parameters():  # deviations of 0.02 and scales of 1 hide mistakes
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
    return ours, theirs


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("scan", [False, True])
def test_hidden_states_equal_those_of_llama_model(kv_heads, scan):
    ours, theirs = pair(kv_heads, scan, theta=500000.0 if scan else 10000.0)
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    load_torch(ours, llama_table(ours), state)
    x = np.random.default_rng(1).normal(size=(2, 200, 128)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(inputs_embeds=torch.from_numpy(x)).last_hidden_state.numpy()
    hidden = jax.jit(lambda m, x: m.backbone(x))(ours, jnp.array(x))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(hidden, expected, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_weights_open_strictly_in_llama_model_and_come_back(scan):
    ours, theirs = pair(2, scan)
    state = to_torch(ours, llama_table(ours))
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
    back, _ = pair(2, scan)
    load_torch(back, llama_table(back), {k: v.numpy() for k, v in theirs.state_dict().items()})
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)


def test_embeddings_and_heads_are_those_of_llama_for_causal_lm():
    ours, _ = pair(2)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama_config(ours))).eval()
    state = to_torch(ours, llama_table(ours, causal=True))
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
    tokens = np.random.default_rng(0).integers(0, 122, (2, 9, 4))
    rows = torch.from_numpy(tokens + 122 * np.arange(4))
    with torch.no_grad():
        embedded = theirs.model.embed_tokens(rows).sum(2)
        expected = theirs(inputs_embeds=embedded).logits.numpy().reshape(2, 9, 4, 122)
    logits = ours.logits(ours.backbone(ours.embed_steps(jnp.array(tokens))))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_weights_of_another_size_are_refused_by_name():
    ours, _ = pair(2)
    _, theirs = pair(8)
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.k_proj\.weight has shape"):
        load_torch(ours, llama_table(ours), state, source="llama.safetensors")
