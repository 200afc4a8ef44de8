"""The transformer whose attention reads through an LSTM, used in encoder and decoder of H-Codec."""

import jax
import jax.numpy as jnp
from flax import nnx

from quark_jax.nn.layers import Dtype, linear, rms_norm
from quark_jax.nn.masking import Mask, key_mask
from quark_jax.nn.rotary import rotate_half


class LSTM(nnx.Module):
    """One unidirectional layer [batch, time, width] -> same; gates in the order i, f, g, o, with
    two biases, as in PyTorch. Recurrence is computed in float32."""

    def __init__(self, width: int, *, dtype: Dtype = None, rngs: nnx.Rngs):
        bound = width**-0.5

        def uniform(*shape):
            return jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)

        self.input_kernel = nnx.Param(uniform(width, 4 * width), axes=("embed", "mlp"))
        self.hidden_kernel = nnx.Param(uniform(width, 4 * width), axes=("embed", "mlp"))
        self.input_bias = nnx.Param(uniform(4 * width))
        self.hidden_bias = nnx.Param(uniform(4 * width))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = self.dtype or x.dtype
        # The input projection does not depend on the state: one product over all frames.
        gates = x.astype(dtype) @ self.input_kernel[...].astype(dtype)
        gates = gates.astype(jnp.float32) + self.input_bias[...] + self.hidden_bias[...]
        kernel = self.hidden_kernel[...].astype(dtype)
        batch, frames, width = x.shape
        items = (batch,) if batch > 1 else ()  # one item alone: matrix times vector is faster
        hidden = _recur(gates.swapaxes(0, 1).reshape(frames, *items, 4 * width), kernel)
        return hidden.reshape(frames, batch, width).swapaxes(0, 1).astype(x.dtype)


def _states(gates: jax.Array, kernel: jax.Array) -> jax.Array:
    """Hidden states [time, ..., width] of gates [time, ..., 4 * width] without the hidden part."""

    def step(carry, gate):
        hidden, cell = carry
        product = jnp.dot(hidden.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
        i, f, g, o = jnp.split(gate + product, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros((*gates.shape[1:-1], kernel.shape[0]), jnp.float32)
    return jax.lax.scan(step, (zeros, zeros), gates)[1]


@jax.custom_vjp
def _recur(gates: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_states`, with the gradient of the kernel as one product over all frames: added up frame by
    frame it is read and written each time, and may be summed over the devices each time."""
    return _states(gates, kernel)


def _forward(gates, kernel):
    hidden, pull = jax.vjp(lambda gates: _states(gates, kernel), gates)
    return hidden, (pull, hidden, kernel)


def _backward(residuals, cotangent):
    pull, hidden, kernel = residuals
    (gates,) = pull(cotangent)
    before, after = (
        a.reshape(-1, a.shape[-1]).astype(kernel.dtype) for a in (hidden[:-1], gates[1:])
    )
    product = jnp.dot(before.T, after, preferred_element_type=jnp.float32)
    return gates, product.astype(kernel.dtype)


_recur.defvjp(_forward, _backward)


class RecurrentAttention(nnx.Module):
    """Full self-attention with rotary positions over the output of an LSTM."""

    def __init__(self, width: int, heads: int, *, dtype: Dtype = None, rngs: nnx.Rngs):
        self.lstm = LSTM(width, dtype=dtype, rngs=rngs)
        self.query = linear(width, width, axes=("embed", "heads"), dtype=dtype, rngs=rngs)
        self.key = linear(width, width, axes=("embed", "heads"), dtype=dtype, rngs=rngs)
        self.value = linear(width, width, axes=("embed", "heads"), dtype=dtype, rngs=rngs)
        self.out = linear(width, width, axes=("heads", "embed"), bias=False, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(self, x: jax.Array, mask: Mask = None) -> jax.Array:
        batch, frames, width = x.shape
        x = self.lstm(x)
        split = (batch, frames, self.heads, width // self.heads)
        positions = jnp.arange(frames)[:, None]
        q = rotate_half(self.query(x).reshape(split), positions)
        k = rotate_half(self.key(x).reshape(split), positions)
        v = self.value(x).reshape(split)
        y = jax.nn.dot_product_attention(q, k, v, mask=key_mask(mask))
        return self.out(y.reshape(batch, frames, width))


class GatedMLP(nnx.Module):
    """down(silu(gate x) * up x), without biases (SwiGLU, 2002.05202)."""

    def __init__(self, width: int, inner: int, *, dtype: Dtype = None, rngs: nnx.Rngs):
        self.gate = linear(width, inner, axes=("embed", "mlp"), bias=False, dtype=dtype, rngs=rngs)
        self.up = linear(width, inner, axes=("embed", "mlp"), bias=False, dtype=dtype, rngs=rngs)
        self.down = linear(inner, width, axes=("mlp", "embed"), bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class RecurrentLayer(nnx.Module):
    """x += attention(RMSNorm(x)); x += MLP(RMSNorm(x))."""

    def __init__(self, width: int, heads: int, inner: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.attention_norm = rms_norm(width, dtype=dtype, rngs=rngs)
        self.attention = RecurrentAttention(width, heads, dtype=dtype, rngs=rngs)
        self.mlp_norm = rms_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = GatedMLP(width, inner, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: Mask = None) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))


class RecurrentTransformer(nnx.Module):
    """[batch, time, width] -> same; no final norm."""

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        heads: int,
        inner: int,
        dtype: Dtype = None,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List(
            [RecurrentLayer(width, heads, inner, dtype=dtype, rngs=rngs) for _ in range(layers)]
        )

    def __call__(self, x: jax.Array, mask: Mask = None) -> jax.Array:
        for layer in self.layers:
            x = layer(x, mask)
        return x
