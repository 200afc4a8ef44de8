"""Weights of the language model under the names of `transformers`' LLaMA classes."""

from quark_jax.interop.table import LINEAR, SAME, Entry
from quark_jax.lm.model import LanguageModel

_BLOCK = (
    ("self_attn.q_proj", "attention.query.kernel", LINEAR),
    ("self_attn.k_proj", "attention.key.kernel", LINEAR),
    ("self_attn.v_proj", "attention.value.kernel", LINEAR),
    ("self_attn.o_proj", "attention.out.kernel", LINEAR),
    ("mlp.gate_proj", "mlp.gate.kernel", LINEAR),
    ("mlp.up_proj", "mlp.up.kernel", LINEAR),
    ("mlp.down_proj", "mlp.down.kernel", LINEAR),
    ("input_layernorm", "attention_norm.scale", SAME),
    ("post_attention_layernorm", "mlp_norm.scale", SAME),
)


def llama_config(model: LanguageModel) -> dict[str, int | float | bool]:
    """Keyword arguments of `transformers.LlamaConfig` for the LLaMA in `model`; its vocabulary
    is heads * vocabulary, token k of head h being number h * vocabulary + k."""
    config = model.config
    return {
        "vocab_size": model.pattern.heads * model.pattern.vocabulary.size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }


def llama_table(model: LanguageModel, *, causal: bool = False) -> list[Entry]:
    """Every tensor of `transformers.LlamaModel`; with `causal`, of LlamaForCausalLM, output
    heads included. Adapters, start and task vectors have no counterpart there."""
    prefix = "model." if causal else ""
    table = [Entry(f"{prefix}embed_tokens.weight", "embedding.embedding")]
    stack = model.backbone.layers
    for layer in range(model.config.layers):
        path, row = stack.locate(layer)
        table += [
            Entry(
                f"{prefix}layers.{layer}.{name}.weight", f"backbone.layers.{path}.{ours}", kind, row
            )
            for name, ours, kind in _BLOCK
        ]
    table.append(Entry(f"{prefix}norm.weight", "backbone.norm.scale"))
    if causal:
        table.append(Entry("lm_head.weight", "head.kernel", LINEAR))
    return table
