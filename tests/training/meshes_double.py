"""meshes.py with all that is float32 in double precision, where rounding is no excuse:

python tests/training/meshes_double.py '[{"data": 2, "fsdp": 4}]'
"""

import jax
import jax.numpy as jnp


def attention(query, key, value, *, mask=None, is_causal=False):
    """As `jax.nn.dot_product_attention`, whose softmax is float32 whatever it is given."""
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / query.shape[-1] ** 0.5
    if is_causal:
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), value)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64  # before anything else is imported that names it
    jax.nn.dot_product_attention = attention
    import meshes

    from quark_jax.lm import LMConfig

    LMConfig.compute_dtype = jnp.dtype("float64")
    meshes.main()


if __name__ == "__main__":
    main()
